"""Frozen convolutions are torch's, gradient too, whichever way they are computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from newtonrewards.core.convolve import FilmConv3d, FrozenConv2d, convolve_films

SIDE = st.integers(1, 3)


def through(made: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """What was made of `start`, and a gradient of it that no symmetry hides anything of."""
    weight = torch.linspace(-1, 2, made.numel(), dtype=made.dtype).view_as(made)
    return made.detach(), torch.autograd.grad((made * weight).sum(), start)[0]


@given(
    batch=st.integers(1, 2),
    channels=SIDE,
    made=SIDE,
    kernel=st.tuples(SIDE, SIDE, SIDE),
    stride=st.tuples(SIDE, SIDE, SIDE),
    padding=st.tuples(st.just(0), st.integers(0, 2), st.integers(0, 2)),
    more=st.integers(0, 4),
    trains=st.booleans(),
)
def test_films_are_convolved_as_by_torch(
    batch: int,
    channels: int,
    made: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    more: int,
    trains: bool,
) -> None:
    random = torch.Generator().manual_seed(more)
    films = torch.randn(batch, channels, kernel[0] + more, 5, 4, generator=random, dtype=torch.double)
    weight = torch.randn(made, channels, *kernel, generator=random, dtype=torch.double).requires_grad_(trains)
    bias = torch.randn(made, generator=random, dtype=torch.double)
    films.requires_grad_()
    ours = through(convolve_films(films, weight, bias, stride, padding), films)
    theirs = through(F.conv3d(films, weight, bias, stride, padding), films)
    torch.testing.assert_close(ours, theirs)


def test_layers_that_are_something_else_stay_what_they_are() -> None:
    for plain, ours, size in ((nn.Conv2d, FrozenConv2d, (6, 7)), (nn.Conv3d, FilmConv3d, (3, 6, 7))):
        for unusual in ({"groups": 2}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}):
            layer = plain(4, 4, (1, *(2,) * (len(size) - 1)), **unusual).double().requires_grad_(False)
            start = torch.randn(2, 4, *size, dtype=torch.double, requires_grad=True)
            theirs = through(layer(start), start)
            layer.__class__ = ours
            torch.testing.assert_close(through(layer(start), start), theirs)
