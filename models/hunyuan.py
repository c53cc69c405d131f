"""Any diffusers HunyuanVideo 1.5 pipeline folder as a `VideoModel`, from a first frame or from text alone.

Beside the noisy latents stand those of the first frame followed by zeros, and a mask; tokens of a SigLIP encoder join
the text. Captions are read twice: by a language model inside a chat template, and what stands in quotes in them, to be
written in the picture, byte by byte.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.errors import CheckpointError
from newtonrewards.models.base import Condition, Encoded, Latents, PerSample
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
        self.vae.enable_gradient_checkpointing()
        self.vae.enable_slicing()  # one clip at a time
        for block in self.vae.modules():
            if isinstance(block, HunyuanVideo15AttnBlock):
                block.forward = functools.partial(causal_attention, block)
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
        """With block by block recomputation in the backward pass."""
        decoded: Tensor = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype))[0]
        return decoded.float()


def causal_attention(block: HunyuanVideo15AttnBlock, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
    """The autoencoder's attention: a pixel of a latent frame looks at that frame and those before.

    Frame by frame, so that no mask is needed: diffusers' own takes (t h w)^2 numbers, 10 GB for 121 frames of 480 x
    848, and is filled row by row.
    """
    pixels = x.shape[-2] * x.shape[-1]
    normed = block.norm(x)
    query, key, value = (
        part(normed).flatten(2).transpose(1, 2)[:, None].contiguous() for part in (block.to_q, block.to_k, block.to_v)
    )
    frames = [
        F.scaled_dot_product_attention(part, key[:, :, : end * pixels], value[:, :, : end * pixels])
        for end, part in enumerate(query.split(pixels, dim=2), start=1)
    ]
    attended = torch.cat(frames, dim=2).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
    added: Tensor = block.proj_out(attended) + x
    return added


def unused_parts(transformer: Any) -> list[Any]:
    """Modules whose output nothing reads: the last block's text stream from its queries on."""
    last = transformer.transformer_blocks[-1]
    attention = last.attn
    return [attention.add_q_proj, attention.norm_added_q, attention.to_add_out, last.norm2_context, last.ff_context]
