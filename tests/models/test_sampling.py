"""The sampler and the loss, on models whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import Condition, VideoSpec, draw_noise, draw_sigma, logit_normal
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.sampling import sample, schedule

SPEC = VideoSpec("point", 9, 32, 32, 20.0, 10.0, (2, 2, 4, 4))


class PointModel:
    """Knows that every clip has latents `target`: velocity = (latents - target) / sigma. Exact for any schedule."""

    def __init__(self, target: float, empty_target: float = 0.0, shift: float = 3.0) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.spec = SPEC
        self.transformer = nn.Linear(1, 1)
        self.transformer.weight.data.fill_(target)
        self.empty_target = empty_target
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        self.evaluations: list[tuple[float, bool]] = []

    @property
    def trainable(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def condition(self, captions: Sequence[str], first_frame: Tensor) -> Condition:
        text = torch.ones(len(captions), 1, 1)
        return Condition(first_frame, text, torch.zeros(1, 1, 1), torch.zeros(len(captions), 1, 2, 4, 4))

    def predict(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.evaluations.append((sigma[0].item(), torch.is_grad_enabled()))
        captioned = condition.text.view(-1, 1, 1, 1, 1)
        target = captioned * self.transformer.weight + (1 - captioned) * self.empty_target
        return (latents - target) / sigma.view(-1, 1, 1, 1, 1)

    def training_sigma(self, normal: Tensor) -> Tensor:
        return logit_normal(normal, self.scheduler.config.shift)

    def loss_weight(self, clean: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones(())

    def not_asked_for(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("sampler and loss need no pixels, files or devices")

    encode = decode = save = to = not_asked_for


def conditioned(model: PointModel, count: int = 2) -> Condition:
    return model.condition(["a"] * count, torch.zeros(count, 3, 32, 32))


def test_a_perfect_velocity_leads_to_the_clip() -> None:
    model = PointModel(0.7)
    noise = draw_noise(SPEC, 0, 0, [0, 1])
    for steps in (1, 4, 9):
        latents = sample(model, conditioned(model), noise, num_inference_steps=steps, guidance_scale=1.0)
        torch.testing.assert_close(latents, torch.full_like(latents, 0.7), rtol=0, atol=1e-5)


def test_guidance_extrapolates_from_the_empty_caption() -> None:
    model = PointModel(1.0, empty_target=0.25)
    latents = sample(
        model, conditioned(model), draw_noise(SPEC, 0, 0, [0, 1]), num_inference_steps=4, guidance_scale=3.0
    )
    torch.testing.assert_close(latents, torch.full_like(latents, 0.25 + 3 * 0.75), rtol=0, atol=1e-5)


def test_only_the_last_steps_carry_gradient_and_are_recomputed_once() -> None:
    model = PointModel(0.7)
    latents = sample(
        model,
        conditioned(model),
        draw_noise(SPEC, 0, 0, [0, 1]),
        num_inference_steps=5,
        guidance_scale=1.0,
        grad_steps=2,
    )
    assert [grad for _, grad in model.evaluations] == [False] * 3 + [True] * 2
    latents.mean().backward()
    assert len(model.evaluations) == 7
    assert model.transformer.weight.grad is not None
    # d latents / d target: the last two Euler steps replace all but sigma_5 / sigma_3 = 0 of what came before
    assert model.transformer.weight.grad.item() == pytest.approx(1.0, abs=1e-4)


def test_no_gradient_without_grad_steps_and_no_requires_grad_is_touched() -> None:
    model = PointModel(0.7)
    model.transformer.bias.requires_grad_(False)
    noise = draw_noise(SPEC, 0, 0, [0, 1]).requires_grad_()
    latents = sample(model, conditioned(model), noise, num_inference_steps=3, guidance_scale=1.0)
    assert not latents.requires_grad
    assert model.transformer.weight.requires_grad
    assert not model.transformer.bias.requires_grad
    sample(model, conditioned(model), noise, num_inference_steps=3, guidance_scale=1.0, grad_steps=3).mean().backward()
    assert noise.grad is None  # the noise is given; only the model is to blame


@pytest.mark.parametrize(("steps", "grad_steps"), [(0, 0), (4, 5), (4, -1)])
def test_impossible_steps_are_refused(steps: int, grad_steps: int) -> None:
    model = PointModel(0.7)
    with pytest.raises(InputError, match="steps"):
        sample(
            model,
            conditioned(model),
            draw_noise(SPEC, 0, 0, [0, 1]),
            num_inference_steps=steps,
            guidance_scale=1.0,
            grad_steps=grad_steps,
        )


def test_the_schedule_is_the_schedulers_own_and_leaves_it_alone() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0, shift_terminal=0.1)
    before = scheduler.sigmas.clone()
    sigmas = schedule(scheduler, 6)
    torch.testing.assert_close(scheduler.sigmas, before)
    scheduler.set_timesteps(6)
    torch.testing.assert_close(sigmas, scheduler.sigmas)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert sigmas[-2].item() == pytest.approx(0.1)
    with pytest.raises(InputError, match="stochastic_sampling"):
        schedule(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 4)


def test_the_loss_is_zero_for_the_right_velocity_and_counts_each_sample_alone() -> None:
    model = PointModel(0.7)
    clean = torch.full((2, 2, 2, 4, 4), 0.7)
    clean[1] += 0.2
    noise, sigma = draw_noise(SPEC, 0, 0, [0, 1]), torch.tensor([0.5, 0.25])
    loss = flow_matching_loss(model, clean, noise, sigma, conditioned(model))
    # sample 1: latents differ from what the model knows by (1 - .25) .2, its velocity by .2 / .25 in all
    torch.testing.assert_close(loss, torch.tensor([0.0, (0.2 / 0.25) ** 2]), rtol=0, atol=1e-5)


def test_noise_belongs_to_the_sample_and_not_to_the_batch() -> None:
    alone, batch = draw_noise(SPEC, 3, 5, [7]), draw_noise(SPEC, 3, 5, [2, 7])
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(draw_noise(SPEC, 3, 6, [7]), alone)
    assert not torch.equal(draw_noise(SPEC, 3, 5, [7], "other"), alone)


def test_noise_levels_are_logit_normal_and_the_shift_moves_them_towards_noise() -> None:
    plain, shifted = (draw_sigma(PointModel(0.7, shift=shift), 0, 0, range(4000)) for shift in (1.0, 3.0))
    logit = torch.logit(plain)
    assert logit.mean().item() == pytest.approx(0.0, abs=0.05)
    assert logit.std().item() == pytest.approx(1.0, abs=0.05)
    # sigma / (1 - sigma) is multiplied by the shift
    torch.testing.assert_close(shifted / (1 - shifted), 3 * plain / (1 - plain), rtol=1e-3, atol=1e-3)
