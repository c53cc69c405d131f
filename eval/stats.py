"""Bootstrap over clips: intervals of means, and of paired relative changes of means.

Letters: C clips, R resamples. The clip is the unit that is drawn again, so frames of one clip are never taken for
independent. Every draw comes from `core.run.stream_seed`: the same numbers give the same interval.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from newtonrewards.core.errors import ShapeError
from newtonrewards.core.run import stream_seed

RESAMPLES = 4000
LEVEL = 0.95
# With fewer clips a percentile interval promises more than it can hold.
MIN_CLIPS = 3


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate, NaN if no clip could be measured.
        low, high: bounds of the bootstrap percentile interval; NaN with fewer than `MIN_CLIPS` clips.
        n: clips it rests on.
        n_missing: clips that could not be measured (NaN) and dropped out.
    """

    value: float
    low: float
    high: float
    n: int
    n_missing: int


def mean(
    values: Float[np.ndarray, " C"], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean over clips with its interval; NaN clips are counted and left out."""
    known = values[np.isfinite(values)]
    missing = len(values) - len(known)
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, missing)
    draws = _weights(len(known), seed, resamples) @ known
    low, high = _bounds(draws, len(known), level)
    return Estimate(float(known.mean()), low, high, len(known), missing)


def relative_change(
    baseline: Float[np.ndarray, " C"],
    other: Float[np.ndarray, " _"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Change of the mean in percent of the baseline's mean, 100 (mean(other) / mean(baseline) - 1), paired by clip.

    Args:
        baseline: one value per clip. other: the values of the same clips in the same order.
    Returns:
        Percent, negative where `other` is smaller. A clip that is NaN on either side drops out on both; each resample
        draws the same clips for both, so what makes a clip hard cancels. NaN if the baseline's mean is 0.
    Raises:
        ShapeError: the two differ in length.
    """
    if len(baseline) != len(other):
        raise ShapeError(f"{len(baseline)} baseline clips and {len(other)} others can't be paired")
    both = np.isfinite(baseline) & np.isfinite(other)
    missing = len(baseline) - int(both.sum())
    before, after = baseline[both], other[both]
    if not len(before) or before.mean() == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, len(baseline) if not len(before) else missing)
    weights = _weights(len(before), seed, resamples)
    below = weights @ before
    draws = 100 * (weights @ after / np.where(below == 0, np.nan, below) - 1)
    low, high = _bounds(draws[np.isfinite(draws)], len(before), level)
    return Estimate(float(100 * (after.mean() / before.mean() - 1)), low, high, len(before), missing)


@functools.lru_cache(maxsize=32)
def _weights(clips: int, seed: int, resamples: int) -> Float[np.ndarray, "R C"]:
    """How often each clip is drawn in each resample, over the number of clips: a resample's mean is one product."""
    rng = np.random.default_rng(stream_seed(seed, 0, clips, "bootstrap"))
    drawn = rng.integers(0, clips, (resamples, clips)) + clips * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * clips).reshape(resamples, clips) / clips


def _bounds(draws: Float[np.ndarray, " R"], clips: int, level: float) -> tuple[float, float]:
    if clips < MIN_CLIPS or not len(draws):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
