"""Recipes that a lab starts from: valid as they are, and run for three steps on tiny instances of the real classes."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from newtonrewards.core.recipe import load
from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.models import generate
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.models.load import FAMILIES
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training import train
from newtonrewards.training.methods.reward import RewardStage
from newtonrewards.training.recipe import TrainRecipe

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated clips."""
    folder = tmp_path_factory.mktemp("world")
    simulate(SimulateRecipe(num_clips=4, seed=4, arrays=("masks",)), folder / "clips", workers=1)
    return folder


@pytest.fixture(scope="module")
def embedded(world: Path) -> Path:
    dataset = ClipFolder(world / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(num_heads=2, head_dim=16, num_layers=1, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1)
    EmbeddedModel.create(small, codec, seed=3).save(world / "embedded")
    return world / "embedded"


@pytest.fixture(autouse=True)
def one_run_at_a_time() -> Iterator[None]:
    """Accelerate keeps its settings for the life of a process; a test is a run of its own."""
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recipe_is_valid_and_sets_what_a_large_model_needs(name: str) -> None:
    recipe = load(TrainRecipe, RECIPES / f"{name}.yaml")
    model, stage = recipe.model, recipe.stages[0]
    assert (model.name, recipe.precision, model.dtype) == (name, "bf16", "bfloat16")
    assert model.lora_rank and model.gradient_checkpointing and model.embeddings
    assert isinstance(stage, RewardStage)
    assert stage.reward.flow.network == "raft_large"
    assert stage.reward.appearance.network in ("vjepa2", "dino")
    assert {"kinematic/second_difference", "mass/paired"} <= set(stage.reward.terms)


@pytest.mark.parametrize("name", FAMILIES)
def test_three_steps_and_a_clip_of_the_trained_adapter(
    name: str, world: Path, tiny_networks: Path, tmp_path: Path
) -> None:
    tiny = importlib.import_module(f"newtonrewards.models.tiny_{name}")
    assert tiny.main(["--out", str(tmp_path / "tiny")]) == 0
    appearance = load(TrainRecipe, RECIPES / f"{name}.yaml").stages[0].reward.appearance.network  # type: ignore[union-attr]
    small = {
        "model.path": tmp_path / "tiny",
        **{f"model.{key}": value for key, value in {"num_frames": 17, "height": 64, "width": 64, "fps": 20}.items()},
        "model.lora_rank": 2,
        "model.embeddings": tmp_path / "embeddings",
        "data.clips": world / "clips",
        "stages.0.steps": STEPS,
        "stages.0.batch_size": 1,
        "stages.0.sampling.num_inference_steps": 2,
        "stages.0.reward.flow.network": "embedded",
        "stages.0.reward.flow.weights": "null",
        "stages.0.reward.flow.num_flow_updates": 1,
        "stages.0.reward.appearance.name": tiny_networks / {"dino": "dinov2"}.get(appearance, appearance),
    }
    if appearance == "vjepa2":
        small["stages.0.reward.appearance.window"] = 4
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    assert train.main(["--recipe", str(RECIPES / f"{name}.yaml"), "--out", str(run), *overrides]) == 0
    rows = read_jsonl(run / "metrics.jsonl")
    assert len(rows) == STEPS
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert (run / "model" / "pytorch_lora_weights.safetensors").is_file()
    arguments = ["--model", tmp_path / "tiny", "--lora", run / "model", "--clips", world / "clips", "--out", run / "c"]
    options = {"--limit": 1, "--num-inference-steps": 2, "--num-frames": 17, "--height": 64, "--width": 64, "--fps": 20}
    flat = [part for pair in options.items() for part in pair]
    assert generate.main([str(part) for part in (*arguments, *flat)]) == 0
    (row,) = read_jsonl(run / "c" / "index.jsonl")
    assert read_clip(run / "c" / f"{row['name']}.mp4").frames.shape == (17, 3, 64, 64)
    assert json.loads((tmp_path / "tiny" / "model_index.json").read_text())["_class_name"] in FAMILIES[name].pipelines


@pytest.mark.parametrize("pixel_range", ["right", "published"])
def test_depth_is_imitated_in_either_range(
    pixel_range: str, world: Path, embedded: Path, tiny_networks: Path, tmp_path: Path
) -> None:
    small = {
        "model.path": embedded,
        "model.lora_rank": 2,
        "data.clips": world / "clips",
        "stages.0.steps": 1,
        "stages.0.batch_size": 2,
        "stages.0.sampling.num_inference_steps": 2,
        "stages.0.reward.flow.num_flow_updates": 1,
        "stages.0.reward.flow.upsample": 1,
        "stages.0.reward.depth.name": tiny_networks / "depth_anything",
        "stages.0.reward.terms.imitation/depth.pixel_range": pixel_range,
    }
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    recipe = RECIPES / "methods" / "oro_depth.yaml"
    assert train.main(["--recipe", str(recipe), "--out", str(tmp_path / "run"), *overrides]) == 0
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert row["raw/imitation/depth"] > 0 and row["grad_norm"] > 0
    perfect = row["floor/imitation/depth"]  # what a perfect clip costs
    assert perfect == 0 if pixel_range == "right" else perfect > 0
