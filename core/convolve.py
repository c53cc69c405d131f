"""Convolutions with weights that don't train: nothing is kept for the backward pass, where torch keeps the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable


def on_cpu(tensor: Tensor) -> bool:
    """Whether what is quicker on a CPU shall be done: a tensor without content may stand for one on a GPU."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def convolve(
    images: Float[Tensor, "B C *size"],
    weight: Float[Tensor, "D C *kernel"],
    bias: Float[Tensor, "D"] | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
) -> Float[Tensor, "B D *made"]:
    """`F.conv2d` or `conv3d` with constants for weights: the gradient reaches the images alone, and needs the weights
    alone.

    Args:
        images: pictures (B, C, H, W) or films (B, C, T, H, W). stride, padding: one number for each of their sides.
    """
    convolved: Tensor = _Convolve.apply(images, weight, bias, stride, padding)
    return convolved


def convolve_films(
    films: Float[Tensor, "B C T H W"],
    weight: Float[Tensor, "D C *kernel"],
    bias: Float[Tensor, "D"] | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
) -> Float[Tensor, "B D t h w"]:
    """`F.conv3d`, with the weights as constants where they don't train. On a CPU it would take torch's slow path: where
    nothing is padded in time, the frames under a kernel are channels of a convolution of pictures there."""
    trains = weight.requires_grad
    if not on_cpu(films) or isinstance(padding, str) or padding[0]:
        whole = F.conv3d if trains else convolve
        return whole(films, weight, bias, stride, padding)
    pictures: Tensor = _Under.apply(films, weight.shape[2], stride[0])
    convolution = F.conv2d if trains else convolve
    made = convolution(pictures.flatten(0, 1).flatten(1, 2), weight.flatten(1, 2), bias, stride[1:], padding[1:])
    return made.unflatten(0, pictures.shape[:2]).transpose(1, 2)


def exchange_layers(network: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Let a network's layers of these classes compute as another class does, which must do with their attributes;
    parameters stay what they are."""
    for layer in network.modules():
        layer.__class__ = classes.get(type(layer), type(layer))


def _usual(layer: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether it is one that `convolve` knows: no groups, no dilation, zeros beyond the edges."""
    return layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"


class FrozenConv2d(nn.Conv2d):
    """A convolution of pictures by `convolve`, where its weights don't train."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.requires_grad or not _usual(self):
            return super()._conv_forward(input, weight, bias)
        return convolve(input, weight, bias, self.stride, self.padding)


class FilmConv3d(nn.Conv3d):
    """A 3-D convolution by `convolve_films`; as a further base it changes how a family's own one computes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _usual(self):
            return super()._conv_forward(input, weight, bias)
        return convolve_films(input, weight, bias, self.stride, self.padding)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: Any
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout = images.shape, images.stride(), stride, padding
        return torch.convolution(images, weight, bias, stride, padding, *_plain(len(stride)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape, strides, stride, padding = ctx.layout
        images = gradient.new_empty_strided(shape, strides)  # only its layout is looked at
        mask = [True, False, False]
        found = torch.ops.aten.convolution_backward(
            gradient, images, weight, None, stride, padding, *_plain(len(stride)), mask
        )
        return found[0], None, None, None, None


class _Under(torch.autograd.Function):
    """The frames under a kernel at each of its places in time: (B, C, T, H, W) to (B, t, C, frames, H, W). Going back
    they are added one after another, which `unfold` does number by number."""

    @staticmethod
    def forward(ctx: Any, films: Tensor, frames: int, stride: int) -> Tensor:
        ctx.shape, ctx.stride = films.shape, stride
        return films.unfold(2, frames, stride).permute(0, 2, 1, 5, 3, 4).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, places, _, frames = gradient.shape[:4]
        if frames == ctx.stride == 1:
            return gradient.squeeze(3).transpose(1, 2), None, None
        batch, channels, count, *size = ctx.shape
        films = gradient.new_zeros(batch, count, channels, *size)
        for i in range(frames):
            films[:, i : i + (places - 1) * ctx.stride + 1 : ctx.stride] += gradient[:, :, :, i]
        return films.transpose(1, 2), None, None


def _plain(sides: int) -> tuple[tuple[int, ...], bool, tuple[int, ...], int]:
    """No dilation, not transposed, no output padding, one group."""
    return (1,) * sides, False, (0,) * sides, 1
