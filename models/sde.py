"""Stochastic sampling with log-probabilities: the flow's ODE as an SDE with the same marginals, so that a policy
gradient has a density to differentiate.

At velocity v, noise level s and a step ds < 0 the next latents are Gaussian with

    mean = x + ds (v + g^2 / (2 s) (x + (1 - s) v)),    std = g sqrt(-ds),    g = a sqrt(s / (1 - s))

where x + (1 - s) v is the predicted noise, so that the second part is the score's, and a is `noise_level`. At s = 1,
where g diverges, the first noise level below 1 takes its place in g. The last step, to s = 0, stays the ODE's: noise
added there would be left in the clip.
Source: Liu et al. 2025 (Flow-GRPO), equations 8 to 10; a = 0 is the ODE to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import Condition, Latents, PerSample, VideoModel, draw_noise
from newtonrewards.models.sampling import euler_step, guided_velocity, schedule


@dataclass(frozen=True)
class SdeSampling:
    """How a trajectory is drawn.

    Attributes:
        num_inference_steps: steps N >= 2 from noise to clip.
        guidance_scale: classifier-free guidance, part of the policy; 1 is off.
        noise_level: a >= 0.
        stochastic: numbers of the steps that are stochastic, each below N - 1; the others are the ODE's.
    Raises:
        InputError: a step outside 0..N-2, or a negative noise level.
    """

    num_inference_steps: int
    guidance_scale: float
    noise_level: float
    stochastic: tuple[int, ...]

    def __post_init__(self) -> None:
        last = self.num_inference_steps - 1
        if self.noise_level < 0 or not self.stochastic or not all(0 <= step < last for step in self.stochastic):
            raise InputError(
                f"noise_level {self.noise_level} with stochastic steps {list(self.stochastic)} of "
                f"{self.num_inference_steps}: the level must not be negative, the steps lie in 0..{last - 1}"
            )


@dataclass(frozen=True)
class Transition:
    """One stochastic step.

    Attributes:
        sigma, next_sigma, cap: noise levels before and after it, and the one that bounds g.
        latents, next_latents: before and after it.
        log_prob: of `next_latents`, as `log_prob` says.
    """

    sigma: Float[Tensor, ""]
    next_sigma: Float[Tensor, ""]
    cap: Float[Tensor, ""]
    latents: Latents
    next_latents: Latents
    log_prob: PerSample


@torch.no_grad()
def sample_sde(
    model: VideoModel,
    condition: Condition,
    noise: Latents,
    sampling: SdeSampling,
    *,
    seed: int,
    indices: Sequence[int],
    purpose: str,
) -> tuple[Latents, list[Transition]]:
    """Draw clean latents and remember the stochastic steps. No gradient: `mean_and_std` is differentiated later.

    Args:
        model: any VideoModel.
        condition: from `model.condition`.
        noise: (B, C, t, h, w) standard normal, the start.
        sampling: see its class.
        seed, indices, purpose: of the streams that the noise of the steps comes from, one for each sample and step;
            see `draw_noise`.
    Returns:
        clean latents, and the stochastic steps in order.
    """
    sigmas = schedule(model.scheduler, sampling.num_inference_steps).to(noise.device)
    cap, latents, made = sigmas[1], noise, []
    for i in range(sampling.num_inference_steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        if i not in sampling.stochastic:
            latents = euler_step(model, latents, sigma, following, condition, sampling.guidance_scale)
            continue
        mean, std = mean_and_std(model, latents, sigma, following, cap, condition, sampling)
        drawn = draw_noise(model.spec, seed, i, indices, purpose).to(latents)
        after = mean + std * drawn
        made.append(Transition(sigma, following, cap, latents, after, log_prob(after, mean, std)))
        latents = after
    return latents, made


def mean_and_std(
    model: VideoModel,
    latents: Latents,
    sigma: Float[Tensor, ""],
    next_sigma: Float[Tensor, ""],
    cap: Float[Tensor, ""],
    condition: Condition,
    sampling: SdeSampling,
) -> tuple[Latents, Float[Tensor, ""]]:
    """Mean and standard deviation of the next latents; see the module. The gradient flows to the model."""
    velocity = guided_velocity(model, latents, sigma.expand(latents.shape[0]), condition, sampling.guidance_scale)
    step = next_sigma - sigma
    bounded = torch.minimum(sigma, cap)
    variance = sampling.noise_level**2 * bounded / (1 - bounded)  # g^2
    predicted_noise = latents + (1 - sigma) * velocity
    mean = latents + step * velocity + step * variance / (2 * sigma) * predicted_noise
    return mean, (variance * -step).sqrt()


def log_prob(value: Latents, mean: Latents, std: Float[Tensor, ""]) -> PerSample:
    """Log-density of a Gaussian, averaged over the numbers of a clip.

    The mean in place of the sum makes a ratio of two of them comparable over clip sizes (Flow-GRPO does the same). With
    std = 0, the ODE, there is no density and the result is NaN.
    """
    each = -((value - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).mean(1)


def kl_divergence(mean: Latents, reference: Latents, std: Float[Tensor, ""]) -> PerSample:
    """KL of two Gaussians of one standard deviation, averaged over the numbers of a clip: (mean - reference)^2 / 2
    std^2."""
    return ((mean - reference) ** 2 / (2 * std**2)).flatten(1).mean(1)
