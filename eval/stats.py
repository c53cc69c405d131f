"""Bootstrap over clips, and over runs where an arm has several: intervals of means, and of paired relative changes.

Letters: C clips, R resamples, S runs of an arm. The clip is the unit that is drawn again, so frames of one clip are
never taken for independent. Every draw comes from `core.run.stream_seed`: the same numbers give the same interval.
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


def mean_over_runs(
    values: Float[np.ndarray, "S C"], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean over the runs of an arm (training seeds) and over clips; the interval draws both again, crossed.

    With one run it is `mean`. With few runs the interval is too narrow rather than too wide: of three runs one draw in
    nine holds a single one.
    """
    if len(values) == 1:
        return mean(values[0], seed=seed, resamples=resamples, level=level)
    known = np.isfinite(values)
    missing = values.size - int(known.sum())
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0, missing)
    runs, clips = _crossed(values.shape[0], values.shape[1], seed, resamples)
    count = _drawn(known.astype(np.float64), runs, clips)
    draws = _drawn(np.where(known, values, 0.0), runs, clips) / np.where(count == 0, np.nan, count)
    low, high = _bounds(draws[np.isfinite(draws)], values.shape[1], level)
    return Estimate(float(values[known].mean()), low, high, int(known.sum()), missing)


def relative_change_over_runs(
    baseline: Float[np.ndarray, "_ C"],
    other: Float[np.ndarray, "_ C"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """`relative_change` over the runs of two arms, paired by clip and by run.

    Args:
        baseline, other: (S, C) each; run k of one is compared with run k of the other, which began from the same
            noise. An arm with a single run is compared with every run of the other.
    Raises:
        ShapeError: both have several runs, and not as many.
    """
    if 1 not in (len(baseline), len(other)) and len(baseline) != len(other):
        raise ShapeError(f"{len(baseline)} runs and {len(other)} runs can't be paired")
    if len(baseline) == len(other) == 1:
        return relative_change(baseline[0], other[0], seed=seed, resamples=resamples, level=level)
    before, after = np.broadcast_arrays(baseline, other)
    both = np.isfinite(before) & np.isfinite(after)
    missing = both.size - int(both.sum())
    if not both.any() or before[both].mean() == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, missing)
    runs, clips = _crossed(both.shape[0], both.shape[1], seed, resamples)
    below = _drawn(np.where(both, before, 0.0), runs, clips)
    above = _drawn(np.where(both, after, 0.0), runs, clips)
    draws = 100 * (above / np.where(below == 0, np.nan, below) - 1)
    low, high = _bounds(draws[np.isfinite(draws)], both.shape[1], level)
    value = 100 * (after[both].mean() / before[both].mean() - 1)
    return Estimate(float(value), low, high, int(both.sum()), missing)


def _crossed(
    runs: int, clips: int, seed: int, resamples: int
) -> tuple[Float[np.ndarray, "R S"], Float[np.ndarray, "R C"]]:
    """Weights of runs and of clips, drawn independently of each other."""
    return _weights(runs, seed + 1, resamples), _weights(clips, seed, resamples)


def _drawn(
    values: Float[np.ndarray, "S C"], runs: Float[np.ndarray, "R S"], clips: Float[np.ndarray, "R C"]
) -> Float[np.ndarray, " R"]:
    """Weighted sum of each resample."""
    total: np.ndarray = np.einsum("rc,rc->r", runs @ values, clips)
    return total


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
