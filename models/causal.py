"""Decoding a causal video autoencoder latent frame by latent frame, with gradient and bounded memory.

A family says what becomes of one latent frame and of what its convolutions remember (a `Step`). Runs of latent frames
are checkpointed, and within a run, when it is recomputed, each frame again: of t latent frames the memories of about
2 sqrt(t) are kept and the activations of one. Large frames can be decoded in tiles, each with a margin that is cut off
again: where the margin covers the reach of the convolutions nothing changes at all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from newtonrewards.core.recipe import Config

# Up to so many latent frames each is recomputed by itself: the caches of all are kept, and no frame is computed thrice.
ALONE = 9
# What one causal convolution remembers: nothing yet, frames, or the mark of an up-sampler that has seen one frame.
Cache: TypeAlias = Tensor | str | None
# One latent frame, whether it is the clip's first, and the caches before it; what it becomes, and the caches after it.
Step: TypeAlias = Callable[[Tensor, bool, list[Cache]], tuple[Tensor, list[Cache]]]


class Tiles(Config):
    """Tiles of a frame, in pixels of the latents (8 or 16 px of the frame).

    Attributes:
        side: of a tile without its margin, at most.
        margin: what a tile sees beyond each of its inner edges. From `reach` on (8 to 13) tiles change nothing but
            rounding; docs/memory.md has the error at the seams below that.
    """

    side: int = Field(ge=2)
    margin: int = Field(8, ge=0)


def scan(step: Step, hidden: Tensor, caches: int, chosen: Sequence[int]) -> Tensor:
    """Apply a step to all latent frames in order, with gradient through the chosen ones."""
    frames: list[Tensor] = []
    state: list[Cache] = [None] * caches
    runs = _runs(hidden.shape[2], chosen)
    for start, stop in runs:
        piece = hidden[:, :, start:stop]
        if start not in chosen or not (torch.is_grad_enabled() and hidden.requires_grad):
            cut = [part.detach() if isinstance(part, Tensor) else part for part in state]
            with torch.no_grad():
                decoded, state = _run(step, piece.detach(), start == 0, cut)
        elif stop == runs[-1][1]:  # the backward pass begins with the last run: no need to compute that one twice
            decoded, state = _run(step, piece, start == 0, state, _checkpointed(step))
        else:
            decoded, state = _checkpointed(functools.partial(_run, step, inner=_checkpointed(step), last=step))(
                piece, start == 0, state
            )
        frames.append(decoded)
    return torch.cat(frames, dim=2)


def _run(
    step: Step, hidden: Tensor, first: bool, state: list[Cache], inner: Step | None = None, last: Step | None = None
) -> tuple[Tensor, list[Cache]]:
    """A run of latent frames; with `inner`, each by itself checkpointed, but for the last where `last` is given."""
    frames = []
    for i in range(hidden.shape[2]):
        one = (last if last is not None and i == hidden.shape[2] - 1 else inner) or step
        decoded, state = one(hidden[:, :, i : i + 1], first and i == 0, state)
        frames.append(decoded)
    return torch.cat(frames, dim=2), state


def _checkpointed(step: Step) -> Step:
    """The same step, recomputed going back.

    The caches are arguments of their own: torch takes hold of a list as it is, and a checkpoint inside another would
    then keep its caches whatever the outer one does.
    """

    def flat(hidden: Tensor, first: bool, *state: Cache) -> tuple[Tensor, list[Cache]]:
        return step(hidden, first, list(state))

    def run(hidden: Tensor, first: bool, state: list[Cache]) -> tuple[Tensor, list[Cache]]:
        result: tuple[Tensor, list[Cache]] = checkpoint(flat, hidden, first, *state, use_reentrant=False)
        return result

    return run


def _runs(count: int, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Cut 0..count into runs of one or about sqrt(chosen) frames, none of them part with and part without gradient."""
    length = 1 if len(chosen) <= ALONE else round(math.sqrt(len(chosen)))
    runs: list[tuple[int, int]] = []
    start = 0
    for i in range(1, count + 1):
        if i == count or (i in chosen) != (start in chosen) or (start in chosen and i - start == length):
            runs.append((start, i))
            start = i
    return runs


def in_tiles(rest: Step, stem: Tensor, caches: int, tiles: Tiles, chosen: Sequence[int]) -> Tensor:
    """A scan tile by tile, each checkpointed as a whole.

    Args:
        stem: what the step begins with, of whole frames.
    """
    margin, rows = tiles.margin, []
    for top, bottom in _edges(stem.shape[-2], tiles.side):
        row = []
        for left, right in _edges(stem.shape[-1], tiles.side):
            up, low = max(0, top - margin), max(0, left - margin)
            part = stem[..., up : bottom + margin, low : right + margin]
            if torch.is_grad_enabled() and part.requires_grad:
                decoded = checkpoint(scan, rest, part, caches, chosen, use_reentrant=False)
            else:
                decoded = scan(rest, part, caches, chosen)
            scale = decoded.shape[-1] // part.shape[-1]
            high, wide = (
                slice((a - c) * scale, (b - c) * scale) for a, b, c in ((top, bottom, up), (left, right, low))
            )
            row.append(decoded[..., high, wide])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _edges(side: int, tile: int) -> list[tuple[int, int]]:
    """Cut a side into tiles of sizes that differ by one at most."""
    count = -(-side // tile)
    cuts = [round(i * side / count) for i in range(count + 1)]
    return list(itertools.pairwise(cuts))


def joined(inputs: Tensor, before: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Frames behind those of the piece before, or behind the first one repeated; and the last ones for the next piece.

    Args:
        inputs: (B, C, T, H, W). before: the `count` frames before them, None: they begin the clip.
    Returns:
        the whole, which nothing but one convolution or padding may use; its last `count` frames.
    """
    whole: tuple[Tensor, Tensor] = _Joined.apply(inputs, before, count)
    return whole


class _Joined(torch.autograd.Function):
    """The gradient of what is handed on is added in place to that of the whole, where torch would fill another whole
    with zeros."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, before: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        ctx.count, ctx.begins = count, before is None
        ctx.set_materialize_grads(False)
        whole = torch.cat([inputs[:, :, :1]] * count + [inputs] if before is None else [before, inputs], dim=2)
        return whole, whole[:, :, -count:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, whole: Tensor, after: Tensor | None) -> tuple[Tensor | None, ...]:
        if after is not None:
            whole[:, :, -ctx.count :] += after
        before, inputs = whole.tensor_split([ctx.count], dim=2)
        if ctx.begins:
            inputs[:, :, 0] += before.sum(2)
        # a copy: a view would hold the whole until the piece before has been gone through
        return inputs, None if ctx.begins else before.clone(), None
