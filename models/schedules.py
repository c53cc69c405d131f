"""Noise schedules of the families, all as flow matching: latents = (1 - sigma) clean + sigma noise.

A variance-preserving process, x = alpha clean + s noise with alpha^2 + s^2 = 1, is the same process on another scale:
x / (alpha + s) lies on the straight path at sigma = s / (alpha + s), and a deterministic DDIM step is exactly an Euler
step there, since both move clean and noise estimates to the next level. So one sampler and one loss do for all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import PerSample


def euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """A pipeline's own Euler scheduler, or one with the shift of the multi-step scheduler that most folders ship."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return scheduler
    shift = scheduler.config.get("flow_shift") or 1.0
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=scheduler.config.num_train_timesteps, shift=shift)


class EvenSigmas(FlowMatchEulerDiscreteScheduler):
    """Levels evenly spaced from 1 to 1 / N before the shift, as LTX-Video's and HunyuanVideo's pipelines ask for."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        super().set_timesteps(sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps), device=device)


def even_sigmas(scheduler: Any, tokens: int) -> EvenSigmas:
    """The schedule of a pipeline that gives its scheduler evenly spaced levels.

    Args:
        scheduler: the pipeline's flow-matching Euler scheduler.
        tokens: of a clip; where the scheduler shifts dynamically, the shift grows with them.
    Source: `calculate_shift` of diffusers' LTX pipeline; an exponential shift by mu is a plain one by e^mu.
    """
    config = scheduler.config
    shift = config.shift
    if config.use_dynamic_shifting:
        first, last = config.base_image_seq_len, config.max_image_seq_len
        mu = config.base_shift + (config.max_shift - config.base_shift) * (tokens - first) / (last - first)
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
    return EvenSigmas(
        num_train_timesteps=config.num_train_timesteps, shift=shift, shift_terminal=config.get("shift_terminal")
    )


class VPredictionSigmas(FlowMatchEulerDiscreteScheduler):
    """The levels of a variance-preserving v-prediction model on the straight path.

    Attributes:
        levels: sigma of each training step, rising to exactly 1.
    """

    def __init__(self, scheduler: Any) -> None:
        """From the pipeline's CogVideoX scheduler (DDIM or DPM); sampling is deterministic DDIM on trailing steps.

        Raises:
            InputError: a model that doesn't predict v, or that never saw pure noise (no zero terminal SNR).
        """
        config = scheduler.config
        if config.prediction_type != "v_prediction" or not config.rescale_betas_zero_snr:
            raise InputError(
                f"the scheduler's prediction_type is {config.prediction_type} and its rescale_betas_zero_snr "
                f"{config.rescale_betas_zero_snr}, only v_prediction down to pure noise is offered"
            )
        super().__init__(num_train_timesteps=config.num_train_timesteps)
        self.ddim = CogVideoXDDIMScheduler.from_config(config, timestep_spacing="trailing")
        clean = self.ddim.alphas_cumprod.double()
        alpha, noise = clean.sqrt(), (1 - clean).sqrt()
        self.levels = (noise / (alpha + noise)).float()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        self.ddim.set_timesteps(num_inference_steps)
        self.timesteps = self.ddim.timesteps.to(device)
        self.sigmas = torch.cat([self.levels[self.ddim.timesteps], torch.zeros(1)]).to(device)

    def step_of(self, sigma: PerSample) -> Int[Tensor, "B"]:
        """The training step whose level is nearest."""
        levels = self.levels.to(sigma.device)
        above = torch.searchsorted(levels, sigma.contiguous()).clamp(1, len(levels) - 1)
        return torch.where(sigma - levels[above - 1] < levels[above] - sigma, above - 1, above)

    def uniform_step(self, normal: PerSample) -> PerSample:
        """The level of a training step drawn evenly, from standard normal draws."""
        share = torch.special.ndtr(normal)
        return self.levels.to(normal.device)[(share * len(self.levels)).long().clamp(max=len(self.levels) - 1)]


def alpha_and_noise(sigma: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """(alpha, s) with alpha^2 + s^2 = 1 and s / (alpha + s) = sigma."""
    scale = ((1 - sigma).square() + sigma.square()).sqrt()
    return (1 - sigma) / scale, sigma / scale
