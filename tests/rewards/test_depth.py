"""Depth networks as tiny random instances of transformers' real classes: frozen, differentiable, or clearly missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import DPTImageProcessor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, MissingExtra, RecipeError
from newtonrewards.core.recipe import validate
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.depth import DepthConfig, TransformersDepth, load_depth
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, embedded_network
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig

TERM = "imitation/depth"


def raft() -> RaftFlow:
    return RaftFlow(embedded_network(), FlowConfig(num_flow_updates=1))


def batch(shade: float = 0.8, count: int = 1) -> ClipBatch:
    """Clips of a square of that shade, which moves to the right over grey."""
    frames = torch.full((count, 4, 3, 24, 32), 0.4)
    for t in range(4):
        frames[:, t, :, 8:16, 4 + 4 * t : 12 + 4 * t] = shade
    return ClipBatch(frames, torch.full((count,), 10.0), ("",) * count, index=tuple(range(count)))


@pytest.mark.parametrize("kind", ["depth_anything", "dpt"])
def test_the_gradient_reaches_the_pixels_of_every_frame(tiny_networks: Path, kind: str) -> None:
    depth = load_depth(DepthConfig(name=str(tiny_networks / kind)))
    frames = batch().frames.requires_grad_(True)
    found = depth(frames)
    assert found.shape == (1, 4, 24, 32)
    assert found.dtype == torch.float32
    found.square().mean().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert (frames.grad.abs().amax((0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("kind", ["depth_anything", "dpt"])
def test_frozen_means_frozen(tiny_networks: Path, kind: str) -> None:
    """No parameter takes a gradient, nothing trains, no autocast and no wrapper of a trained module reaches it."""
    depth = load_depth(DepthConfig(name=str(tiny_networks / kind)))
    before = [value.clone() for value in depth.network.state_dict().values()]
    assert not isinstance(depth, nn.Module)
    assert not depth.network.training
    assert not any(parameter.requires_grad for parameter in depth.network.parameters())
    frames = batch().frames.requires_grad_(True)
    plain = depth(frames)
    with torch.autocast("cpu", torch.bfloat16):
        cast = depth(frames)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    cast.sum().backward()
    assert all(parameter.grad is None for parameter in depth.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, depth.network.state_dict().values(), strict=True))


def test_frames_are_prepared_as_the_model_s_own_processor_does(tiny_networks: Path) -> None:
    frames = batch().frames
    depth = load_depth(DepthConfig(name=str(tiny_networks / "dpt"), frames_at_once=3))
    processor = DPTImageProcessor.from_pretrained(tiny_networks / "dpt")
    pixels = processor(list((frames[0] * 255).round().to(torch.uint8)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = depth.network(pixel_values=pixels).predicted_depth
        theirs = nn.functional.interpolate(theirs[:, None], (24, 32), mode="bilinear", align_corners=False)[:, 0]
        ours = depth(frames)[0]
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()  # theirs are rounded to 8 bits


def test_through_the_whole_reward(tiny_networks: Path) -> None:
    settings = {"depth": {"name": str(tiny_networks / "depth_anything")}, "terms": {TERM: {}}}
    reward = Reward(validate(RewardConfig, settings, where="recipe"))
    assert isinstance(reward.networks.depth, TransformersDepth)
    truth, other = batch(), batch(0.1)
    frames = other.frames.requires_grad_(True)
    assert reward(truth, truth).raw[TERM] == 0
    out = reward(other.with_frames(frames), truth)
    assert out.raw[TERM] > 0
    out.total.sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all() and frames.grad.abs().max() > 0


def red_is_depth(frames: Tensor) -> Tensor:
    return 1 + 4 * frames[:, :, 0]


def test_the_deeper_the_object_the_more_it_costs_and_a_scale_costs_nothing() -> None:
    flow = raft()
    reward = Reward(
        RewardConfig.model_validate({"terms": {TERM: {}}}), Networks(flow, FlowFeatures(flow), None, red_is_depth)
    )
    truth = batch(0.6)
    truth.frames[..., :4, :4] = 1.0  # something deeper, and something nearer, that stay
    truth.frames[..., -4:, -4:] = 0.0

    def cost(shade: float) -> float:
        deeper = batch(shade).frames
        deeper[..., :4, :4], deeper[..., -4:, -4:] = 1.0, 0.0
        return float(reward(truth.with_frames(deeper), truth).raw[TERM])

    assert cost(0.6) == 0
    assert 0 < cost(0.7) < cost(0.8) < cost(0.9)
    share = 8 * 8 / (24 * 32)
    assert cost(0.9) == pytest.approx(0.3**2 * share, rel=1e-4)
    scaled = truth.with_frames(0.5 * truth.frames)
    assert reward(scaled, truth).raw[TERM].item() == pytest.approx(0, abs=1e-9)


def test_what_is_missing_is_said(tiny_networks: Path, tmp_path: Path) -> None:
    flow = raft()
    with pytest.raises(InputError, match=r"reward\.depth: imitation/depth needs a depth network\. Name one"):
        Reward(RewardConfig.model_validate({"terms": {TERM: {}}}), Networks(flow, FlowFeatures(flow)))
    with pytest.raises(InputError, match="needs a depth network"):
        Reward(RewardConfig.model_validate({"terms": {TERM: {}}}))
    with pytest.raises(MissingExtra, match="can't load this depth network"):
        load_depth(DepthConfig(name=str(tmp_path / "nothing")))
    with pytest.raises(MissingExtra, match="can't load this depth network"):
        load_depth(DepthConfig(name=str(tiny_networks / "dinov2")))
    with pytest.raises(RecipeError, match="no term looks through"):
        validate(RewardConfig, {"depth": {"name": "x"}, "terms": {"mass/paired": {}}}, where="recipe")
