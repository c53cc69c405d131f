"""RAFT's all-pairs correlation and its lookup: torchvision's `CorrBlock` in less time and memory.

- Correlation is linear in the second features, so they are pooled and not the volume (RAFT, section 3.2).
- All points of a window lie equally far from the pixels around them, and RAFT's coordinates carry no gradient. So a
  window of S x S points is S + 1 x S + 1 pixels, blended along x and then along y.
- A lookup is linear in the volume: going back needs the coordinates alone, and all lookups of a pass add to one
  gradient.

Letters: P pairs, C channels, h, w size of the feature maps, n = h w positions, L levels, K cells of all levels of one
position, S = 2 radius + 1. Within a level cells are ordered by x, then y, as torchvision orders a window.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from newtonrewards.core.convolve import on_cpu
from newtonrewards.rewards.correlation_kernels import add_windows, read_windows, ready


class Correlation:
    """Of each position of the first features with every position of the second, at several resolutions.

    Args:
        features_1, features_2: (P, C, h, w) of the first and the second frame.
        num_levels: each has half the resolution of the one before.
        radius: of a window, in cells of its level.
    """

    def __init__(
        self, features_1: Float[Tensor, "P C h w"], features_2: Float[Tensor, "P C h w"], num_levels: int, radius: int
    ) -> None:
        self.radius = radius
        maps, shapes, start = [], [], 0
        for level in range(num_levels):
            features_2 = F.avg_pool2d(features_2, 2) if level else features_2
            height, width = features_2.shape[-2:]
            maps.append(features_2.mT.flatten(2))
            shapes.append((width, height, start))
            start += width * height
        self.levels = torch.tensor(shapes, device=features_1.device)
        scaled = features_1.permute(0, 2, 3, 1).flatten(1, 2) / features_1.shape[1] ** 0.5
        self.volume: Float[Tensor, "P n K"] = scaled @ torch.cat(maps, dim=2)

    def windows(self, coords: Float[Tensor, "P 2 h w"]) -> Float[Tensor, "P LSS h w"]:
        """Correlation around where each position is thought to be in the second frame, 0 beyond its edges.

        Args:
            coords: x, y in cells of the finest level; taken as constants.
        """
        centres = coords.detach().permute(0, 2, 3, 1).flatten(0, 2)
        self.volume, windows = _Windows.apply(self.volume, centres, self.levels, self.radius)
        return windows.view(*coords.shape[:1], *coords.shape[2:], -1).permute(0, 3, 1, 2)


class _Windows(torch.autograd.Function):
    """The volume goes in and out, so that going back the gradient of later lookups comes by and this one's is added.

    That is done in place: whatever else uses the volume that comes out would see it.
    """

    @staticmethod
    def forward(ctx: Any, volume: Tensor, centres: Tensor, levels: Tensor, radius: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(centres, levels)
        ctx.radius, ctx.shape = radius, volume.shape
        ctx.set_materialize_grads(False)
        look = _read_in_threads if on_cpu(volume) else read
        return volume, look(volume.flatten(0, 1), centres, levels, radius)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, of_windows: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        centres, levels = ctx.saved_tensors
        if of_windows is not None:
            if gradient is None:
                gradient = of_windows.new_zeros(ctx.shape)
            put = _add_in_threads if on_cpu(gradient) else add
            put(gradient.flatten(0, 1), of_windows.contiguous(), centres, levels, ctx.radius)
        return gradient, None, None, None


def read(
    volume: Float[Tensor, "Pn K"], centres: Float[Tensor, "Pn 2"], levels: Int[Tensor, "L 3"], radius: int
) -> Float[Tensor, "Pn LSS"]:
    """Windows of a volume, by torch's operations: for GPUs, and for tensors without content."""
    cells, inside, x, y = _cells(centres, levels, radius, volume.shape[1])
    patch = volume.flatten().index_select(0, cells.flatten()).view(cells.shape) * inside
    patch = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], x)
    return torch.lerp(patch[..., :-1], patch[..., 1:], y).flatten(1)


def add(
    volume: Float[Tensor, "Pn K"],
    windows: Float[Tensor, "Pn LSS"],
    centres: Float[Tensor, "Pn 2"],
    levels: Int[Tensor, "L 3"],
    radius: int,
) -> None:
    """The transpose of `read`: adds windows to a volume, which changes in place."""
    cells, inside, x, y = _cells(centres, levels, radius, volume.shape[1])
    side = 2 * radius + 1
    patch = F.pad(windows.unflatten(1, (-1, side, side)), (1, 1, 1, 1))
    patch = torch.lerp(patch[..., 1:], patch[..., :-1], y)
    patch = torch.lerp(patch[..., 1:, :], patch[..., :-1, :], x) * inside
    volume.view(-1).index_add_(0, cells.flatten(), patch.flatten())


def _cells(
    centres: Tensor, levels: Tensor, radius: int, count: int
) -> tuple[Int[Tensor, "Pn L S1 S1"], Bool[Tensor, "Pn L S1 S1"], Float[Tensor, "Pn L 1 1"], Float[Tensor, "Pn L 1 1"]]:
    """Places in the flat volume of the pixels under each window, whether they are inside the frame, and how far the
    window's points lie beyond them in x and y."""
    sizes, starts = levels[:, :2], levels[:, 2]
    at = centres[:, None] * 0.5 ** torch.arange(len(levels), device=levels.device)[:, None]
    low = at.floor()
    steps = torch.arange(-radius, radius + 2, device=levels.device)
    cell = low.long()[..., None] + steps
    inside = (cell >= 0) & (cell < sizes[..., None])
    x, y = cell.clamp(min=0).minimum(sizes[..., None] - 1).unbind(2)
    rows = torch.arange(len(centres), device=levels.device)[:, None] * count + starts
    cells = (rows[..., None] + x * sizes[:, 1:])[..., :, None] + y[..., None, :]
    beyond = (at - low)[..., None, None]
    return cells, inside[:, :, 0, :, None] & inside[:, :, 1, None, :], beyond[:, :, 0], beyond[:, :, 1]


def _read_in_threads(volume: Tensor, centres: Tensor, levels: Tensor, radius: int) -> Tensor:
    windows = volume.new_empty(len(volume), len(levels) * (2 * radius + 1) ** 2)
    _in_threads(read_windows(radius), levels, volume, centres, windows)
    return windows


def _add_in_threads(volume: Tensor, windows: Tensor, centres: Tensor, levels: Tensor, radius: int) -> None:
    _in_threads(add_windows(radius), levels, volume, centres, windows)


def _in_threads(kernel: Any, levels: Tensor, *by_position: Tensor) -> None:
    """Run a compiled kernel on equal shares of the positions, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    share = -(-len(by_position[0]) // threads)
    shares = [[part.numpy() for part in parts] for parts in zip(*(t.split(share) for t in by_position), strict=True)]
    shapes = levels.numpy()
    run = partial(ready(kernel, shapes, *shares[0]), shapes)
    if len(shares) == 1:
        run(*shares[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda arrays: run(*arrays), shares))
