"""Wan's video autoencoder with gradient and bounded memory.

`AutoencoderKLWan` decodes one latent frame at a time and keeps what later frames need in a list that it changes in
place, so checkpointing it as it stands recomputes with the wrong contents (Wan2.1 issue 430). Here one function decodes
one latent frame with those caches as explicit inputs and outputs. Runs of latent frames are checkpointed, and within a
run, when it is recomputed, each frame again: of t latent frames the caches of about 2 sqrt(t) are in memory and the
activations of one. The same numbers as the plain decoder to the last bit, gradients too; docs/memory.md says what it
costs.

Large frames can be decoded in tiles. Convolutions and attention at the size of the latents run on whole frames, where
they are cheap, and only the up-sampling blocks see tiles, each with a margin that is cut off again: attention stays
global, and where the margin covers the reach of the convolutions nothing changes at all.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanDecoder3d, WanRMS_norm, unpatchify
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from newtonrewards.core.convolve import convolve_films
from newtonrewards.core.recipe import Config
from newtonrewards.models.base import Latents

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


class QuickNorm(WanRMS_norm):
    """diffusers' norm, whose length of a vector of channels takes torch 6 to 10 times as long on a CPU as its square
    does."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype.itemsize < 4 else x
        square = wide.square().sum(1 if self.channel_first else -1, keepdim=True)
        inverse = square.clamp_min(1e-24).rsqrt()  # diffusers' least length is 1e-12
        return (wide * (inverse * self.scale)).to(x.dtype) * self.gamma + self.bias


class QuickConv3d(WanCausalConv3d):
    """diffusers' convolution. Frozen weights keep nothing for the way back."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve_films(input, weight, bias, self.stride, self.padding)


QUICK: dict[type[nn.Module], type[nn.Module]] = {WanRMS_norm: QuickNorm, WanCausalConv3d: QuickConv3d}


def quicken(vae: AutoencoderKLWan) -> None:
    """Make an autoencoder's norms and convolutions quick ones, which changes its numbers by rounding; parameters stay
    what they are."""
    for module in vae.modules():
        module.__class__ = QUICK.get(type(module), type(module))


def normalised(vae: AutoencoderKLWan, latents: Latents) -> Latents:
    """The autoencoder's latents with the mean and spread that the transformer works in."""
    mean, spread = _statistics(vae, latents)
    return (latents - mean) / spread


def encode(vae: AutoencoderKLWan, frames: Float[Tensor, "B 3 T H W"]) -> Latents:
    """Normalised latents (the mode, no noise) of frames in [-1, 1]."""
    return normalised(vae, vae.encode(frames.to(vae.dtype)).latent_dist.mode().float())


def decode(
    vae: AutoencoderKLWan,
    latents: Latents,
    *,
    tiles: Tiles | None = None,
    with_gradient: Sequence[int] | None = None,
) -> Float[Tensor, "B 3 T H W"]:
    """Frames in [-1, 1] of normalised latents.

    Args:
        tiles: None decodes whole frames.
        with_gradient: latent frames that carry gradient, None: all. Of the others neither activations nor caches are
            kept.
    """
    mean, spread = _statistics(vae, latents)
    hidden = vae.post_quant_conv((latents * spread + mean).to(vae.dtype))
    chosen = range(hidden.shape[2]) if with_gradient is None else with_gradient
    if tiles is None or max(hidden.shape[-2:]) <= tiles.side:
        joined = _scan(_whole(vae.decoder), hidden, _convolutions(vae.decoder), chosen)
    else:
        joined = _tiled(vae.decoder, hidden, tiles, chosen)
    if vae.config.patch_size is not None:
        joined = unpatchify(joined, patch_size=vae.config.patch_size)
    return joined.clamp(-1, 1).float()


def reach(vae: AutoencoderKLWan) -> int:
    """How far, in latent pixels, a pixel of a frame looks for what the up-sampling blocks make of it."""
    distance, scale = 0.0, 1.0
    for block in vae.decoder.up_blocks:
        distance += 2 * len(block.resnets) / scale
        if _enlarges(block):
            scale *= 2
            distance += 1 / scale
    return math.ceil(distance + 1 / scale)


def _scan(step: Step, hidden: Tensor, caches: int, chosen: Sequence[int]) -> Tensor:
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


def _tiled(decoder: WanDecoder3d, hidden: Tensor, tiles: Tiles, chosen: Sequence[int]) -> Tensor:
    """The stem on whole frames, then the rest tile by tile; each tile is checkpointed as a whole."""
    stem = _scan(_stem(decoder), hidden, _convolutions(decoder.conv_in, decoder.mid_block), chosen)
    caches, margin = _convolutions(decoder.up_blocks, decoder.conv_out), tiles.margin
    rows = []
    for top, bottom in _edges(stem.shape[-2], tiles.side):
        row = []
        for left, right in _edges(stem.shape[-1], tiles.side):
            up, low = max(0, top - margin), max(0, left - margin)
            part = stem[..., up : bottom + margin, low : right + margin]
            if torch.is_grad_enabled() and part.requires_grad:
                decoded = checkpoint(_scan, _rest(decoder), part, caches, chosen, use_reentrant=False)
            else:
                decoded = _scan(_rest(decoder), part, caches, chosen)
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


def _whole(decoder: WanDecoder3d) -> Step:
    def step(hidden: Tensor, first: bool, state: list[Cache]) -> tuple[Tensor, list[Cache]]:
        own = list(state)  # the decoder changes it in place; the caller's must be the same again in a recomputation
        return decoder(hidden, feat_cache=own, feat_idx=[0], first_chunk=first), own

    return step


def _stem(decoder: WanDecoder3d) -> Step:
    """The first part of `WanDecoder3d.forward`: all that works at the size of the latents and looks at whole frames."""

    def step(hidden: Tensor, first: bool, state: list[Cache]) -> tuple[Tensor, list[Cache]]:
        own, place = list(state), [0]
        x = _causal(decoder.conv_in, hidden, own, place)
        return decoder.mid_block(x, feat_cache=own, feat_idx=place), own

    return step


def _rest(decoder: WanDecoder3d) -> Step:
    """The second part of `WanDecoder3d.forward`."""

    def step(hidden: Tensor, first: bool, state: list[Cache]) -> tuple[Tensor, list[Cache]]:
        own, place = list(state), [0]
        for block in decoder.up_blocks:
            hidden = block(hidden, feat_cache=own, feat_idx=place, first_chunk=first)
        return _causal(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(hidden)), own, place), own

    return step


def _causal(convolution: WanCausalConv3d, x: Tensor, own: list[Cache], place: list[int]) -> Tensor:
    """One causal convolution as the decoder calls it: it remembers its last two input frames."""
    before = own[place[0]]
    kept = x[:, :, -2:].clone()
    if kept.shape[2] < 2 and isinstance(before, Tensor):
        kept = torch.cat([before[:, :, -1:], kept], dim=2)
    out: Tensor = convolution(x, before)
    own[place[0]] = kept
    place[0] += 1
    return out


def _convolutions(*modules: nn.Module) -> int:
    return sum(isinstance(part, WanCausalConv3d) for module in modules for part in module.modules())


def _enlarges(block: nn.Module) -> bool:
    return getattr(block, "upsampler", None) is not None or getattr(block, "upsamplers", None) is not None


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    def shaped(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)

    return shaped(vae.config.latents_mean), shaped(vae.config.latents_std)
