"""Wan's video autoencoder with gradient and bounded memory.

`AutoencoderKLWan` decodes one latent frame at a time and keeps what later frames need in a list that it changes in
place, so checkpointing it as it stands recomputes with the wrong contents (Wan2.1 issue 430). Here one function decodes
one latent frame with those caches as explicit inputs and outputs, and `causal` goes through the clip. The same numbers
as the plain decoder to the last bit, gradients too; docs/memory.md says what it costs.

In tiles, convolutions and attention at the size of the latents run on whole frames, where they are cheap, and only the
up-sampling blocks see tiles: attention stays global.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanDecoder3d, WanRMS_norm, unpatchify
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from newtonrewards.core.convolve import FrozenConv2d, convolve_films, exchange_layers
from newtonrewards.models.base import Latents
from newtonrewards.models.causal import Cache, Step, Tiles, in_tiles, scan

LEAST = 1e-12  # length of a vector, in diffusers' norm


class QuickNorm(WanRMS_norm):
    """diffusers' norm, whose length of a vector of channels takes torch 6 to 10 times as long on a CPU as its square
    does; its parameters don't train. Of a clip's activations only the input is kept."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype.itemsize < 4 else x
        unit: Tensor = _Unit.apply(wide, 1 if self.channel_first else -1, self.gamma * self.scale)
        return unit.to(x.dtype) if isinstance(self.bias, float) else unit.to(x.dtype) + self.bias


class _Unit(torch.autograd.Function):
    """x / |x| * factor, with |x| along `dim`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, factor: Tensor) -> Tensor:
        square = x.square().sum(dim, keepdim=True)
        inverse = square.clamp_min(LEAST**2).rsqrt()
        ctx.save_for_backward(x, inverse, factor)
        ctx.dim = dim
        return (x * inverse).mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, factor = ctx.saved_tensors
        scaled = gradient * factor
        along = (scaled * x).sum(ctx.dim, keepdim=True) * inverse.square()
        along *= inverse < 1 / LEAST  # below, the length is a constant
        return scaled.addcmul_(x, along, value=-1).mul_(inverse), None, None


class QuickConv3d(WanCausalConv3d):
    """diffusers' convolution, which pads frames without a copy of them. Frozen weights keep nothing for the way
    back."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        x_padding, _, y_padding, _, missing, _ = cast(tuple[int, ...], self._padding)
        if cache_x is not None and missing:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            missing -= cache_x.shape[2]
        if missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return convolve_films(x, self.weight, self.bias, self.stride, (0, y_padding, x_padding))


QUICK: dict[type[nn.Module], type[nn.Module]] = {
    WanRMS_norm: QuickNorm,
    WanCausalConv3d: QuickConv3d,
    nn.Conv2d: FrozenConv2d,
}


def quicken(vae: AutoencoderKLWan) -> None:
    """Make an autoencoder's norms and convolutions quick ones, which changes its numbers by rounding; parameters stay
    what they are."""
    exchange_layers(vae, QUICK)


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
        pixels = scan(_whole(vae.decoder), hidden, _convolutions(vae.decoder), chosen)
    else:
        pixels = _tiled(vae.decoder, hidden, tiles, chosen)
    if vae.config.patch_size is not None:
        pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
    return pixels.clamp(-1, 1).float()


def reach(vae: AutoencoderKLWan) -> int:
    """How far, in latent pixels, a pixel of a frame looks for what the up-sampling blocks make of it."""
    distance, scale = 0.0, 1.0
    for block in vae.decoder.up_blocks:
        distance += 2 * len(block.resnets) / scale
        if _enlarges(block):
            scale *= 2
            distance += 1 / scale
    return math.ceil(distance + 1 / scale)


def _tiled(decoder: WanDecoder3d, hidden: Tensor, tiles: Tiles, chosen: Sequence[int]) -> Tensor:
    """The stem on whole frames, then the rest tile by tile."""
    stem = scan(_stem(decoder), hidden, _convolutions(decoder.conv_in, decoder.mid_block), chosen)
    return in_tiles(_rest(decoder), stem, _convolutions(decoder.up_blocks, decoder.conv_out), tiles, chosen)


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
