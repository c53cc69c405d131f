"""Recipes that a lab starts from: valid as they are, and run for three steps on tiny instances of the real classes."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import Dinov2Config, Dinov2Model, VJEPA2Config, VJEPA2Model

from newtonrewards.core.recipe import load
from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.models import generate
from newtonrewards.models.load import FAMILIES
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.training import train
from newtonrewards.training.methods.reward import RewardStage
from newtonrewards.training.recipe import TrainRecipe

RECIPES = Path(__file__).resolve().parents[2] / "launch" / "recipes"
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated clips, and tiny encoders of the two kinds that the recipes name."""
    folder = tmp_path_factory.mktemp("world")
    simulate(SimulateRecipe(num_clips=4, seed=4, arrays=("masks",)), folder / "clips", workers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**SMALL, image_size=56, patch_size=14)).save_pretrained(folder / "dino")
        video = VJEPA2Config(
            **SMALL,
            crop_size=32,
            patch_size=16,
            frames_per_clip=4,
            tubelet_size=2,
            mlp_ratio=2,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
        )
        VJEPA2Model(video).save_pretrained(folder / "vjepa2")
    return folder


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
def test_three_steps_and_a_clip_of_the_trained_adapter(name: str, world: Path, tmp_path: Path) -> None:
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
        "stages.0.reward.appearance.name": world / appearance,
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
