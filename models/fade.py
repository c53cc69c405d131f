"""Fades: how much of the first frame's detail each later frame still shows, place by place.

Principal components can't remove a textured object from where it stood: its detail is as fine as the pixels, and what
they leave behind is a ghost. But that detail is known, for the first frame is given. So a later frame is written as
x_t = x_0 + c_t D + (the rest, by components), with D the first frame minus a blurred copy, and c_t a smooth field
given on a coarse grid: -1 erases the detail under it. Decoding is linear in the fades and, for a given first frame,
encoding is linear in the frames (a small least-squares problem for each clip).

Letters: B clips, N = T - 1 later frames, H height, W width in px, g, q rows and columns of the grid, n = g q nodes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

# Nodes of the grid along one side of a patch.
NODES = 2
# Least-squares weight that holds a fade at zero where the first frame has no detail to fade: about that of 30 pixels
# that differ from their surroundings by 0.1.
RIDGE = 0.3


def detail(first_frame: Float[Tensor, "B 3 H W"], patch: int) -> Float[Tensor, "B 3 H W"]:
    """The first frame minus a copy blurred over about half a patch."""
    kernel = min(2 * patch - 1, 2 * (min(first_frame.shape[-2:]) // 2) - 1)
    return first_frame - gaussian_blur(first_frame, [kernel, kernel], [0.4 * patch, 0.4 * patch])


def spread(fades: Float[Tensor, "B N g q"], height: int, width: int) -> Float[Tensor, "B N H W"]:
    """Bilinear from the grid to pixels; the weights of a pixel sum to 1."""
    return F.interpolate(fades, size=(height, width), mode="bilinear", align_corners=False)


def solve(
    differences: Float[Tensor, "B N 3 H W"], details: Float[Tensor, "B 3 H W"], grid: tuple[int, int]
) -> Float[Tensor, "B N g q"]:
    """The fades that explain most of each frame's difference d to the first: min |spread(c) D - d|^2 + r |c|^2."""
    height, width = details.shape[-2:]
    nodes = grid[0] * grid[1]
    basis = torch.eye(nodes, device=details.device, dtype=details.dtype).view(1, nodes, *grid)
    weights = spread(basis, height, width).view(nodes, height * width)
    power = details.square().sum(1).flatten(1)
    gram = torch.einsum("np,bp,mp->bnm", weights, power, weights)
    gram = gram + RIDGE * torch.eye(nodes, device=gram.device, dtype=gram.dtype)
    agreement = torch.einsum("btchw,bchw->bthw", differences, details).flatten(2)
    right = torch.einsum("np,btp->bnt", weights, agreement)
    return torch.linalg.solve(gram, right).mT.unflatten(-1, grid)


def faded(fades: Float[Tensor, "B N g q"], details: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N 3 H W"]:
    """What fading the first frame's detail changes in each later frame."""
    height, width = details.shape[-2:]
    return spread(fades, height, width)[:, :, None] * details[:, None]


def to_channels(fades: Float[Tensor, "B N g q"], frames: int) -> Float[Tensor, "B c t h w"]:
    """The nodes of each patch as channels: frames x NODES x NODES of them."""
    b, n, g, q = fades.shape
    cut = fades.reshape(b, n // frames, frames, g // NODES, NODES, q // NODES, NODES)
    return cut.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, frames * NODES**2, n // frames, g // NODES, q // NODES)


def from_channels(channels: Float[Tensor, "B c t h w"], frames: int) -> Float[Tensor, "B N g q"]:
    """Undo `to_channels`."""
    b, _, t, h, w = channels.shape
    cut = channels.reshape(b, frames, NODES, NODES, t, h, w)
    return cut.permute(0, 4, 1, 5, 2, 6, 3).reshape(b, t * frames, h * NODES, w * NODES)
