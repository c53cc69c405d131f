"""Depth of each frame by a frozen network of transformers, differentiable to the pixels.

Letters: B clips, T frames, H height, W width in px.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from newtonrewards.core.clip import check_frames
from newtonrewards.core.errors import CheckpointError, MissingExtra
from newtonrewards.core.recipe import Config


class DepthConfig(Config):
    """Which depth network, and how it is run.

    Attributes:
        name: local folder or name on the Hugging Face hub of a depth model of transformers (Depth Anything, DPT,
            ZoeDepth and others), with its `preprocessor_config.json`. PISA used Depth Anything V2 Small.
        side: frames are resized to so many px in height *and* width, as PISA does; None: what the network was trained
            with, 518 for Depth Anything. A multiple of the network's patch.
        frames_at_once: how many frames go through the network together.
    """

    name: str
    side: int | None = Field(default=None, ge=16)
    frames_at_once: int = Field(default=16, ge=1)


@runtime_checkable
class DepthEstimator(Protocol):
    """Anything that maps frames to depth."""

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T H W"]:
        """Depth of each frame on its own.

        Args:
            frames: RGB in [0, 1].
        Returns:
            float32, at the size of `frames`, in the network's unit: metres, or relative and inverse; differentiable.
        """
        ...


class TransformersDepth:
    """A frozen depth model as a `DepthEstimator`. Not a Module, for the reason given at `flow.RaftFlow`.

    Args:
        network: a `...ForDepthEstimation`; taken over: set to eval, float32, without parameter gradients.
        side: px to which both sides of a frame are resized.
        mean, std: of the colours the network was trained with.
        frames_at_once: see `DepthConfig`.
    """

    def __init__(
        self,
        network: Any,
        side: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        frames_at_once: int = 16,
    ) -> None:
        self.network = network.eval().float().requires_grad_(False)
        self.side, self.mean, self.std, self.frames_at_once = side, mean, std, frames_at_once

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T H W"]:
        """See `DepthEstimator`.

        Raises:
            ShapeError: bad shape or range.
        """
        check_frames(frames, batched=True)
        self.network.to(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            groups = frames.float().flatten(0, 1).split(self.frames_at_once)
            return torch.cat([self._depth(group) for group in groups]).unflatten(0, frames.shape[:2])

    def _depth(self, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        square = F.interpolate(images, (self.side, self.side), mode="bicubic", align_corners=False, antialias=True)
        mean, std = (square.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        depth = self.network(pixel_values=(square - mean) / std).predicted_depth
        return F.interpolate(depth[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def load_depth(config: DepthConfig) -> TransformersDepth:
    """The depth network that a config asks for, safetensors only.

    Raises:
        MissingExtra: not there, and no network to fetch it; no depth model; or nobody says how its frames are prepared.
        CheckpointError: a model without a depth head.
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    fix = "Give a local folder of a depth model with config.json, preprocessor_config.json and model.safetensors, or a "
    fix += "name that the hub knows."
    try:
        network, found = AutoModelForDepthEstimation.from_pretrained(
            config.name, use_safetensors=True, output_loading_info=True
        )
        prepares = AutoImageProcessor.from_pretrained(config.name)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise MissingExtra(f"can't load this depth network ({first})", where=config.name, fix=fix) from None
    if any(key.startswith("head.") for key in found["missing_keys"]):  # it would be filled with random numbers
        raise CheckpointError("holds no weights of a depth head", where=config.name, fix=fix)
    size = getattr(prepares, "size", None)
    side = config.side or (size["height"] if size else None)
    if side is None:
        raise MissingExtra("nobody says at which size it works", where=config.name, fix="Set depth.side.")
    scaled = bool(getattr(prepares, "do_normalize", False))
    mean = tuple(prepares.image_mean) if scaled else (0.0,) * 3
    std = tuple(prepares.image_std) if scaled else (1.0,) * 3
    return TransformersDepth(network, side, mean, std, config.frames_at_once)
