"""Stochastic sampling: the right density, the right marginals, and the ODE where there is no noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import Condition, VideoSpec, draw_noise
from newtonrewards.models.embedded import EmbeddedModel
from newtonrewards.models.sampling import sample, schedule
from newtonrewards.models.sde import SdeSampling, kl_divergence, log_prob, mean_and_std, sample_sde

SPEC = VideoSpec("gaussian", 9, 32, 32, 20.0, 10.0, (2, 2, 4, 4))
SPREAD = 0.5


class GaussianModel:
    """Knows that latents are normal around `centre` with standard deviation `SPREAD`: its velocity is exact."""

    def __init__(self, centre: float) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.spec = SPEC
        self.transformer = nn.Linear(1, 1, bias=False)
        self.transformer.weight.data.fill_(centre)
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)

    @property
    def trainable(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def condition(self, captions: Sequence[str], first_frame: Tensor) -> Condition:
        count = len(captions)
        return Condition(first_frame, torch.ones(count, 1, 1), torch.zeros(1, 1, 1), torch.zeros(count, 1, 2, 4, 4))

    def predict(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        s, centre = sigma.view(-1, 1, 1, 1, 1), self.transformer.weight
        variance = (1 - s) ** 2 * SPREAD**2 + s**2
        away = latents - (1 - s) * centre
        noise, clean = s / variance * away, centre + (1 - s) * SPREAD**2 / variance * away
        return noise - clean

    def not_asked_for(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("sampling needs no pixels, files or devices")

    training_sigma = loss_weight = encode = decode = save = to = not_asked_for


def draw(model: Any, sampling: SdeSampling, count: int, seed: int = 0) -> Any:
    condition = model.condition([""] * count, torch.zeros(count, 3, model.spec.height, model.spec.width))
    noise = draw_noise(model.spec, seed, 0, range(count))
    return sample_sde(model, condition, noise, sampling, seed=seed, indices=range(count), purpose="test")


def test_without_noise_it_is_the_ode_to_the_bit(embedded: EmbeddedModel, clips: Tensor) -> None:
    condition = embedded.condition(["a", "b"], clips[:2, 0])
    noise = draw_noise(embedded.spec, 0, 0, [0, 1])
    ode = sample(embedded, condition, noise, num_inference_steps=5, guidance_scale=2.0)
    still = SdeSampling(5, 2.0, 0.0, (0, 1, 2, 3))
    sde, _ = sample_sde(embedded, condition, noise, still, seed=0, indices=[0, 1], purpose="test")
    assert torch.equal(sde, ode)
    moving = SdeSampling(5, 2.0, 0.7, (0, 1, 2, 3))
    other, _ = sample_sde(embedded, condition, noise, moving, seed=0, indices=[0, 1], purpose="test")
    assert (other - ode).abs().max() > 0.1


def test_a_steps_probability_is_that_of_torch_distributions() -> None:
    model = GaussianModel(0.3)
    _, transitions = draw(model, SdeSampling(6, 1.0, 0.8, (0, 2, 4)), 3)
    condition = model.condition([""] * 3, torch.zeros(3, 3, 32, 32))
    for one in transitions:
        mean, std = mean_and_std(
            model, one.latents, one.sigma, one.next_sigma, one.cap, condition, SdeSampling(6, 1.0, 0.8, (0,))
        )
        normal = torch.distributions.Independent(torch.distributions.Normal(mean, std), 4)
        torch.testing.assert_close(one.log_prob * 64, normal.log_prob(one.next_latents))
        other = torch.distributions.Normal(mean + 0.1, std)
        wanted = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), other).flatten(1).mean(1)
        torch.testing.assert_close(kl_divergence(mean, mean + 0.1, std), wanted)


@pytest.mark.parametrize("noise_level", [0.0, 0.5, 1.0])
def test_ode_and_sde_end_in_the_same_distribution(noise_level: float) -> None:
    """The claim behind the method: other paths, the same marginals. 64 numbers of 256 clips, 60 small steps."""
    latents, _ = draw(GaussianModel(0.3), SdeSampling(60, 1.0, noise_level, tuple(range(59))), 256)
    assert latents.mean().item() == pytest.approx(0.3, abs=0.02)
    assert latents.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_only_the_window_is_stochastic_and_each_sample_has_its_own_noise() -> None:
    model, sampling = GaussianModel(0.3), SdeSampling(6, 1.0, 0.7, (1, 2))
    latents, transitions = draw(model, sampling, 3)
    assert [one.sigma for one in transitions] == list(schedule(model.scheduler, 6)[1:3])
    again, _ = draw(model, sampling, 2)
    assert torch.equal(latents[:2], again)


@pytest.mark.parametrize(("steps", "level"), [((5,), 0.7), ((), 0.7), ((0,), -1.0)])
def test_the_last_step_and_negative_levels_are_refused(steps: tuple[int, ...], level: float) -> None:
    with pytest.raises(InputError, match="noise_level"):
        SdeSampling(6, 1.0, level, steps)


def test_the_gradient_of_the_probability_is_the_score_of_the_mean() -> None:
    mean = torch.zeros(2, 1, 1, 2, 2, requires_grad=True)
    value, std = torch.arange(8.0).view(2, 1, 1, 2, 2), torch.tensor(0.5)
    log_prob(value, mean, std).sum().backward()
    torch.testing.assert_close(mean.grad, value / 0.25 / 4)
