"""Any diffusers CogVideoX pipeline folder as a `VideoModel`: 1.0 and 1.5, from a first frame or from text alone.

The transformer predicts v = alpha noise - s clean at x = alpha clean + s noise, not a velocity on the straight path.
Both say the same: with clean = alpha x - s v and noise = s x + alpha v, the velocity is noise - clean, and x lies on
the straight path once scaled (`models.schedules`). So sampling is diffusers' deterministic DDIM, the loss CogVideoX's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.models import cogvideox_vae
from newtonrewards.models.base import Condition, Encoded, Latents, PerSample
from newtonrewards.models.pipelines import ClipSize, Grid, PipelineModel
from newtonrewards.models.schedules import VPredictionSigmas, alpha_and_noise

OFFSET = 2.0  # what 1.5's pipeline gives as `ofs`


class CogVideoXModel(PipelineModel):
    """See `PipelineModel`. In 1.5 latent frames fill up to a multiple of the temporal patch; decoding drops them."""

    name = "cogvideox"
    pipelines = {"CogVideoXImageToVideoPipeline": True, "CogVideoXPipeline": False}
    size = ClipSize(49, 480, 720, 8.0)
    scheduler: VPredictionSigmas

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        cogvideox_vae.quicken(self.vae)

    def schedule(self) -> VPredictionSigmas:
        return VPredictionSigmas(self.pipeline.scheduler)

    def grid(self) -> Grid:
        patch = self.pipeline.transformer.config.patch_size
        return Grid(self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial, (patch, patch))

    def latent_shape(self, size: ClipSize) -> tuple[int, int, int, int]:
        channels, frames, height, width = super().latent_shape(size)
        return channels, frames + self._padding(frames), height, width

    def training_sigma(self, normal: PerSample) -> PerSample:
        """Training steps drawn evenly, as CogVideoX was trained."""
        return self.scheduler.uniform_step(normal)

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "B 1 1 1 1"]:
        """Makes the squared velocity error the squared error of v: the two differ by the factor alpha + s."""
        level = sigma.view(-1, 1, 1, 1, 1)
        return (1 - level).square() + level.square()

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        alpha, noise = (x.view(-1, 1, 1, 1, 1).to(latents.dtype) for x in alpha_and_noise(sigma))
        noisy = (alpha + noise) * latents
        inputs = torch.cat([noisy, condition.channels], dim=1).transpose(1, 2)
        config = self.pipeline.transformer.config
        v: Tensor = self.transformer(
            hidden_states=inputs.to(condition.text.dtype),
            encoder_hidden_states=condition.text,
            timestep=self.scheduler.step_of(sigma),
            ofs=None if config.ofs_embed_dim is None else inputs.new_full((1,), OFFSET),
            image_rotary_emb=self._rotary(latents.device) if config.use_rotary_positional_embeddings else None,
            return_dict=False,
        )[0]
        return (noise - alpha) * noisy + (alpha + noise) * v.transpose(1, 2).to(latents.dtype)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        length = self.pipeline.transformer.config.max_text_seq_length
        embeds = self.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=length
        )[0]
        return {"text": embeds}

    def encode_first_frame(self, first_frame: Float[Tensor, "B 3 H W"]) -> Encoded:
        first = self._posterior_mode(first_frame[:, :, None] * 2 - 1)
        # the published image-to-video weights were trained with the factor the wrong way round, and say so
        scale = self.vae.config.scaling_factor
        first = first / scale if self.vae.config.invert_scale_latents else first * scale
        rest = first.new_zeros(*first.shape[:2], self.spec.latent_shape[1] - 1, *first.shape[3:])
        return {"channels": torch.cat([first, rest], dim=2)}

    def encode_pixels(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        latents = self._posterior_mode(pixels) * self.vae.config.scaling_factor
        return torch.cat([latents[:, :, :1].repeat(1, 1, self._padding(latents.shape[2]), 1, 1), latents], dim=2)

    def decode_pixels(self, latents: Latents, condition: Condition) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, None)

    def decode_pixels_in_part(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int]
    ) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, with_gradient)

    def _decoded(self, latents: Latents, with_gradient: Sequence[int] | None) -> Float[Tensor, "B 3 T H W"]:
        """Without the latent frames that fill up, which stand before the others; chosen, they stand for the first."""
        filled = latents.shape[2] - ((self.spec.num_frames - 1) // self.grid().temporal + 1)
        chosen = None if with_gradient is None else [max(i - filled, 0) for i in with_gradient]
        return cogvideox_vae.decode(self.vae, latents[:, :, filled:] / self.vae.config.scaling_factor, chosen)

    def _posterior_mode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        latents: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        return latents.float()

    def _padding(self, frames: int) -> int:
        patch = self.pipeline.transformer.config.patch_size_t
        return 0 if patch is None else -frames % patch

    def _rotary(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rotary: tuple[Tensor, Tensor] = self.pipeline._prepare_rotary_positional_embeddings(
            self.spec.height, self.spec.width, self.spec.latent_shape[1], device
        )
        return rotary
