"""The codec: what it must reproduce, and what training on top of it relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.models.codec import PatchCodec, into_range, lapping_filter


def test_a_still_clip_is_exact_and_costs_nothing(codec: PatchCodec, clips: Tensor) -> None:
    still = clips[:2, :1].expand(-1, 9, -1, -1, -1)
    latents = codec.encode(still)
    assert latents.abs().max() == 0
    torch.testing.assert_close(codec.decode(latents, still[:, 0]), still, rtol=0, atol=0)


def test_all_components_reproduce_any_clip(clips: Tensor) -> None:
    full = PatchCodec.fit(clips, components=768, patch=(4, 8, 8))
    foreign = torch.rand(1, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(full.decode(full.encode(foreign), foreign[:, 0]), foreign, rtol=0, atol=2e-4)


def test_decoding_and_encoding_are_linear_beside_a_given_first_frame(codec: PatchCodec) -> None:
    """Where no pixel leaves the range."""
    g = torch.Generator().manual_seed(0)
    first = 0.4 + 0.2 * torch.rand(2, 3, 32, 32, generator=g)
    one, other = (0.01 * torch.randn(2, *codec.latent_shape, generator=g) for _ in range(2))
    here, there = codec.decode(one, first), codec.decode(other, first)
    torch.testing.assert_close(codec.decode((one + other) / 2, first), (here + there) / 2, rtol=0, atol=1e-5)
    middle = codec.encode((here + there) / 2)
    torch.testing.assert_close(middle, (codec.encode(here) + codec.encode(there)) / 2, rtol=0, atol=1e-4)


def test_fades_erase_what_components_leave_behind(clips: Tensor) -> None:
    """A finely textured object that is simply gone: few components can't draw its texture, one fade takes it away."""
    codec = PatchCodec.fit(clips, components=24, patch=(4, 8, 8))
    clip = torch.full((1, 9, 3, 32, 32), 0.5)
    clip[0, 0, :, 8:20, 8:20] += 0.3 * (2.0 * torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1)) - 1)
    latents = codec.encode(clip)
    without = torch.cat([torch.zeros_like(latents[:, : codec.num_fades]), latents[:, codec.num_fades :]], dim=1)
    ghost, rest = (
        (codec.decode(z, clip[:, 0]) - clip)[:, 1:].square().mean().sqrt().item() for z in (without, latents)
    )
    assert rest < 0.35 * ghost


def test_more_components_reproduce_clips_better(clips: Tensor) -> None:
    errors = []
    for components in (4, 16, 64):
        codec = PatchCodec.fit(clips[:16], components=components, patch=(4, 8, 8))
        errors.append((codec.decode(codec.encode(clips[16:]), clips[16:, 0]) - clips[16:]).square().mean().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_lapping_filter_is_orthogonal_and_reaches_over_the_border() -> None:
    for size in (4, 8, 16):
        p = lapping_filter(size)
        torch.testing.assert_close(p @ p.T, torch.eye(size), rtol=0, atol=1e-6)
        assert p[: size // 2, size // 2 :].abs().max() > 0.1  # it does reach over the border


def test_active_patches_have_unit_power(codec: PatchCodec, clips: Tensor) -> None:
    latents = codec.encode(clips)
    moving = codec.moving(latents).expand_as(latents)
    assert latents[moving].square().mean().item() == pytest.approx(1.0, abs=0.25)  # of 768 components 24 are kept
    assert 0.02 < moving.float().mean() < 0.9


def test_moving_patches_lie_where_pixels_change(codec: PatchCodec, clips: Tensor) -> None:
    moving = codec.moving(codec.encode(clips[:8]))
    change = (clips[:8, 1:] - clips[:8, :1]).abs().amax(2)
    patches = change.reshape(8, 2, 4, 4, 8, 4, 8).amax((2, 4, 6))[:, None]
    assert not moving[patches == 0].float().mean() > 0.2  # lapping reaches half a patch over the border
    assert moving[patches > 0.3].float().mean() > 0.9


def test_a_saturated_pixel_can_be_called_back_but_not_pushed_out() -> None:
    pixels = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
    into_range(pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.tolist() == [0.0, 1.0, 1.0]
    pixels.grad = None
    (-into_range(pixels)).sum().backward()
    assert pixels.grad.tolist() == [-1.0, -1.0, 0.0]


def test_saving_keeps_the_codec(codec: PatchCodec, clips: Tensor, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec.safetensors", torch.float32)
    again = PatchCodec.load(tmp_path / "codec.safetensors")
    torch.testing.assert_close(again.encode(clips), codec.encode(clips), rtol=0, atol=0)
    assert again.latent_shape == codec.latent_shape == (24 + codec.num_fades, 2, 4, 4)


def test_two_fits_agree(codec: PatchCodec, clips: Tensor) -> None:
    again = PatchCodec.fit(list(clips), components=24, patch=(4, 8, 8))
    torch.testing.assert_close(again.basis, codec.basis, rtol=0, atol=0)
    largest = codec.basis.gather(0, codec.basis.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()  # an eigenvector's sign is free; without a rule, another machine may choose the other


def test_bad_input_is_named(clips: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="moves"):
        PatchCodec.fit(clips[:, :1].expand(-1, 9, -1, -1, -1), components=4, patch=(4, 8, 8))
    with pytest.raises(InputError, match="don't divide"):
        PatchCodec.fit(clips, patch=(4, 16, 12))
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        PatchCodec.load(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="not a codec"):
        PatchCodec.load(tmp_path / "text.safetensors")
