"""Sentinels: numbers that show a reward being won by a trick. They are watched and never trained on (physics.md §5).

Letters: B clips, T frames, A_t area of the object in frame t. Each gives one number per clip; NaN where it can't be
    measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A frame shows the object if it has at least this share of the first frame's area.
PRESENT = 0.3
# Within half an 8-bit step of black or white a pixel is clipped.
CLIPPED = 0.5 / 255
EPSILON = 1e-8
# Healthy ranges of means over clips. Perfect and honestly generated clips stay inside.
LIMITS: dict[str, tuple[float, float]] = {
    "motion_energy": (0.3, 3.0),
    "presence": (0.7, 1.0),
    "area_ratio": (0.5, 1.6),
    "saturation": (0.0, 0.1),
    "high_frequency": (0.3, 1.8),
    "second_opinion": (0.0, 0.7),
    "consistency": (0.6, 1.0),
}


def alarms(values: Mapping[str, float]) -> list[str]:
    """Names of the sentinels that lie outside `LIMITS`; one that can't be measured rings as well."""
    outside = []
    for name, value in values.items():
        low, high = LIMITS[name]
        if math.isnan(value) or not low <= value <= high:
            outside.append(name)
    return outside


def second_opinion(
    velocity: Float[Tensor, "B N 2"], other: Float[Tensor, "B N 2"], valid: Bool[Tensor, "B N"]
) -> Float[Tensor, "B"]:
    """Root mean square difference of two methods' object velocities over the larger root mean square speed: 0 where
    they agree, 1 and more where one sees what the other doesn't. NaN where they have nothing in common.

    Args:
        velocity: by the flow network of the reward, H/s. other: by a method that it was not trained on.
        valid: which velocities count.
    """
    known = valid & (velocity.isfinite() & other.isfinite()).all(-1)
    a, b = (torch.where(known[..., None], part, torch.zeros_like(part)) for part in (velocity, other))
    away, size = (a - b).square().sum((1, 2)), torch.maximum(a.square().sum((1, 2)), b.square().sum((1, 2)))
    ratio = (away / size.clamp(min=EPSILON)).sqrt()
    return torch.where(known.any(1), ratio, torch.full_like(ratio, torch.nan))


def consistency(
    confidence: Float[Tensor, "B N H W"], support: Float[Tensor, "B N H W"], valid: Bool[Tensor, "B N"]
) -> Float[Tensor, "B"]:
    """Mean over the object of how well flow there and flow back agree, in [0, 1]: low where the flow network is fooled.
    NaN where there is no object.

    Args:
        confidence: see `consistency.confidence`. support: soft weights of the object. valid: which pairs count.
    """
    weight = support * valid[..., None, None]
    total = weight.sum((1, 2, 3))
    mean = (weight * confidence).sum((1, 2, 3)) / total.clamp(min=EPSILON)
    return torch.where(total > EPSILON, mean, torch.full_like(mean, torch.nan))


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
