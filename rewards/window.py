"""The valid window, where nobody knows it: the longest stretch of a video that one law of constant acceleration fits.

Ground contact, a turn-back, leaving the frame or stopping break the law (physics.md §3). Used to score foreign videos;
never in training, where a model could choose its own breaks: there the paired clip's valid frames count.

Letters: B clips, T frames, N = T - 1 velocities. Velocities in H/s (`kinematics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

# Four velocities (five frames): with three, a line fits almost any break.
MIN_LENGTH = 4
# What object velocities scatter around a perfect motion, px/frame: the tolerated rms of a window, and no single one
# above three times that.
TOLERANCE_PX = 0.25
PEAK = 3.0
# A lawful window that covers less of a clip isn't taken for the clip's motion.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Window:
    """Velocities start .. stop - 1 belong to one law; `rms` their rms distance from the fitted line, H/s."""

    start: int
    stop: int
    rms: float

    def __len__(self) -> int:
        return self.stop - self.start

    def frames(self, num_frames: int) -> Bool[Tensor, "T"]:
        """The frames that those velocities connect; none for an empty window."""
        valid = torch.zeros(num_frames, dtype=torch.bool)
        if len(self):
            valid[self.start : self.stop + 1] = True
        return valid


def tolerance(fps: float, height: int) -> float:
    """`TOLERANCE_PX` in H/s for a video of this rate and height."""
    return TOLERANCE_PX * fps / height


def longest_window(
    velocity: Float[Tensor, "N 2"], tolerated: float, *, min_length: int = MIN_LENGTH, by_way: bool = False
) -> Window:
    """The longest run of velocities whose least-squares line leaves an rms residual of at most `tolerated`.

    Args:
        velocity: object velocity, H/s; NaN where unmeasured, which no window may contain.
        tolerated: rms of |v - line| over the window in H/s; a single residual may be `PEAK` times that, so that one bad
            velocity at the end of a long window isn't averaged away.
        min_length: shortest window that is taken seriously.
        by_way: choose by length times the way that the object goes in it, so that a fast fall counts for more than a
            slow roll after it.
    Returns:
        the longest, of several the one that fits best; an empty window (0, 0) with rms NaN if there is none.
    Source: physics.md §3, ours. All runs at once from cumulative sums, O(N^2).
    """
    values = velocity.detach().double().cpu().numpy()
    rms, length = _all_runs(values)
    usable = np.asarray((length >= min_length) & (rms <= tolerated))
    starts, last = np.nonzero(usable)
    if not len(starts):
        return Window(0, 0, float("nan"))
    length, rms = length[usable], rms[usable]
    worth = length.astype(np.float64)
    if by_way:
        way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.nan_to_num(values), axis=1))])
        worth *= way[last + 1] - way[starts]
    for k in np.lexsort((starts, rms, -worth)):
        start, stop = int(starts[k]), int(last[k]) + 1
        if _peak(values[start:stop]) <= PEAK * tolerated:
            return Window(start, stop, float(rms[k]))
    return Window(0, 0, float("nan"))


def valid_frames(velocity: Float[Tensor, "B N 2"], fps: Float[Tensor, "B"], height: int) -> Bool[Tensor, "B T"]:
    """`longest_window` of each clip as valid frames, with the tolerance of `TOLERANCE_PX`; T = N + 1.

    Where it covers less than `LEAST_SHARE` of the clip, all frames are valid: a clip that obeys no law for long must
    pay for that, and not go free because nothing of it could be measured.
    """
    num_frames = velocity.shape[1] + 1
    result = torch.ones(len(velocity), num_frames, dtype=torch.bool)
    for row, v, rate in zip(result, velocity, fps.tolist(), strict=True):
        window = longest_window(v, tolerance(rate, height))
        if len(window) >= LEAST_SHARE * len(v):
            row[:] = window.frames(num_frames)
    return result.to(velocity.device)


def _all_runs(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rms distance from its line and length of the run from row to column, both included; infinite and 0 where there
    is none, or a velocity in it is unknown."""
    count = len(values)
    known = np.asarray(np.isfinite(values).all(axis=1))
    v, t = np.where(known[:, None], values, 0.0), np.arange(count, dtype=np.float64)
    v = v - (v[known].mean(axis=0) if known.any() else 0.0)  # cumulative sums lose digits to a large mean

    def run(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.concatenate([np.zeros((1, *terms.shape[1:])), np.cumsum(terms, axis=0)])
        return np.asarray(total[None, 1:] - total[:-1, None])

    length = np.maximum(t[None] - t[:, None] + 1, 0).astype(np.int64)
    gaps = run((~np.asarray(known)).astype(np.float64))
    n = np.maximum(length, 1)
    mean = run(v) / n[..., None]
    middle = (t[None] + t[:, None]) / 2
    covariance = run(t[:, None] * v) - n[..., None] * middle[..., None] * mean
    spread = n * (n.astype(np.float64) ** 2 - 1) / 12
    explained = (covariance**2).sum(-1) / np.maximum(spread, 1e-12)
    square = run(np.asarray((v**2).sum(axis=1))) - n * (mean**2).sum(-1) - explained
    rms = np.sqrt(np.maximum(square, 0.0) / n)
    fine = (length > 0) & (gaps == 0)
    return np.where(fine, rms, np.inf), np.where(fine, length, 0)


def _peak(values: NDArray[np.float64]) -> float:
    """Largest distance of a velocity from the line through all."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    slope = time @ values / (time @ time)
    return float(np.linalg.norm(values - values.mean(0) - time[:, None] * slope, axis=1).max())
