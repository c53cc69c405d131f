"""Every term's gradient is its derivative, given flow and features; and the whole chain to the pixels points uphill.

RAFT detaches its coordinates in each update, so finite differences can't match through it: there, a small step against
the gradient must lower the penalty.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards import kinematics
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.observation import Networks, Observation, Support
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.rewards.terms import STANDARD, TERMS
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

SIZE, TIME, BATCH = 12, 6, 2
# Rms change of a pixel. Features of flat walls bend sharply: mass/paired falls up to 2e-4 and rises again from 5e-4.
STEP = 5e-5
SUPPORTS: tuple[Support, ...] = ("mask", "advected", "carried", "colour", "motion", "pixel")
WITHOUT_SUPPORT = (
    "kinematic/centroid",
    "mass/paired",
    "mass/area",
    "imitation/flow",
    "imitation/mask",
    "imitation/depth",
)
USES_SUPPORT = [name for name in TERMS if name not in WITHOUT_SUPPORT]
CASES = [
    (name, support)
    for name in USES_SUPPORT
    for support in SUPPORTS
    if (name, support) not in {("kinematic/velocity", "pixel")}
]
CASES += [(name, "mask") for name in WITHOUT_SUPPORT]


def untouched(frames: Tensor) -> Tensor:
    raise AssertionError("flow and features are given here")


def disc() -> Tensor:
    axis = torch.arange(SIZE, dtype=torch.float64) - SIZE / 2 + 0.3
    return (3.2 - (axis[:, None] ** 2 + axis[None] ** 2).sqrt()).clamp(0, 1)


def clips(seed: int) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    mask = disc().expand(BATCH, TIME, SIZE, SIZE)
    frames = 0.35 + 0.1 * torch.rand(BATCH, TIME, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    frames = frames + torch.tensor([0.3, -0.1, -0.2], dtype=torch.float64)[:, None, None] * mask[:, :, None]
    valid = torch.ones(BATCH, TIME, dtype=torch.bool)
    valid[1, -1] = False
    law = torch.tensor([[0.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    return ClipBatch(frames, torch.tensor([20.0, 12.0]), ("",) * BATCH, mask, valid, (0, 1), law)


def observation(frames: Tensor, inner: Tensor, features: Tensor, reference: Observation | None) -> Observation:
    """An observation whose flow and features are given.

    The flow is that of a disc in a still frame, so that the camera's motion, a median without gradient, stays 0.
    Frame 0
    is given too: the object's and the background's colours are taken from it without gradient.
    """
    frames = torch.cat([clips(0).frames[:, :1], frames[:, 1:]], 1)
    networks = Networks(untouched, untouched, depth=lambda frames: frames.mean(2))
    seen = Observation(replace(clips(0), frames=frames), networks, reference)
    seen.flow = inner * (disc() > 0) + 0.0
    seen.features = features
    return seen


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    moving = torch.tensor([0.31, 0.17], dtype=torch.float64)[:, None, None]
    flow = moving + 0.1 * torch.randn(BATCH, TIME - 1, 2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    features = torch.randn(BATCH, TIME, 5, 4, 4, generator=generator, dtype=torch.float64)
    return clips(seed).frames.clone(), flow, features


@pytest.mark.parametrize(("name", "support"), CASES)
def test_a_term_matches_finite_differences_given_flow_and_features(name: str, support: Support) -> None:
    with torch.no_grad():
        reference = observation(*inputs(7), None)
    leaves = [leaf.requires_grad_(True) for leaf in inputs(3)]

    def term(frames: Tensor, flow: Tensor, features: Tensor) -> Tensor:
        return TERMS[name].fn(observation(frames, flow, features, reference), support)

    value = term(*leaves)
    assert value.isfinite().all()
    assert (value > 0).all()
    assert torch.autograd.gradcheck(term, leaves, eps=1e-6, atol=1e-6, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize(("name", "support"), CASES)
@pytest.mark.parametrize("still", [True, False])
def test_perfect_and_static_clips_have_a_finite_gradient(name: str, support: Support, still: bool) -> None:
    frames, flow, features = inputs(3)
    frames = frames[:, :1].expand_as(frames).clone().requires_grad_(True)
    flow = (torch.zeros_like(flow) if still else torch.ones_like(flow) * 0.3).requires_grad_(True)
    features = features[:, :1].expand_as(features).clone().requires_grad_(True)
    with torch.no_grad():
        reference = observation(frames, flow, features, None)
    value = TERMS[name].fn(observation(frames, flow, features, reference), support)
    torch.where(value.isnan(), torch.zeros_like(value), value).sum().backward()
    for leaf in (frames, flow, features):
        assert leaf.grad is None or leaf.grad.isfinite().all()


def test_the_object_velocity_matches_finite_differences_in_field_and_support() -> None:
    _, flow, _ = inputs(1)
    support = disc().expand(BATCH, TIME - 1, SIZE, SIZE).clone().requires_grad_(True)
    assert torch.autograd.gradcheck(kinematics.object_velocity, (flow.requires_grad_(True), support), fast_mode=True)


@pytest.fixture(scope="module")
def networks() -> Networks:
    flow = load_flow(FlowConfig(num_flow_updates=3))
    return Networks(flow, FlowFeatures(flow))


@pytest.mark.weights
@pytest.mark.parametrize("name", STANDARD)
def test_a_small_step_against_the_gradient_lowers_the_penalty(name: str, networks: Networks) -> None:
    """Clips in which every second frame is shown late: jerky, and unlike their reference."""
    reference = ClipBatch.stack([render(sample_scene(3, index, split="val")) for index in (1, 2)])
    order = [0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15]
    late = 0.8 * reference.frames[:, order] + 0.1
    frames = torch.cat([reference.frames[:, :1], late[:, 1:]], 1).requires_grad_(True)
    reward = Reward(RewardConfig.model_validate({"terms": {name: {"support": "advected"}}}), networks)
    reward(reference.with_frames(frames), reference).total.sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    step = frames.grad / frames.grad.square().mean().sqrt()
    before = reward(reference.with_frames(frames.detach()), reference).raw[name]
    after = reward(reference.with_frames((frames.detach() + STEP * step).clamp(0, 1)), reference).raw[name]
    assert after.sum() < before.sum()
