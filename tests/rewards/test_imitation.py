"""PISA's rewards with the right range of pixels, and with the one that its released code has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import RecipeError
from newtonrewards.core.recipe import validate
from newtonrewards.rewards import imitation
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig


def pisa_samples(decoded: Tensor) -> Tensor:
    """What `scripts/oro_flow.py` makes of a decoder's output in [-1, 1]: 0 to 255."""
    return decoded.mul(255).add(0.5).clamp(0, 255)


def pisa_videos(videos: Tensor) -> Tensor:
    """What it makes of the paired clip in [-1, 1]."""
    return (videos + 1) * 127.5


def shade_as_flow(frames: Tensor) -> Tensor:
    """A stand-in for a flow network that any change of the pixels shows in."""
    return 10 * torch.stack([frames[:, :-1, 0], frames[:, 1:, 1]], 2)


def networks() -> Networks:
    return Networks(shade_as_flow, lambda frames: frames, depth=lambda frames: frames.mean(2) + 1)


def clips(seed: int) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, 5, 3, 16, 24, generator=generator)
    masks = torch.zeros(2, 5, 16, 24)
    masks[..., 4:10, 6:14] = 1
    return ClipBatch(frames, torch.full((2,), 8.0), ("", ""), masks, index=(0, 1))


def reward(pixel_range: str, *names: str) -> Reward:
    terms = {name: {"pixel_range": pixel_range} for name in names or ("imitation/flow",)}
    return Reward(RewardConfig.model_validate({"terms": terms}), networks())


def test_the_published_range_is_that_of_the_released_code() -> None:
    decoded = torch.linspace(-1, 1, 1002).reshape(1, 1, 3, 1, 334).requires_grad_(True)
    theirs = pisa_samples(decoded)
    ours = 255 * imitation.published_range((decoded + 1) / 2)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (theirs[decoded < -0.002] == 0).all()
    grads = [torch.autograd.grad(mapped.sum(), decoded)[0] for mapped in (ours, theirs)]
    assert torch.allclose(*grads, atol=1e-3)
    assert (grads[0][decoded < -0.002] == 0).all()


@pytest.mark.parametrize("pixel_range", ["right", "published"])
def test_flow_and_depth_terms_are_pisa_s_numbers_in_our_units(pixel_range: str) -> None:
    generated, truth = clips(0), clips(1)
    decoded = 2 * generated.frames - 1
    samples = (pisa_samples if pixel_range == "published" else pisa_videos)(decoded) / 255
    videos = pisa_videos(2 * truth.frames - 1) / 255
    out = reward(pixel_range, "imitation/flow", "imitation/depth")(generated.with_frames(generated.frames), truth)

    flow = (shade_as_flow(samples) - shade_as_flow(videos)).abs().mean((1, 2, 3, 4))
    assert torch.allclose(out.raw["imitation/flow"] * 16 / (2 * 8.0), flow, rtol=1e-4)

    def scaled(frames: Tensor) -> Tensor:
        depth = frames.mean(2) + 1
        low, high = depth.amin((-2, -1), keepdim=True), depth.amax((-2, -1), keepdim=True)
        return (depth - low) / (high - low) * 255

    depth = (scaled(samples) - scaled(videos)).square().mean((1, 2, 3))
    assert torch.allclose(out.raw["imitation/depth"] * 255**2, depth, rtol=1e-3)


def test_in_the_published_range_a_perfect_clip_costs_and_its_dark_half_gets_no_gradient() -> None:
    truth = clips(1)
    perfect = truth.with_frames(truth.frames)
    names = ("imitation/flow", "imitation/mask", "imitation/depth")
    right, published = (reward(kind, *names)(perfect, truth) for kind in ("right", "published"))
    for name in names:
        assert right.raw[name].max() < published.raw[name].min()
    assert right.raw["imitation/flow"].max() == 0 and right.raw["imitation/depth"].max() == 0

    frames = clips(0).frames.requires_grad_(True)
    dark = frames.detach() < 127 / 255
    gradients = []
    for kind in ("right", "published"):
        total = reward(kind)(truth.with_frames(frames), truth).total.sum()
        gradients.append(torch.autograd.grad(total, frames)[0][:, 1:-1, :2])
    dark = dark[:, 1:-1, :2]
    assert (gradients[0][dark] != 0).float().mean() > 0.9
    assert (gradients[1][dark] == 0).all()
    assert (gradients[1][~dark] != 0).float().mean() > 0.9


def test_the_range_is_chosen_for_each_term_and_only_for_imitation() -> None:
    truth, generated = clips(1), clips(0)
    terms = {"imitation/flow": {"pixel_range": "published"}, "kinematic/velocity": {"support": "motion"}}
    both = Reward(RewardConfig.model_validate({"terms": terms}), networks())(generated, truth)
    alone = Reward(RewardConfig.model_validate({"terms": {"kinematic/velocity": {"support": "motion"}}}), networks())
    assert torch.equal(both.raw["kinematic/velocity"], alone(generated, truth).raw["kinematic/velocity"])
    assert torch.equal(both.raw["imitation/flow"], reward("published")(generated, truth).raw["imitation/flow"])
    with pytest.raises(RecipeError, match="only imitation terms have a published one"):
        validate(RewardConfig, {"terms": {"mass/paired": {"pixel_range": "published"}}}, where="recipe")
