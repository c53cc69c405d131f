"""What a step minimises: gradients reach the adapter and nothing else, and following them helps."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from newtonrewards.core.recipe import validate
from newtonrewards.models.load import FAMILIES, ModelConfig, load_video_model
from newtonrewards.rewards.reward import Reward
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.batches import Batches
from newtonrewards.training.methods.base import block_classes
from newtonrewards.training.methods.reward import RewardObjective, RewardStage
from newtonrewards.training.methods.sft import SftObjective, SftStage
from newtonrewards.training.recipe import TrainRecipe


def reward_objective(recipe: TrainRecipe, **changes: object) -> RewardObjective:
    stage = recipe.stages[1]
    assert isinstance(stage, RewardStage)
    return RewardObjective(
        load_video_model(recipe.model), stage.model_copy(update=changes), seed=5, reward=Reward(stage.reward)
    )


def test_gradient_reaches_every_adapter_layer_and_no_frozen_weight(recipe: TrainRecipe) -> None:
    objective = reward_objective(recipe, anchor_weight=0.0)
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 4)
    for parameter in objective.parameters():  # B starts at zero, which would hide the gradient of A
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    objective(batch).loss.mean().backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    reached = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained and all("lora" in name for name in trained)
    assert reached == trained


def test_frozen_networks_are_no_part_of_the_wrapped_module(recipe: TrainRecipe) -> None:
    objective = reward_objective(recipe)
    inside = {id(p) for p in objective.parameters()}
    networks = objective._reward[0].networks
    assert not inside & {id(p) for p in networks.flow.network.parameters()}  # type: ignore[attr-defined]
    assert not inside & {id(p) for p in objective.model.text_encoder.parameters()}  # type: ignore[attr-defined]


def test_a_small_step_against_the_gradient_lowers_the_loss(recipe: TrainRecipe) -> None:
    objective = reward_objective(recipe)
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 4)
    before = objective(batch).loss.mean()
    before.backward()
    parameters = [p for p in objective.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((p.grad.square().sum() for p in parameters if p.grad is not None), start=torch.zeros(())))
    with torch.no_grad():
        for p in parameters:
            assert p.grad is not None
            p -= 0.02 * p.grad / norm
    assert objective(batch).loss.mean() < before


def test_only_each_nth_clip_is_rewarded_but_all_anchor(recipe: TrainRecipe) -> None:
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 4)
    output = reward_objective(recipe)(batch)
    assert output.loss.shape == (4,) and output.logs["reward"].shape == (2,)
    plain = SftObjective(load_video_model(recipe.model), SftStage(objective="sft", steps=1), seed=5)(batch).loss
    assert torch.allclose(output.loss[1::2], plain[1::2])
    assert torch.allclose(output.loss[0::2], plain[0::2] - 2 * output.logs["reward"], atol=1e-5)


def test_a_sample_has_the_same_loss_in_any_batch(recipe: TrainRecipe) -> None:
    objective = reward_objective(recipe, reward_every=1)
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 4)
    whole = objective(batch).loss
    parts = torch.cat([objective(batch.part(i, i + 1)).loss for i in range(4)])
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_is_float32_and_in_blocks_and_nothing_else_takes_a_gradient(name: str, tmp_path: Path) -> None:
    assert importlib.import_module(f"newtonrewards.models.tiny_{name}").main(["--out", str(tmp_path / "tiny")]) == 0
    size = {"num_frames": 9, "height": 64, "width": 64}
    config = {"name": name, "path": str(tmp_path / "tiny"), "lora_rank": 2, "dtype": "bfloat16", **size}
    model = load_video_model(validate(ModelConfig, config, where="test"))
    (transformer,) = model.trainable.values()
    trains = {key for key, p in transformer.named_parameters() if p.requires_grad}
    assert trains and all("lora" in key for key in trains)
    types = [{p.dtype for key, p in transformer.named_parameters() if (key in trains) == wanted} for wanted in (1, 0)]
    assert types[0] == {torch.float32} and torch.bfloat16 in types[1]
    parts = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]  # type: ignore[attr-defined]
    others = [p for part in parts if part is not transformer for p in part.parameters()]
    assert others and not any(p.requires_grad for p in others)
    classes = {type(module).__name__ for module in transformer.modules()}
    assert block_classes(transformer) and set(block_classes(transformer)) <= classes  # which FSDP would look for
