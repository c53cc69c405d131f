"""CogVideoX's video decoder with gradient and less memory: the numbers of diffusers' own, to rounding.

A norm of this decoder is scaled and shifted by the latents, enlarged to the size of what it normalises. Diffusers
enlarges them first and convolves then, keeps both factors for the way back, and hands the enlarged latents on to the
next piece of the clip, where nothing reads them: 3 GB for each piece of 480 x 720. Here they are convolved while they
are small, since a kernel of one pixel doesn't mind, and of norm and activation together the input alone is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXResnetBlock3D,
    CogVideoXSafeConv3d,
    CogVideoXSpatialNorm3D,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from newtonrewards.core.convolve import FilmConv3d, exchange_layers
from newtonrewards.models.base import gradient_only
from newtonrewards.models.causal import joined

# Numbers that a norm works on at a time: what it needs beside its input and output is a few times as much.
AT_ONCE = 2**26
Size = tuple[int, ...]


class QuickConv3d(CogVideoXSafeConv3d, FilmConv3d):
    """diffusers' convolution, which keeps nothing for the way back."""


class QuickCausalConv3d(CogVideoXCausalConv3d):
    """diffusers' convolution over the frames before as well."""

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.pad_mode == "replicate":
            padded: tuple[Tensor, Tensor | None] = super().forward(inputs, conv_cache)
            return padded
        if self.time_kernel_size == 1:
            return self.conv(inputs), None
        whole, after = joined(inputs, conv_cache, self.time_kernel_size - 1)
        return self.conv(whole), after


class QuickSpatialNorm(CogVideoXSpatialNorm3D):
    """diffusers' norm, scaled and shifted by latents, and the activation behind it; hands nothing on."""

    def forward(
        self, f: Float[Tensor, "B C T H W"], zq: Float[Tensor, "B c t h w"], conv_cache: Any = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scale, shift = (convolution.conv(zq) for convolution in (self.conv_y, self.conv_b))
        return _Activated.apply(f, scale, shift, self.norm_layer), {}


class _Activated(torch.autograd.Function):
    """silu(norm(f) * enlarged(scale) + enlarged(shift)), some groups of channels at a time; computed again on the way
    back."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, scale: Tensor, shift: Tensor, norm: nn.GroupNorm) -> Tensor:
        ctx.save_for_backward(f, scale, shift)
        ctx.norm = norm
        out = torch.empty_like(f)
        for part in _parts(f, norm):
            out[:, part.channels] = F.silu(part.modulated(f, scale, shift)[1], inplace=True)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        f, scale, shift = ctx.saved_tensors
        of_f, of_scale, of_shift = (torch.empty_like(x) for x in (f, scale, shift))
        for part in _parts(f, ctx.norm):
            at = part.channels
            (normed, mean, spread), modulated = part.modulated(f, scale, shift)
            of_modulated = torch.ops.aten.silu_backward(gradient[:, at], modulated)
            del modulated
            of_shift[:, at] = _gathered(of_modulated, shift[:, at].shape)
            of_scale[:, at] = _gathered(normed.mul_(of_modulated), scale[:, at].shape)
            of_normed = of_modulated.mul_(_enlarged(scale[:, at], f.shape[2:]))
            of_f[:, at] = torch.ops.aten.native_group_norm_backward(
                of_normed, part.of(f), mean, spread, ctx.norm.weight[at], *part.sizes(f), [True, False, False]
            )[0]
        return of_f, of_scale, of_shift, None


@dataclass(frozen=True)
class _Part:
    """Some groups of a norm's channels."""

    norm: nn.GroupNorm
    groups: int
    channels: slice

    def of(self, f: Tensor) -> Tensor:
        return f[:, self.channels].contiguous()

    def sizes(self, f: Tensor) -> tuple[int, int, int, int]:
        return f.shape[0], self.channels.stop - self.channels.start, f[0, 0].numel(), self.groups

    def modulated(self, f: Tensor, scale: Tensor, shift: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """The norm with its mean and inverse spread, and what it becomes."""
        at, size = self.channels, f.shape[2:]
        found = torch.native_group_norm(
            self.of(f), self.norm.weight[at], self.norm.bias[at], *self.sizes(f), self.norm.eps
        )
        return found, (found[0] * _enlarged(scale[:, at], size)).add_(_enlarged(shift[:, at], size))


def _parts(f: Tensor, norm: nn.GroupNorm) -> Iterator[_Part]:
    """All groups, as few at a time as `AT_ONCE` asks for."""
    width = f.shape[1] // norm.num_groups
    at_once = max(1, AT_ONCE // (width * f[:, 0].numel()))
    for first in range(0, norm.num_groups, at_once):
        count = min(at_once, norm.num_groups - first)
        yield _Part(norm, count, slice(first * width, (first + count) * width))


def _in_parts(function: Callable[[Tensor, Size], Tensor], films: Tensor, count: int, size: Size) -> Tensor:
    """Of a clip that begins with a frame of its own, which an odd number of frames tells, that frame by itself.

    Args:
        count: frames of the large one of both films. size: T, H, W of what comes out.
    """
    if count == 1 or count % 2 == 0:
        return function(films, size)
    frames, *sides = size
    first = function(films[:, :, :1], (1, *sides))
    return torch.cat([first, function(films[:, :, 1:], (frames - 1, *sides))], dim=2)


def _enlarged(small: Float[Tensor, "B C t h w"], size: Size) -> Float[Tensor, "B C T H W"]:
    """Each number repeated; size T, H, W."""
    return _in_parts(lambda films, to: F.interpolate(films, size=to), small, size[0], size)


def _gathered(large: Float[Tensor, "B C T H W"], shape: Size) -> Float[Tensor, "B C t h w"]:
    """The transpose of `_enlarged`; the shape is that of the small one."""
    batch, channels, *size = shape

    def gather(films: Tensor, to: Size) -> Tensor:
        to_shape = [batch, channels, *to]
        summed: Tensor = torch.ops.aten.upsample_nearest3d_backward(films, films.shape[2:], to_shape)
        return summed

    return _in_parts(gather, large, large.shape[2], tuple(size))


QUICK: dict[type[nn.Module], type[nn.Module]] = {
    CogVideoXSpatialNorm3D: QuickSpatialNorm,
    CogVideoXCausalConv3d: QuickCausalConv3d,
    CogVideoXSafeConv3d: QuickConv3d,
}


def quicken(vae: AutoencoderKLCogVideoX) -> None:
    """Make a frozen autoencoder's norms and convolutions quick ones, and let its blocks be recomputed; its numbers
    change by rounding."""
    exchange_layers(vae, QUICK)
    for block in vae.decoder.modules():
        if isinstance(block, CogVideoXResnetBlock3D):
            block.nonlinearity = nn.Identity()  # the norms do it
    vae.decoder.conv_act = nn.Identity()
    vae.enable_gradient_checkpointing()


def decode(
    vae: AutoencoderKLCogVideoX, latents: Float[Tensor, "B c t h w"], with_gradient: Sequence[int] | None = None
) -> Float[Tensor, "B 3 T H W"]:
    """Pixels around [-1, 1] of the autoencoder's own latents, two latent frames at a time as it does by itself; going
    back, these pieces and their blocks are recomputed.

    Args:
        with_gradient: latent frames that carry gradient, None: all. Of pieces without any nothing is kept.
    """
    hidden = gradient_only(latents, with_gradient).to(vae.dtype)
    hidden = hidden if vae.post_quant_conv is None else vae.post_quant_conv(hidden)
    frames, at_once = hidden.shape[2], vae.num_latent_frames_batch_size
    first = frames % at_once + at_once if frames > at_once else frames  # the first piece takes what is left over
    chosen = set(range(frames) if with_gradient is None else with_gradient)
    cache: Any = None
    decoded, start = [], 0
    rest = hidden[:, :, first:].split(at_once, dim=2) if frames > first else ()
    for piece in (hidden[:, :, :first], *rest):
        carries = not chosen.isdisjoint(range(start, start + piece.shape[2])) and piece.requires_grad
        if carries and torch.is_grad_enabled():
            pixels, cache = checkpoint(vae.decoder, piece, conv_cache=cache, use_reentrant=False)
        else:
            with torch.no_grad():
                pixels, cache = vae.decoder(piece, conv_cache=cache)
        decoded.append(pixels)
        start += piece.shape[2]
    return torch.cat(decoded, dim=2).float()
