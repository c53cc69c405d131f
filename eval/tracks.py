"""The path of one object through a clip, in frame heights and seconds: what every metric judges.

Letters: T frames, H height, W width, p position, v velocity, a acceleration. Image axes: x right, y down.
A Track comes from exact masks (`track_from_masks`) or from pixels (`eval.segment`); its derivatives are always
the same central differences, so a measured and a true track carry the same estimator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, ShapeError

# A mask under this share of the first frame's area is noise, not an object.
PRESENT_SHARE = 0.05
# ... and so is one under this many pixels.
PRESENT_PIXELS = 3.0
# With less of its usual area an object isn't there as a whole.
WHOLE_SHARE = 0.5
# A half stored in 8 bits reads as .502 and is still no more than a half.
ABOVE_HALF = 0.503


@dataclass(frozen=True, eq=False)
class Track:
    """One object over time.

    Attributes:
        position: (T, 2) centre in frame heights (H), origin top left; NaN where there is no object.
        hard: (T, H, W) the object's pixels, for overlap and Chamfer.
        area: (T,) soft area in H^2; 0 where there is no object.
        valid: (T,) frames between the same two events; all True where not known.
        fps: frames per second of physical time.
    """

    position: Float[np.ndarray, "T 2"]
    hard: Bool[np.ndarray, "T H W"]
    area: Float[np.ndarray, " T"]
    valid: Bool[np.ndarray, " T"]
    fps: float

    def __len__(self) -> int:
        return len(self.position)

    @property
    def present(self) -> Bool[np.ndarray, " T"]:
        """Frames in which there is an object."""
        return np.isfinite(self.position).all(axis=1)

    @property
    def seconds(self) -> Float[np.ndarray, " T"]:
        """Physical time of each frame, from 0."""
        return np.arange(len(self)) / self.fps


def velocity(position: Float[np.ndarray, "T 2"], fps: float) -> Float[np.ndarray, "T 2"]:
    """Central difference (p[t+1] - p[t-1]) fps / 2 in H/s; NaN in the first and last frame and beside a gap.

    Exact for constant acceleration. White noise of std s on p gives s fps / sqrt(2).
    """
    result = np.full_like(position, np.nan)
    if len(position) > 2:
        result[1:-1] = (position[2:] - position[:-2]) * (fps / 2)
    return result


def acceleration(position: Float[np.ndarray, "T 2"], fps: float) -> Float[np.ndarray, "T 2"]:
    """Second central difference (p[t+1] - 2 p[t] + p[t-1]) fps^2 in H/s^2; NaN as in `velocity`.

    Exact for constant acceleration. White noise of std s on p gives sqrt(6) s fps^2: at 64 px and 20 fps a centre
    that is .05 px off reads as .77 H/s^2. Tables therefore carry the tracker's floor.
    """
    result = np.full_like(position, np.nan)
    if len(position) > 2:
        result[1:-1] = (position[2:] - 2 * position[1:-1] + position[:-2]) * fps**2
    return result


def inside(usable: Bool[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Frames that are usable together with both neighbours, so that a central difference crosses no event."""
    result = np.zeros_like(usable)
    if len(usable) > 2:
        result[1:-1] = usable[2:] & usable[1:-1] & usable[:-2]
    return result


@dataclass(frozen=True, eq=False)
class Fit:
    """Least-squares path of constant acceleration p = p0 + v0 t + a t^2 / 2, with t from the clip's first frame.

    Attributes:
        start: (2,) p0 in H. velocity: (2,) v0 in H/s. acceleration: (2,) a in H/s^2.
        residual: root mean square distance of the track from the path, in H.
        frames: how many frames were fitted.
    """

    start: Float[np.ndarray, " 2"]
    velocity: Float[np.ndarray, " 2"]
    acceleration: Float[np.ndarray, " 2"]
    residual: float
    frames: int

    def at(self, seconds: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Position on the path, in H."""
        t = seconds[:, None]
        return self.start + self.velocity * t + 0.5 * self.acceleration * t**2


def fit_constant_acceleration(track: Track, usable: Bool[np.ndarray, " T"] | None = None) -> Fit | None:
    """Fit one law to the valid frames where the object is present; None with fewer than four of them.

    Args:
        track: the path.
        usable: frames to use instead of `track.valid`.
    Source: ours. Three frames would fit exactly and say nothing, hence four.
    """
    rows = (track.valid if usable is None else usable) & track.present
    if rows.sum() < 4:
        return None
    t = track.seconds[rows]
    design = np.stack([np.ones_like(t), t, 0.5 * t**2], axis=1)
    solution = np.linalg.lstsq(design, track.position[rows], rcond=None)[0]
    off = track.position[rows] - design @ solution
    residual = float(np.sqrt((off**2).sum(axis=1).mean()))
    return Fit(solution[0], solution[1], solution[2], residual, int(rows.sum()))


def centroid(soft: Float[np.ndarray, "T H W"]) -> tuple[Float[np.ndarray, "T 2"], Float[np.ndarray, " T"]]:
    """Centre (T, 2) and area (T,) of soft masks, in H and H^2; the middle of the top left pixel is (.5, .5) / H.

    Where hardly anything is left (see PRESENT_SHARE, PRESENT_PIXELS) the centre is NaN and the area 0.
    """
    height, width = soft.shape[1:]
    area = soft.sum(axis=(1, 2), dtype=np.float64)
    gone = area < max(PRESENT_PIXELS, PRESENT_SHARE * float(area.max(initial=0.0)))
    safe = np.where(gone, 1.0, area)
    x = (soft.sum(axis=1, dtype=np.float64) @ (np.arange(width) + 0.5)) / safe
    y = (soft.sum(axis=2, dtype=np.float64) @ (np.arange(height) + 0.5)) / safe
    position = np.stack([x, y], axis=1) / height
    position[gone] = np.nan
    return position, np.where(gone, 0.0, area) / height**2


def box_around(hard: Bool[np.ndarray, "T H W"], frames: int = 0, pixels: int = 0) -> tuple[slice, slice, slice] | None:
    """Frames, rows and columns of everything that masks cover, with margins; None where they cover nothing."""
    if not hard.any():
        return None
    spans = []
    for axes, margin in (((1, 2), frames), ((0, 2), pixels), ((0, 1), pixels)):
        there = np.flatnonzero(hard.any(axis=axes))
        spans.append(slice(max(0, int(there[0]) - margin), int(there[-1]) + 1 + margin))
    return spans[0], spans[1], spans[2]


def whole(area: Float[np.ndarray, " T"]) -> Int[np.ndarray, " _"]:
    """Numbers of the frames in which an object is there as a whole: with at least half its usual area. What is left of
    a mask when the object is gone, a shadow say, is less."""
    usual = float(np.median(area[area > 0])) if (area > 0).any() else 0.0
    return np.flatnonzero((area > 0) & (area >= WHOLE_SHARE * usual))


def track_from_masks(
    soft: Float[np.ndarray, "T H W"], fps: float, valid: Bool[np.ndarray, " T"] | None = None
) -> Track:
    """Track of given soft masks in [0, 1]: soft for the centre, above one half for overlap."""
    position, area = centroid(soft)
    hard = (soft > ABOVE_HALF) & np.isfinite(position[:, :1, None])
    return Track(position, hard, area, np.ones(len(soft), dtype=bool) if valid is None else valid, fps)


def true_track(clip: Clip) -> Track:
    """Track of a clip with truth: exact centre where the simulator gives it, exact masks otherwise.

    Raises:
        InputError: the clip has no masks, so there is nothing to compare with.
    """
    if clip.masks is None:
        raise InputError("a truth clip needs object masks", where=clip.source.path or None, fix="Simulate it again.")
    valid = None if clip.valid is None else clip.valid.numpy()
    track = track_from_masks(clip.masks.numpy(), clip.fps, valid)
    if clip.truth is None:
        return track
    position = clip.truth.position.numpy().astype(np.float64)
    if len(position) != len(track):
        raise ShapeError(f"{len(position)} true positions for {len(track)} frames", where=clip.source.path or None)
    return Track(np.where(track.present[:, None], position, np.nan), track.hard, track.area, track.valid, track.fps)
