"""Forward-backward consistency: where flow there and flow back don't meet, there is nothing to rely on.

Letters: B clips, N pairs of frames, H height, W width in px. Flow in px/frame, x right, y down.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.rewards.support import pixel_grid, read

# Allowed: this share of the squared lengths of both flows, and so many px^2.
SHARE, LEAST = 0.01, 0.5


@torch.no_grad()
def confidence(forward: Float[Tensor, "B N 2 H W"], backward: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N H W"]:
    """exp(-|f(x) + b(x + f(x))|^2 / (SHARE (|f|^2 + |b|^2) + LEAST)), in [0, 1]; 0 where x + f leaves the frame.

    Near 1 where the way back ends where the way there began, under 1/e where the classical test calls a pixel occluded.
    It carries no gradient: a weight that could be trained would teach the model to be unreliable where it is wrong.

    Args:
        forward: px/frame, from the first frame of each pair to the second, at the first frame's pixels.
        backward: from the second to the first, at the second frame's pixels.
    Source: Sundaram, Brox, Keutzer 2010 (eq. 5) for the threshold; the soft form is ours.
    """
    height, width = forward.shape[-2:]
    there = forward.flatten(0, 1)
    ends = pixel_grid(there) + there.flatten(-2).mT
    back = read(backward.flatten(0, 1), ends).mT.unflatten(2, (height, width))
    away = (there + back).square().sum(1)
    allowed = SHARE * (there.square().sum(1) + back.square().sum(1)) + LEAST
    x, y = ends.unflatten(1, (height, width)).unbind(-1)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return (torch.exp(-away / allowed) * inside).unflatten(0, forward.shape[:2])
