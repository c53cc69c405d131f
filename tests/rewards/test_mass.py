"""An object that fades, grows, vanishes or turns into another one costs; one that stays what it is costs nothing."""

from __future__ import annotations

import math

import pytest
import torch

from newtonrewards.rewards import mass


def disc(radius: float, size: int = 32) -> torch.Tensor:
    """(size, size) soft disc."""
    axis = torch.arange(size, dtype=torch.float64) - size / 2
    return (radius - (axis[:, None] ** 2 + axis[None] ** 2).sqrt()).sigmoid()


def masks(*radii: float) -> torch.Tensor:
    return torch.stack([disc(radius) if radius > 0 else torch.zeros(32, 32).double() for radius in radii])[None]


def valid(count: int) -> torch.Tensor:
    return torch.ones(1, count, dtype=torch.bool)


def test_growing_and_shrinking_by_a_factor_cost_about_its_logarithm() -> None:
    box = torch.zeros(1, 2, 32, 32, dtype=torch.float64)
    box[0, 0, 10:18, 10:20], box[0, 1, 10:18, 10:25] = 1, 1
    grown, shrunk = (mass.area(soft, valid(2)).item() for soft in (box, box.flip(1)))
    assert grown == pytest.approx(math.log(1.5), rel=0.1)
    assert shrunk == pytest.approx(math.log(1.5), rel=0.1)
    assert mass.area(masks(8, 8, 8), valid(3)).item() == pytest.approx(0, abs=1e-12)


def test_vanishing_costs_most_and_has_a_finite_gradient() -> None:
    soft = masks(8, 8, 0).requires_grad_(True)
    penalty = mass.area(soft, valid(3))
    penalty.sum().backward()
    assert penalty.item() > 1.4
    assert soft.grad is not None
    assert soft.grad.isfinite().all()


def test_no_object_to_begin_with_is_unmeasured() -> None:
    assert mass.area(masks(0, 8), valid(2)).isnan().all()
    assert mass.area(masks(8, 8), torch.tensor([[True, False]])).isnan().all()


def test_frames_after_the_event_do_not_count() -> None:
    assert mass.area(masks(8, 8, 2), torch.tensor([[True, True, False]])).item() == pytest.approx(0, abs=1e-12)


def test_equal_features_are_at_distance_zero_with_zero_gradient() -> None:
    features = torch.randn(
        2, 3, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_(True)
    penalty = mass.paired(features, features.detach())
    penalty.sum().backward()
    assert penalty.tolist() == pytest.approx([0, 0], abs=1e-9)
    assert features.grad is not None
    assert features.grad.abs().max() < 1e-6


def test_opposite_features_are_at_distance_two_and_nothing_at_one() -> None:
    a = torch.tensor([1.0, 2.0])
    assert mass.cosine_distance(a, -a).item() == pytest.approx(2)
    assert mass.cosine_distance(a, 0 * a).item() == pytest.approx(1)


def test_a_lost_object_counts_as_unlike_and_one_that_was_never_there_is_unmeasured() -> None:
    features = torch.ones(2, 3, 4, 8, 8, dtype=torch.float64)
    weights = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    weights[0, :2, 2:5, 2:5] = 1
    weights[1, 1:, 2:5, 2:5] = 1
    found = mass.conserved(mass.pool(features, weights), torch.ones(2, 3, dtype=torch.bool))
    assert found[0].item() == pytest.approx(0.5)
    assert found[1].isnan()


def test_pooling_reads_the_object_wherever_it_is() -> None:
    features = torch.zeros(1, 2, 3, 8, 8)
    weights = torch.zeros(1, 2, 8, 8)
    for time, place in enumerate((1, 5)):
        features[0, time, :, place, place] = torch.tensor([1.0, 2.0, 3.0])
        weights[0, time, place, place] = 0.7
    assert torch.allclose(mass.pool(features, weights), torch.tensor([1.0, 2.0, 3.0]).expand(1, 2, 3))
