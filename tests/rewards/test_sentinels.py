"""Each sentinel moves when, and only when, its trick is played."""

from __future__ import annotations

import pytest
import torch

from newtonrewards.rewards import sentinels


def moving(step: int = 1) -> torch.Tensor:
    """(1, 6, 3, 16, 16): a white square that moves right on grey."""
    frames = torch.full((1, 6, 3, 16, 16), 0.5)
    for time in range(6):
        frames[0, time, :, 4:8, 2 + step * time : 6 + step * time] = 0.9
    return frames


def test_motion_energy_is_one_for_the_right_motion_and_zero_for_a_frozen_clip() -> None:
    assert sentinels.motion_energy(moving(), moving()).item() == pytest.approx(1)
    assert sentinels.motion_energy(moving(0), moving()).item() == 0
    assert sentinels.motion_energy(moving(), moving(0)).isnan().all()


def test_presence_and_area_follow_the_mask() -> None:
    mask = torch.zeros(1, 5, 16, 16)
    mask[:, :3, 4:8, 4:8] = 1
    assert sentinels.presence(mask).item() == pytest.approx(0.5)
    assert sentinels.area_ratio(mask).item() == pytest.approx(0.5)
    assert sentinels.area_ratio(0 * mask).isnan().all()


def test_saturation_counts_clipped_values() -> None:
    frames = moving()
    assert sentinels.saturation(frames).item() == 0
    frames[:, :, 0] = 1
    assert sentinels.saturation(frames).item() == pytest.approx(1 / 3)


def test_adversarial_texture_shows_in_the_high_frequencies() -> None:
    frames = moving()
    noisy = frames.clone()
    noisy[:, 1:] += 0.1 * torch.randn(noisy[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    assert sentinels.high_frequency(frames).item() == pytest.approx(1, rel=0.05)
    assert sentinels.high_frequency(noisy).item() > 3
