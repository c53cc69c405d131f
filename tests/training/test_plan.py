"""Plans: what a step on tensors without content says, against the same step on real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.memory import MemoryTracker, Moment, Split
from newtonrewards.core.recipe import validate
from newtonrewards.models.load import load_video_model
from newtonrewards.models.tiny_wan import tiny_pipeline
from newtonrewards.rewards.reward import Reward
from newtonrewards.training.methods.grpo import GrpoStage
from newtonrewards.training.methods.registry import METHODS
from newtonrewards.training.methods.reward import RewardStage
from newtonrewards.training.plan import StagePlan, fake_clips, networks, parse_bytes, plan_stage, split, step
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.train import main

TERMS = {"kinematic/second_difference": {"weight": 1.0}, "mass/paired": {"weight": 1.0}}


def content(folder: Path, steps: int = 2) -> dict[str, Any]:
    sampling = {"num_inference_steps": steps, "grad_steps": 1}
    reward = {"flow": {"num_flow_updates": 1, "upsample": 1}, "terms": TERMS}
    stage = {"objective": "reward", "steps": 1, "batch_size": 2, "sampling": sampling, "reward": reward}
    model = {"name": "wan", "path": str(folder), "num_frames": 5, "height": 64, "width": 64, "lora_rank": 2}
    return {"model": model, "data": {"clips": "none"}, "stages": [stage]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wan") / "tiny"
    tiny_pipeline("2.1-no-image-encoder").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def only_json(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder without its weights and vocabulary."""
    path = tmp_path_factory.mktemp("json")
    for file in folder.rglob("*.json"):
        if "token" not in file.name:
            (path / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (path / file.relative_to(folder)).write_bytes(file.read_bytes())
    return path


@pytest.fixture(scope="module")
def plan(only_json: Path) -> StagePlan:
    recipe = validate(TrainRecipe, content(only_json, steps=4), where="test")
    return plan_stage(recipe, 0, compare=(4,), foreach=False)


def test_a_plan_is_within_a_tenth_of_the_real_step(folder: Path, plan: StagePlan) -> None:
    recipe = validate(TrainRecipe, content(folder, steps=4), where="test")
    stage = recipe.stages[0]
    assert isinstance(stage, RewardStage)
    model, reward = load_video_model(recipe.model), Reward(stage.reward)
    objective = METHODS[stage.objective].build(model, stage, 0, reward=reward)
    tracker = MemoryTracker(*networks(model, reward).values())
    step(objective, recipe, stage, fake_clips(model, 2), tracker, foreach=False)
    assert plan.bytes == pytest.approx(tracker.peak_bytes(), rel=0.1)
    assert plan.moment.parameters == pytest.approx(tracker.peak().parameters, rel=0.01)


def test_a_policy_gradient_can_be_planned_too(folder: Path, only_json: Path) -> None:
    def grpo(path: Path) -> TrainRecipe:
        made = content(path)
        reward = made["stages"][0]["reward"]
        rollout = {"num_inference_steps": 2}
        made["stages"] = [
            {"objective": "grpo", "steps": 1, "batch_size": 1, "group_size": 2, "rollout": rollout, "reward": reward}
        ]
        return validate(TrainRecipe, made, where="test")

    recipe = grpo(folder)
    (stage,) = recipe.stages
    assert isinstance(stage, GrpoStage)
    model, reward = load_video_model(recipe.model), Reward(stage.reward)
    tracker = MemoryTracker(*networks(model, reward).values())
    objective = METHODS["grpo"].build(model, stage, 0, reward=reward)
    step(objective, recipe, stage, fake_clips(model, 1), tracker, foreach=False)
    assert plan_stage(grpo(only_json), 0, foreach=False).bytes == pytest.approx(tracker.peak_bytes(), rel=0.1)


def test_a_plan_does_not_pretend_to_know_a_model_without_encoders(only_json: Path, tmp_path: Path) -> None:
    made = content(only_json)
    made["model"]["embeddings"] = str(tmp_path)
    with pytest.raises(InputError, match="model.embeddings"):
        plan_stage(validate(TrainRecipe, made, where="test"), 0)


def test_more_processes_need_less_each_the_more_a_strategy_divides(plan: StagePlan) -> None:
    sizes = [plan.others[way, 4] for way in ("ddp", "zero1", "zero2")]
    assert sizes == sorted(sizes, reverse=True)
    assert plan.fixed["transformer"] > 0 and {"vae", "text_encoder", "flow"} <= plan.fixed.keys()


def test_a_split_keeps_its_share_of_each_kind() -> None:
    module = torch.nn.Linear(10, 10, bias=False)
    moment = Moment(parameters=400, gradients=400, optimiser=800, activations=7, temporary=3)
    totals = {way: split(module, way, 4).total(moment) for way in ("ddp", "zero1", "zero2", "zero3")}
    assert totals == {"ddp": 2010, "zero1": 1010, "zero2": 710, "zero3": 410 + 2 * 400}
    assert Split().total(moment) == 1610


def test_the_tracker_sees_parameters_gradients_and_state() -> None:
    module = torch.nn.Linear(1000, 1000, bias=False)
    optimiser = torch.optim.AdamW(module.parameters(), foreach=False)
    with MemoryTracker(module) as tracker:
        for _ in range(2):
            module(torch.ones(1, 1000)).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    peak = tracker.peak()
    assert peak.parameters == 4_000_000 and peak.gradients == 4_000_000
    assert 8_000_000 <= peak.optimiser <= 17_000_000


def test_the_command_says_what_to_change(only_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content(only_json)))
    assert main(["--recipe", str(recipe), "--plan", "--memory", "1MB"]) == 1
    said = capsys.readouterr().out
    assert "planned, not measured" in said
    assert "accumulate: 2" in said and "gradient_checkpointing" in said
    with pytest.raises(InputError, match="can't be shared"):
        main(["--recipe", str(recipe), "--plan", "--processes", "3"])
    with pytest.raises(InputError, match="--out"):
        main(["--recipe", str(recipe)])


def test_a_folder_without_a_config_is_named(only_json: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((only_json / "model_index.json").read_bytes())
    recipe = validate(TrainRecipe, content(tmp_path), where="test")
    with pytest.raises(CheckpointError, match="config"):
        plan_stage(recipe, 0)


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("79.5 GiB", 79.5 * 2**30), ("1000", 1000), ("24G", 24e9)])
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_bytes(text) == round(size)


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "1.2.3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no size"):
        parse_bytes(text)
