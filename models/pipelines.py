"""What all families share that are a diffusers pipeline on disk: loading, conditions, saving.

A family is a subclass in a file of its own: it names its pipeline classes and says how captions, first frames and clips
are encoded, how latents are decoded, and what the transformer predicts. docs/models.md adds one step by step.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.run import whole_folder, write_json
from newtonrewards.core.video import to_8bit
from newtonrewards.models.base import (
    Condition,
    Encoded,
    Latents,
    PerSample,
    VideoSpec,
    check_clip_shape,
    check_condition_inputs,
    logit_normal,
)
from newtonrewards.models.causal import Tiles
from newtonrewards.models.embeddings import Embeddings
from newtonrewards.models.files import fingerprint

Experts = Literal["both", "high_noise", "low_noise"]
M = TypeVar("M", bound="PipelineModel")


@dataclass(frozen=True)
class ClipSize:
    """Frames, pixels and frames per second that a family was trained at."""

    num_frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Grid:
    """Pixels and frames of one latent, and what the latent size must be a multiple of (the transformer's patches)."""

    temporal: int
    spatial: int
    patch: tuple[int, int] = (1, 1)


class PipelineModel(ABC):
    """A `VideoModel` around a pipeline whose parts stay diffusers'.

    Attributes:
        name: as in `ModelConfig.name`.
        pipelines: names of the diffusers classes that the family reads, and whether each starts from a first frame.
        size: what clips are made where the config doesn't say.
        pipeline: the whole pipeline, for everything that training doesn't touch.
        folder: where it was read from, or None.
        embeddings: where encoded captions and first frames are kept, or None.
        negative_caption: what guidance leads away from.
    """

    name: ClassVar[str]
    pipelines: ClassVar[Mapping[str, bool]]
    size: ClassVar[ClipSize]

    def __init__(
        self,
        pipeline: Any,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        negative_caption: str = "",
    ) -> None:
        self.pipeline = pipeline
        self.vae = pipeline.vae
        self.transformer: nn.Module = pipeline.transformer
        self.negative_caption = negative_caption
        self.folder: Path | None = None
        self.embeddings: Embeddings | None = None
        self._negative: Encoded | None = None
        self._freed: list[str] = []
        given: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
        self.spec = self._spec(replace(self.size, **{key: value for key, value in given.items() if value is not None}))
        self.scheduler = self.schedule()
        self._freeze()

    def _freeze(self) -> None:
        """What never trains takes no gradient: the reward's goes through the autoencoder, not into its weights."""
        trained = {id(module) for module in self.trainable.values()}
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module) and id(part) not in trained:
                part.requires_grad_(False)

    @classmethod
    def load(
        cls: type[M],
        path: Path,
        *,
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        read: Callable[..., Any] | None = None,
        **options: Any,
    ) -> M:
        """Read a pipeline folder; nothing is downloaded.

        Args:
            dtype: of transformer and encoders; the autoencoder stays in float32, and so does what trains: see
                `models.load`.
            gradient_checkpointing: recompute block by block in the backward pass.
            read: gives the pipeline of a folder; null reads it whole, `models.outline.outline` reads no weights.
            options: size and negative caption; see the class and `ModelConfig`.
        Raises:
            CheckpointError: a part is missing or damaged, or of a kind that isn't offered.
            InputError: a clip size that the autoencoder can't make.
        """
        from diffusers import DiffusionPipeline

        try:
            pipeline = (read or DiffusionPipeline.from_pretrained)(
                str(path), dtype={"vae": torch.float32, "default": dtype}, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            fix = (
                "Give a folder in diffusers' layout with transformer/, vae/, text_encoder/, tokenizer/ and scheduler/."
            )
            raise CheckpointError(f"can't load the {cls.name} pipeline ({reason})", where=path, fix=fix) from None
        pipeline.set_progress_bar_config(disable=True)
        model = cls(pipeline, **options)
        model.folder = path
        if gradient_checkpointing:
            for transformer in model.trainable.values():
                transformer.enable_gradient_checkpointing()  # type: ignore[operator]
        return model

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
        with full_precision(first_frame):
            if self._negative is None:
                self._negative = self.encode_captions([self.negative_caption])
            encode = self.encode_first_frame if self.spec.from_image else self.no_first_frame
            if self.embeddings is None:
                encoded, first = self.encode_captions(captions), encode(first_frame)
            else:
                encoded = self.embeddings.captions(captions, self.encode_captions)
                first = self.embeddings.first_frames(first_frame, encode)
        text, empty = (self._placed(x, first_frame.device) for x in (encoded, self._negative))
        image = first.get("image")
        return Condition(
            first_frame,
            text.pop("text"),
            empty.pop("text"),
            first["channels"].to(first_frame.device),
            None if image is None else image.to(first_frame.device, self.dtype),
            text,
            empty,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        return next(self.transformer.parameters()).dtype

    def training_sigma(self, normal: PerSample) -> PerSample:
        return logit_normal(normal, self.scheduler.config.shift)

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "..."]:
        return torch.ones((), dtype=clean.dtype, device=clean.device)

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Latents:
        check_clip_shape(self.spec, frames)
        with full_precision(frames):
            return self.encode_pixels(frames.transpose(1, 2) * 2 - 1)

    def decode(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int] | None = None
    ) -> Float[Tensor, "B T 3 H W"]:
        with full_precision(latents):
            if with_gradient is None:
                pixels = self.decode_pixels(latents, condition)
            else:
                pixels = self.decode_pixels_in_part(latents, condition, with_gradient)
            return (pixels.transpose(1, 2) / 2 + 0.5).clamp(0, 1)

    def keep_embeddings(self, root: Path) -> None:
        """From now on look up what was encoded before, and store what wasn't.

        Args:
            root: folder for all models' embeddings.
        Raises:
            InputError: the folder can't be written to, or the encoders came from no folder that could tell them apart.
        """
        if self.folder is None:
            raise InputError("a pipeline made in memory can't keep embeddings", fix="Save it and load it again.")
        parts = [self.folder / name for name in (*self._encoders(), "vae")]
        settings = f"{fingerprint(*parts)} {self.spec} {self.dtype}"
        self.embeddings = Embeddings(root, f"{self.name}_{hashlib.sha256(settings.encode()).hexdigest()[:16]}")

    def free_encoders(self) -> None:
        """Drop text and image encoders from memory; only what is stored can be a condition afterwards.

        Raises:
            InputError: nothing is stored, since `keep_embeddings` was not called.
        """
        if self.embeddings is None:
            raise InputError("nothing to look up without the encoders", fix="Call keep_embeddings first.")
        if self._negative is None:
            self._negative = self.encode_captions([self.negative_caption])
        self._freed = self._encoders()
        self.embeddings.complete = True
        self.pipeline.register_modules(**dict.fromkeys(self._freed))

    def _encoders(self) -> list[str]:
        return [
            name
            for name, part in self.pipeline.components.items()
            if name.startswith(("text_encoder", "image_encoder")) and part is not None
        ]

    def _put_back(self, folder: Path) -> None:
        """The encoders that memory no longer holds, as they lay in the folder that was read."""
        if not self._freed or self.folder is None:
            return
        index, original = (json.loads((x / "model_index.json").read_text()) for x in (folder, self.folder))
        for name in self._freed:
            shutil.copytree(self.folder / name, folder / name)
            index[name] = original[name]
        write_json(folder / "model_index.json", index)

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the pipeline folder with the transformers in `dtype`, the other parts as they were loaded."""
        with whole_folder(path) as folder:
            self.pipeline.save_pretrained(folder)
            self._put_back(folder)
            for name, transformer in self.trainable.items():
                if next(transformer.parameters()).dtype != dtype:
                    shutil.rmtree(folder / name)
                    copy.deepcopy(transformer).to("cpu", dtype).save_pretrained(folder / name)  # type: ignore[operator]

    def to(self: M, device: torch.device | str) -> M:
        self.pipeline.to(device)
        return self

    def choose_experts(self, experts: Experts) -> None:
        """Train one of two transformers that share the noise levels; freezes the other.

        Args:
            experts: `both`, `high_noise` or `low_noise`.
        Raises:
            InputError: the model has one transformer for all levels.
        """
        raise InputError(f"this {self.name} pipeline has one transformer, not two experts", fix="Leave out `experts`.")

    def decode_in_tiles(self, tiles: Tiles) -> None:
        """From now on decode large frames tile by tile.

        Raises:
            InputError: the family's autoencoder can't.
        """
        raise InputError(f"{self.name} does not decode in tiles; wan and hunyuan do", fix="Leave out `tiles`.")

    def decode_pixels_in_part(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int]
    ) -> Float[Tensor, "B 3 T H W"]:
        """The pixels of `decode_pixels`, with gradient through some latent frames and nothing kept of the others.

        Raises:
            InputError: the family's autoencoder can't.
        """
        raise InputError(
            f"{self.name} decodes with gradient through all latent frames or none; the other families can choose",
            fix="Leave out `decoded_latents`.",
        )

    @abstractmethod
    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        """The noise schedule for clips of `self.spec`; see `models.schedules`."""

    @abstractmethod
    def grid(self) -> Grid:
        """How pixels and frames become latents."""

    @abstractmethod
    def encode_captions(self, captions: Sequence[str]) -> Encoded:
        """`text` (B, L, D), and what else the transformer takes of captions, by the name of its argument."""

    @abstractmethod
    def encode_first_frame(self, first_frame: Float[Tensor, "B 3 H W"]) -> Encoded:
        """`channels` (B, c, t, h, w), and `image` (B, n, d) where there is an image encoder."""

    @abstractmethod
    def encode_pixels(self, pixels: Float[Tensor, "B 3 T H W"]) -> Latents:
        """Clean latents of pixels in [-1, 1], normalised as the transformer sees them; the posterior's mode."""

    @abstractmethod
    def decode_pixels(self, latents: Latents, condition: Condition) -> Float[Tensor, "B 3 T H W"]:
        """Pixels around [-1, 1] of clean latents."""

    @abstractmethod
    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        """See `VideoModel`."""

    def no_first_frame(self, like: Float[Tensor, "B 3 H W"]) -> Encoded:
        """What stands in the first frame's place for text to video: no channels at all, unless the family says so."""
        return {"channels": like.new_zeros(len(like), 0, *self.spec.latent_shape[1:])}

    def latent_shape(self, size: ClipSize) -> tuple[int, int, int, int]:
        """(C, t, h, w) of clips of a size."""
        grid = self.grid()
        frames = (size.num_frames - 1) // grid.temporal + 1
        return (self.latent_channels, frames, size.height // grid.spatial, size.width // grid.spatial)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def pictures(self, first_frame: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
        """What an image encoder's own preprocessing takes."""
        return [Image.fromarray(pixels) for pixels in to_8bit(first_frame)]

    def _placed(self, encoded: Encoded, device: torch.device) -> Encoded:
        return {name: value.to(device, self.dtype) for name, value in encoded.items()}

    def _spec(self, size: ClipSize) -> VideoSpec:
        """Check the clip size against autoencoder and patches.

        Raises:
            InputError: with the multiples that are possible.
        """
        grid = self.grid()
        multiples = (grid.spatial * grid.patch[0], grid.spatial * grid.patch[1])
        left_over = ((size.num_frames - 1) % grid.temporal, size.height % multiples[0], size.width % multiples[1])
        if any(left_over):
            raise InputError(
                f"this {self.name} pipeline can't make {size.num_frames} frames of {size.height} x {size.width}",
                fix=f"num_frames must be a multiple of {grid.temporal} plus 1, "
                f"the size one of {multiples[0]} x {multiples[1]}.",
            )
        from_image = self.pipelines.get(type(self.pipeline).__name__)
        if from_image is None:
            raise InputError(
                f"this is a {type(self.pipeline).__name__}", fix=f"{self.name} reads {', '.join(self.pipelines)}."
            )
        return VideoSpec(
            self.name, size.num_frames, size.height, size.width, size.fps, size.fps, self.latent_shape(size), from_image
        )


def with_first_frame(latents: Latents, condition: Condition) -> Latents:
    """The clean first latent frame in place of the latents' own."""
    return torch.cat([condition.channels.to(latents.dtype), latents[:, :, 1:]], dim=2)


def first_frame_weight(clean: Latents) -> Float[Tensor, "1 1 t 1 1"]:
    """Loss weight where the first latent frame is given: zero there, and the others make up for it."""
    frames = clean.shape[2]
    weight = clean.new_full((1, 1, frames, 1, 1), frames / max(frames - 1, 1))
    weight[:, :, 0] = 0
    return weight


def full_precision(like: Tensor) -> torch.autocast:
    """Encoders and autoencoder keep their own precision whatever the trainer's autocast says."""
    return torch.autocast(like.device.type, enabled=False)
