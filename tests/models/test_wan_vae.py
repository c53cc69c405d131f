"""Decoding with gradient: the same bits in a quarter of the memory, tiles, and gradient through some frames only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch import Tensor

from newtonrewards.core.fake import empty, fake_tensors
from newtonrewards.core.memory import MemoryTracker
from newtonrewards.models import wan_vae
from newtonrewards.models.causal import Tiles
from newtonrewards.models.tiny_wan import tiny_pipeline


def plain(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """diffusers' own decoding of the same normalised latents."""
    mean, spread = wan_vae._statistics(vae, latents)
    decoded: Tensor = vae.decode(latents * spread + mean).sample
    return decoded


def drawn(vae: AutoencoderKLWan, frames: int, height: int, width: int) -> Tensor:
    shape = (1, vae.config.z_dim, frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


def gradient(decode: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    latents = start.clone().requires_grad_()
    frames = decode(latents)
    weight = torch.linspace(-1, 1, frames.numel()).view_as(frames)
    return frames.detach(), torch.autograd.grad((frames * weight).sum(), latents)[0]


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    built: AutoencoderKLWan = tiny_pipeline(request.param).vae.requires_grad_(False)
    return built


@pytest.mark.parametrize("frames", [1, 2, 5, 11])
def test_nested_checkpoints_change_no_bit(vae: AutoencoderKLWan, frames: int) -> None:
    start = drawn(vae, frames, 4, 6)
    ours, theirs = gradient(lambda z: wan_vae.decode(vae, z), start), gradient(lambda z: plain(vae, z), start)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert (ours[1].abs().amax((0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize("images", [True, False])
def test_the_quick_norm_is_the_norm(images: bool) -> None:
    norm = WanRMS_norm(3, images=images).double().requires_grad_(False)
    norm.gamma.copy_(torch.linspace(0.5, 2, 3).view_as(norm.gamma))
    start = torch.randn(2, 3, *(4,) * (2 if images else 3), generator=torch.Generator().manual_seed(1)).double()
    start[0, :, 0] = 0.0  # a vector without length
    start[0, :, 1] *= 1e-14  # and one below the least
    theirs = gradient(norm, start)
    norm.__class__ = wan_vae.QuickNorm
    ours = gradient(norm, start)
    torch.testing.assert_close(ours[0], theirs[0])
    seen = start.abs().amax(1, keepdim=True).expand_as(start) > 0  # diffusers' has no gradient where there is nothing
    torch.testing.assert_close(ours[1][seen], theirs[1][seen])


def test_65_frames_take_a_quarter_of_the_plain_memory() -> None:
    vae = tiny_pipeline("2.1").vae.requires_grad_(False)
    start = drawn(vae, 17, 4, 4)
    peaks = []
    for decode in (lambda z: wan_vae.decode(vae, z), lambda z: plain(vae, z)):
        with MemoryTracker(vae) as tracker:
            gradient(decode, start)
        peaks.append(tracker.peak_bytes())
    assert peaks[0] <= 0.25 * peaks[1]


@pytest.mark.slow
def test_tiles_take_less_memory_than_whole_frames() -> None:
    with fake_tensors() as mode:
        vae = tiny_pipeline("2.1").vae.requires_grad_(False)
        empty(vae, mode)
        peaks = []
        for tiles in (None, Tiles(side=8, margin=2)):
            with MemoryTracker(vae) as tracker:
                gradient(lambda z, tiles=tiles: wan_vae.decode(vae, z, tiles=tiles), drawn(vae, 5, 16, 16))
            peaks.append(tracker.peak_bytes())
    assert peaks[1] <= 0.6 * peaks[0]


def test_tiles_with_the_full_margin_change_nothing(vae: AutoencoderKLWan) -> None:
    start = drawn(vae, 3, 8, 16)
    tiles = Tiles(side=8, margin=wan_vae.reach(vae))
    ours = gradient(lambda z: wan_vae.decode(vae, z, tiles=tiles), start)
    theirs = gradient(lambda z: plain(vae, z), start)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4 * theirs[1].abs().max().item())


def test_tiles_without_margin_are_wrong_only_where_the_seam_reaches(vae: AutoencoderKLWan) -> None:
    """Two tiles of 20 latent pixels: the middle seam is wrong, and all that is further away than the reach is right."""
    start = drawn(vae, 2, 4, 40)
    scale = vae.config.scale_factor_spatial
    with torch.no_grad():
        error = (wan_vae.decode(vae, start, tiles=Tiles(side=20, margin=0)) - plain(vae, start)).abs()
    by_column = error.amax((0, 1, 2, 3))
    seam, far = 20 * scale, wan_vae.reach(vae) * scale
    assert by_column[seam - 1 : seam + 1].max() > 1e-4
    assert by_column[: seam - far].max() < 1e-5
    assert by_column[seam + far :].max() < 1e-5


def test_a_part_of_the_latent_frames_can_carry_the_gradient(vae: AutoencoderKLWan) -> None:
    start = drawn(vae, 7, 4, 4)
    chosen = range(2, 5)
    frames, part = gradient(lambda z: wan_vae.decode(vae, z, with_gradient=chosen), start)
    assert torch.equal(frames, plain(vae, start))
    moved = part.abs().amax((0, 1, 3, 4)) > 0
    assert moved.tolist() == [i in chosen for i in range(7)]
    with MemoryTracker(vae) as tracker:
        gradient(lambda z: wan_vae.decode(vae, z, with_gradient=range(1)), start)
    with MemoryTracker(vae) as whole:
        gradient(lambda z: wan_vae.decode(vae, z), start)
    assert tracker.peak_bytes() < whole.peak_bytes()
