"""What every video model offers: pixels to latents and back, a condition, and a predicted velocity.

Letters: B clips, T frames, H height, W width (pixels); C channels, t, h, w latent frames, height, width; L text tokens.
Pixels are RGB in [0, 1]; [-1, 1] exists only inside the model files. A VideoModel is a plain object and not a Module,
so that no wrapper, cast or launcher reaches it unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Bool, Float
from torch import Tensor, nn

from newtonrewards.core.errors import ShapeError
from newtonrewards.core.run import stream

Latents: TypeAlias = Float[Tensor, "B C t h w"]
PerSample: TypeAlias = Float[Tensor, "B"]
# Encoded captions (`text` and the transformer's other arguments) or first frames (`channels`, maybe `image`).
Encoded: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class VideoSpec:
    """The one size of clip that a loaded model makes.

    Attributes:
        name: kind of model, as in `ModelConfig.name`.
        num_frames: frames T of a clip, the given first one included.
        height, width: pixels.
        fps: frames per second of physical time.
        playback_fps: frames per second at which a clip plays.
        latent_shape: (C, t, h, w).
        from_image: whether a clip starts from the given first frame; text-to-video models don't look at it.
    """

    name: str
    num_frames: int
    height: int
    width: int
    fps: float
    playback_fps: float
    latent_shape: tuple[int, int, int, int]
    from_image: bool = True


@dataclass(frozen=True, eq=False)
class Condition:
    """What a batch of clips is made from, encoded once and used in every step.

    Attributes:
        first_frame: (B, 3, H, W) in [0, 1].
        text: (B, L, D) encoded captions, zero past each caption's end.
        empty_text: (1, L, D) or (B, L, D), of its own length, the same for the empty (or negative) caption, for
            classifier-free guidance.
        channels: (B, c, t, h, w) the first frame as the transformer sees it beside the latents; c is 0 where it sees
            none.
        image: (B, n, d) tokens of an image encoder, or None where the model has none.
        text_extra: what else the transformer takes of the captions, by the name of its argument: masks, the tokens of
            a second encoder.
        empty_text_extra: the same for the empty caption.
    """

    first_frame: Float[Tensor, "B 3 H W"]
    text: Float[Tensor, "B L D"]
    empty_text: Float[Tensor, "_ M D"]
    channels: Float[Tensor, "B c t h w"]
    image: Float[Tensor, "B n d"] | None = None
    text_extra: Mapping[str, Tensor] = field(default_factory=dict)
    empty_text_extra: Mapping[str, Tensor] = field(default_factory=dict)

    def without_text(self) -> Condition:
        """The same with the empty caption in place of each caption."""

        def for_each(value: Tensor) -> Tensor:
            return value.expand(len(self.text), *value.shape[1:])

        extra = {name: for_each(value) for name, value in self.empty_text_extra.items()}
        return replace(self, text=for_each(self.empty_text), text_extra=extra)

    def at(self, chosen: Bool[Tensor, "B"]) -> Condition:
        """The part of the batch that is chosen."""

        def part(value: Tensor) -> Tensor:
            return value[chosen] if len(value) == len(chosen) else value

        return replace(
            self,
            first_frame=self.first_frame[chosen],
            text=self.text[chosen],
            empty_text=part(self.empty_text),
            channels=self.channels[chosen],
            image=None if self.image is None else self.image[chosen],
            text_extra={name: value[chosen] for name, value in self.text_extra.items()},
            empty_text_extra={name: part(value) for name, value in self.empty_text_extra.items()},
        )

    def repeated(self, count: int) -> Condition:
        """Each clip's condition `count` times in a row; what is there once for all clips stays so."""
        size = len(self.first_frame)

        def copies(value: Tensor) -> Tensor:
            return value.repeat_interleave(count, 0) if len(value) == size else value

        return replace(
            self,
            first_frame=copies(self.first_frame),
            text=copies(self.text),
            empty_text=copies(self.empty_text),
            channels=copies(self.channels),
            image=None if self.image is None else copies(self.image),
            text_extra={name: copies(value) for name, value in self.text_extra.items()},
            empty_text_extra={name: copies(value) for name, value in self.empty_text_extra.items()},
        )


@runtime_checkable
class VideoModel(Protocol):
    """Contract of a model; tests/models/test_contract.py is its exact form.

    Attributes:
        spec: size of its clips and latents.
        transformer: the network that post-training trains.
        trainable: every module that may train now, by name; `transformer` is always among them.
        scheduler: flow-matching Euler scheduler, whose sigmas `sample` follows. A family with another noise process or
            other levels brings a subclass of it (`models.schedules`).
    """

    spec: VideoSpec
    transformer: nn.Module
    scheduler: FlowMatchEulerDiscreteScheduler

    @property
    def trainable(self) -> dict[str, nn.Module]: ...

    def condition(self, captions: Sequence[str], first_frame: Float[Tensor, "B 3 H W"]) -> Condition:
        """Encode captions and first frames."""
        ...

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        """Velocity = noise - clean, predicted at sigma in (0, 1] and latents = (1 - sigma) clean + sigma noise."""
        ...

    def training_sigma(self, normal: PerSample) -> PerSample:
        """Noise levels in (0, 1] to train at, from standard normal draws: the family's own distribution."""
        ...

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Float[Tensor, "..."]:
        """Weight of each squared velocity error, broadcastable to the latents; 1 is the plain flow-matching loss."""
        ...

    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Latents:
        """Clean latents of clips in [0, 1]."""
        ...

    def decode(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int] | None = None
    ) -> Float[Tensor, "B T 3 H W"]:
        """Frames in [0, 1], differentiable with bounded memory.

        Args:
            with_gradient: latent frames through which the gradient flows; None: all. The frames are the same.
        """
        ...

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the whole model to a folder that `models.load` reads."""
        ...

    def to(self, device: torch.device | str) -> VideoModel:
        """Move every part; returns the same object."""
        ...


def draw_noise(spec: VideoSpec, seed: int, step: int, indices: Sequence[int], purpose: str = "noise") -> Latents:
    """Standard normal latents, each sample from its own stream.

    Args:
        spec: the model's, for the latent shape.
        seed, step: see `core.run.stream`.
        indices: global sample index of each clip; the same index gives the same noise in any batch.
        purpose: word of the stream; use another one for another draw in the same step.
    Returns:
        (B, C, t, h, w) float32 on the CPU.
    """
    return torch.stack(
        [torch.randn(spec.latent_shape, generator=stream(seed, step, index, purpose)) for index in indices]
    )


def draw_sigma(model: VideoModel, seed: int, step: int, indices: Sequence[int], purpose: str = "sigma") -> PerSample:
    """Training noise levels of the model's own distribution, each sample from its own stream.

    Args:
        model: its `training_sigma` says which levels it trains at.
        seed, step, indices, purpose: see `draw_noise`.
    Returns:
        (B,) float32 in (0, 1] on the CPU.
    """
    return model.training_sigma(
        torch.cat([torch.randn(1, generator=stream(seed, step, index, purpose)) for index in indices])
    )


def logit_normal(normal: PerSample, shift: float) -> PerSample:
    """Logit-normal(0, 1) noise levels, then shifted towards noise, sigma = shift u / (1 + (shift - 1) u).

    Args:
        normal: standard normal draws.
        shift: the scheduler's flow shift; 1 leaves the logit-normal as it is.
    Returns:
        (B,) in (0, 1).
    Source: Esser et al. 2024 (Stable Diffusion 3), §3.1 and equation 23.
    """
    uniform = torch.sigmoid(normal)
    return shift * uniform / (1 + (shift - 1) * uniform)


def gradient_only(latents: Latents, frames: Sequence[int] | None) -> Latents:
    """The same latents, with gradient through some latent frames alone (None: all)."""
    if frames is None:
        return latents
    chosen = torch.zeros(latents.shape[2], dtype=torch.bool, device=latents.device)
    chosen[list(frames)] = True
    return torch.where(chosen.view(1, 1, -1, 1, 1), latents, latents.detach())


def check_condition_inputs(spec: VideoSpec, captions: Sequence[str], first_frame: Tensor) -> None:
    """Reject first frames of another size, and a caption count that doesn't match.

    Raises:
        ShapeError: with the wanted shape.
    """
    want = (len(captions), 3, spec.height, spec.width)
    if tuple(first_frame.shape) != want:
        raise ShapeError(
            f"first frames have shape {tuple(first_frame.shape)}, this {spec.name} model wants {want}",
            fix="Resize them first.",
        )


def check_clip_shape(spec: VideoSpec, frames: Tensor) -> None:
    """Reject clips of another size.

    Raises:
        ShapeError: with the wanted shape.
    """
    want = (spec.num_frames, 3, spec.height, spec.width)
    if tuple(frames.shape[1:]) != want:
        raise ShapeError(
            f"clips have shape {tuple(frames.shape[1:])}, this {spec.name} model wants {want}",
            fix="Resample and resize them first.",
        )
