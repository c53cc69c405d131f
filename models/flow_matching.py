"""The flow-matching loss, written once for all models. Not to be mixed up with optical flow."""

from __future__ import annotations

import torch

from newtonrewards.models import lora
from newtonrewards.models.base import Condition, Latents, PerSample, VideoModel


def flow_matching_loss(
    model: VideoModel, clean: Latents, noise: Latents, sigma: PerSample, condition: Condition
) -> PerSample:
    """Weighted mean square of predicted minus true velocity, at latents = (1 - sigma) clean + sigma noise.

    The weights are the model's own (`loss_weight`): a model that predicts clean latents learns from the same formula,
    since its velocity error is its clean error over sigma.

    Args:
        model: any VideoModel.
        clean: (B, C, t, h, w) from `model.encode`.
        noise: standard normal of the same shape.
        sigma: (B,) noise levels in (0, 1].
        condition: from `model.condition`.
    Returns:
        One value >= 0 per sample; lower is better.
    Source: Lipman et al. 2023, with the straight path of rectified flow; velocity = noise - clean.
    """
    level = sigma.view(-1, 1, 1, 1, 1)
    latents = (1 - level) * clean + level * noise
    error = model.predict(latents, sigma, condition) - (noise - clean)
    return (error.square() * model.loss_weight(clean, sigma)).flatten(1).mean(1)


def reference_distance(
    model: VideoModel, clean: Latents, noise: Latents, sigma: PerSample, condition: Condition
) -> PerSample:
    """Weighted mean square of the velocity minus the reference's, the model's without its LoRA layers.

    Where both denoise with Gaussian steps of one variance, their KL divergence is this up to a factor of the noise
    level.

    Args:
        model: with LoRA layers. clean, noise, sigma, condition: as for `flow_matching_loss`.
    Returns:
        One value >= 0 per sample, 0 before training. The gradient flows to the model, not to the reference.
    """
    level = sigma.view(-1, 1, 1, 1, 1)
    latents = (1 - level) * clean + level * noise
    with torch.no_grad(), lora.disabled(model):
        reference = model.predict(latents, sigma, condition)
    error = model.predict(latents, sigma, condition) - reference
    return (error.square() * model.loss_weight(clean, sigma)).flatten(1).mean(1)
