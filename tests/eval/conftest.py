"""A small world on disk: true clips and three arms of generated ones whose quality is known; the flow network."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from newtonrewards.core.video import write_video
from newtonrewards.eval.measure import Flow
from newtonrewards.rewards.flow import EMBEDDED_WEIGHTS, FlowConfig, load_flow
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene
from newtonrewards.simulation.simulate import SimulateRecipe, shift_of, simulate
from newtonrewards.simulation.spoil import Wobble

NUM_CLIPS = 20
RECIPE = SimulateRecipe(num_clips=NUM_CLIPS, split="val", shifts=("id", "ood"), seed=11, arrays=("masks",))
WOBBLES = {"base": 0.12, "fine_tuned": 0.05, "post_trained": 0.03}


def generated(index: int, amplitude: float) -> torch.Tensor:
    """Frames of clip `index` with a smooth wobble (metres) on its path, from the same first frame."""
    primitive, shift = shift_of(RECIPE, index)
    scene = sample_scene(RECIPE.seed, index, split=RECIPE.split, shift=shift, primitive=primitive)
    wobble = Wobble((amplitude, amplitude), (1.5 + 0.1 * (index % 7), 2.5), (0.3 * index, 1.0))
    return render(replace(scene, wobble=wobble)).frames


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/truth, and FOLDER/base, fine_tuned, post_trained, the later the better."""
    root = tmp_path_factory.mktemp("world")
    simulate(RECIPE, root / "truth", 1)
    for arm, amplitude in WOBBLES.items():
        (root / arm).mkdir()
        rows = []
        for index in range(NUM_CLIPS):
            write_video(root / arm / f"{index:06d}.mp4", generated(index, amplitude), 10.0)
            rows.append({"name": f"{index:06d}", "seed": 0, "num_inference_steps": 8})
        (root / arm / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def flow() -> Flow:
    if not EMBEDDED_WEIGHTS.is_file():
        pytest.skip(f"the embedded flow network has no weights yet ({EMBEDDED_WEIGHTS.name})")
    return functools.cache(lambda: load_flow(FlowConfig()))
