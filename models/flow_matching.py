"""The flow-matching loss, written once for all models. Not to be mixed up with optical flow."""

from __future__ import annotations

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
