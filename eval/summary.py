"""Scores of single clips to the tables: means by arm, motion and shift, and paired changes against baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from newtonrewards.eval import stats
from newtonrewards.eval.results import (
    ALL,
    OOD,
    ArmInfo,
    Cell,
    Change,
    Failure,
    MetricInfo,
    Number,
    Score,
    Summary,
    finite,
)

Group = tuple[str, str]  # motion or `all`; shift, `id`, `ood` or `all`


def summarise(
    scores: Sequence[Score],
    *,
    clips: Sequence[tuple[str, str, str]],
    arms: Sequence[ArmInfo],
    metrics: Mapping[str, MetricInfo],
    headline: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    failures: Sequence[Failure],
    truth: str,
    provenance: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
) -> Summary:
    """Means and paired changes of every metric in every group.

    Args:
        scores: one for each clip of each run of each arm; a clip that has none counts as missing.
        clips: (name, motion, shift) of every true clip, in order.
        arms: with `truth`, the tracker's floor, first.
        metrics: definitions in table order. headline: names for the first table.
        pairs: (arm, baseline) to compare.
        failures, truth, provenance, settings: go into the summary as they are.
        seed: of the bootstrap.
    """
    values, groups = _Values(scores, arms), _groups(clips)
    cells = [
        Cell(arm=arm.name, metric=metric, primitive=group[0], shift=group[1], number=number_of(estimate))
        for arm in arms
        for metric in metrics
        for group, names in groups.items()
        if (estimate := stats.mean(values.of(arm.name, metric, names), seed=seed)).n
    ]
    changes = [
        _change(arm, baseline, metric, info.direction, group, estimate)
        for arm, baseline in pairs
        for metric, info in metrics.items()
        for group, names in groups.items()
        if (estimate := values.change(arm, baseline, metric, names, seed)).n
    ]
    counts = Counter(f"{primitive}/{shift}" for _, primitive, shift in clips)
    return Summary(
        provenance=provenance,
        settings=settings,
        truth=truth,
        counts=dict(sorted(counts.items())),
        arms=list(arms),
        metrics=dict(metrics),
        headline=list(headline),
        cells=cells,
        changes=changes,
        failures=list(failures),
        examples=_examples(
            clips, {(score.arm, score.clip) for score in scores if score.run == 0}, [arm.name for arm in arms]
        ),
    )


class _Values:
    """Scores as tables of numbers: runs of an arm by clips."""

    def __init__(self, scores: Sequence[Score], arms: Sequence[ArmInfo]) -> None:
        self._values = {(score.arm, score.run, score.clip): score.values for score in scores}
        self._runs = {arm.name: arm.runs for arm in arms}

    def of(self, arm: str, metric: str, names: Sequence[str]) -> Float[np.ndarray, "S C"]:
        """NaN where a clip is missing or couldn't be measured."""
        runs = range(self._runs[arm])
        found = [[self._values.get((arm, run, name), {}).get(metric) for name in names] for run in runs]
        return np.array([[np.nan if value is None else value for value in row] for row in found], dtype=np.float64)

    def change(self, arm: str, baseline: str, metric: str, names: Sequence[str], seed: int) -> stats.Estimate:
        before, after = self.of(baseline, metric, names), self.of(arm, metric, names)
        return stats.relative_change(before, after, seed=seed)


def _groups(clips: Iterable[tuple[str, str, str]]) -> dict[Group, list[str]]:
    """Names of the clips of each group, overall groups first."""
    groups: dict[Group, list[str]] = {}
    for name, primitive, shift in clips:
        kinds = dict.fromkeys([ALL, "id" if shift == "id" else OOD, shift])
        for motion in (ALL, primitive):
            for kind in kinds:
                groups.setdefault((motion, kind), []).append(name)
    return dict(sorted(groups.items(), key=lambda item: item[0][0] != ALL))


def _examples(clips: Sequence[tuple[str, str, str]], measured: set[tuple[str, str]], arms: list[str]) -> list[str]:
    """The first clip of each motion in and the first out of distribution that every arm has: no choice by looks."""
    chosen: dict[tuple[str, bool], str] = {}
    for name, primitive, shift in clips:
        if all((arm, name) in measured for arm in arms):
            chosen.setdefault((primitive, shift == "id"), name)
    return sorted(chosen.values(), key=[name for name, _, _ in clips].index)


def number_of(estimate: stats.Estimate) -> Number:
    """An estimate as results hold it: None for NaN."""
    return Number(
        value=finite(estimate.value),
        low=finite(estimate.low),
        high=finite(estimate.high),
        n=estimate.n,
        n_missing=estimate.n_missing,
    )


def _change(arm: str, baseline: str, metric: str, direction: str, group: Group, estimate: stats.Estimate) -> Change:
    return Change(
        arm=arm,
        baseline=baseline,
        metric=metric,
        primitive=group[0],
        shift=group[1],
        number=number_of(estimate),
        verdict=verdict(direction, estimate.low, estimate.high),
    )


def verdict(direction: str, low: float, high: float) -> Literal["better", "worse", "changed", "unclear"]:
    """What an interval of a change says; an interval that touches zero, or none at all, says nothing."""
    if not (low > 0 or high < 0):
        return "unclear"
    if direction not in ("lower", "higher"):
        return "changed"
    return "better" if (direction == "higher") == (low > 0) else "worse"


def pairs_of(arms: Sequence[str], baselines: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(arm, baseline): each arm against the arms before it, or against those of them that are named."""
    return [
        (arm, baseline)
        for place, arm in enumerate(arms)
        for baseline in arms[:place]
        if not baselines or baseline in baselines
    ]
