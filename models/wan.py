"""Any diffusers Wan pipeline folder as a `VideoModel`: 2.1 and 2.2, from a first frame or from text alone.

Two styles of telling the transformer the first frame, chosen by what the folder says:
- 2.1 and 2.2 A14B: beside the noisy latents stand a mask (4 channels) and the latents of the first frame followed by
  grey; where the folder has an image encoder, its tokens join the text.
- 2.2 TI2V (`expand_timesteps`): the first latent frame *is* the clean first frame, and its tokens have noise level 0.

2.2 A14B has two transformers, experts of the high and of the low noise levels; `boundary_ratio` is where they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn

from newtonrewards.core.errors import CheckpointError
from newtonrewards.models import wan_vae
from newtonrewards.models.base import Condition, Encoded, Latents, PerSample, logit_normal
from newtonrewards.models.causal import Tiles
from newtonrewards.models.pipelines import (
    ClipSize,
    Experts,
    Grid,
    PipelineModel,
    first_frame_weight,
    with_first_frame,
)
from newtonrewards.models.schedules import euler

TEXT_LENGTH = 512  # tokens; fixed inside WanTransformer3DModel where image tokens join the text


class WanModel(PipelineModel):
    """See `PipelineModel`.

    Attributes:
        expand_timesteps: the style of 2.2 TI2V.
        transformer_2: expert of the noise levels below `boundary`, or None where one transformer does all.
        experts: which of two experts train; training levels are drawn from the range of those that do.
        tiles: in which the autoencoder decodes, or None: whole frames.
    """

    name = "wan"
    pipelines = {"WanImageToVideoPipeline": True, "WanPipeline": False}
    size = ClipSize(81, 480, 832, 16.0)

    def __init__(self, pipeline: Any, **options: Any) -> None:
        if pipeline.transformer is None:
            raise CheckpointError(
                "this pipeline has no expert for high noise levels", fix="Use a folder with transformer/."
            )
        self.expand_timesteps = bool(pipeline.config.expand_timesteps)
        self.transformer_2: nn.Module | None = pipeline.transformer_2
        self.boundary = float(pipeline.config.boundary_ratio or 0.0)
        self.experts: Experts = "both"
        self.tiles: Tiles | None = None
        super().__init__(pipeline, **options)
        wan_vae.quicken(self.vae)

    @property
    def trainable(self) -> dict[str, nn.Module]:
        both = {"transformer": self.transformer, "transformer_2": self.transformer_2}
        trains = {"both": both, "high_noise": ["transformer"], "low_noise": ["transformer_2"]}[self.experts]
        return {name: module for name, module in both.items() if module is not None and name in trains}

    def choose_experts(self, experts: Experts) -> None:
        if self.transformer_2 is None:
            super().choose_experts(experts)
        self.experts = experts
        for module in (self.transformer, self.transformer_2):
            assert module is not None
            module.requires_grad_(any(module is trained for trained in self.trainable.values()))

    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        return euler(self.pipeline.scheduler)

    def grid(self) -> Grid:
        patch = self.pipeline.transformer.config.patch_size
        return Grid(
            self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial, (patch[1], patch[2])
        )

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def training_sigma(self, normal: PerSample) -> PerSample:
        """Shifted logit-normal; where one of two experts trains, the part of it on that expert's side."""
        shift = self.scheduler.config.shift
        if self.experts != "both":
            unshifted = self.boundary / (shift - (shift - 1) * self.boundary)
            below = torch.special.ndtr(torch.logit(torch.tensor(unshifted, dtype=torch.float64)))
            share = torch.special.ndtr(normal.double())
            share = share * below if self.experts == "low_noise" else below + share * (1 - below)
            normal = torch.special.ndtri(share).to(normal.dtype)
        return logit_normal(normal, shift)

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        low = sigma < self.boundary
        if self.transformer_2 is None or not low.any():
            return self._velocity(self.transformer, latents, sigma, condition)
        if low.all():
            return self._velocity(self.transformer_2, latents, sigma, condition)
        velocity = torch.empty_like(latents)
        for expert, chosen in ((self.transformer, ~low), (self.transformer_2, low)):
            part = self._velocity(expert, latents[chosen], sigma[chosen], condition.at(chosen))
            velocity = velocity.index_put((chosen.nonzero()[:, 0],), part)
        return velocity

    def _velocity(self, expert: nn.Module, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        timestep = sigma * self.scheduler.config.num_train_timesteps
        if self.expand_timesteps:
            inputs = self._with_first_frame(latents, condition)
            timestep = self._per_token(timestep)
        else:
            inputs = torch.cat([latents, condition.channels], dim=1)
        velocity: Tensor = expert(
            hidden_states=inputs.to(condition.text.dtype),
            timestep=timestep,
            encoder_hidden_states=condition.text,
            encoder_hidden_states_image=condition.image,
            return_dict=False,
        )[0]
        return velocity.to(latents.dtype)

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "..."]:
        """One everywhere; where the first latent frame is given (TI2V) zero there, and the others make up for it."""
        given = self.expand_timesteps and self.spec.from_image
        return first_frame_weight(clean) if given else super().loss_weight(clean, sigma)

    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        embeds = self.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
        )[0]
        return {"text": embeds}

    def encode_first_frame(self, first_frame: Float[Tensor, "B 3 H W"]) -> Encoded:
        encoded = {"channels": self._channels(first_frame)}
        if self.pipeline.transformer.config.image_dim is not None:
            encoded["image"] = self.pipeline.encode_image(self.pictures(first_frame), first_frame.device)
        return encoded

    def encode_pixels(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        return wan_vae.encode(self.vae, pixels)

    def decode_pixels(self, latents: Latents, condition: Condition) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, condition, None)

    def decode_pixels_in_part(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int]
    ) -> Float[Tensor, "B 3 T H W"]:
        return self._decoded(latents, condition, with_gradient)

    def decode_in_tiles(self, tiles: Tiles) -> None:
        self.tiles = tiles

    def _decoded(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int] | None
    ) -> Float[Tensor, "B 3 T H W"]:
        if self.expand_timesteps:
            latents = self._with_first_frame(latents, condition)
        return wan_vae.decode(self.vae, latents, tiles=self.tiles, with_gradient=with_gradient)

    def _channels(self, first_frame: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c t h w"]:
        pixels = first_frame[:, :, None] * 2 - 1
        if self.expand_timesteps:
            return wan_vae.encode(self.vae, pixels)
        rest = pixels.new_zeros(*pixels.shape[:2], self.spec.num_frames - 1, *pixels.shape[3:])
        latents = wan_vae.encode(self.vae, torch.cat([pixels, rest], dim=2))
        mask = latents.new_zeros(latents.shape[0], self.vae.config.scale_factor_temporal, *latents.shape[2:])
        mask[:, :, 0] = 1  # one channel for each pixel frame of a latent frame: of the first, all are given
        return torch.cat([mask, latents], dim=1)

    def _with_first_frame(self, latents: Latents, condition: Condition) -> Latents:
        return with_first_frame(latents, condition) if self.spec.from_image else latents

    def _per_token(self, timestep: PerSample) -> Float[Tensor, "B tokens"]:
        """The step's time for each token, zero for those of a given first frame."""
        _, frames, height, width = self.spec.latent_shape
        patch = self.pipeline.transformer.config.patch_size
        per_frame = (height // patch[1]) * (width // patch[2])
        tokens = timestep[:, None].repeat(1, frames * per_frame)
        if self.spec.from_image:
            tokens[:, :per_frame] = 0
        return tokens
