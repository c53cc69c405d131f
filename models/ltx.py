"""Any diffusers LTX-Video pipeline folder as a `VideoModel`, from a first frame or from text alone.

The transformer works on tokens, one for each latent pixel, and is told the frame rate: its positions are in seconds.
The first latent frame *is* the clean first frame, and its tokens have noise level 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from newtonrewards.models.base import Condition, Encoded, Latents, PerSample
from newtonrewards.models.pipelines import (
    ClipSize,
    Grid,
    PipelineModel,
    first_frame_weight,
    with_first_frame,
)
from newtonrewards.models.schedules import even_sigmas


class LTXModel(PipelineModel):
    """See `PipelineModel`. `fps` is an input of the transformer, not just a label."""

    name = "ltx"
    pipelines = {"LTXImageToVideoPipeline": True, "LTXPipeline": False}
    size = ClipSize(121, 512, 704, 25.0)

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options)
        self.vae.enable_gradient_checkpointing()

    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        _, frames, height, width = self.spec.latent_shape
        return even_sigmas(self.pipeline.scheduler, frames * height * width)

    def grid(self) -> Grid:
        patch = self.pipeline.transformer_spatial_patch_size
        return Grid(
            self.pipeline.vae_temporal_compression_ratio, self.pipeline.vae_spatial_compression_ratio, (patch, patch)
        )

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "..."]:
        """One everywhere; with a given first frame zero there, and the others make up for it."""
        return first_frame_weight(clean) if self.spec.from_image else super().loss_weight(clean, sigma)

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        _, frames, height, width = self.spec.latent_shape
        timestep = (sigma * self.scheduler.config.num_train_timesteps)[:, None]
        if self.spec.from_image:
            latents = with_first_frame(latents, condition)
            given = latents.new_zeros(1, 1, frames, height, width)
            given[:, :, 0] = 1
            timestep = timestep * (1 - self._pack(given).squeeze(-1))
        grid, pipeline = self.grid(), self.pipeline
        velocity: Tensor = self.transformer(
            hidden_states=self._pack(latents).to(condition.text.dtype),
            encoder_hidden_states=condition.text,
            timestep=timestep,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(grid.temporal / self.spec.fps, grid.spatial, grid.spatial),
            return_dict=False,
            **condition.text_extra,
        )[0]
        patches = (pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size)
        unpacked: Tensor = pipeline._unpack_latents(velocity, frames, height, width, *patches)
        return unpacked.to(latents.dtype)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        embeds, mask, _, _ = self.pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False)
        return {"text": embeds, "encoder_attention_mask": mask}

    def encode_first_frame(self, first_frame: Float[Tensor, "B 3 H W"]) -> Encoded:
        return {"channels": self.encode_pixels(first_frame[:, :, None] * 2 - 1)}

    def encode_pixels(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        normalised: Tensor = self.pipeline._normalize_latents(
            latents, self.vae.latents_mean, self.vae.latents_std, self.vae.config.scaling_factor
        )
        return normalised

    def decode_pixels(self, latents: Latents, condition: Condition) -> Float[Tensor, "B 3 T H W"]:
        """Block by block recomputed in the backward pass; a decoder that removes noise is told there is none."""
        if self.spec.from_image:
            latents = with_first_frame(latents, condition)
        raw = self.pipeline._denormalize_latents(
            latents, self.vae.latents_mean, self.vae.latents_std, self.vae.config.scaling_factor
        ).to(self.vae.dtype)
        timestep = raw.new_zeros(len(raw)) if self.vae.config.timestep_conditioning else None
        decoded: Tensor = self.vae.decode(raw, timestep, return_dict=False)[0]
        return decoded.float()

    def _pack(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B tokens d"]:
        packed: Tensor = self.pipeline._pack_latents(
            latents, self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size
        )
        return packed
