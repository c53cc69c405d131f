"""Appearance encoders from libraries: DINOv2, DINOv3 and V-JEPA 2 of transformers, ImageNet networks of torchvision.

Each is frozen, kept out of every wrapper (none is a module of the trained one), and differentiable to the pixels.
Letters: B clips, T frames, C channels, h, w the grid of the features, N tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from newtonrewards.core.clip import check_frames
from newtonrewards.core.errors import CheckpointError, InputError, MissingExtra
from newtonrewards.rewards.flow import load_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(ABC):
    """What all have in common: frozen, in float32, fed with frames at one height and ImageNet's mean and spread.

    Args:
        network: taken over: set to eval, float32, without parameter gradients.
        side: height in px to which frames are resized.
        multiple: height and width become multiples of this.
    """

    def __init__(self, network: nn.Module, side: int, multiple: int) -> None:
        self.network = network.eval().float().requires_grad_(False)
        self.side, self.multiple = side, multiple

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `appearance.AppearanceEncoder`."""
        check_frames(frames, batched=True)
        self.network.to(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            return self.maps(self._prepared(frames.float()))

    @abstractmethod
    def maps(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """Features of prepared frames."""

    def _prepared(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        size = [max(1, round(s / self.multiple)) * self.multiple for s in (self.side, self.side * width / height)]
        flat = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (flat.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return ((flat - mean) / std).unflatten(0, frames.shape[:2])


class ImageTransformer(Backbone):
    """DINOv2 or DINOv3: patch tokens of one hidden layer, frame by frame."""

    def __init__(self, network: Any, side: int, layer: int) -> None:
        super().__init__(network, side, int(network.config.patch_size))
        self.layer = _checked_layer(layer, network)

    def maps(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `Backbone`."""
        grid = [side // self.multiple for side in frames.shape[-2:]]
        out = self.network(pixel_values=frames.flatten(0, 1), output_hidden_states=True)
        tokens = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]  # before them stand class and register tokens
        return patches.mT.unflatten(2, grid).unflatten(0, frames.shape[:2])


class VideoTransformer(Backbone):
    """V-JEPA 2: tokens of tubelets of two frames; both frames of a tubelet get its features.

    Long clips go through in windows of `window` frames, so that memory doesn't grow with length.
    """

    def __init__(self, network: Any, side: int, layer: int, window: int) -> None:
        super().__init__(network, side, int(network.config.patch_size))
        self.tubelet, self.window = int(network.config.tubelet_size), window
        self.layer = _checked_layer(layer, network)
        if window % self.tubelet:
            fix = f"Make it a multiple of {self.tubelet}."
            raise InputError(f"a window of {window} frames cuts a tubelet in two", where="appearance.window", fix=fix)

    def maps(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `Backbone`."""
        return torch.cat([self._window(part) for part in frames.split(self.window, dim=1)], 1)

    def _window(self, frames: Tensor) -> Tensor:
        count = frames.shape[1]
        short = -count % self.tubelet
        frames = torch.cat([frames, frames[:, -1:].expand(-1, short, -1, -1, -1)], 1)
        grid = [frames.shape[1] // self.tubelet, *(side // self.multiple for side in frames.shape[-2:])]
        out = self.network(pixel_values_videos=frames, skip_predictor=True, output_hidden_states=True)
        tokens = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        maps = tokens.mT.unflatten(2, grid).movedim(2, 1)
        return maps.repeat_interleave(self.tubelet, dim=1)[:, :count]


class TorchvisionFeatures(Backbone):
    """A node of a torchvision network, such as `layer3` of `resnet18`, frame by frame."""

    def __init__(self, network: nn.Module, side: int, layer: str) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        names = get_graph_node_names(network)[1]
        if layer not in {name[: len(layer)] for name in names}:
            raise InputError(f"no layer '{layer}'", where="appearance.layer", fix=f"Some are {', '.join(names[-5:])}.")
        super().__init__(create_feature_extractor(network, {layer: "out"}), side, 32)

    def maps(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `Backbone`."""
        out: Tensor = self.network(frames.flatten(0, 1))["out"]
        return out.unflatten(0, frames.shape[:2])


def load_transformer(kind: str, name: str, layer: int, side: int | None, window: int) -> Backbone:
    """A DINO or V-JEPA 2 network from a local folder or a name on the Hugging Face hub, safetensors only.

    Args:
        kind: `dino` or `vjepa2`. name: folder or hub name. layer: hidden layer, -1 the last.
        side: height of the frames; None: the one it was trained with. window: frames at a time, for `vjepa2`.
    Raises:
        MissingExtra: not there, and no network to fetch it. CheckpointError: a folder of another kind of model.
    """
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(name, use_safetensors=True, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        fix = "Give a local folder with config.json and model.safetensors, or a name that the hub knows."
        raise MissingExtra(f"can't load this encoder ({first})", where=name, fix=fix) from None
    family = str(network.config.model_type)
    if not family.startswith("vjepa" if kind == "vjepa2" else "dino"):
        raise CheckpointError(f"holds a '{family}' model", where=name, fix="Name the network that it belongs to.")
    trained = int(getattr(network.config, "crop_size", 0) or getattr(network.config, "image_size", 224))
    if kind == "vjepa2":
        return VideoTransformer(network, side or trained, layer, window)
    return ImageTransformer(network, side or min(trained, 224), layer)


def load_torchvision(name: str, layer: str, weights: Path | None, side: int | None) -> TorchvisionFeatures:
    """A classification network of torchvision with its published weights from a file.

    Raises:
        InputError: no such network or layer. MissingExtra, CheckpointError: no file of weights, or another network's.
    """
    from torchvision.models import get_model

    try:
        network = get_model(name, weights=None)
    except ValueError as error:
        raise InputError(str(error), where="appearance.name", fix="Use a name such as resnet18.") from None
    if weights is None:
        fix = "Set appearance.weights to torchvision's file, .pth or .safetensors."
        raise MissingExtra(f"{name} has no weights here", where="appearance.weights", fix=fix)
    load_weights(network, weights)
    return TorchvisionFeatures(network, side or 224, layer)


def _checked_layer(layer: int, network: Any) -> int:
    count = int(network.config.num_hidden_layers)
    if not (layer == -1 or 0 <= layer <= count):
        raise InputError(f"no hidden layer {layer}", where="appearance.layer", fix=f"Use 0 to {count}, or -1.")
    return layer
