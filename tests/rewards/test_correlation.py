"""The lookup gives torchvision's numbers and gradient, by compiled kernels and by torch's operations alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow._utils import make_coords_grid
from torchvision.models.optical_flow.raft import CorrBlock

from newtonrewards.rewards import correlation
from newtonrewards.rewards.correlation import Correlation

LEVELS, PAIRS, CHANNELS = 3, 2, 6


@pytest.fixture(params=["kernels", "operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is what GPUs take."""
    monkeypatch.setattr(correlation, "on_cpu", lambda _: request.param == "kernels")


def drawn(height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    first, second = torch.randn(2, PAIRS, CHANNELS, height, width, generator=generator, dtype=dtype)
    return first.requires_grad_(), second.requires_grad_()


def places(height: int, width: int, spread: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Coordinates of two lookups, `spread` cells around where nothing moves."""
    generator = torch.Generator().manual_seed(width)
    grid = make_coords_grid(PAIRS, height, width).to(dtype)
    return [grid + spread * torch.randn(grid.shape, generator=generator, dtype=dtype) for _ in range(2)]


def ours(first: Tensor, second: Tensor, radius: int, coords: list[Tensor]) -> Tensor:
    block = Correlation(first, second, LEVELS, radius)
    return torch.cat([block.windows(place) for place in coords])


def theirs(first: Tensor, second: Tensor, radius: int, coords: list[Tensor]) -> Tensor:
    block = CorrBlock(num_levels=LEVELS, radius=radius)
    block.build_pyramid(first, second)
    return torch.cat([block.index_pyramid(place) for place in coords])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("height", "width", "radius"), [(8, 8, 3), (9, 14, 4)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0, 1e9])
def test_the_lookup_is_torchvisions(height: int, width: int, radius: int, spread: float) -> None:
    """A spread of 0 is on the pixels, one of 20 beyond the frame for most, one of 1e9 for all."""
    first, second = drawn(height, width)
    coords = places(height, width, spread)
    found, expected = (block(first, second, radius, coords) for block in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weight = torch.linspace(-1, 1, found.numel()).view_as(found)
    for mine, plain in zip(
        *(torch.autograd.grad((windows * weight).sum(), (first, second)) for windows in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5 * (1 + plain.abs().max().item()))


@pytest.mark.usefixtures("way")
def test_the_gradient_is_the_derivative() -> None:
    coords = places(4, 5, 2.0, torch.float64)
    assert torch.autograd.gradcheck(lambda *f: ours(*f, 1, coords), drawn(4, 5, torch.float64), fast_mode=True)


@pytest.mark.usefixtures("way")
def test_going_back_twice_gives_the_same_gradient() -> None:
    """Lookups add to one gradient in place: a second pass mustn't find what the first left."""
    features = drawn(8, 8)
    total = ours(*features, 3, places(8, 8, 2.0)).square().sum()
    once, twice = (torch.autograd.grad(total, features, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_threads_share_the_positions() -> None:
    coords, before = places(9, 14, 2.0), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        features = drawn(9, 14)
        windows = ours(*features, 3, coords)
        found.append((windows, *torch.autograd.grad(windows.square().sum(), features)))
    torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(one, three, rtol=0, atol=1e-6)


def test_a_place_that_is_no_number_sees_nothing() -> None:
    coords = places(8, 8, 1.0)[:1]
    coords[0][:, :, 2, 3] = torch.nan
    windows = ours(*drawn(8, 8), 3, coords)
    assert windows.isfinite().all()
    assert not windows[:, :, 2, 3].any()
