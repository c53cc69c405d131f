"""Any diffusers HunyuanVideo 1.5 pipeline folder as a `VideoModel`, from a first frame or from text alone.

Beside the noisy latents stand those of the first frame followed by zeros, and a mask; tokens of a SigLIP encoder join
the text. Captions are read twice: by a language model inside a chat template, and what stands in quotes in them, to be
written in the picture, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.errors import CheckpointError
from newtonrewards.models import hunyuan_vae
from newtonrewards.models.base import Condition, Encoded, Latents, PerSample
from newtonrewards.models.causal import Tiles
from newtonrewards.models.pipelines import ClipSize, Grid, PipelineModel
from newtonrewards.models.schedules import even_sigmas


class HunyuanModel(PipelineModel):
    """See `PipelineModel`. What only feeds the text stream after the last block reaches no output and stays frozen."""

    name = "hunyuan"
    pipelines = {"HunyuanVideo15ImageToVideoPipeline": True, "HunyuanVideo15Pipeline": False}
    size = ClipSize(121, 480, 848, 24.0)

    def __init__(self, pipeline: Any, **options: Any) -> None:
        if pipeline.transformer.config.use_meanflow:
            raise CheckpointError(
                "this transformer was distilled to few steps (use_meanflow), which isn't offered",
                fix="Use the undistilled folder.",
            )
        super().__init__(pipeline, **options)
        self.tiles: Tiles | None = None
        self.vae.enable_slicing()  # one clip at a time
        hunyuan_vae.quicken(self.vae)
        for unused in unused_parts(pipeline.transformer):
            unused.requires_grad_(False)

    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        _, frames, height, width = self.spec.latent_shape
        return even_sigmas(self.pipeline.scheduler, frames * height * width)

    def grid(self) -> Grid:
        patch = self.pipeline.transformer.config.patch_size
        return Grid(self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial, (patch, patch))

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        inputs = torch.cat([latents, condition.channels], dim=1)
        velocity: Tensor = self.transformer(
            hidden_states=inputs.to(condition.text.dtype),
            timestep=sigma * self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=condition.text,
            image_embeds=condition.image,
            return_dict=False,
            **condition.text_extra,
        )[0]
        return velocity.to(latents.dtype)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        text, mask, text_2, mask_2 = self.pipeline.encode_prompt(list(captions), batch_size=len(captions))
        # padding reaches no other token, but a thousand tokens of it take time and memory in every block
        length, length_2 = (int(m.bool().sum(1).max()) for m in (mask, mask_2))
        return {
            "text": text[:, :length],
            "encoder_attention_mask": mask[:, :length],
            "encoder_hidden_states_2": text_2[:, :length_2],
            "encoder_attention_mask_2": mask_2[:, :length_2],
        }

    def encode_first_frame(self, first_frame: Float[Tensor, "B 3 H W"]) -> Encoded:
        channels = self.no_first_frame(first_frame)["channels"]
        channels[:, :-1, :1] = self.encode_pixels(first_frame[:, :, None] * 2 - 1)
        channels[:, -1, :1] = 1
        dtype = next(self.pipeline.image_encoder.parameters()).dtype
        return {
            "channels": channels,
            "image": torch.cat(
                [self.pipeline.encode_image(p, 1, first_frame.device, dtype) for p in self.pictures(first_frame)]
            ),
        }

    def no_first_frame(self, like: Tensor) -> Encoded:
        """Zeros in both places, which the transformer takes for text to video."""
        config = self.pipeline.transformer.config
        channels = like.new_zeros(len(like), self.spec.latent_shape[0] + 1, *self.spec.latent_shape[1:])
        tokens = self.pipeline.vision_num_semantic_tokens
        return {"channels": channels, "image": like.new_zeros(len(like), tokens, config.image_embed_dim)}

    def encode_pixels(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        latents: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def decode_pixels(self, latents: Latents, condition: Condition) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, None)

    def decode_pixels_in_part(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int]
    ) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, with_gradient)

    def decode_in_tiles(self, tiles: Tiles) -> None:
        self.tiles = tiles

    def _decoded(self, latents: Latents, with_gradient: Sequence[int] | None) -> Float[Tensor, "B 3 T H W"]:
        own = latents / self.vae.config.scaling_factor
        return hunyuan_vae.decode(self.vae, own, tiles=self.tiles, with_gradient=with_gradient).float()


def unused_parts(transformer: Any) -> list[Any]:
    """Modules whose output nothing reads: the last block's text stream from its queries on."""
    last = transformer.transformer_blocks[-1]
    attention = last.attn
    return [attention.add_q_proj, attention.norm_added_q, attention.to_add_out, last.norm2_context, last.ff_context]
