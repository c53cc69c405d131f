"""HunyuanVideo 1.5's video autoencoder with gradient and bounded memory: the numbers of diffusers' own, to rounding.

Diffusers encodes and decodes all frames at once. All that is done is causal, so a clip can be gone through latent frame
by latent frame. What works at the size of the latents, attention among it, sees all frames at once, where they
are small; in tiles only what is larger sees tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo15
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import (
    HunyuanVideo15AttnBlock,
    HunyuanVideo15CausalConv3d,
    HunyuanVideo15Decoder3D,
    HunyuanVideo15Downsample,
    HunyuanVideo15Encoder3D,
    HunyuanVideo15ResnetBlock,
    HunyuanVideo15RMS_norm,
    HunyuanVideo15Upsample,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from newtonrewards.core.convolve import FilmConv3d, exchange_layers
from newtonrewards.models.base import gradient_only
from newtonrewards.models.causal import Cache, Step, Tiles, in_tiles, joined, scan


class CausalAttention(HunyuanVideo15AttnBlock):
    """diffusers' attention: a pixel of a latent frame looks at that frame and those before.

    Frame by frame, so that no mask is needed: diffusers' own takes (t h w)^2 numbers, 10 GB for 121 frames of 480 x
    848, and is filled row by row.
    """

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        pixels = x.shape[-2] * x.shape[-1]
        normed = self.norm(x)
        query, key, value = (
            part(normed).flatten(2).transpose(1, 2)[:, None].contiguous() for part in (self.to_q, self.to_k, self.to_v)
        )
        frames = [
            F.scaled_dot_product_attention(part, key[:, :, : end * pixels], value[:, :, : end * pixels])
            for end, part in enumerate(query.split(pixels, dim=2), start=1)
        ]
        attended = torch.cat(frames, dim=2).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        added: Tensor = self.proj_out(attended) + x
        return added


class CausalEncoder(HunyuanVideo15Encoder3D):
    """diffusers' encoder, which makes one latent frame after another as far as frames are larger than that."""

    def forward(self, hidden_states: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B c t h w"]:
        blocks = list(self.down_blocks)
        frames = 2 ** sum(bool(block.downsamplers[0].add_temporal_downsample) for block in blocks if block.downsamplers)
        memory: list[Cache] = [None] * len(list(_causal(self.conv_in, *blocks)))
        made: list[Tensor] = []
        for films in (hidden_states[:, :, :1], *hidden_states[:, :, 1:].split(frames, dim=2)):
            if films.shape[2]:
                one, memory = self._frame(films, not made, memory)
                made.append(one)
        hidden = self.mid_block(torch.cat(made, dim=2))
        shortcut = hidden.unflatten(1, (-1, self.group_size)).mean(2)
        encoded: Tensor = self.conv_out(self.conv_act(self.norm_out(hidden))) + shortcut
        return encoded

    def _frame(self, films: Tensor, first: bool, before: list[Cache]) -> tuple[Tensor, list[Cache]]:
        memory = _Memory(before)
        hidden = memory.convolve(self.conv_in, films)
        for block in self.down_blocks:
            for resnet in block.resnets:
                hidden = _resnet(resnet, hidden, memory)
            for downsampler in block.downsamplers or ():
                hidden = _shrunk(downsampler, hidden, first, memory)
        return hidden, memory.after


QUICK: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv3d: FilmConv3d,
    HunyuanVideo15AttnBlock: CausalAttention,
    HunyuanVideo15Encoder3D: CausalEncoder,
}


def quicken(vae: AutoencoderKLHunyuanVideo15) -> None:
    """Change a frozen autoencoder's convolutions, attention and encoder, whose numbers change by rounding."""
    exchange_layers(vae, QUICK)


def decode(
    vae: AutoencoderKLHunyuanVideo15,
    latents: Float[Tensor, "B c t h w"],
    *,
    tiles: Tiles | None = None,
    with_gradient: Sequence[int] | None = None,
) -> Float[Tensor, "B 3 T H W"]:
    """Pixels around [-1, 1] of the autoencoder's own latents, one clip at a time.

    Args:
        tiles: None decodes whole frames.
        with_gradient: latent frames that carry gradient, None: all. Of the others neither activations nor what
            convolutions remember is kept.
    """
    return torch.cat([_decoded(vae.decoder, clip.to(vae.dtype), tiles, with_gradient) for clip in latents.split(1)])


def reach(vae: AutoencoderKLHunyuanVideo15) -> int:
    """How far, in latent pixels, a pixel of a frame looks for what is larger than the latents."""
    distance, scale = 0.0, 1.0
    for number, block in enumerate(vae.decoder.up_blocks):
        distance += 2 * len(block.resnets) / scale if number else 0
        if block.upsamplers is not None:
            distance += 1 / scale
            scale *= 2
    return math.ceil(distance + 1 / scale)


def _decoded(
    decoder: HunyuanVideo15Decoder3D, latents: Tensor, tiles: Tiles | None, with_gradient: Sequence[int] | None
) -> Tensor:
    chosen = range(latents.shape[2]) if with_gradient is None else with_gradient
    stem = checkpoint(_stem, decoder, gradient_only(latents, with_gradient), use_reentrant=False)
    caches = len(list(_convolutions(decoder)))
    if tiles is None or max(latents.shape[-2:]) <= tiles.side:
        return scan(_rest(decoder), stem, caches, chosen)
    return in_tiles(_rest(decoder), stem, caches, tiles, chosen)


def _stem(decoder: HunyuanVideo15Decoder3D, hidden: Tensor) -> Tensor:
    """The first part of the decoder's forward, up to the first block's resnets."""
    hidden = decoder.conv_in(hidden) + hidden.repeat_interleave(repeats=decoder.repeat, dim=1)
    hidden = decoder.mid_block(hidden)
    for resnet in decoder.up_blocks[0].resnets:
        hidden = resnet(hidden)
    return hidden


def _rest(decoder: HunyuanVideo15Decoder3D) -> Step:
    """The second part, for one latent frame."""

    def step(hidden: Tensor, first: bool, state: list[Cache]) -> tuple[Tensor, list[Cache]]:
        memory = _Memory(state)
        for number, block in enumerate(decoder.up_blocks):
            for resnet in block.resnets if number else ():
                hidden = _resnet(resnet, hidden, memory)
            for upsampler in block.upsamplers or ():
                hidden = _enlarged(upsampler, hidden, first, memory)
        hidden = _Activated.apply(hidden, decoder.norm_out, decoder.conv_act)
        return memory.convolve(decoder.conv_out, hidden), memory.after

    return step


class _Memory:
    """What the convolutions of one step remember, in the order in which they come."""

    def __init__(self, before: Sequence[Cache]) -> None:
        self._before: Iterator[Cache] = iter(before)
        self.after: list[Cache] = []

    def convolve(self, convolution: HunyuanVideo15CausalConv3d, x: Tensor) -> Tensor:
        """As its own forward, but for the frames before, which it repeats the first one for."""
        *sides, count, _ = convolution.time_causal_padding
        before = next(self._before)
        whole, after = joined(x, before if isinstance(before, Tensor) else None, count)
        self.after.append(after)
        made: Tensor = convolution.conv(_Padded.apply(whole, (*sides, 0, 0)))
        return made


class _Padded(torch.autograd.Function):
    """`F.pad` by repeated edges, which would keep its input to know its size."""

    @staticmethod
    def forward(ctx: Any, films: Tensor, padding: tuple[int, ...]) -> Tensor:
        ctx.shape, ctx.padding = films.shape, padding
        return F.pad(films, padding, mode="replicate")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        like = gradient.new_empty(()).expand(ctx.shape)
        return torch.ops.aten.replication_pad3d_backward(gradient, like, ctx.padding), None


class _Activated(torch.autograd.Function):
    """A norm and the activation behind it, computed again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: HunyuanVideo15RMS_norm, activation: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.way = norm, activation
        activated: Tensor = activation(norm(x))
        return activated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        norm, activation = ctx.way
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(activation(norm(x)), x, gradient)[0], None, None


def _resnet(block: HunyuanVideo15ResnetBlock, x: Tensor, memory: _Memory) -> Tensor:
    hidden = memory.convolve(block.conv1, _Activated.apply(x, block.norm1, block.nonlinearity))
    hidden = memory.convolve(block.conv2, _Activated.apply(hidden, block.norm2, block.nonlinearity))
    return hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _enlarged(block: HunyuanVideo15Upsample, x: Tensor, first: bool, memory: _Memory) -> Tensor:
    """The clip's first frame stays one in time: of the channels that would be two frames it has the first half."""
    hidden, repeats = memory.convolve(block.conv, x), block.repeats
    if not block.add_temporal_upsample:
        shortcut = x.repeat_interleave(repeats, dim=1)
        return _unpacked(block, hidden, 1) + _unpacked(block, shortcut, 1)
    if first:
        hidden, shortcut = (_unpacked(block, packed, 1) for packed in (hidden, x))
        return hidden[:, : hidden.shape[1] // 2] + shortcut.repeat_interleave(repeats // 2, dim=1)
    return _unpacked(block, hidden, 2) + _unpacked(block, x, 2).repeat_interleave(repeats, dim=1)


def _shrunk(block: HunyuanVideo15Downsample, x: Tensor, first: bool, memory: _Memory) -> Tensor:
    """The clip's first frame stands for two in time."""
    hidden = memory.convolve(block.conv, x)
    alone = first or not block.add_temporal_downsample
    hidden, shortcut = (
        block._dcae_downsample_rearrange(films, r1=1 if alone else 2, r2=2, r3=2) for films in (hidden, x)
    )
    if first and block.add_temporal_downsample:
        hidden = torch.cat([hidden, hidden], dim=1)
    return hidden + shortcut.unflatten(1, (hidden.shape[1], -1)).mean(2)


def _unpacked(block: HunyuanVideo15Upsample, packed: Tensor, frames: int) -> Tensor:
    """Channels as pixels, and as frames."""
    films: Tensor = block._dcae_upsample_rearrange(packed, r1=frames, r2=2, r3=2)
    return films


def _convolutions(decoder: HunyuanVideo15Decoder3D) -> Iterator[HunyuanVideo15CausalConv3d]:
    """Those that a step of the decoder goes through."""
    first, *others = decoder.up_blocks
    return _causal(*(first.upsamplers or ()), *others, decoder.conv_out)


def _causal(*modules: nn.Module) -> Iterator[HunyuanVideo15CausalConv3d]:
    for module in modules:
        yield from (part for part in module.modules() if isinstance(part, HunyuanVideo15CausalConv3d))
