"""Masks of an object that goes less far than it is wide: what moves fastest, found again in every frame.

The background behind such an object never shows, so a silhouette against it is two edges. Flow shows the object in the
frame in which it moves fastest; that patch is then looked for in the whole of every other frame, wherever it went: a
jump is a jump, and nothing but its size is carried over from frame to frame.
Letters: T frames, N pairs, H height, W width; h, w of the cut-out; places and flow in px.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from newtonrewards.eval.look import Seen, largest
from newtonrewards.eval.tracks import PRESENT_PIXELS
from newtonrewards.rewards.classical import DisFlow

# What has this share of the fastest pixels' speed belongs to the object, where they are faster than this (px/frame).
FAST_SHARE, LEAST_SPEED = 0.5, 0.5
# So many px around the patch are looked for with it: a plain object shows itself by its rim alone.
RIM = 1
# Less alike than this (correlation in [-1, 1]) is something else: true clips have .88 and more, two textures that have
# nothing to do with each other up to .81 at the best place.
ALIKE = 0.85
# Aligning may move a match by no more px than this, and its log size: it is for the fraction of a pixel. A size that is
# closer to one than `SAME` needs no picture of its own.
FRACTION, GROWTH, SAME = 2.0, 0.25, 0.02
# Objects that go further than so many of their own widths show the background; silhouettes do better then. The patch is
# often only a part of the object.
WIDTHS = 3.0
# The pixels that are looked for are found so many times anew, without the background among them: those which, in frames
# in which the object is so many px away, going with it explains no better than to this share of standing still, and
# no better than to so much grey (of 255).
ROUNDS, APART, WORSE, CLEAR = 2, 3.0, 0.3, 6.0
# So many frames tell how far it goes.
SAMPLES = 7
# Steps of aligning, and the step (px) that is small enough to stop; pictures are blurred by so many px (std) for it.
STEPS, ENOUGH, BLUR = 12, 1e-3, 1.0


def matched(frames: Float[np.ndarray, "T H W 3"], seen: Seen) -> Float[np.ndarray, "T H W"] | None:
    """Soft masks of the fastest patch at the place where it is found; empty in frames without it.

    They have the right place, and grow as the object does; it may be only a part of the object.

    Args:
        frames: RGB in [0, 1], of a still camera. seen: the flow in a cut-out of them.
    Returns:
        None where nothing moves, or where it goes so far that silhouettes are good.
    Source: ours, from normalised cross-correlation (`cv2.matchTemplate`) and Lucas and Kanade's alignment.
    """
    key, patch = _fastest(frames, seen)
    if patch.sum() < PRESENT_PIXELS:
        return None
    grey = ndimage.gaussian_filter((frames.mean(axis=-1) * 255).astype(np.float32), (0, BLUR, BLUR))
    some = np.linspace(0, len(grey) - 1, SAMPLES).round().astype(int)
    width = 2 * float(np.sqrt(patch.sum() / np.pi))
    around = ndimage.binary_dilation(patch, iterations=RIM)
    if _way(_places(grey, key, around, some)) > WIDTHS * width:
        return None
    for _ in range(ROUNDS):
        around = _without_background(grey, key, _places(grey, key, around), around)
    places = _places(grey, key, around)
    if not 0 < _way(places) <= WIDTHS * width:
        return None
    masks = np.zeros(grey.shape, dtype=np.float32)
    middle = _middle(around)[::-1]
    for frame, (x, y, log_size) in enumerate(places):
        if np.isfinite(x):
            smaller = np.exp(-log_size)
            offset = middle - smaller * (middle + np.array([y, x]))
            masks[frame] = ndimage.affine_transform(patch.astype(np.float32), [smaller, smaller], offset, order=1)
    return masks


def _fastest(frames: Float[np.ndarray, "T H W 3"], seen: Seen) -> tuple[int, Bool[np.ndarray, "H W"]]:
    """The frame in which something is fastest, and the largest patch of it there, empty if that is slow."""
    peaks = ndimage.median_filter(_speed(seen.flows["DIS flow"])[1], 3, mode="nearest")  # a jump is no speed
    key = seen.frames.start + int(peaks.argmax())
    pair = torch.from_numpy(frames[key : key + 2]).permute(0, 3, 1, 2)[None]
    speed, peak = _speed(DisFlow()(pair))  # the cut-out may be smaller, and its patch would be coarse
    hard = speed[0] > FAST_SHARE * peak[0]
    return key, largest(hard) if peak[0] >= LEAST_SPEED else np.zeros_like(hard)


def _speed(flow: Float[Tensor, "1 n 2 h w"]) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, " n"]]:
    """Speed of each pixel, and the highest of each pair but for outliers, px/frame."""
    speed = np.linalg.norm(flow[0].numpy(), axis=1)
    return speed, np.quantile(speed.reshape(len(speed), -1), 0.995, axis=1)


def _way(places: Float[np.ndarray, "T 3"]) -> float:
    """Diagonal of the box around the places, px; 0 where there are none."""
    known = places[np.isfinite(places).all(axis=1), :2]
    return float(np.linalg.norm(np.ptp(known, axis=0))) if len(known) else 0.0


def _places(
    grey: Float[np.ndarray, "T H W"],
    key: int,
    around: Bool[np.ndarray, "H W"],
    chosen: Int[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "T 3"]:
    """How far the middle of these pixels of the key frame is shifted in each frame, x and y, and the log of how much
    larger they are; NaN where they aren't found, or not looked for."""
    places = np.full((len(grey), 3), np.nan)
    frames = range(len(grey)) if chosen is None else chosen
    for side in ([t for t in frames if t >= key], [t for t in frames if t < key][::-1]):
        log_size = 0.0
        for t in side:
            places[t] = _place(grey[t], grey[key], around, log_size)
            if np.isfinite(places[t, 2]):
                log_size = float(places[t, 2])
    return places


def _place(
    frame: Float[np.ndarray, "H W"], key: Float[np.ndarray, "H W"], around: Bool[np.ndarray, "H W"], log_size: float
) -> Float[np.ndarray, " 3"]:
    """Shift and log size of these pixels in one frame, in which they are of about this size."""
    rows, columns = (slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(around))
    shape, template = around[rows, columns].astype(np.float32), key[rows, columns]
    middle = _middle(around) - (columns.start, rows.start)
    start = np.array([-columns.start, -rows.start, log_size])
    if abs(log_size) > SAME:
        size = np.round(np.array(template.shape[::-1]) * np.exp(log_size)).clip(1).astype(int)
        start[:2] += (middle + 0.5) * (size / template.shape[::-1] - 1)
        template = cv2.resize(template, size, interpolation=cv2.INTER_AREA if log_size < 0 else cv2.INTER_LINEAR)
        shape = cv2.resize(shape, size, interpolation=cv2.INTER_NEAREST)
    if (np.array(template.shape) > frame.shape).any():
        return np.full(3, np.nan)
    alike = cv2.matchTemplate(frame, template, cv2.TM_CCOEFF_NORMED, mask=shape)
    alike[~np.isfinite(alike)] = -1.0  # where the frame has one colour
    y, x = np.unravel_index(int(alike.argmax()), alike.shape)
    return _aligned(frame, key, around, start + np.array([x, y, 0])) if alike[y, x] >= ALIKE else np.full(3, np.nan)


def _middle(around: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, " 2"]:
    """Mean of the pixels, x and y."""
    y, x = np.nonzero(around)
    return np.array([x.mean(), y.mean()])


def _without_background(
    grey: Float[np.ndarray, "T H W"], key: int, places: Float[np.ndarray, "T 3"], around: Bool[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """The pixels less those that clearly stand still while the object moves: a background's texture pulls."""
    shifts = (places - places[key])[:, :2]
    far = np.flatnonzero(np.isfinite(shifts).all(axis=1) & (np.linalg.norm(shifts, axis=1) >= APART))
    if not len(far):
        return around
    y, x = np.nonzero(around)
    here = grey[key, y, x]
    there = [ndimage.map_coordinates(grey[t], _moved(around, places[t]), order=1, mode="nearest") for t in far]
    going = np.median(np.abs(np.array(there) - here), axis=0)
    still = np.median(np.abs(grey[far][:, y, x] - here), axis=0)
    stays = (going > CLEAR) & (going > WORSE * still)
    kept = around.copy()
    kept[y[stays], x[stays]] = False
    return kept if kept.sum() >= PRESENT_PIXELS else around


def _moved(around: Bool[np.ndarray, "H W"], place: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "2 n"]:
    """Where these pixels are, rows and columns, at a place and size."""
    (y, x), middle, size = np.nonzero(around), _middle(around), np.exp(place[2])
    return np.array([(y - middle[1]) * size + middle[1] + place[1], (x - middle[0]) * size + middle[0] + place[0]])


def _aligned(
    frame: Float[np.ndarray, "H W"],
    key: Float[np.ndarray, "H W"],
    around: Bool[np.ndarray, "H W"],
    start: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, " 3"]:
    """A place to fractions of a pixel and the log of the object's size there, by least squares over the pixels with the
    change of their mean taken out; as it is where that leads away.

    Source: Lucas and Kanade 1981. On a shifted texture it is .002 px off, OpenCV's `findTransformECC` with a mask .2.
    """
    (y, x), middle = np.nonzero(around), _middle(around)
    wanted, fine = key[y, x], start.copy()
    for _ in range(STEPS):
        size, here = np.exp(fine[2]), _moved(around, fine)
        values, right, left, below, above = (
            ndimage.map_coordinates(frame, [here[0] + dy, here[1] + dx], order=1, mode="nearest")
            for dy, dx in ((0, 0), (0, 0.5), (0, -0.5), (0.5, 0), (-0.5, 0))
        )
        across, down = right - left, below - above
        grows = across * (x - middle[0]) * size + down * (y - middle[1]) * size
        slopes = np.stack([across, down, grows], axis=1)
        away = wanted - values
        step = np.linalg.lstsq(slopes - slopes.mean(axis=0), away - away.mean(), rcond=None)[0]
        fine += step
        if (np.abs(fine - start) > (FRACTION, FRACTION, GROWTH)).any():
            return start
        if float(np.abs(step).max()) < ENOUGH:
            break
    return fine
