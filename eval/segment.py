"""Pixels -> soft object mask, for generated clips whose truth is known: where the object is, wherever it went.

The camera stands still and the first frame is given, so the truth clip tells what the background looks like without
the object (a plate) and which colours the object has (a palette). Each pixel is then explained as background under
any light between shadow and full, or as a mixture of plate and object colour. Nothing is carried over from frame to
frame: a teleport, a freeze or a vanished object is seen as it is.
Letters: T frames, H height, W width, K colours, N pixels; pixels are RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, ShapeError
from newtonrewards.eval.tracks import PRESENT_PIXELS, PRESENT_SHARE, Track, centroid

PALETTE = 12
# A pixel this close to the shaded plate (RGB distance) is background; under it lie codec noise and rounding.
NOISE = 0.03
# Below the first share of object a pixel counts as none, above the second as all. Measured on simulated clips: a wider
# or narrower ramp moves the centre more from frame to frame.
EMPTY, FULL = 0.09, 0.81
# True masks come in quarters of a pixel and count above 1/2, so their edge lies between 1/2 and 3/4.
HARD = 0.6
# Further than an anti-aliased edge (1 px) from a pixel with at least this share lies no object but a ghost, a faint
# outline left behind.
STRONG = 0.5
# A fragment with less than this share of the largest one's area is dropped as a speck.
FRAGMENT_SHARE = 0.25
# What the numbers of a results file depend on beside the formulas.
SETTINGS = {
    "palette": PALETTE,
    "noise": NOISE,
    "empty": EMPTY,
    "full": FULL,
    "hard": HARD,
    "strong": STRONG,
    "fragment_share": FRAGMENT_SHARE,
}
# Neighbours in the same frame only.
IN_FRAME = np.ones((1, 3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class Scene:
    """What the truth clip tells about the looks of all clips that share its first frame.

    Attributes:
        plate: (H, W, 3) background without the object.
        palette: (K, 3) colours of the object.
        darkest: luminance factor of the deepest shadow on the plate, in (0, 1].
        brightest: the largest factor by which the plate is brightened, >= 1.
        area: the object's area in the first frame, px.
    """

    plate: Float[np.ndarray, "H W 3"]
    palette: Float[np.ndarray, "K 3"]
    darkest: float
    brightest: float
    area: float


def learn_scene(clip: Clip) -> Scene:
    """Plate and palette of a truth clip.

    Raises:
        InputError: no masks, or no object in them.
    """
    where = clip.source.path or None
    if clip.masks is None:
        raise InputError("a truth clip needs object masks", where=where, fix="Simulate it again.")
    frames = channels_last(clip)
    masks = clip.masks.numpy().astype(np.float32)
    solid = frames[masks > 0.95]
    if len(solid) < PRESENT_PIXELS:
        raise InputError("the masks show no object", where=where, fix="Leave the clip out or simulate it again.")
    free = masks < 0.01
    first = masks[0].sum() or masks.sum(axis=(1, 2)).max()
    return scene_of(frames, free, background(frames, free), solid, float(first))


def scene_of(
    frames: Float[np.ndarray, "T H W 3"],
    free: Bool[np.ndarray, "T H W"],
    plate: Float[np.ndarray, "H W 3"],
    solid: Float[np.ndarray, "N 3"],
    area: float,
) -> Scene:
    """A scene from what is known to be background, the `free` pixels, and what is known to be object, the `solid`
    colours."""
    light = _dot(frames, plate[None]) / np.maximum(_dot(plate, plate), 1e-4)
    darkest, brightest = np.quantile(light[free], [0.002, 0.998])
    return Scene(plate, _palette(solid), float(min(darkest, 1.0)) - 0.03, float(max(brightest, 1.0)) + 0.03, area)


def soft_masks(scene: Scene, frames: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W"]:
    """Share of the object in each pixel, in [0, 1]; a frame without the object is all 0."""
    share = np.zeros(frames.shape[:3], dtype=np.float32)
    difference = np.abs(frames - scene.plate) > NOISE
    changed = difference[..., 0] | difference[..., 1] | difference[..., 2]
    changed = ndimage.binary_dilation(changed, IN_FRAME)
    pixels, plate = frames[changed], np.broadcast_to(scene.plate, frames.shape)[changed]
    share[changed] = _object_share(scene, pixels, plate)
    return _without_specks(scene, share)


def track(scene: Scene, clip: Clip) -> Track:
    """Track of a clip that begins with the scene's first frame.

    Raises:
        ShapeError: the clip's frames differ in size from the truth's.
    """
    frames = channels_last(clip)
    if frames.shape[1:3] != scene.plate.shape[:2]:
        raise ShapeError(
            "frames are {} x {} px, the truth's {} x {}".format(*frames.shape[1:3], *scene.plate.shape[:2]),
            where=clip.source.path or None,
            fix="Generate at the truth's size, or read both at one size.",
        )
    soft = soft_masks(scene, frames)
    position, area = centroid(soft)
    return Track(position, soft > HARD, area, np.ones(len(soft), dtype=bool), clip.fps)


def channels_last(clip: Clip) -> Float[np.ndarray, "T H W 3"]:
    """A clip's frames as numpy and OpenCV want them."""
    return np.ascontiguousarray(clip.frames.permute(0, 2, 3, 1).numpy(), dtype=np.float32)


def ranked(
    frames: Float[np.ndarray, "T H W 3"], known: Bool[np.ndarray, "T H W"], rank: Int[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W 3"]:
    """The value of that rank (0 the darkest) of each pixel over the frames in which it is known; infinite where it
    never is."""
    ordered = np.sort(np.where(known[..., None], frames, np.inf), axis=0)  # the unknown ones last
    return np.asarray(np.take_along_axis(ordered, rank.clip(0)[None, ..., None], axis=0)[0])


def background(frames: Float[np.ndarray, "T H W 3"], free: Bool[np.ndarray, "T H W"]) -> Float[np.ndarray, "H W 3"]:
    """Upper quartile of each pixel over the frames in which the object is elsewhere: mostly out of its shadow."""
    plate = ranked(frames, free, (0.75 * (free.sum(axis=0) - 1)).round().astype(int))
    ever = np.asarray(free.any(axis=0))
    nearest = ndimage.distance_transform_edt(~ever, return_distances=False, return_indices=True)
    return plate[tuple(nearest)]  # never uncovered: what lies beside it


def _palette(colours: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "K 3"]:
    """K means from farthest points: the same for the same pixels, and it keeps rare colours."""
    colours = colours[:: max(1, len(colours) // 600)].astype(np.float32)
    centres = colours[[int(np.argmin(((colours - colours.mean(0)) ** 2).sum(1)))]]
    for _ in range(min(PALETTE, len(colours)) - 1):
        nearest = ((colours[:, None] - centres) ** 2).sum(-1).min(1)
        centres = np.concatenate([centres, colours[[int(nearest.argmax())]]])
    for _ in range(5):
        owner = ((colours[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.stack(
            [colours[owner == k].mean(0) if (owner == k).any() else centres[k] for k in range(len(centres))]
        )
    return centres


def _object_share(
    scene: Scene, pixels: Float[np.ndarray, "N 3"], plate: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, " N"]:
    """Mixture weight of the best object colour, unless shaded plate explains the pixel as well."""
    light = _dot(pixels, plate) / np.maximum(_dot(plate, plate), 1e-4)
    unlike = pixels - np.clip(light, scene.darkest, scene.brightest)[:, None] * plate
    as_plate = _dot(unlike, unlike)
    towards = scene.palette[None] - plate[:, None]
    change = (pixels - plate)[:, None]
    weight = np.clip(_dot(change, towards) / np.maximum(_dot(towards, towards), 1e-4), 0.0, 1.0)
    rest = change - weight[..., None] * towards
    misfit = _dot(rest, rest)
    best = (misfit + 0.004 * (1 - weight) ** 2).argmin(1)
    rows = np.arange(len(pixels))
    share, as_object = weight[rows, best], misfit[rows, best]
    evidence = as_plate / (as_plate + as_object + NOISE**2)
    return np.clip((share * evidence - EMPTY) / (FULL - EMPTY), 0.0, 1.0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of products over colour; a reduction over an axis of three is several times slower."""
    return np.asarray(a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2])


def _without_specks(scene: Scene, share: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T H W"]:
    share = np.where(ndimage.binary_dilation(share > STRONG, IN_FRAME), share, 0.0)
    labels, count = ndimage.label(share > 0, np.concatenate([0 * IN_FRAME, IN_FRAME, 0 * IN_FRAME]))
    if not count:
        return share
    names = np.arange(1, count + 1)
    area = ndimage.sum_labels(share, labels, names)
    frame = np.array([place[0].start for place in ndimage.find_objects(labels)])
    largest = np.zeros(len(share))
    np.maximum.at(largest, frame, area)
    least = np.maximum(FRAGMENT_SHARE * largest[frame], max(PRESENT_PIXELS, PRESENT_SHARE * scene.area))
    keep = np.concatenate([[False], area >= least])
    return np.where(keep[labels], share, 0.0).astype(np.float32)
