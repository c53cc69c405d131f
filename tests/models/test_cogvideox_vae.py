"""CogVideoX's decoder as it is changed here: diffusers' pixels and gradient, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from newtonrewards.core.memory import MemoryTracker
from newtonrewards.models import cogvideox_vae


@pytest.fixture
def vae() -> AutoencoderKLCogVideoX:
    """With a shortcut between widths, which the tiny pipelines' have not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: AutoencoderKLCogVideoX = AutoencoderKLCogVideoX(
            block_out_channels=(4, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4
        )
        for name, parameter in built.named_parameters():
            if "norm_layer" in name:  # as created they scale by 1 and shift by 0
                torch.nn.init.normal_(parameter, mean=1.0, std=0.5)
    return built.eval().requires_grad_(False)


def quick(vae: AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    changed = copy.deepcopy(vae)
    cogvideox_vae.quicken(changed)
    return changed


def drawn(frames: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, frames, 4, 6, generator=torch.Generator().manual_seed(frames))


def gradient(decode: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    latents = start.clone().requires_grad_()
    pixels = decode(latents)
    weight = torch.linspace(-1, 1, pixels.numel()).view_as(pixels)
    return pixels.detach(), torch.autograd.grad((pixels * weight).sum(), latents)[0]


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("at_once", [1, 2**26], ids=["a group at a time", "all groups at once"])
def test_pixels_and_gradient_are_diffusers(
    vae: AutoencoderKLCogVideoX, frames: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd number of frames begins with one that stands for itself in time."""
    monkeypatch.setattr(cogvideox_vae, "AT_ONCE", at_once)
    changed, start = quick(vae), drawn(frames)
    ours = gradient(lambda z: cogvideox_vae.decode(changed, z), start)
    theirs = gradient(lambda z: vae.decode(z).sample, start)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2e-5)
    assert (ours[1] - theirs[1]).norm() <= 1e-5 * theirs[1].norm()
    assert (ours[1].abs().amax((0, 1, 3, 4)) > 0).all()


def test_without_gradient_it_is_the_same_and_so_is_encoding(vae: AutoencoderKLCogVideoX) -> None:
    changed = quick(vae)
    with torch.no_grad():
        torch.testing.assert_close(
            cogvideox_vae.decode(changed, drawn(5)), vae.decode(drawn(5)).sample, rtol=0, atol=2e-5
        )
        pixels = drawn(9).new_zeros(1, 3, 9, 32, 48) + torch.linspace(-1, 1, 48)
        ours, theirs = (each.encode(pixels).latent_dist.mode() for each in (changed, vae))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_part_of_the_latent_frames_can_carry_the_gradient(vae: AutoencoderKLCogVideoX) -> None:
    """Of the clip's pieces, 3, 2 and 2 latent frames, the second one."""
    changed, start = quick(vae), drawn(7)
    whole = gradient(lambda z: cogvideox_vae.decode(changed, z), start)
    part = gradient(lambda z: cogvideox_vae.decode(changed, z, [3, 4]), start)
    torch.testing.assert_close(part[0], whole[0], rtol=0, atol=1e-5)
    assert (part[1].abs().amax((0, 1, 3, 4)) > 0).tolist() == [i in (3, 4) for i in range(7)]


def test_it_takes_three_fifths_of_the_memory_of_diffusers_own_recomputation(vae: AutoencoderKLCogVideoX) -> None:
    changed, plain = quick(vae), copy.deepcopy(vae)
    plain.enable_gradient_checkpointing()
    peaks = []
    for each, decode in (
        (changed, lambda z: cogvideox_vae.decode(changed, z)),
        (plain, lambda z: plain.decode(z).sample),
    ):
        with MemoryTracker(each) as tracker:
            gradient(decode, drawn(7, batch=1))
        peaks.append(tracker.peak_bytes())
    assert peaks[0] <= 0.6 * peaks[1], peaks
