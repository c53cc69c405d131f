"""The law's window is found where an event breaks it."""

from __future__ import annotations

import pytest
import torch

from newtonrewards.rewards import window


def motion(*pieces: tuple[int, float, float]) -> torch.Tensor:
    """(N, 2) velocities: pieces of (count, vertical start, vertical step)."""
    return torch.cat([torch.stack([torch.full((n,), 0.5), v + a * torch.arange(n)], 1) for n, v, a in pieces])


def noisy(velocity: torch.Tensor, std: float) -> torch.Tensor:
    return velocity + std * torch.randn(velocity.shape, generator=torch.Generator().manual_seed(3))


def test_a_landing_ends_the_window() -> None:
    found = window.longest_window(noisy(motion((10, 0.0, 0.2), (6, 0.0, 0.0)), 0.02), 0.08)
    assert (found.start, found.stop) == (0, 10)
    assert found.frames(17).tolist() == [True] * 11 + [False] * 6


def test_one_law_fills_the_whole_clip() -> None:
    found = window.longest_window(noisy(motion((16, 0.0, 0.2)), 0.02), 0.08)
    assert len(found) == 16
    assert found.rms < 0.05


def test_a_single_bad_velocity_is_not_averaged_away() -> None:
    velocity = motion((16, 0.0, 0.2))
    velocity[15] += 0.3
    assert window.longest_window(velocity, 0.08).stop == 15


def test_no_window_bridges_an_unmeasured_velocity() -> None:
    velocity = motion((16, 0.0, 0.2))
    velocity[5] = torch.nan
    assert (window.longest_window(velocity, 0.08).start, window.longest_window(velocity, 0.08).stop) == (6, 16)


def test_noise_alone_has_no_window() -> None:
    velocity = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)) * 5
    found = window.longest_window(velocity, 0.08)
    assert len(found) == 0
    assert not found.frames(17).any()


def test_the_tolerance_is_the_same_motion_in_every_video() -> None:
    assert window.tolerance(20.0, 64) == pytest.approx(window.TOLERANCE_PX * 20 / 64)
    batch = torch.stack([motion((10, 0.0, 0.2), (6, 0.0, 0.0)), motion((16, 0.0, 0.2))])
    valid = window.valid_frames(batch, torch.tensor([20.0, 20.0]), 64)
    assert valid.sum(1).tolist() == [11, 17]


def test_a_lawless_clip_is_judged_whole_and_does_not_go_free() -> None:
    """A window of the best five frames of a jerky clip would hide the rest, and no window at all would cost nothing."""
    time = torch.arange(16.0)[:, None]
    lawful = torch.cat([0.1 * time, 0.2 * time], 1) * 0.3
    jerky = lawful + 0.8 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    landing = torch.cat([lawful[:12], torch.zeros(4, 2)])
    valid = window.valid_frames(torch.stack([lawful, jerky, landing]), torch.full((3,), 20.0), 64)
    assert valid.sum(1).tolist() == [17, 17, 13]
    assert valid[2, 13:].any().item() is False
