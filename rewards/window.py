"""The valid window, where nobody knows it: the longest stretch of a video that one law of constant acceleration fits.

Ground contact, a turn-back, leaving the frame or stopping break the law (physics.md §3). Used to score foreign videos;
never in
training, where a model could choose its own breaks: there the paired clip's valid frames count.

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


def longest_window(velocity: Float[Tensor, "N 2"], tolerated: float, *, min_length: int = MIN_LENGTH) -> Window:
    """The longest run of velocities whose least-squares line leaves an rms residual of at most `tolerated`.

    Args:
        velocity: object velocity, H/s; NaN where unmeasured, which no window may contain.
        tolerated: rms of |v - line| over the window in H/s; a single residual may be `PEAK` times that, so that one bad
            velocity
            at the end of a long window isn't averaged away.
        min_length: shortest window that is taken seriously.
    Returns:
        the longest, of several the one that fits best; an empty window (0, 0) with rms NaN if there is none.
    Source: physics.md §3, ours.
    """
    values = velocity.detach().double().cpu().numpy()
    count = len(values)
    for length in range(count, min_length - 1, -1):
        fits = [
            (rms, start)
            for start in range(count - length + 1)
            if (rms := _fit(values[start : start + length], tolerated)) is not None
        ]
        if fits:
            rms, start = min(fits)
            return Window(start, start + length, rms)
    return Window(0, 0, float("nan"))


def valid_frames(velocity: Float[Tensor, "B N 2"], fps: Float[Tensor, "B"], height: int) -> Bool[Tensor, "B T"]:
    """`longest_window` of each clip as valid frames, with the tolerance of `TOLERANCE_PX`; T = N + 1."""
    num_frames = velocity.shape[1] + 1
    windows = [longest_window(v, tolerance(rate, height)) for v, rate in zip(velocity, fps.tolist(), strict=True)]
    return torch.stack([window.frames(num_frames) for window in windows]).to(velocity.device)


def _fit(values: NDArray[np.float64], tolerated: float) -> float | None:
    """Rms distance from the line, or None if it doesn't fit."""
    if not np.isfinite(values).all():
        return None
    time = np.arange(len(values)) - (len(values) - 1) / 2
    slope = time @ values / (time @ time)
    distance = np.linalg.norm(values - values.mean(0) - time[:, None] * slope, axis=1)
    rms = float(np.sqrt((distance**2).mean()))
    return rms if rms <= tolerated and distance.max() <= PEAK * tolerated else None
