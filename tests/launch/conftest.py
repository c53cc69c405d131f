"""A world small enough to launch things in: 20 simulated clips, an untrained embedded model, a recipe of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of `clips`, of an untrained `model`, and of a `recipe`: 90 supervised steps, a checkpoint each fourth."""
    base = tmp_path_factory.mktemp("world")
    simulate(SimulateRecipe(num_clips=20, seed=4, arrays=("masks",)), base / "clips", workers=1)
    dataset = ClipFolder(base / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(
        num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
    )
    EmbeddedModel.create(small, codec, seed=3).save(base / "model")
    recipe: dict[str, Any] = {
        "seed": 5,
        "model": {"name": "embedded", "path": str(base / "model"), "lora_rank": 2},
        "data": {"clips": str(base / "clips")},
        "stages": [{"objective": "sft", "steps": 90, "batch_size": 4, "optimiser": {"lr": 1e-3}}],
        "ema": 0.9,
        "checkpoint": {"every": 4, "keep": 3},
    }
    (base / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return {name: base / name for name in ("clips", "model", "recipe.yaml")}
