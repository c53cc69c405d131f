"""More of a corruption costs more, through the term that docs/ranking.md names for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards.flow import EMBEDDED_WEIGHTS
from newtonrewards.rewards.reward import Reward, RewardConfig, TermConfig
from newtonrewards.simulation.corrupt import LOOKS, MOTIONS, corrupt
from newtonrewards.simulation.render import render

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
STRENGTHS = (0.0, 0.3, 1.0)


@pytest.fixture(scope="module")
def ranking() -> ModuleType:
    if not EMBEDDED_WEIGHTS.is_file():
        pytest.skip(f"the embedded flow network has no weights yet ({EMBEDDED_WEIGHTS.name})")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("ranking")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.weights
@pytest.mark.parametrize("name", [*MOTIONS, *LOOKS])
def test_more_of_a_corruption_costs_more(name: str, ranking: ModuleType) -> None:
    """One scene of each motion; `benchmarks/ranking.py` asks it of more, at five strengths."""
    whole, _ = ranking.instruments()
    term = ranking.CAUGHT_BY[name]
    reward = Reward(RewardConfig(terms={term: TermConfig()}), whole.networks)
    scenes = [ranking.scene_of(index)[1] for index in range(5)]
    truth = ClipBatch.stack([render(scene) for scene in scenes])
    medians = []
    for strength in STRENGTHS:
        clips = ClipBatch.stack([corrupt(scene, name, strength) for scene in scenes])
        with torch.no_grad():
            medians.append(float(reward(clips, truth).raw[term].nanmedian()))
    assert sorted(set(medians)) == medians, medians
