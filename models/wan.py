"""Any diffusers Wan image-to-video pipeline folder as a `VideoModel`.

Two styles of telling the transformer the first frame, chosen by what the folder says:
- 2.1: beside the noisy latents stand a mask (4 channels) and the latents of the first frame followed by grey; where the
  folder has an image encoder, its tokens join the text.
- 2.2 TI2V (`expand_timesteps`): the first latent frame *is* the clean first frame, and its tokens have noise level 0.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.run import whole_folder
from newtonrewards.core.video import to_8bit
from newtonrewards.models import wan_vae
from newtonrewards.models.base import (
    Condition,
    Latents,
    PerSample,
    VideoSpec,
    check_clip_shape,
    check_condition_inputs,
)

TEXT_LENGTH = 512  # tokens; fixed inside WanTransformer3DModel where image tokens join the text


class WanModel:
    """A `VideoModel` around a pipeline whose parts stay diffusers'.

    Attributes:
        pipeline: the whole pipeline, for everything that training doesn't touch.
        negative_caption: what guidance leads away from.
        tiles: in which the autoencoder decodes; None: whole frames.
    """

    def __init__(
        self,
        pipeline: WanImageToVideoPipeline,
        *,
        num_frames: int,
        height: int,
        width: int,
        fps: float,
        negative_caption: str = "",
        tiles: wan_vae.Tiles | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.vae = pipeline.vae
        self.transformer: nn.Module = pipeline.transformer
        self.scheduler = _euler(pipeline.scheduler)
        self.expand_timesteps = bool(pipeline.config.expand_timesteps)
        self.negative_caption = negative_caption
        self.tiles = tiles
        self._negative: Tensor | None = None
        self.spec = _spec(pipeline, num_frames, height, width, fps)

    @staticmethod
    def load(
        path: Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        fps: float,
        negative_caption: str = "",
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        tiles: wan_vae.Tiles | None = None,
        read: Callable[..., Any] = DiffusionPipeline.from_pretrained,
    ) -> WanModel:
        """Read a pipeline folder; nothing is downloaded.

        Args:
            num_frames, height, width: size of clips to make; see `ModelConfig`.
            dtype: of transformer and encoders; the autoencoder stays in float32.
            gradient_checkpointing: recompute block by block in the backward pass.
            tiles: see the class.
            read: gives the pipeline of a folder; `models.outline.outline` reads no weights.
        Raises:
            CheckpointError: a part is missing or damaged, or the pipeline has two transformers.
            InputError: a clip size that the autoencoder can't make.
        """
        try:
            pipeline = read(str(path), dtype={"vae": torch.float32, "default": dtype}, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            fix = (
                "Give a folder in diffusers' layout with transformer/, vae/, text_encoder/, tokenizer/ and scheduler/."
            )
            raise CheckpointError(f"can't load the Wan pipeline ({reason})", where=path, fix=fix) from None
        if pipeline.transformer is None or pipeline.transformer_2 is not None:
            raise CheckpointError(
                "this pipeline splits the noise levels between two transformers (Wan 2.2 A14B), which isn't offered",
                where=path,
                fix="Use a Wan 2.1 image-to-video or Wan 2.2 TI2V folder.",
            )
        if gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        pipeline.set_progress_bar_config(disable=True)
        return WanModel(
            pipeline,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=fps,
            negative_caption=negative_caption,
            tiles=tiles,
        )

    @property
    def trainable(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    @torch.no_grad()
    def condition(self, captions: Sequence[str], first_frame: Float[Tensor, "B 3 H W"]) -> Condition:
        """Encode captions and first frames with the pipeline's own encoders, which never train.

        Raises:
            ShapeError: first frames of another size.
        """
        check_condition_inputs(self.spec, captions, first_frame)
        dtype = next(self.transformer.parameters()).dtype
        if self._negative is None:
            self._negative = self._text([self.negative_caption])
        image = None
        if self.pipeline.transformer.config.image_dim is not None:
            pictures = [Image.fromarray(pixels) for pixels in to_8bit(first_frame)]
            image = self.pipeline.encode_image(pictures, first_frame.device).to(dtype)
        text, empty = (x.to(first_frame.device, dtype) for x in (self._text(captions), self._negative))
        return Condition(first_frame, text, empty, self._first_frame_channels(first_frame), image)

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        timestep = sigma * self.scheduler.config.num_train_timesteps
        if self.expand_timesteps:
            inputs = self._with_first_frame(latents, condition)
            timestep = self._per_token(timestep)
        else:
            inputs = torch.cat([latents, condition.channels], dim=1)
        dtype = condition.text.dtype
        velocity: Tensor = self.transformer(
            hidden_states=inputs.to(dtype),
            timestep=timestep,
            encoder_hidden_states=condition.text,
            encoder_hidden_states_image=condition.image,
            return_dict=False,
        )[0]
        return velocity.to(latents.dtype)

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "1 1 t 1 1"]:
        """One everywhere; where the first latent frame is given (TI2V) zero there, and the others make up for it."""
        frames = clean.shape[2]
        weight = torch.ones(1, 1, frames, 1, 1, dtype=clean.dtype, device=clean.device)
        if self.expand_timesteps and frames > 1:
            weight = weight * frames / (frames - 1)
            weight[:, :, 0] = 0
        return weight

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Latents:
        check_clip_shape(self.spec, frames)
        return wan_vae.encode(self.vae, frames.transpose(1, 2) * 2 - 1)

    def decode(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int] | None = None
    ) -> Float[Tensor, "B T 3 H W"]:
        if self.expand_timesteps:
            latents = self._with_first_frame(latents, condition)
        frames = wan_vae.decode(self.vae, latents, tiles=self.tiles, with_gradient=with_gradient)
        return (frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1)

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the pipeline folder with the transformer in `dtype`, the other parts as they were loaded."""
        with whole_folder(path) as folder:
            self.pipeline.save_pretrained(folder)
            if next(self.transformer.parameters()).dtype != dtype:
                shutil.rmtree(folder / "transformer")
                copy.deepcopy(self.pipeline.transformer).to("cpu", dtype).save_pretrained(folder / "transformer")

    def to(self, device: torch.device | str) -> WanModel:
        self.pipeline.to(device)
        return self

    def _text(self, captions: Sequence[str]) -> Float[Tensor, "B L D"]:
        embeds: Tensor = self.pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
        )[0]
        return embeds

    def _first_frame_channels(self, first_frame: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c t h w"]:
        pixels = first_frame[:, :, None] * 2 - 1
        if self.expand_timesteps:
            return wan_vae.encode(self.vae, pixels)
        rest = pixels.new_zeros(*pixels.shape[:2], self.spec.num_frames - 1, *pixels.shape[3:])
        latents = wan_vae.encode(self.vae, torch.cat([pixels, rest], dim=2))
        mask = latents.new_zeros(latents.shape[0], self.vae.config.scale_factor_temporal, *latents.shape[2:])
        mask[:, :, 0] = 1  # one channel for each pixel frame of a latent frame: of the first, all are given
        return torch.cat([mask, latents], dim=1)

    def _with_first_frame(self, latents: Latents, condition: Condition) -> Latents:
        return torch.cat([condition.channels.to(latents.dtype), latents[:, :, 1:]], dim=2)

    def _per_token(self, timestep: PerSample) -> Float[Tensor, "B tokens"]:
        """The step's time for each token, zero for those of the given first frame."""
        _, frames, height, width = self.spec.latent_shape
        patch = self.pipeline.transformer.config.patch_size
        per_frame = (height // patch[1]) * (width // patch[2])
        tokens = timestep[:, None].repeat(1, frames * per_frame)
        tokens[:, :per_frame] = 0
        return tokens


def _spec(pipeline: WanImageToVideoPipeline, num_frames: int, height: int, width: int, fps: float) -> VideoSpec:
    """Check the clip size against autoencoder and patches.

    Raises:
        InputError: with the multiples that are possible.
    """
    temporal, spatial = pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
    patch = pipeline.transformer.config.patch_size
    multiples = (spatial * patch[1], spatial * patch[2])
    if num_frames % temporal != 1 or height % multiples[0] or width % multiples[1]:
        raise InputError(
            f"this Wan pipeline can't make {num_frames} frames of {height} x {width}",
            fix=f"num_frames must be a multiple of {temporal} plus 1, the size one of {multiples[0]} x {multiples[1]}.",
        )
    shape = (pipeline.vae.config.z_dim, (num_frames - 1) // temporal + 1, height // spatial, width // spatial)
    return VideoSpec("wan", num_frames, height, width, fps, fps, shape)


def _euler(scheduler: Any) -> FlowMatchEulerDiscreteScheduler:
    """The pipeline's own Euler scheduler, or one with the shift of the multi-step scheduler that most folders ship."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return scheduler
    shift = scheduler.config.get("flow_shift") or 1.0
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=scheduler.config.num_train_timesteps, shift=shift)
