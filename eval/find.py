"""Finding the moving object of a video without a mask: still camera, one object that follows a law for a while.

What differs from the background (the median over time) is cut into patches; patches are linked from frame to frame
into tracks; the track that obeys one law of constant acceleration for longest, over the longest way, is the object.
A person who throws a ball moves too, but not so.
Letters: T frames, H height, W width. Positions in px here, H in everything that leaves this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from newtonrewards.eval.tracks import PRESENT_PIXELS
from newtonrewards.rewards.window import PEAK, Window, longest_window, tolerance

# A shadow leaves the background at this share of its light or more; anything darker is an object.
SHADOW = 0.55
# Smallest colour difference to the background that counts, and how many times the noise it must be.
DIFFERENCE, NOISE_FACTOR = 0.04, 6.0
# With more changed pixels than this in a typical frame, the camera moves, the light changes or all shimmers; then what
# clearly stands out, in no more than that share, is an object.
MOVING_CAMERA, OBJECT_SHARE = 0.35, 0.15
# Shifts tried (px), and the smallest error that is more than rounding.
SHIFT, LEAST_ERROR = 4, 0.003
# A patch may be gone for so many frames and still be linked.
GAP = 2
# Patches for each frame that are looked at, largest first.
PATCHES = 12
# Slower than this (px/frame) for so many frames in a row is rest.
REST_SPEED, REST_FRAMES = 0.3, 4
# A fast object is smeared: its velocity may be off by this share of its usual speed.
BLUR_SHARE = 0.05
# Smaller than this share of the frame is a speck.
SPECK_SHARE = 1.5e-4


@dataclass(frozen=True, eq=False)
class Found:
    """The object, or why there is none.

    Attributes:
        soft: (T, H, W) its soft silhouette, in [0, 1]; all 0 where it wasn't found.
        reason: why nothing was found, empty if something was.
        camera_moves: whether the background moves as a whole.
        others: how many other things moved for a similar time.
        shimmers: whether most of the picture changes a little all the time, as dithered and many generated ones do.
    """

    soft: Float[np.ndarray, "T H W"]
    reason: str
    camera_moves: bool
    others: int
    shimmers: bool = False


@dataclass
class _Chain:
    """Patches of one thing, frame by frame."""

    frames: list[int] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, frame: int, place: np.ndarray, area: float, label: int) -> None:
        self.frames.append(frame)
        self.places.append(place)
        self.areas.append(area)
        self.labels.append(label)

    def ahead(self, frame: int) -> np.ndarray:
        """Where it would be if it went on as it did."""
        if len(self.frames) < 2:
            return self.places[-1]
        step = (self.places[-1] - self.places[-2]) / (self.frames[-1] - self.frames[-2])
        return self.places[-1] + step * (frame - self.frames[-1])

    @property
    def diameter(self) -> float:
        return 2 * float(np.sqrt(np.median(self.areas) / np.pi))


def find_object(frames: Float[np.ndarray, "T H W 3"], fps: float) -> Found:
    """Soft silhouettes of the object that best follows one law.

    Args:
        frames: RGB in [0, 1].
        fps: frames per second of physical time.
    """
    if camera_moves(frames):
        return Found(np.zeros(frames.shape[:3], np.float32), "the background moves: the camera is not still", True, 0)
    difference = changed(frames)
    noise = 1.4826 * float(np.median(difference))
    threshold = min(max(DIFFERENCE, NOISE_FACTOR * noise), 0.4)
    shimmers = _usual_share(difference > threshold) > MOVING_CAMERA
    if shimmers:
        threshold = _split(difference)
    hard = difference > threshold
    if shimmers and _usual_share(hard) > OBJECT_SHARE:
        nothing = np.zeros(difference.shape, dtype=np.float32)
        return Found(nothing, "the whole picture changes: the camera moves or the light does", False, 0)
    soft = np.clip((difference - 0.5 * threshold) / threshold, 0, 1).astype(np.float32)
    kept, others = follow(soft, hard, fps, frames.shape[1])
    return Found(kept, "" if kept.any() else "nothing moves", False, others, shimmers)


def _usual_share(hard: Bool[np.ndarray, "T H W"]) -> float:
    return float(np.median(hard.mean(axis=(1, 2))))


def _split(difference: Float[np.ndarray, "T H W"]) -> float:
    """The difference that best parts a shimmering background from what stands out of it, by Otsu's method."""
    levels = (difference.clip(0, 1) * 255).astype(np.uint8).reshape(1, -1)
    return cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] / 255


def follow(
    soft: Float[np.ndarray, "T h w"], hard: Bool[np.ndarray, "T h w"], fps: float, height: int
) -> tuple[Float[np.ndarray, "T h w"], int]:
    """Of all that is seen, the thing that best follows one law; and how many other things moved for a similar time.

    Args:
        soft: masks of everything, in [0, 1]. hard: the pixels whose patches are linked from frame to frame.
        fps: frames per second of physical time. height: of the whole frame, if these are a part of it.
    """
    labels = _labels(hard)
    chains = _chains(labels)
    if not chains:
        return np.zeros_like(soft), 0
    marks = sorted(((_mark(chain, len(hard), height, fps), i) for i, chain in enumerate(chains)), reverse=True)
    best = chains[marks[0][1]]
    others = sum(mark > 0.5 * marks[0][0] for mark, _ in marks[1:]) if marks[0][0] > 0 else 0
    return np.where(_near(labels, best), soft, 0.0).astype(np.float32), others


def camera_moves(frames: Float[np.ndarray, "T H W 3"]) -> bool:
    """Whether a shifted frame fits a later one clearly better than the frame as it is, for most pixels (the median:
    an object is too small to count)."""
    grey = frames.mean(-1)
    for gap in {1, max(1, len(grey) // 4)}:
        pairs = range(0, len(grey) - gap, max(1, (len(grey) - gap) // 8))
        votes = [_fits_shifted(grey[t], grey[t + gap]) for t in pairs]
        if votes and np.mean(votes) > 0.5:
            return True
    return False


def _fits_shifted(first: Float[np.ndarray, "H W"], second: Float[np.ndarray, "H W"]) -> bool:
    inner = (slice(SHIFT, -SHIFT), slice(SHIFT, -SHIFT))
    errors = {
        (dy, dx): float(np.median(np.abs(np.roll(first, (dy, dx), (0, 1)) - second)[inner]))
        for dy in range(-SHIFT, SHIFT + 1)
        for dx in range(-SHIFT, SHIFT + 1)
        if abs(dx) == abs(dy) or dx * dy == 0
    }
    still = errors[0, 0]
    return still > LEAST_ERROR and min(errors.values()) < 0.7 * still


def changed(frames: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W"]:
    """Distance of each pixel to the still background's colour in the light that suits it best, from shadow to full."""
    background = np.median(frames[:: max(1, len(frames) // 60)], axis=0).astype(np.float32)
    light = (frames * background).sum(-1) / np.maximum((background**2).sum(-1), 1e-3)
    away = frames - np.clip(light, SHADOW, 1.1)[..., None] * background
    return np.sqrt((away**2).sum(-1)).astype(np.float32)


def _labels(hard: Bool[np.ndarray, "T H W"]) -> np.ndarray:
    """Patches by number, 0 for none; each lies in one frame."""
    plane = np.ones((1, 3, 3), dtype=bool)
    closed = ndimage.binary_closing(hard, plane)
    labels, count = ndimage.label(closed, np.concatenate([0 * plane, plane, 0 * plane]))
    if not count:
        return labels
    area = ndimage.sum_labels(closed, labels, np.arange(count + 1))
    least = max(PRESENT_PIXELS, SPECK_SHARE * hard.shape[1] * hard.shape[2])
    return np.where(area[labels] >= least, labels, 0)


def _chains(labels: np.ndarray) -> list[_Chain]:
    """Link each patch to the nearest open chain that expects it, best matches first."""
    names = np.unique(labels[labels > 0])
    if not len(names):
        return []
    places = np.array(ndimage.center_of_mass(labels > 0, labels, names))
    areas = ndimage.sum_labels(labels > 0, labels, names)
    done: list[_Chain] = []
    for frame in range(len(labels)):
        here = sorted(np.flatnonzero(places[:, 0].round() == frame).tolist(), key=lambda i: -areas[i])[:PATCHES]
        unlinked = set(here)
        open_chains = [chain for chain in done if frame - chain.frames[-1] <= GAP]
        for _, number, i in sorted(_matches(open_chains, frame, here, places, areas)):
            chain = open_chains[number]
            if i in unlinked and chain.frames[-1] < frame:
                chain.add(frame, places[i, :0:-1] + 0.5, float(areas[i]), int(names[i]))
                unlinked.discard(i)
        for i in here:
            if i in unlinked:
                done.append(_Chain([frame], [places[i, :0:-1] + 0.5], [float(areas[i])], [int(names[i])]))
    return done


def _matches(
    chains: Sequence[_Chain], frame: int, here: Sequence[int], places: np.ndarray, areas: np.ndarray
) -> list[tuple[float, int, int]]:
    """(cost, chain, patch) of every link that isn't absurd."""
    result = []
    for number, chain in enumerate(chains):
        expected, size = chain.ahead(frame), chain.diameter
        step = float(np.linalg.norm(expected - chain.places[-1]))
        reach = 2.0 * size + step + (3.0 * size if len(chain.frames) == 1 else 0.0)
        for i in here:
            distance = float(np.linalg.norm(places[i, :0:-1] + 0.5 - expected))
            growth = abs(float(np.log(areas[i] / chain.areas[-1])))
            if distance <= reach and growth < 1.6:
                result.append((float(distance / reach) + 0.5 * growth, number, i))
    return result


def _mark(chain: _Chain, num_frames: int, height: int, fps: float) -> float:
    """Length of its longest lawful stretch times the way it goes there, in diameters (up to 4); else a little for
    mere length."""
    if len(chain.frames) < 3:
        return 0.0
    position = np.full((num_frames, 2), np.nan)
    position[chain.frames] = np.array(chain.places) / height
    window = lawful(position, fps, height)
    if not len(window):
        return 0.01 * len(chain.frames)
    way = float(np.linalg.norm(position[window.stop] - position[window.start])) * height
    return len(window) * min(way / max(chain.diameter, 1.0), 4.0) + 0.01 * len(chain.frames)


def lawful(position: Float[np.ndarray, "T 2"], fps: float, height: int) -> Window:
    """Longest stretch of a path (H) in motion whose velocity from frame to frame follows one line."""
    return lawful_velocities(np.diff(position, axis=0) * fps, fps, height)


def lawful_velocities(velocity: Float[np.ndarray, "N 2"], fps: float, height: int) -> Window:
    """The same for velocities in H/s: rest is left out, for standing still obeys every law. Of several stretches the
    one that is long in time and way."""
    moving, tolerated = _moving(velocity, fps, height)
    return longest_window(torch.from_numpy(moving).float(), tolerated, by_way=True)


def smooth_run(velocity: Float[np.ndarray, "N 2"], window: Window, fps: float, height: int) -> Smooth:
    """A lawful window, made longer at both ends while a steadily changing acceleration fits.

    Args:
        velocity: H/s. window: the lawful stretch of it, not empty.
    Source: ours. Through a wide lens, or at a slant, a perfect fall looks like this (physics.md §3, camera).
    """
    moving, tolerated = _moving(velocity, fps, height)
    start, stop = window.start, window.stop
    grown = True
    while grown:
        grown = False
        for low, high in ((start - 1, stop), (start, stop + 1)):
            if low >= 0 and high <= len(moving) and _bends(moving[low:high], tolerated):
                start, stop, grown = low, high, True
    time = np.arange(stop - start, dtype=np.float64)
    first, middle, last = (_slope(time, moving[start:stop], at) for at in (0.0, time[-1] / 2, time[-1]))
    line, parabola = (float((_away(moving[start:stop], degree) ** 2).sum()) for degree in (1, 2))
    free = 2 * (stop - start) - 6
    gain = (line - parabola) / 2 / max(parabola / free, 1e-12) if free > 0 else 0.0
    return Smooth(start, stop, first * fps, middle * fps, last * fps, gain)


@dataclass(frozen=True, eq=False)
class Smooth:
    """Velocities start .. stop - 1 with a steadily changing acceleration.

    Attributes:
        first, middle, last: acceleration (2,) at its beginning, in its middle and at its end, H/s^2.
        gain: F statistic of the change of acceleration: how much better a parabola fits the velocities than a line.
    """

    start: int
    stop: int
    first: Float[np.ndarray, " 2"]
    middle: Float[np.ndarray, " 2"]
    last: Float[np.ndarray, " 2"]
    gain: float

    def __len__(self) -> int:
        return self.stop - self.start


def _moving(velocity: Float[np.ndarray, "N 2"], fps: float, height: int) -> tuple[np.ndarray, float]:
    """Velocities without rest, and how far a lawful one may scatter, H/s."""
    moving = np.where(resting(velocity, fps, height)[:, None], np.nan, velocity)
    known = moving[np.isfinite(moving).all(axis=1)]
    speed = float(np.median(np.linalg.norm(known, axis=1))) if len(known) else 0.0
    return moving, float(np.hypot(tolerance(fps, height), BLUR_SHARE * speed))


def _bends(values: Float[np.ndarray, "n 2"], tolerated: float) -> bool:
    """Whether a parabola fits the velocities as well as a line must fit lawful ones."""
    if not np.isfinite(values).all():
        return False
    away = _away(values, 2)
    return bool(np.sqrt((away**2).mean()) <= tolerated and away.max() <= PEAK * tolerated)


def _away(values: Float[np.ndarray, "n 2"], degree: int) -> Float[np.ndarray, " n"]:
    """Distance of each velocity from the polynomial of this degree in time that fits all best."""
    time = np.arange(len(values), dtype=np.float64)
    fitted = np.stack([np.polyval(np.polyfit(time, v, degree), time) for v in values.T], axis=1)
    return np.linalg.norm(values - fitted, axis=1)


def _slope(time: np.ndarray, values: Float[np.ndarray, "n 2"], at: float) -> Float[np.ndarray, " 2"]:
    return np.array([np.polyval(np.polyder(np.polyfit(time, v, 2)), at) for v in values.T])


def resting(velocity: Float[np.ndarray, "N 2"], fps: float, height: int) -> Bool[np.ndarray, " N"]:
    """Velocities that belong to a rest: at least `REST_FRAMES` slow ones in a row (a turn is shorter)."""
    slow = np.linalg.norm(velocity, axis=1) * height / fps < REST_SPEED
    runs, count = ndimage.label(slow)
    length = np.bincount(np.asarray(runs), minlength=count + 1)
    return np.asarray(slow & (length[runs] >= REST_FRAMES))


def _near(labels: np.ndarray, chain: _Chain) -> Bool[np.ndarray, "T H W"]:
    """The chain's patches and one pixel around them, for soft edges."""
    own = np.isin(labels, chain.labels)
    return np.asarray(ndimage.binary_dilation(own, np.ones((1, 3, 3), dtype=bool)))
