"""HunyuanVideo's decoder latent frame by latent frame: diffusers' pixels and gradient, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch import Tensor

from newtonrewards.core.memory import MemoryTracker
from newtonrewards.models import hunyuan_vae
from newtonrewards.models.causal import Tiles


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo15:
    """With widths that change, which the tiny pipelines' don't."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: AutoencoderKLHunyuanVideo15 = AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(4, 8, 8, 16, 16), layers_per_block=1
        )
    built.enable_slicing()  # its mask fits one clip
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def quick(vae: AutoencoderKLHunyuanVideo15) -> AutoencoderKLHunyuanVideo15:
    changed = copy.deepcopy(vae)
    hunyuan_vae.quicken(changed)
    return changed


def drawn(frames: int, batch: int = 1, side: int = 2) -> Tensor:
    return torch.randn(batch, 4, frames, side, side + 1, generator=torch.Generator().manual_seed(frames))


def gradient(decode: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    latents = start.clone().requires_grad_()
    pixels = decode(latents)
    weight = torch.linspace(-1, 1, pixels.numel()).view_as(pixels)
    return pixels.detach(), torch.autograd.grad((pixels * weight).sum(), latents)[0]


def close(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2e-5)
    assert (ours[1] - theirs[1]).norm() <= 1e-5 * theirs[1].norm()


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (2, 2), (5, 1)])
def test_pixels_and_gradient_are_diffusers(
    vae: AutoencoderKLHunyuanVideo15, quick: AutoencoderKLHunyuanVideo15, frames: int, batch: int
) -> None:
    start = drawn(frames, batch)
    ours = gradient(lambda z: hunyuan_vae.decode(quick, z), start)
    close(ours, gradient(lambda z: vae.decode(z).sample, start))
    assert (ours[1].abs().amax((0, 1, 3, 4)) > 0).all()


def test_attention_without_a_mask_is_the_same() -> None:
    block, x = HunyuanVideo15AttnBlock(8).requires_grad_(False), drawn(4).repeat(1, 2, 1, 2, 2)
    causal = copy.deepcopy(block)
    causal.__class__ = hunyuan_vae.CausalAttention
    close(gradient(causal, x), gradient(block, x))


def test_runs_of_several_latent_frames_are_too(
    vae: AutoencoderKLHunyuanVideo15, quick: AutoencoderKLHunyuanVideo15, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("newtonrewards.models.causal.ALONE", 2)
    start = drawn(5)
    close(gradient(lambda z: hunyuan_vae.decode(quick, z), start), gradient(lambda z: vae.decode(z).sample, start))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoding_is_the_same(
    vae: AutoencoderKLHunyuanVideo15, quick: AutoencoderKLHunyuanVideo15, frames: int
) -> None:
    pixels = torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours, theirs = (each.encode(pixels).latent_dist.mode() for each in (quick, vae))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_tiles_with_the_full_margin_change_nothing(quick: AutoencoderKLHunyuanVideo15) -> None:
    start, tiles = drawn(2, side=9), Tiles(side=5, margin=hunyuan_vae.reach(quick))
    whole = gradient(lambda z: hunyuan_vae.decode(quick, z), start)
    close(gradient(lambda z: hunyuan_vae.decode(quick, z, tiles=tiles), start), whole)
    with torch.no_grad():
        cut = hunyuan_vae.decode(quick, start, tiles=Tiles(side=5, margin=0))
    assert (cut - whole[0]).abs().max() > 1e-3


def test_a_part_of_the_latent_frames_can_carry_the_gradient(quick: AutoencoderKLHunyuanVideo15) -> None:
    start = drawn(4)
    whole = gradient(lambda z: hunyuan_vae.decode(quick, z), start)
    part = gradient(lambda z: hunyuan_vae.decode(quick, z, with_gradient=[1, 2]), start)
    torch.testing.assert_close(part[0], whole[0], rtol=0, atol=1e-5)
    assert (part[1].abs().amax((0, 1, 3, 4)) > 0).tolist() == [False, True, True, False]


def test_it_takes_half_of_the_memory_of_recomputed_blocks(
    vae: AutoencoderKLHunyuanVideo15, quick: AutoencoderKLHunyuanVideo15
) -> None:
    plain, peaks = copy.deepcopy(vae), []
    plain.enable_gradient_checkpointing()
    for each, decode in (
        (quick, lambda z: hunyuan_vae.decode(quick, z)),
        (plain, lambda z: plain.decode(z).sample),
    ):
        with MemoryTracker(each) as tracker:
            gradient(decode, drawn(16))
        peaks.append(tracker.peak_bytes())
    assert peaks[0] <= 0.5 * peaks[1], peaks
