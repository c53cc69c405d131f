"""Optical flow: frames in [0, 1] to px/frame of their own size, through a frozen network, differentiable to the pixels.

The networks are torchvision's RAFT class. `embedded` is one narrower than `raft_small`, with weights of our own that
ship with the package; `raft_small` and `raft_large` take a weights file.

Letters: B clips, T frames, N = T - 1 pairs of consecutive frames, P pairs, H height, W width in px. Flow: x right, y
    down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.optical_flow import RAFT, raft_large, raft_small
from torchvision.models.optical_flow import raft as parts

from newtonrewards.core.clip import check_frames
from newtonrewards.core.errors import CheckpointError, MissingExtra, ShapeError
from newtonrewards.core.recipe import Config
from newtonrewards.rewards.raft import channels_together, estimate, freeze
from newtonrewards.rewards.raft_names import is_original, to_torchvision

EMBEDDED_WEIGHTS = Path(__file__).parent / "weights" / "flow.safetensors"
STRIDE = 8  # of every RAFT


class FlowConfig(Config):
    """Which flow network, and how it is run.

    Attributes:
        network: `embedded` (177 thousand parameters, shipped), `raft_small` (1 M) or `raft_large` (5 M).
        weights: safetensors or .pth file of that network, in torchvision's names or those of RAFT's authors; only
            `embedded` has a default.
        num_flow_updates: refinement steps; `embedded` was trained with 4, the published RAFTs are used with 12 to 32.
        upsample: frames are enlarged by this for the network, which doesn't see objects under about 12 px radius
            otherwise.
        pairs_at_once: how many pairs of frames go through the network together.
        checkpoint: recompute each such group but the last in the backward pass instead of keeping it: memory of one
            group beside the frames (with one pair at once, 4.6 enlarged frames for each frame of a clip instead of 44),
            up to a third more time.
    """

    network: Literal["embedded", "raft_small", "raft_large"] = "embedded"
    weights: Path | None = None
    num_flow_updates: int = Field(default=4, ge=1)
    upsample: int = Field(default=2, ge=1)
    pairs_at_once: int = Field(default=96, ge=1)
    checkpoint: bool = False


@runtime_checkable
class FlowEstimator(Protocol):
    """Anything that maps frames to flow."""

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T-1 2 H W"]:
        """Flow from each frame to the next.

        Args:
            frames: RGB in [0, 1].
        Returns:
            px/frame at the size of `frames`, float32, differentiable to `frames` where the estimator says so.
        """
        ...


class FlowAndFeatures(NamedTuple):
    """What one pass of a RAFT over a clip gives: the flow, and the feature maps of its encoder, which come free."""

    flow: Float[Tensor, "B T-1 2 H W"]
    features: Float[Tensor, "B T C h w"]


class RaftFlow:
    """A frozen RAFT as a `FlowEstimator`. Not a Module, so that no wrapper, autocast or cast of the training can reach
    it.

    Each frame is encoded once for both of its pairs, and `raft.py` has the rest: the same numbers as torchvision's own
    forward, to rounding. RAFT detaches its coordinates in each update (torchvision does, as the
    original), so the gradient to the pixels is a good direction but not the derivative of the output.

    Args:
        network: a torchvision RAFT; it is taken over: set to eval, float32, without parameter gradients, see
            `raft.freeze`.
        config: see `FlowConfig`.
    """

    def __init__(self, network: RAFT, config: FlowConfig) -> None:
        self.network = freeze(network).float()
        self.config = config
        self._min_side = STRIDE * 2**network.corr_block.num_levels

    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T-1 2 H W"]:
        """See `FlowEstimator`; differentiable."""
        return self.flow_and_features(frames).flow

    def flow_and_features(self, frames: Float[Tensor, "B T 3 H W"]) -> FlowAndFeatures:
        """Flow and encoder features in one pass.

        Args:
            frames: RGB in [0, 1], at least two frames, any size.
        Returns:
            flow in px/frame of the given size; features (stride 8 in the enlarged frames, padding cut off).
        Raises:
            ShapeError: bad shape or range, or a single frame.
        """
        _check(frames)
        with torch.autocast(frames.device.type, enabled=False):
            images, pad = self._prepare(frames.float())
            features = self._encode(images)
            return FlowAndFeatures(self._flow(images, features, pad, frames.shape), _cut(features, pad, STRIDE))

    def features(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T C h w"]:
        """Encoder features alone, without the cost of the flow; see `flow_and_features`."""
        check_frames(frames, batched=True)
        with torch.autocast(frames.device.type, enabled=False):
            images, pad = self._prepare(frames.float())
            return _cut(self._encode(images), pad, STRIDE)

    def _prepare(self, frames: Tensor) -> tuple[Tensor, list[int]]:
        """[0, 1] to RAFT's [-1, 1], enlarged, and padded by repeated edges to what the network can take."""
        self.network.to(frames.device)
        batch, time, _, height, width = frames.shape
        images = frames.flatten(0, 1) * 2 - 1
        if self.config.upsample > 1:
            size = (height * self.config.upsample, width * self.config.upsample)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        pad_y, pad_x = (_padding(side, self._min_side) for side in images.shape[-2:])
        pad = [pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2]
        return F.pad(images, pad, mode="replicate").unflatten(0, (batch, time)), pad

    def _encode(self, images: Tensor) -> Tensor:
        groups = [self._run(self._features, part) for part in images.flatten(0, 1).split(self.config.pairs_at_once)]
        return torch.cat(groups).unflatten(0, images.shape[:2])

    def _flow(self, images: Tensor, features: Tensor, pad: list[int], shape: torch.Size) -> Tensor:
        batch, time, _, height, width = shape
        ins = (images[:, :-1].flatten(0, 1), features[:, :-1].flatten(0, 1), features[:, 1:].flatten(0, 1))
        *others, last = zip(*(part.split(self.config.pairs_at_once) for part in ins), strict=True)
        # going back begins with the last group: no need to compute that one twice
        groups = [*(self._run(self._pairs, *group) for group in others), self._pairs(*last)]
        flow = _cut(torch.cat(groups).unflatten(0, (batch, time - 1)), pad, 1)
        if self.config.upsample == 1:
            return flow
        small = F.interpolate(flow.flatten(0, 1), size=(height, width), mode="area")
        return small.unflatten(0, (batch, time - 1)) / self.config.upsample

    def _features(self, images: Tensor) -> Tensor:
        return self.network.feature_encoder(channels_together(images))

    def _run(self, function, *inputs: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        if self.config.checkpoint and torch.is_grad_enabled() and any(part.requires_grad for part in inputs):
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _pairs(self, first: Tensor, features_1: Tensor, features_2: Tensor) -> Tensor:
        return estimate(self.network, first, features_1, features_2, self.config.num_flow_updates)


def embedded_network() -> RAFT:
    """The narrow RAFT: 177 thousand parameters against 990 thousand of `raft_small`, about six times cheaper."""
    corr_block = parts.CorrBlock(num_levels=3, radius=3)
    motion = parts.MotionEncoder(
        in_channels_corr=corr_block.out_channels, corr_layers=(48,), flow_layers=(32, 16), out_channels=48
    )
    recurrent = parts.RecurrentBlock(
        input_size=motion.out_channels + 32, hidden_size=32, kernel_size=(3,), padding=(1,)
    )
    head = parts.FlowHead(in_channels=32, hidden_size=64)
    encoder = _encoder((16, 16, 24, 32, 48), nn.InstanceNorm2d)
    context = _encoder((16, 16, 24, 32, 64), None)
    update = parts.UpdateBlock(motion_encoder=motion, recurrent_block=recurrent, flow_head=head)
    return RAFT(feature_encoder=encoder, context_encoder=context, corr_block=corr_block, update_block=update)


def load_flow(config: FlowConfig) -> RaftFlow:
    """The flow estimator that a config asks for, with its weights.

    Raises:
        MissingExtra, CheckpointError: as for `load_network`.
    """
    return RaftFlow(load_network(config), config)


def load_network(config: FlowConfig) -> RAFT:
    """The network that a config asks for, with its weights, as torchvision has it.

    Raises:
        MissingExtra: no weights file given for a network that ships none, or the file isn't there.
        CheckpointError: a file that can't be read, or that belongs to another network.
    """
    path = config.weights
    if path is None and config.network == "embedded":
        path = EMBEDDED_WEIGHTS
    if path is None:
        fix = "Set flow.weights to a .safetensors or .pth file of torchvision or of RAFT's authors."
        raise MissingExtra(f"the flow network {config.network} has no weights here", where="flow.weights", fix=fix)
    match config.network:
        case "embedded":
            network = embedded_network()
        case "raft_small":
            network = raft_small(weights=None)
        case "raft_large":
            network = raft_large(weights=None)
    load_weights(network, path)
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file, or from a .pth file read with `weights_only=True`; half precision is
    widened.

    Raises:
        MissingExtra: no such file.
        CheckpointError: unreadable, or keys or shapes of another network.
    """
    if not path.is_file():
        raise MissingExtra("no such weights file", where=path, fix="Give the path of a .safetensors or .pth file.")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        wide = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    except Exception as error:  # safetensors, pickle and zip each raise their own kinds
        raise CheckpointError(f"not a readable weights file ({type(error).__name__}: {error})", where=path) from error
    try:
        network.load_state_dict(to_torchvision(wide) if is_original(wide) else wide, strict=True)
    except (RuntimeError, KeyError) as error:
        line = str(error).split("\n")[-1].strip()
        raise CheckpointError(
            f"weights of another network ({line})", where=path, fix="Name the network they belong to."
        ) from error


def _encoder(layers: tuple[int, ...], norm: type[nn.Module] | None) -> parts.FeatureEncoder:
    return parts.FeatureEncoder(block=parts.BottleneckBlock, layers=layers, strides=(2, 1, 2, 2), norm_layer=norm)


def _check(frames: Tensor) -> None:
    check_frames(frames, batched=True)
    if frames.shape[1] < 2:
        raise ShapeError("a clip of one frame has no flow", fix="Give clips of at least two frames.")


def _padding(side: int, least: int) -> int:
    return max(least, -(-side // STRIDE) * STRIDE) - side


def _cut(maps: Tensor, pad: list[int], stride: int) -> Tensor:
    """Take the padding off again, rounded inwards to whole cells of the map."""
    left, right, top, bottom = pad
    height, width = maps.shape[-2:]
    return maps[..., top // stride : height - bottom // stride, left // stride : width - right // stride]
