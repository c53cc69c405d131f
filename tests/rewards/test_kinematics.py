"""Perfect motion has no residual, in any unit; what breaks it is seen in the size that the formula says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newtonrewards.core.errors import ShapeError
from newtonrewards.rewards import kinematics

FPS = torch.tensor([20.0])
number = st.floats(-5, 5, allow_nan=False)


def line(
    start: tuple[float, float], acceleration: tuple[float, float], count: int = 12, fps: float = 20.0
) -> torch.Tensor:
    """(1, count, 2) velocities of constant acceleration, H/s."""
    time = torch.arange(count, dtype=torch.float64)[:, None] / fps
    return (torch.tensor(start, dtype=torch.float64) + time * torch.tensor(acceleration, dtype=torch.float64))[None]


def all_valid(velocity: torch.Tensor) -> torch.Tensor:
    return torch.ones(velocity.shape[:2], dtype=torch.bool)


@given(number, number, number, number)
def test_constant_acceleration_has_no_residual_and_its_acceleration_is_read_off(
    vx: float, vy: float, ax: float, ay: float
) -> None:
    velocity = line((vx, vy), (ax, ay))
    fitted = kinematics.fit(velocity, all_valid(velocity), FPS)
    assert kinematics.second_difference(velocity, all_valid(velocity)).item() == pytest.approx(0, abs=1e-20)
    assert fitted.residual.item() == pytest.approx(0, abs=1e-20)
    assert fitted.acceleration[0].tolist() == pytest.approx([ax, ay], abs=1e-9)
    assert fitted.start[0].tolist() == pytest.approx([vx, vy], abs=1e-9)


def test_white_noise_gives_six_and_one_times_its_variance() -> None:
    noise = 0.3 * torch.randn(400, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid = all_valid(noise)
    assert kinematics.second_difference(noise, valid).mean().item() == pytest.approx(6 * 0.09, rel=0.03)
    fitted = kinematics.fit(noise, valid, FPS.expand(400))
    assert fitted.residual.mean().item() == pytest.approx(0.09 * (1 - 2 / 30), rel=0.03)


def test_a_hand_made_second_difference() -> None:
    velocity = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [4.0, 2.0]]])
    # r = 4 - 2 + 0 = 2 along x, 2 along y; the mean over both axes of their squares is 4
    assert kinematics.second_difference(velocity, all_valid(velocity)).item() == pytest.approx(4.0)


def test_slow_drift_is_seen_better_by_the_fit() -> None:
    time = torch.arange(16, dtype=torch.float64) / 20
    drift = torch.stack([0.2 * torch.sin(2 * math.pi * time), torch.zeros_like(time)], 1)[None]
    local = kinematics.second_difference(drift, all_valid(drift)) / 6
    assert kinematics.fit(drift, all_valid(drift), FPS).residual.item() > 20 * local.item()


def test_only_residuals_within_the_valid_window_count() -> None:
    velocity = torch.cat([line((1, 0), (0, 3), 6), line((-2, 1), (0, 0), 6)], 1)
    valid = torch.arange(12)[None] < 6
    assert kinematics.second_difference(velocity, valid).item() == pytest.approx(0, abs=1e-20)
    assert kinematics.fit(velocity, valid, FPS).acceleration[0].tolist() == pytest.approx([0, 3])
    assert kinematics.second_difference(velocity, all_valid(velocity)).item() > 0.1


def test_the_centroid_of_a_hand_made_mask_and_of_none() -> None:
    masks = torch.zeros(1, 2, 4, 8)
    masks[0, 0, 1, 2:4] = torch.tensor([1.0, 0.5])  # centres of pixels: (2.5, 1.5) and (3.5, 1.5) px
    centre = kinematics.centroid(masks)
    assert centre[0, 0].tolist() == pytest.approx([(2.5 + 0.5 * 3.5) / 1.5 / 4, 1.5 / 4])
    assert centre[0, 1].isnan().all()
    assert kinematics.step_velocity(centre, torch.tensor([10.0])).isnan().all()


@given(st.integers(0, 2**31))
def test_a_centroid_goes_where_its_mask_goes_and_has_the_right_gradient(seed: int) -> None:
    masks = torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    rolled = torch.nn.functional.pad(masks, (2, 0, 1, 0))
    apart = kinematics.centroid(rolled) * 6 - kinematics.centroid(masks) * 5  # px
    assert torch.allclose(apart, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(kinematics.centroid, masks.requires_grad_(True))


def test_unmeasured_velocities_are_left_out_and_reach_no_gradient() -> None:
    velocity = line((1, 0), (0, 3)).clone()
    velocity[0, 5] = torch.nan
    velocity.requires_grad_(True)
    valid = all_valid(velocity)
    fitted = kinematics.fit(velocity, valid, FPS)
    (kinematics.second_difference(velocity, valid) + fitted.residual + fitted.acceleration.sum()).sum().backward()
    assert fitted.count.item() == 11
    assert fitted.acceleration[0].tolist() == pytest.approx([0, 3])
    assert velocity.grad is not None
    assert velocity.grad.isfinite().all()


def test_too_little_to_measure_is_nan_and_too_short_a_clip_is_an_error() -> None:
    velocity = line((1, 0), (0, 3)).requires_grad_(True)
    valid = torch.arange(12)[None] < 2
    found = kinematics.second_difference(velocity, valid)
    assert found.isnan().all()
    assert kinematics.fit(velocity, valid, FPS).acceleration.isnan().all()
    torch.where(found.isnan(), torch.zeros_like(found), found).sum().backward()
    assert velocity.grad is not None
    assert velocity.grad.abs().max() == 0
    with pytest.raises(ShapeError, match="at least 4 frames"):
        kinematics.second_difference(velocity[:, :2], valid[:, :2])


@given(st.sampled_from([16, 64, 100]), st.floats(5, 60), st.floats(0.1, 3))
def test_velocity_in_heights_per_second_changes_with_neither_resolution_nor_frame_rate(
    height: int, fps: float, speed: float
) -> None:
    flow = torch.zeros(1, 2, 2, height, height, dtype=torch.float64)
    flow[:, :, 0] = speed * height / fps
    rate = torch.tensor([fps], dtype=torch.float64)
    field = kinematics.to_heights_per_second(flow, rate)
    velocity = kinematics.object_velocity(field, torch.ones(1, 2, height, height, dtype=torch.float64))
    assert velocity[0, 0].tolist() == pytest.approx([speed, 0])
    assert kinematics.to_pixels_per_frame(velocity, rate, height)[0, 0, 0].item() == pytest.approx(speed * height / fps)


def test_the_object_velocity_is_that_of_the_object_alone_and_nan_without_one() -> None:
    field, support = torch.zeros(1, 1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    field[..., 2:4, 2:4], support[..., 2:4, 2:4] = 3.0, 0.5
    assert kinematics.object_velocity(field, support)[0, 0].tolist() == [3.0, 3.0]
    assert kinematics.object_velocity(field, 0 * support).isnan().all()


def test_mirrored_motion_scores_the_same_and_accelerates_the_other_way() -> None:
    velocity = (
        line((1, -2), (0.5, 3)) + 0.1 * torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(1)).double()
    )
    mirrored = velocity * torch.tensor([-1.0, 1.0])
    valid = all_valid(velocity)
    assert torch.equal(kinematics.second_difference(velocity, valid), kinematics.second_difference(mirrored, valid))
    there, back = (kinematics.fit(v, valid, FPS).acceleration[0] for v in (velocity, mirrored))
    assert back.tolist() == pytest.approx([-there[0].item(), there[1].item()])


def test_wrong_gravity_costs_what_it_lacks() -> None:
    half = kinematics.acceleration_error(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0]]))
    assert half.item() == pytest.approx((3 - 1) ** 2 / 2)
    assert kinematics.acceleration_error(torch.tensor([[torch.nan, 1.0]]), torch.tensor([[0.0, 3.0]])).isnan().all()


def test_velocity_error_counts_valid_velocities_only() -> None:
    velocity = line((1, 0), (0, 3))
    other = velocity + torch.tensor([0.2, 0.0])
    other[0, -1] = torch.nan
    assert kinematics.velocity_error(velocity, other, all_valid(velocity)).item() == pytest.approx(0.02)


def test_a_velocity_is_valid_between_two_valid_frames() -> None:
    valid = torch.tensor([[True, True, False, True, True]])
    assert kinematics.valid_velocities(valid).tolist() == [[True, False, False, True]]


DOWN = torch.tensor([[0.0, 1.5]])


@given(number, number)
def test_effective_gravity_is_a_ratio_along_the_law(ax: float, ay: float) -> None:
    measured = torch.tensor([[ax, ay]])
    assert kinematics.gravity_error(measured, DOWN).item() == pytest.approx((ay / 1.5 - 1) ** 2, abs=1e-4)


def test_gravity_that_nobody_knows_is_not_judged() -> None:
    measured = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    law = torch.tensor([[0.0, float("nan")], [0.0, 0.0], [0.0, 2.0]])
    assert kinematics.gravity_error(measured, law).isnan().tolist() == [True, True, False]


def test_only_what_does_not_point_down_costs() -> None:
    measured = torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.8, 3.0], [0.0, -1.0]])
    assert kinematics.downwards_error(measured).tolist() == pytest.approx([0, 0, 0.32, 0.5])


@given(st.floats(0, 6.28), st.floats(0.1, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_on_a_ramp_only_what_lies_across_the_way_costs(angle: float, speed: float, along: float, across: float) -> None:
    way = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    normal = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=torch.float64)
    error = kinematics.across_error((along * way + across * normal)[None], (speed * way)[None])
    assert error.item() == pytest.approx(across**2, abs=1e-9)


def test_an_object_at_rest_has_no_way() -> None:
    assert kinematics.across_error(torch.ones(1, 2), torch.zeros(1, 2)).isnan().all()
