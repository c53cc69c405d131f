"""A world small enough to train in: 20 simulated clips and an untrained embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from newtonrewards.core.recipe import validate
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.recipe import TrainRecipe


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    simulate(SimulateRecipe(num_clips=20, seed=4, arrays=("masks",)), folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    dataset = ClipFolder(clips)
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(
        num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
    )
    path = tmp_path_factory.mktemp("models") / "untrained"
    EmbeddedModel.create(small, codec, seed=3).save(path)
    return path


@pytest.fixture(scope="session")
def content(clips: Path, untrained: Path) -> dict[str, Any]:
    """A recipe with a stage of each method, as it would stand in a YAML file."""
    return {
        "seed": 5,
        "model": {"name": "embedded", "path": str(untrained), "lora_rank": 2},
        "data": {"clips": str(clips)},
        "stages": [
            {"objective": "sft", "steps": 3, "batch_size": 4, "optimiser": {"lr": 1e-3}},
            {
                "objective": "reward",
                "steps": 3,
                "batch_size": 4,
                "reward_every": 2,
                "sampling": {"num_inference_steps": 3, "grad_steps": 1},
                "reward": {
                    "flow": {"num_flow_updates": 1, "upsample": 2},
                    "terms": {"kinematic/second_difference": {"weight": 1.0}, "mass/paired": {"weight": 1.0}},
                },
                "optimiser": {"lr": 1e-3},
            },
            {
                "objective": "grpo",
                "steps": 2,
                "batch_size": 2,
                "group_size": 2,
                "updates": 2,
                "kl_weight": 0.1,
                "rollout": {"num_inference_steps": 3},
                "reward": {"flow": {"num_flow_updates": 1}, "terms": {"kinematic/second_difference": {}}},
                "sentinels": {"presence": {"action": "lower", "window": 1, "low": 0.99}},
                "optimiser": {"lr": 1e-3},
            },
        ],
        "ema": 0.9,
        "checkpoint": {"every": 1, "keep": 3},
    }


@pytest.fixture(scope="session")
def recipe(content: dict[str, Any]) -> TrainRecipe:
    return validate(TrainRecipe, content, where="conftest")
