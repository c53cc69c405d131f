"""Support: which pixels are the object, as soft weights (B, N, H, W) for the first frame of each pair.

Support decides whether a reward is right: on the fixed grid of pixels a perfect fall scores 0.51, over the object 0
    (physics.md §3).

Letters: B clips, T frames, N = T - 1 pairs, K prototypes, H height, W width in px. Flow in px/frame, x right, y down.
Everything is differentiable and keeps the float type of its input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Motion gate: flow of this many frame heights per frame (0.8 px at 64 px) counts half; zero motion reads as up to 0.1
# px.
GATE = 0.8 / 64
GATE_SOFTNESS = 0.2 / 64
# Softness of the choice between object and background colours, in units of squared RGB distance.
TEMPERATURE = 0.007
# A pixel that suits both equally well is rather background. Measured on 60 val clips with exact masks: the error of
# log(A_t / A_0) is .03 and the soft IoU .85 to .90 for margin 1, .05 and .73 for margin 3.
MARGIN = 1.0
PROTOTYPES = 24
# Share of the carried mask in the `colour` support: an object that has faded until no colour fits is still measured (on
# clips faded to half, colour alone finds no object in 17 % of the frames).
CARRIED_SHARE = 0.05
# Brightness factors under which a background pixel is still recognised: its shadow, and a little light.
SHADE = (0.5, 1.1)


def mask(masks: Float[Tensor, "B T H W"]) -> Float[Tensor, "B T-1 H W"]:
    """Given masks of the clip itself: those of the first frame of each pair."""
    return masks[:, :-1]


def pixel(flow: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N H W"]:
    """Every pixel alike. An ablation: terms see a residual for each fixed pixel, which punishes correct motion."""
    return torch.ones_like(flow[:, :, 0])


def motion(flow: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N H W"]:
    """A soft gate on what moves against the camera; for clips without masks. It is blind to an object at rest.

    Args:
        flow: px/frame. The camera's motion is taken to be the median flow of the frame, without gradient.
    Returns:
        sigmoid((|flow - camera| - GATE) / GATE_SOFTNESS), speeds in frame heights per frame; in (0, 1).
    Source: physics.md §3, ours.
    """
    relative = (flow - camera_motion(flow)[..., None, None]) / flow.shape[-2]
    speed = (relative.square().sum(2) + 1e-12).sqrt()
    return torch.sigmoid((speed - GATE) / GATE_SOFTNESS)


def camera_motion(flow: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N 2"]:
    """Median flow of each pair, px/frame, without gradient: the camera, while the object fills under half the frame."""
    return flow.detach().flatten(-2).median(-1).values


def advected(first: Float[Tensor, "B H W"], flow: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N H W"]:
    """The first frame's mask, carried along: every pixel of it is a point that follows the flow under it.

    p_(t+1) = p_t + f_t(p_t), bilinear. The weight that a point brings is shared among the four pixels around it, so
    that the mean of a field under this support is the mean of the field read at the points. Points that leave the frame
    bring nothing.

    Args:
        first: soft mask of the object in the first frame, in [0, 1]; the same for a generated clip and for its paired
            clip.
        flow: px/frame, of the clip that is measured.
    Returns:
        weights of the first frame of each pair; they sum to the mask's area until points leave the frame.
    Source: physics.md §3, ours.
    """
    height, width = first.shape[-2:]
    weight = first.flatten(1)
    points = pixel_grid(flow).expand(len(first), -1, -1)
    supports = []
    for step in range(flow.shape[1]):
        supports.append(splat(points, weight, height, width))
        points = points + read(flow[:, step], points)
    return torch.stack(supports, 1)


def carried(first: Float[Tensor, "B H W"], flow: Float[Tensor, "B N 2 H W"]) -> Float[Tensor, "B N H W"]:
    """The first frame's mask, carried along as one piece by the mean flow under its core.

    Unlike in `advected`, pixels at the edge don't lag behind when the network reads them as background. The core is the
    mask without its outermost pixels, which a soft or shifted edge shares with the background.

    Args, returns: as `advected`.
    Source: ours.
    """
    height, width = first.shape[-2:]
    scale = torch.tensor([width, height], device=flow.device, dtype=flow.dtype) / 2
    base = F.affine_grid(_identity(first), [len(first), 1, height, width], align_corners=False)
    offset = torch.zeros(len(first), 2, device=flow.device, dtype=flow.dtype)
    core = -F.max_pool2d(-first[:, None], 3, 1, 1) + 1e-3 * first[:, None]
    both = torch.cat([first[:, None], core], 1)
    supports = []
    for step in range(flow.shape[1]):
        grid = base - (offset / scale)[:, None, None, :]
        moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        supports.append(moved[:, 0])
        total = moved[:, 1].sum((-2, -1)).clamp(min=1e-6)
        offset = offset + torch.einsum("bhw,bchw->bc", moved[:, 1], flow[:, step]) / total[:, None]
    return torch.stack(supports, 1)


def pixel_grid(like: Float[Tensor, "*lead H W"]) -> Float[Tensor, "1 H*W 2"]:
    """The pixels (x, y) of a map, row by row, pixel centres whole."""
    height, width = like.shape[-2:]
    rows, columns = torch.meshgrid(
        *(torch.arange(n, device=like.device, dtype=like.dtype) for n in (height, width)), indexing="ij"
    )
    return torch.stack([columns, rows], -1).reshape(1, -1, 2)


def read(field: Float[Tensor, "B C H W"], points: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P C"]:
    """Bilinear values of a field at points (x, y) in px, pixel centres whole; beyond the edge its values."""
    height, width = field.shape[-2:]
    size = torch.tensor([width, height], device=points.device, dtype=points.dtype)
    grid = ((2 * points + 1) / size - 1)[:, :, None]
    values = F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[..., 0].mT


def splat(
    points: Float[Tensor, "B P 2"], weight: Float[Tensor, "B P"], height: int, width: int
) -> Float[Tensor, "B H W"]:
    """The adjoint of `read`: each point's weight shared among its four pixels; what falls outside is dropped."""
    low = points.detach().floor()
    share = points - low
    out = torch.zeros(len(points), height * width, device=points.device, dtype=points.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            part = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            out = out.scatter_add(1, place, torch.where(inside, part * weight, torch.zeros_like(part)))
    return out.unflatten(1, (height, width))


def object_mask(frames: Float[Tensor, "B T 3 H W"], first: Float[Tensor, "B H W"]) -> Float[Tensor, "B T H W"]:
    """A soft object mask of every frame, found by colour: nearer to the object's first-frame colours than to the
    background there.

    The background prototype of a pixel is what frame 0 shows there (filled in from around under the object), at any
    brightness of `SHADE`, so that the object's shadow stays background. Object prototypes are colours of frame 0 under
    the mask. The camera stands still. Prototypes carry no gradient, since frame 0 is given; the mask is differentiable
    to all later frames.

    Args:
        frames: RGB in [0, 1].
        first: soft mask of the object in frame 0, in [0, 1].
    Returns:
        in (0, 1); its sum over a frame is an area in px.
    Source: physics.md §4 (`area`), ours.
    """
    start = frames[:, 0].detach()
    distance_background = _shaded_distance(frames, _filled(start, first)[:, None])
    prototypes = _colours(start, first)
    # -|x - p|^2 / TEMPERATURE for all pixels and prototypes as one product of matrices
    similarity = (
        torch.einsum("bkc,btchw->btkhw", prototypes * 2, frames) - prototypes.square().sum(2)[:, None, :, None, None]
    )
    likeness = torch.logsumexp(similarity / TEMPERATURE, 2) - math.log(prototypes.shape[1])
    nearest = frames.square().sum(2) - TEMPERATURE * likeness
    return torch.sigmoid((distance_background - nearest) / TEMPERATURE - MARGIN)


def _shaded_distance(frames: Tensor, background: Tensor) -> Tensor:
    """Squared distance of each pixel to the background's colour at the brightness that suits it best."""
    shade = (frames * background).sum(2, keepdim=True) / background.square().sum(2, keepdim=True).clamp(min=1e-4)
    return (frames - shade.detach().clamp(*SHADE) * background).square().sum(2)


def _filled(start: Tensor, first: Tensor) -> Tensor:
    """Frame 0 without the object: weighted means of ever wider surroundings where it stood."""
    known = (first < 0.02).to(start.dtype)[:, None]
    filled, weight = start * known, known
    for reach in (3, 7, 15, 31):
        total = _box_mean(weight, reach)
        mean = _box_mean(filled * weight, reach) / total.clamp(min=1e-6)
        newly = (weight == 0) & (total > 0)
        filled, weight = torch.where(newly, mean, filled), torch.where(newly, torch.ones_like(weight), weight)
    return filled


def _box_mean(values: Tensor, reach: int) -> Tensor:
    """Mean over a square of `reach` px, zeros beyond the edge: rows, then columns."""
    rows = F.avg_pool2d(values, (1, reach), 1, (0, reach // 2))
    return F.avg_pool2d(rows, (reach, 1), 1, (reach // 2, 0))


def _colours(start: Tensor, first: Tensor) -> Tensor:
    """(B, K, 3) colours under the mask, evenly chosen from dark to bright."""
    pixels, weight = start.flatten(-2).mT, first.flatten(1)
    inside = weight >= 0.9 * weight.amax(1, keepdim=True)
    order = torch.where(inside, pixels.mean(-1), torch.full_like(weight, torch.inf)).argsort(1)
    steps = (torch.arange(PROTOTYPES, device=start.device) + 0.5) / PROTOTYPES
    rank = (steps[None] * inside.sum(1, keepdim=True)).long()
    return pixels.gather(1, order.gather(1, rank)[..., None].expand(-1, -1, 3))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(2, 3, device=like.device, dtype=like.dtype).expand(len(like), 2, 3)
