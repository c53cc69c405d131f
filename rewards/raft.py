"""A frozen RAFT from its encoded frames on: the numbers of torchvision's `RAFT.forward`, to rounding, for less work.

- Of all estimates only the last is up-sampled.
- The correlation is looked up as in `correlation.py`.
- Frozen convolutions keep nothing for the backward pass (`core.convolve`), and on a CPU channels lie together.
- What an update sees of the context is the same in each, and a convolution is linear in its inputs: the context's part
  of the recurrent unit is computed once.

Letters: P pairs, C channels, h, w size of the feature maps, H, W of the frames.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.optical_flow import RAFT
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow
from torchvision.models.optical_flow.raft import ConvGRU

from newtonrewards.core.convolve import FrozenConv2d, convolve, exchange_layers, on_cpu
from newtonrewards.rewards.correlation import Correlation


class QuickInstanceNorm2d(nn.InstanceNorm2d):
    """torch's norm, which on a CPU takes channels that lie together apart and leaves them so."""

    def forward(self, input: Tensor) -> Tensor:
        if not on_cpu(input) or self.affine or self.track_running_stats:
            return super().forward(input)
        normed: Tensor = _Normed.apply(input, self.eps)
        return normed


class _Normed(torch.autograd.Function):
    """Each channel of each picture with mean 0 and variance 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        mean = _average(x)
        inverse = _average((x - mean).square_()).add_(eps).rsqrt_()
        ctx.save_for_backward(x, mean, inverse)
        return (x - mean).mul_(inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, mean, inverse = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        normed = (x - mean).mul_(inverse)
        along = _average(gradient * normed)
        return torch.addcmul(gradient, normed, along, value=-1).sub_(_average(gradient)).mul_(inverse), None


def _average(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 1 1"]:
    return x.mean((2, 3), keepdim=True)


QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FrozenConv2d, nn.InstanceNorm2d: QuickInstanceNorm2d}


def freeze(network: RAFT) -> RAFT:
    """The same network in eval mode, without parameter gradients; it is changed itself."""
    exchange_layers(network, QUICK)
    return network.eval().requires_grad_(False)


def channels_together(images: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P 3 H W"]:
    """The same images, laid out so that narrow convolutions are up to 10 times as fast on a CPU."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def estimate(
    network: RAFT,
    first: Float[Tensor, "P 3 H W"],
    features_1: Float[Tensor, "P C h w"],
    features_2: Float[Tensor, "P C h w"],
    num_flow_updates: int,
) -> Float[Tensor, "P 2 H W"]:
    """Flow in px of the frames given.

    Args:
        first: first frame of each pair, in [-1, 1].
        features_1, features_2: of both frames, from the network's encoder.
    """
    first = channels_together(first)
    correlation = Correlation(features_1, features_2, network.corr_block.num_levels, network.corr_block.radius)
    update = network.update_block
    hidden, context = network.context_encoder(first).tensor_split([update.hidden_state_size], dim=1)
    hidden, context = torch.tanh(hidden), F.relu(context)
    units = [Recurrent(unit, context) for unit in update.recurrent_block.children()]
    start = make_coords_grid(len(first), *hidden.shape[-2:]).to(hidden, memory_format=torch.channels_last)
    coords = start
    for _ in range(num_flow_updates):
        coords = coords.detach()  # as in the original: the update learns from the flow it is given, not through it
        motion = update.motion_encoder(coords - start, correlation.windows(coords))
        for unit in units:
            hidden = unit(hidden, motion)
        coords = coords + update.flow_head(hidden)
    up_mask = None if network.mask_predictor is None else network.mask_predictor(hidden)
    return upsample_flow(flow=coords - start, up_mask=up_mask)


class Recurrent:
    """torchvision's `ConvGRU`, for inputs that begin with a context that stays the same.

    Args:
        unit: a frozen one.
        context: the first channels of its inputs.
    """

    def __init__(self, unit: ConvGRU, context: Float[Tensor, "P C h w"]) -> None:
        gates: tuple[nn.Conv2d, ...] = (unit.convz, unit.convr, unit.convq)
        self.padding, size = gates[0].padding, gates[0].out_channels
        weight = torch.cat([gate.weight for gate in gates])
        bias = torch.cat([gate.bias for gate in gates if gate.bias is not None])
        of_hidden, of_context, of_motion = weight.tensor_split([size, size + context.shape[1]], dim=1)
        known = convolve(context, of_context, bias, (1, 1), self.padding)
        self.known = known.tensor_split([2 * size], dim=1)
        self.weight = torch.cat([of_hidden, of_motion], dim=1).tensor_split([2 * size])

    def __call__(self, hidden: Float[Tensor, "P D h w"], motion: Float[Tensor, "P M h w"]) -> Float[Tensor, "P D h w"]:
        update, reset = torch.sigmoid(self._gates(0, hidden, motion)).chunk(2, dim=1)
        new = torch.tanh(self._gates(1, reset * hidden, motion))
        return torch.lerp(hidden, new, update)

    def _gates(self, which: int, hidden: Tensor, motion: Tensor) -> Tensor:
        """Update and reset gate (0) or the new state (1), before they are squashed."""
        seen = torch.cat([hidden, motion], dim=1)
        return self.known[which] + convolve(seen, self.weight[which], None, (1, 1), self.padding)
