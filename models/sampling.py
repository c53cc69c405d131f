"""The one sampler: flow-matching Euler steps on the model's own schedule, with gradient through the last K of them."""

from __future__ import annotations

import copy

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import Condition, Latents, PerSample, VideoModel


def sample(
    model: VideoModel,
    condition: Condition,
    noise: Latents,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    grad_steps: int = 0,
) -> Latents:
    """Integrate the model's velocity from noise to clean latents.

    The first `num_inference_steps - grad_steps` steps run without gradient, and each of the others is checkpointed, so
    memory holds one step's activations whatever their number. No `requires_grad` is touched: gradients reach what the
    caller lets train.

    Args:
        model: any VideoModel.
        condition: from `model.condition`.
        noise: (B, C, t, h, w) standard normal; the result is a function of it.
        num_inference_steps: Euler steps N >= 1.
        guidance_scale: classifier-free guidance; 1 or less is off and costs one prediction a step in place of two.
        grad_steps: K last steps that carry gradient, 0 to N.
    Returns:
        Clean latents, detached when `grad_steps` is 0.
    Raises:
        InputError: K outside 0..N, or a scheduler that isn't plain flow-matching Euler.
    """
    if not 0 <= grad_steps <= num_inference_steps:
        raise InputError(f"grad_steps is {grad_steps}, it must lie in 0..num_inference_steps ({num_inference_steps})")
    sigmas = schedule(model.scheduler, num_inference_steps).to(noise.device)
    first_with_gradient = num_inference_steps - grad_steps
    latents = noise.detach()
    with torch.no_grad():
        for i in range(first_with_gradient):
            latents = euler_step(model, latents, sigmas[i], sigmas[i + 1], condition, guidance_scale)
    for i in range(first_with_gradient, num_inference_steps):
        latents = checkpoint(
            euler_step, model, latents, sigmas[i], sigmas[i + 1], condition, guidance_scale, use_reentrant=False
        )
    return latents


def clean_estimate(
    model: VideoModel,
    condition: Condition,
    noise: Latents,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    stop: int,
) -> Latents:
    """The clean latents that the model predicts in the middle of sampling: x0 = latents - sigma velocity.

    `stop` steps run without gradient, then one checkpointed prediction carries it.

    Args:
        model, condition, noise, num_inference_steps, guidance_scale: as for `sample`.
        stop: number of the step that predicts, 0 to num_inference_steps - 1; the last one is `sample`'s last step.
    Source: ReFL (Xu et al. 2023), on a flow.
    Raises:
        InputError: `stop` outside its range, or a scheduler as for `sample`.
    """
    if not 0 <= stop < num_inference_steps:
        raise InputError(f"stop is {stop}, it must lie in 0..num_inference_steps - 1 ({num_inference_steps - 1})")
    sigmas = schedule(model.scheduler, num_inference_steps).to(noise.device)
    latents = noise.detach()
    with torch.no_grad():
        for i in range(stop):
            latents = euler_step(model, latents, sigmas[i], sigmas[i + 1], condition, guidance_scale)
    return checkpoint(
        euler_step, model, latents, sigmas[stop], sigmas[-1], condition, guidance_scale, use_reentrant=False
    )


def schedule(
    scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int
) -> Float[Tensor, "{num_inference_steps}+1"]:
    """Noise levels from 1 down to 0, as the scheduler of a diffusers pipeline sets them; the scheduler isn't changed.

    Raises:
        InputError: fewer than one step, or a scheduler that asks for more than Euler steps on fixed sigmas.
    """
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps is {num_inference_steps}, it must be at least 1")
    for option in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"):
        if scheduler.config.get(option):
            raise InputError(f"the scheduler sets {option}, which the sampler does not offer", fix="Set it to false.")
    if num_inference_steps == 1:  # diffusers divides by zero here when the scheduler has a shift_terminal
        return torch.tensor([1.0, 0.0])
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_inference_steps)
    return own.sigmas


def euler_step(
    model: VideoModel,
    latents: Latents,
    sigma: Float[Tensor, ""],
    next_sigma: Float[Tensor, ""],
    condition: Condition,
    guidance_scale: float,
) -> Latents:
    """One Euler step: latents + (next_sigma - sigma) velocity."""
    velocity = guided_velocity(model, latents, sigma.expand(latents.shape[0]), condition, guidance_scale)
    return latents + (next_sigma - sigma) * velocity


def guided_velocity(
    model: VideoModel, latents: Latents, sigma: PerSample, condition: Condition, guidance_scale: float
) -> Latents:
    """Classifier-free guidance: empty + scale (captioned - empty); the captioned one alone at a scale of 1 or less.

    Source: Ho and Salimans 2022, in the parametrisation of diffusers.
    """
    velocity = model.predict(latents, sigma, condition)
    if guidance_scale <= 1:
        return velocity
    empty = model.predict(latents, sigma, condition.without_text())
    return empty + guidance_scale * (velocity - empty)
