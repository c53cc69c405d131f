"""Mass arithmetic: an object must stay what it is, keep its size, and be there at all.

Pure tensors, no networks, any float type. Without these terms a motion reward is won by freezing, fading or vanishing
(physics.md §4, §7: the kinematic term alone collapses; without a guard of the area objects grow by 45 %).

Letters: B clips, T frames, C feature channels, h, w the grid of the feature maps, A_t area of the object in frame t.
NaN means "could not be measured" and never enters a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# Below this share of the frame (0.4 px at 64 x 64) there was no object to begin with.
MIN_AREA_SHARE = 1e-4
# Areas are compared with this share of the first area added to both: log of zero is minus infinity.
AREA_FLOOR = 0.05
# Round the tip of |x|, so that the gradient is smooth where the object keeps its size exactly.
TIP = 1e-2
EPSILON = 1e-6


def cosine_distance(a: Float[Tensor, "*lead C"], b: Float[Tensor, "*lead C"]) -> Float[Tensor, "*lead"]:
    """1 - cos(a, b), in [0, 2]; vectors of length zero are at distance 1. Smooth everywhere, zero slope at a = b."""
    dot = (a * b).sum(-1)
    return 1 - dot / (a.square().sum(-1) * b.square().sum(-1) + EPSILON**2).sqrt()


def paired(features: Float[Tensor, "B T C h w"], reference: Float[Tensor, "B T C h w"]) -> Float[Tensor, "B"]:
    """Mean over frames and places of 1 - cos between the features of a clip and those of its paired clip at the same
    place.

    Args:
        features: feature maps of the clip.
        reference: feature maps of the reference clip, same frames, same size.
    Returns:
        in [0, 2] per clip, 0 for equal clips; never NaN.
    Source: physics.md §4 (`paired`), ours. It sees a missing, faded or changed object, and one that is in the wrong
        place.
    """
    return cosine_distance(features.movedim(2, -1), reference.movedim(2, -1)).mean((1, 2, 3))


def pool(features: Float[Tensor, "B T C h w"], weights: Float[Tensor, "B T h w"]) -> Float[Tensor, "B T C"]:
    """Mean feature over the object.

    Args:
        features: feature maps.
        weights: soft support of the object on the grid of the features.
    Returns:
        pooled features; NaN where the weights of a frame sum to almost nothing.
    """
    total = weights.sum((-2, -1))
    present = total > MIN_AREA_SHARE * weights.shape[-1] * weights.shape[-2]
    pooled = (
        torch.einsum("bthw,btchw->btc", weights, features)
        / torch.where(present, total, torch.ones_like(total))[..., None]
    )
    return torch.where(present[..., None], pooled, torch.full_like(pooled, torch.nan))


def conserved(pooled: Float[Tensor, "B T C"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """Mean over frames of 1 - cos between the object's features and those it had in the first frame; needs no
    reference.

    Args:
        pooled: features pooled over the object in each frame (see `pool`), NaN where it could not be found.
        valid: which frames count.
    Returns:
        in [0, 2] per clip, 0 where nothing changes; a frame whose object can't be found counts 1 (as unlike as chance),
        and the clip is NaN if the object can't be found in its first frame or no later frame counts.
    Source: physics.md §4 (`conserved`), ours.
    """
    found = pooled.isfinite().all(-1)
    safe = torch.where(found[..., None], pooled, torch.zeros_like(pooled))
    distance = cosine_distance(safe, safe[:, :1].expand_as(safe))
    distance = torch.where(found, distance, torch.ones_like(distance))[:, 1:]
    counted = valid[:, 1:]
    mean = (distance * counted).sum(1) / counted.sum(1).clamp(min=1)
    return torch.where(found[:, 0] & counted.any(1), mean, torch.full_like(mean, torch.nan))


def area(soft_mask: Float[Tensor, "B T H W"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """Mean over frames of |log(A_t / A_0)|: growing and shrinking by the same factor cost the same.

    Args:
        soft_mask: differentiable soft mask of the object in each frame (see `support.object_mask`).
        valid: which frames count.
    Returns:
        >= 0 per clip, 0.1 for an area 10 % off; a vanished object pays log(1 / 0.05) = 3. NaN if there is no object in
        the first frame or no later frame counts.
    Source: physics.md §4 (`area`), ours.
    """
    areas = soft_mask.sum((-2, -1))
    first = areas[:, :1]
    present = first > MIN_AREA_SHARE * soft_mask.shape[-1] * soft_mask.shape[-2]
    ratio = (areas / torch.where(present, first, torch.ones_like(first)) + AREA_FLOOR) / (1 + AREA_FLOOR)
    logarithm = torch.where(present, ratio, torch.ones_like(ratio)).log()[:, 1:]
    change = (logarithm.square() + TIP**2).sqrt() - TIP
    counted = valid[:, 1:]
    mean = (change * counted).sum(1) / counted.sum(1).clamp(min=1)
    return torch.where(present[:, 0] & counted.any(1), mean, torch.full_like(mean, torch.nan))


def to_grid(weights: Float[Tensor, "B T H W"], size: tuple[int, int]) -> Float[Tensor, "B T h w"]:
    """A support at pixel size brought to the grid of feature maps, by area."""
    return F.adaptive_avg_pool2d(weights, size)
