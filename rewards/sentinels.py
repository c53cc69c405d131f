"""Sentinels: numbers that show a reward being won by a trick. They are watched and never trained on (physics.md §5).

Letters: B clips, T frames, A_t area of the object in frame t. Each gives one number per clip; NaN where it can't be
    measured.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# A frame shows the object if it has at least this share of the first frame's area.
PRESENT = 0.3
# Within half an 8-bit step of black or white a pixel is clipped.
CLIPPED = 0.5 / 255
EPSILON = 1e-8


def motion_energy(frames: Float[Tensor, "B T 3 H W"], reference: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B"]:
    """Mean |x_(t+1) - x_t| over that of the reference: 1 is right, 0 frozen, more is flicker; NaN: still reference."""
    own, other = ((part[:, 1:] - part[:, :-1]).abs().mean((1, 2, 3, 4)) for part in (frames, reference))
    return torch.where(other > EPSILON, own / other.clamp(min=EPSILON), torch.full_like(own, torch.nan))


def presence(soft_mask: Float[Tensor, "B T H W"]) -> Float[Tensor, "B"]:
    """Share of the frames after the first that show the object, 0 to 1: at least `PRESENT` of its first area."""
    areas = soft_mask.sum((-2, -1))
    return (areas[:, 1:] >= PRESENT * areas[:, :1]).to(areas.dtype).mean(1)


def area_ratio(soft_mask: Float[Tensor, "B T H W"]) -> Float[Tensor, "B"]:
    """Mean area of the later frames over the first one's: 1 is right. NaN without an object in the first frame."""
    areas = soft_mask.sum((-2, -1))
    first = areas[:, 0]
    return torch.where(
        first > EPSILON, areas[:, 1:].mean(1) / first.clamp(min=EPSILON), torch.full_like(first, torch.nan)
    )


def saturation(frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B"]:
    """Share of pixel values at black or white, 0 to 1."""
    return ((frames <= CLIPPED) | (frames >= 1 - CLIPPED)).to(frames.dtype).mean((1, 2, 3, 4))


def high_frequency(frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B"]:
    """Laplacian energy of the later frames over that of frame 0: adversarial texture drives it far above 1."""
    centre = frames[..., 1:-1, 1:-1]
    around = frames[..., :-2, 1:-1] + frames[..., 2:, 1:-1] + frames[..., 1:-1, :-2] + frames[..., 1:-1, 2:]
    energy = (4 * centre - around).square().mean((2, 3, 4))
    return energy[:, 1:].mean(1) / energy[:, 0].clamp(min=EPSILON)
