"""Each support sits on the object, wherever it goes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newtonrewards.rewards import support
from newtonrewards.rewards.kinematics import object_velocity

SIZE = 48


def disc(x: float, y: float, radius: float = 6.0) -> torch.Tensor:
    axis = torch.arange(SIZE, dtype=torch.float64)
    distance = ((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1)


def flight(steps: int = 6, speed: float = 2.0, fall: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks (1, T, H, W), exact flow (1, N, 2, H, W) and velocity (N, 2) px/frame of a disc that is thrown."""
    masks, flows, velocities = [], [], []
    x, y = 12.0, 14.0
    for step in range(steps):
        velocity = torch.tensor([speed, fall * step], dtype=torch.float64)
        masks.append(disc(x, y))
        flows.append(velocity[:, None, None] * (masks[-1] > 0).double())
        velocities.append(velocity)
        x, y = x + velocity[0].item(), y + velocity[1].item()
    return torch.stack([*masks, disc(x, y)])[None], torch.stack(flows)[None], torch.stack(velocities)


@pytest.mark.parametrize("name", ["advected", "carried"])
def test_a_carried_mask_stays_on_the_object_and_reads_its_velocity(name: str) -> None:
    masks, flow, velocity = flight()
    found = getattr(support, name)(masks[:, 0], flow)
    overlap = torch.minimum(found, masks[:, :-1]).sum((-2, -1)) / masks[:, :-1].sum((-2, -1))
    assert overlap.min() > 0.9
    assert (object_velocity(flow, found)[0] - velocity).abs().max() < 0.15


def test_points_that_leave_the_frame_take_their_weight_along() -> None:
    masks, flow, _ = flight(steps=12, speed=6.0)
    weight = support.advected(masks[:, 0], flow + torch.tensor([6.0, 0.0], dtype=torch.float64)[:, None, None]).sum(
        (-2, -1)
    )[0]
    assert weight[0].item() == pytest.approx(masks[0, 0].sum().item())
    assert weight[-1] < 1e-6


def test_the_motion_gate_ignores_the_camera_and_is_blind_to_rest() -> None:
    masks, flow, _ = flight()
    panned = flow + torch.tensor([1.5, -0.5], dtype=torch.float64)[:, None, None]
    for field in (flow, panned):
        gate = support.motion(field)
        assert ((gate > 0.5) == (masks[:, :-1] > 0)).all()
    assert support.motion(0 * flow).max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.floats(2, 12), st.floats(2, 12))
def test_splat_is_the_adjoint_of_read(x: float, y: float) -> None:
    field = torch.randn(1, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = torch.tensor([[[x, y]]], dtype=torch.float64)
    weights = support.splat(point, torch.ones(1, 1, dtype=torch.float64), 16, 16)
    assert (field * weights[:, None]).sum((-2, -1))[0].tolist() == pytest.approx(
        support.read(field, point)[0, 0].tolist()
    )


def test_pixel_and_mask_are_what_they_say() -> None:
    masks, flow, _ = flight()
    assert torch.equal(support.mask(masks), masks[:, :-1])
    assert (support.pixel(flow) == 1).all()


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (1, T, 3, H, W) of a red disc over a shaded wall, with a shadow at its side, and its masks."""
    masks, _, _ = flight()
    wall = (
        torch.linspace(0.4, 0.8, SIZE, dtype=torch.float64)[None, :, None]
        * torch.tensor([0.7, 0.8, 1.0]).double()[:, None, None]
    )
    shadow = 1 - 0.35 * masks[0].roll(9, dims=-2)[:, None]
    red = torch.tensor([0.8, 0.2, 0.1], dtype=torch.float64)[:, None, None]
    return (wall * shadow * (1 - masks[0, :, None]) + red * masks[0, :, None])[None], masks


def test_the_object_is_found_by_colour_and_its_shadow_is_not() -> None:
    frames, masks = scene()
    found = support.object_mask(frames, masks[:, 0])
    assert (torch.minimum(found, masks).sum((-2, -1)) / torch.maximum(found, masks).sum((-2, -1))).min() > 0.85
    assert found[0, 3][masks[0, 3].roll(9, dims=-2) * (1 - masks[0, 3]) > 0.9].max() < 0.3


def test_the_colour_mask_sees_a_faded_and_a_vanished_object() -> None:
    frames, masks = scene()
    background = support._filled(frames[:, 0], masks[:, 0])[:, None]
    faded = frames.clone()
    faded[:, 3:5] = 0.4 * frames[:, 3:5] + 0.6 * background
    faded[:, 5:] = background
    areas = support.object_mask(faded, masks[:, 0]).sum((-2, -1))[0]
    assert (areas[1:3] / areas[0] - 1).abs().max() < 0.1
    assert (areas[3:5] < 0.7 * areas[0]).all()
    assert (areas[5:] < 0.2 * areas[0]).all()
