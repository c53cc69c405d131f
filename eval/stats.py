"""Bootstrap over clips, and over runs where an arm has several: intervals of means, and of paired relative changes.

Letters: C clips, R resamples, S runs of an arm. The clip is the unit that is drawn again, so frames of one clip are
never taken for independent. Every draw comes from `core.run.stream_seed`: the same numbers give the same interval.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

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
        n: clips it rests on, whatever the number of runs.
        n_missing: clips that could not be measured (NaN) and dropped out, counted in each run.
    """

    value: float
    low: float
    high: float
    n: int
    n_missing: int


def mean(
    values: Float[np.ndarray, "*S C"], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean over clips, and over the runs of an arm (training seeds) where there are several.

    Args:
        values: of one run, or of several by the same clips; NaN is counted and left out.
    Returns:
        Its interval draws clips and runs again, crossed. With few runs it is too narrow rather than too wide: of three
        runs one draw in nine holds a single one.
    """
    table = np.atleast_2d(values)
    known = np.isfinite(table)
    if not known.any():
        return _nothing(known)
    count, total = _sums(known, [np.ones_like(table), table], seed, resamples)
    return _estimate(float(table[known].mean()), total / _divisor(count), known, level)


def relative_change(
    baseline: Float[np.ndarray, "*S C"],
    other: Float[np.ndarray, "*_ _"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Change of the mean in percent of the baseline's mean, 100 (mean(other) / mean(baseline) - 1), paired by clip and
    by run.

    Args:
        baseline: one value per clip, of one run or of several. other: the same clips in the same order; run k is
            compared with run k of the baseline, which began from the same noise. A single run is compared with all.
    Returns:
        Percent, negative where `other` is smaller. What is NaN on either side drops out on both; each resample draws
        the same clips and runs for both, so what makes a clip hard cancels. NaN if the baseline's mean is 0.
    Raises:
        ShapeError: the two differ in their number of clips, or have several runs each and not as many.
    """
    before, after = np.atleast_2d(baseline), np.atleast_2d(other)
    if before.shape[1] != after.shape[1]:
        raise ShapeError(f"{before.shape[1]} baseline clips and {after.shape[1]} others can't be paired")
    if 1 not in (len(before), len(after)) and len(before) != len(after):
        raise ShapeError(f"{len(before)} runs and {len(after)} runs can't be paired")
    before, after = np.broadcast_arrays(before, after)
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any() or before[both].mean() == 0:
        return _nothing(both)
    below, above = _sums(both, [before, after], seed, resamples)
    value = 100 * (after[both].mean() / before[both].mean() - 1)
    return _estimate(float(value), 100 * (above / _divisor(below) - 1), both, level)


def _sums(
    known: Bool[np.ndarray, "S C"], tables: Sequence[Float[np.ndarray, "S C"]], seed: int, resamples: int
) -> list[Float[np.ndarray, " R"]]:
    """Sum of what is known of each table over each resample; clips that no run knows aren't drawn."""
    clips = known.any(axis=0)
    runs = _weights(len(known), seed + 1, resamples)
    drawn = _weights(int(clips.sum()), seed, resamples)
    return [np.einsum("rc,rc->r", runs @ np.where(known, table, 0.0)[:, clips], drawn) for table in tables]


def _divisor(sums: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    return np.where(sums == 0, np.nan, sums)


def _estimate(value: float, draws: Float[np.ndarray, " R"], known: Bool[np.ndarray, "S C"], level: float) -> Estimate:
    clips = int(known.any(axis=0).sum())
    low, high = _bounds(draws[np.isfinite(draws)], clips, level)
    return Estimate(value, low, high, clips, int((~known).sum()))


def _nothing(known: Bool[np.ndarray, "S C"]) -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), 0, int((~known).sum()))


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
