"""PISA's object rewards (ORO) as arithmetic: how unlike the flow, mask and depth of the paired clip are. Baselines.

Pure tensors, no networks. Source of all: vision-x-nyu/pisa-experiments, `scripts/oro_{flow,seg,depth}.py`
(physics.md §9).
Letters: B clips, T frames, N = T - 1 pairs of frames, H height, W width in px.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6


def published_range(frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T 3 H W"]:
    """Frames as PISA's released code hands generated ones to its networks: the dark half of the range becomes black.

    Its decoder gives x in [-1, 1], and its code takes that for [0, 1]: `x.mul(255).add(0.5).clamp(0, 255)`. With our
    frames f = (x + 1) / 2 that is clamp(255 (2 f - 1) + 0.5, 0, 255), here over 255. Pixels darker than 127.25 / 255
    come out black and get no gradient. The paired clip is mapped rightly there, as (x + 1) 127.5.

    Args:
        frames: RGB in [0, 1].
    Returns:
        RGB in [0, 1].
    """
    return (2 * frames - 1 + 0.5 / 255).clamp(0, 1)


def flow_error(
    flow: Float[Tensor, "B N 2 H W"], expected: Float[Tensor, "B N 2 H W"], fps: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Mean over pixels of |flow - expected|, both axes summed, H/s, >= 0.

    PISA's own number, a mean over both axes in px/frame, is this times H / (2 fps).

    Args:
        flow: px/frame. expected: that of the paired clip. fps: frames per second of physical time.
    """
    away = (flow - expected).abs().sum(2).mean((1, 2, 3))
    return away * fps.to(away.dtype) / flow.shape[-2]


def mask_error(mask: Float[Tensor, "B T H W"], expected: Float[Tensor, "B T H W"]) -> Float[Tensor, "B"]:
    """Mean over the later frames of 1 - soft IoU, in [0, 1]; the first frame is given.

    Args:
        mask: soft, in [0, 1]. expected: that of the paired clip.
    """
    own, other = mask[:, 1:], expected[:, 1:]
    both = (own * other).sum((-2, -1))
    either = (own + other - own * other).sum((-2, -1))
    return (1 - both / either.clamp(min=EPSILON)).mean(1)


def depth_error(depth: Float[Tensor, "B T H W"], expected: Float[Tensor, "B T H W"]) -> Float[Tensor, "B"]:
    """Mean square difference of depth maps, each as a share of its own frame's range: in [0, 1].

    PISA's own number, of maps scaled to 0..255, is this times 255^2. A network's relative depth has neither scale nor
    zero; so what changes all of a frame's depths alike costs nothing.

    Args:
        depth: in any unit, metric or inverse. expected: that of the paired clip, by the same network.
    """
    return (_share_of_range(depth) - _share_of_range(expected)).square().mean((1, 2, 3))


def _share_of_range(depth: Tensor) -> Tensor:
    low, high = depth.amin((-2, -1), keepdim=True), depth.amax((-2, -1), keepdim=True)
    flat = high - low <= EPSILON * high.abs()  # a frame without depth has no range to share
    return torch.where(
        flat, torch.zeros_like(depth), (depth - low) / torch.where(flat, torch.ones_like(low), high - low)
    )
