"""The floor of a reward: the penalties that perfect clips get, from the noise of the networks that measure them.

Whoever drives a penalty below it fits the noise of the instrument and not the law.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards.reward import Reward


@dataclass(frozen=True)
class Floor:
    """Penalties of perfect clips under one term, in its unit.

    Attributes:
        mean, median, high: over the clips that could be measured; `high` is the 90 % quantile. NaN if none could.
        clips: how many could be.
    """

    mean: float
    median: float
    high: float
    clips: int


@torch.no_grad()
def measure_floor(reward: Reward, perfect: Iterable[ClipBatch]) -> dict[str, Floor]:
    """Judge perfect clips against themselves.

    Args:
        reward: with the terms and networks that will be used.
        perfect: batches of simulated clips of right physics, with masks and valid frames.
    Returns:
        by term. Terms that compare with the paired clip have a floor of 0 by construction.
    Raises:
        InputError: a term lacks what it needs.
    """
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in reward.terms}
    for batch in perfect:
        output = reward(batch.with_frames(batch.frames), reference=batch)
        for name, raw in output.raw.items():
            seen[name].append(raw)
    return {name: _floor(torch.cat(values)) for name, values in seen.items()}


def _floor(values: torch.Tensor) -> Floor:
    known = values[values.isfinite()].double()
    if not len(known):
        return Floor(float("nan"), float("nan"), float("nan"), 0)
    return Floor(float(known.mean()), float(known.median()), float(known.quantile(0.9)), len(known))
