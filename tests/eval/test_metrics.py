"""PISA's numbers against a slow, separately written reference; the strict ones and the motion errors by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newtonrewards.core.errors import ShapeError
from newtonrewards.eval.metrics import (
    METRICS,
    matched_frames,
    measure,
    pisa,
    pisa_frames,
    rmse_a,
    rmse_v,
    rmse_v_strict,
    strict,
)
from newtonrewards.eval.tracks import Track, fit_constant_acceleration

FPS = 20.0


def reference_pisa(
    truth: np.ndarray, predicted: np.ndarray, truth_fps: float, predicted_fps: float
) -> dict[str, float]:
    """From the definition, pixel by pixel, with Python numbers."""
    height = truth.shape[1]
    coordinate_errors: list[float] = []
    chamfers: list[float] = []
    overlaps: list[float] = []
    for i in range(len(predicted)):
        j = int(i * (truth_fps / predicted_fps))
        if j >= len(truth):
            break
        a = [(int(y), int(x)) for y, x in zip(*np.nonzero(truth[j]), strict=True)]
        b = [(int(y), int(x)) for y, x in zip(*np.nonzero(predicted[i]), strict=True)]
        union = len(set(a) | set(b))
        overlaps.append(len(set(a) & set(b)) / union if union else 1.0)
        if a and b:
            for axis in (0, 1):
                coordinate_errors.append(abs(sum(p[axis] for p in a) / len(a) - sum(p[axis] for p in b) / len(b)))
            one_way = sum(min(math.dist(p, q) for q in b) for p in a) / len(a)
            other_way = sum(min(math.dist(p, q) for p in a) for q in b) / len(b)
            chamfers.append(one_way + other_way)

    def scaled(values: list[float]) -> float:
        return sum(values) / len(values) / math.sqrt(2) / height if values else math.nan

    return {"l2": scaled(coordinate_errors), "chamfer": scaled(chamfers), "iou": sum(overlaps) / len(overlaps)}


def random_masks(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """Blobs of noise; about a quarter of the frames are empty."""
    rng = np.random.default_rng(seed)
    masks = rng.random((frames, height, width)) < rng.uniform(0.02, 0.5)
    masks[rng.random(frames) < 0.25] = False
    return masks


def same(got: dict[str, float], want: dict[str, float]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def track(position: np.ndarray, fps: float = FPS, valid: np.ndarray | None = None, size: int = 64) -> Track:
    """A 5x5 square at each position (H); NaN positions have no object."""
    hard = np.zeros((len(position), size, size), dtype=bool)
    for t, (x, y) in enumerate(position):
        if np.isfinite(x):
            column, row = int(x * size), int(y * size)
            hard[t, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = True
    return Track(
        position, hard, hard.sum((1, 2)) / size**2, np.ones(len(position), bool) if valid is None else valid, fps
    )


def throw(acceleration: float = 1.0, frames: int = 17, fps: float = FPS) -> np.ndarray:
    t = np.arange(frames) / fps
    return np.stack([0.2 + 0.5 * t, 0.3 - 0.2 * t + 0.5 * acceleration * t**2], axis=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(4, 13), st.integers(4, 13)),
    rates=st.sampled_from([(16.0, 16.0), (29.97, 29.97), (30.0, 16.0), (16.0, 24.0), (24, 8), (29.97, 23.976)]),
)
def test_pisa_equals_the_definition(
    seed: int, frames: tuple[int, int], size: tuple[int, int], rates: tuple[Any, Any]
) -> None:
    truth, predicted = random_masks(seed, frames[0], *size), random_masks(seed + 1, frames[1], *size)
    same(pisa(truth, predicted, *rates), reference_pisa(truth, predicted, *rates))


def test_pisa_by_hand() -> None:
    truth, predicted = np.zeros((1, 10, 20), bool), np.zeros((1, 10, 20), bool)
    truth[0, 5, 5] = predicted[0, 5, 8] = True
    got = pisa(truth, predicted, 16, 16)
    assert got["l2"] == pytest.approx(
        3 / 2 / (math.sqrt(2) * 10)
    )  # mean of |dx| = 3 and |dy| = 0; the height, not the width
    assert got["chamfer"] == pytest.approx(6 / (math.sqrt(2) * 10))
    assert got["iou"] == 0
    assert pisa(truth, truth, 16, 16) == {"l2": 0, "chamfer": 0, "iou": 1}


def test_pisa_does_not_punish_a_vanished_object_and_strict_does() -> None:
    truth = track(throw()).hard
    predicted = truth.copy()
    predicted[1:] = False
    got = pisa(truth, predicted, 16, 16)
    assert (got["l2"], got["chamfer"], got["iou"]) == (0, 0, pytest.approx(1 / 17))
    got = strict(truth, predicted, 16, 16)
    assert (got["l2_strict"], got["chamfer_strict"], got["missing"]) == (pytest.approx(16 / 17),) * 3
    assert got["iou_strict"] == pytest.approx(1 / 17)


def test_nan_rules() -> None:
    full, empty = np.ones((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    same(pisa(full, empty, 8, 8), {"l2": math.nan, "chamfer": math.nan, "iou": 0})
    same(pisa(empty, empty, 8, 8), {"l2": math.nan, "chamfer": math.nan, "iou": 1})
    same(strict(full, empty, 8, 8), {"l2_strict": 1, "chamfer_strict": 1, "iou_strict": 0, "missing": 1})
    same(
        strict(empty, full, 8, 8),
        {"l2_strict": math.nan, "chamfer_strict": math.nan, "iou_strict": 0, "missing": math.nan},
    )


def test_strict_l2_is_euclidean() -> None:
    truth, predicted = np.zeros((1, 10, 10), bool), np.zeros((1, 10, 10), bool)
    truth[0, 2, 2] = predicted[0, 6, 5] = True
    assert strict(truth, predicted, 8, 8)["l2_strict"] == pytest.approx(5 / (math.sqrt(2) * 10))


def test_the_ratio_of_the_rates_comes_first() -> None:
    assert matched_frames(100, 100, 29.97, 29.97).tolist() == list(range(100))
    assert any(int(i * 29.97 / 29.97) != i for i in range(100))  # the trap that the line above avoids
    assert matched_frames(8, 32, 16, 8).tolist() == [0, 2, 4, 6]  # frames past the truth's end are dropped


def test_pisa_takes_torch_masks_and_gives_frames() -> None:
    truth, predicted = random_masks(1, 6, 9, 9), random_masks(2, 6, 9, 9)
    same(pisa(torch.from_numpy(truth), torch.from_numpy(predicted), 16, 16), pisa(truth, predicted, 16, 16))
    assert {len(values) for values in pisa_frames(truth, predicted, 16, 16).values()} == {6}


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        (np.ones((2, 4, 4)), np.ones((2, 4, 4), bool)),
        (np.ones((4, 4), bool), np.ones((4, 4), bool)),
        (np.ones((2, 4, 4), bool), np.ones((2, 5, 4), bool)),
        (np.ones((2, 4, 4), bool), np.ones((0, 4, 4), bool)),
    ],
)
def test_wrong_masks_are_refused(truth: np.ndarray, predicted: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        pisa(truth, predicted, 8, 8)


def test_wrong_rate_is_refused() -> None:
    with pytest.raises(ShapeError, match="positive"):
        pisa(np.ones((2, 4, 4), bool), np.ones((2, 4, 4), bool), 0, 8)


def test_perfect_motion_has_no_error() -> None:
    truth = track(throw())
    got = measure(truth, truth)
    assert got.keys() == METRICS.keys()
    for name, value in got.items():
        assert value == pytest.approx(1.0 if METRICS[name].direction in ("one", "higher") else 0.0, abs=1e-9), name


def test_motion_errors_in_heights_and_seconds() -> None:
    truth, predicted = track(throw(1.0)), track(throw(1.6))
    t = np.arange(1, 16) / FPS  # central differences exist in the 15 inner frames
    assert rmse_a(truth, predicted) == pytest.approx(0.6)
    assert rmse_v(truth, predicted) == pytest.approx(np.sqrt(((0.6 * t) ** 2).mean()))
    got = measure(truth, predicted)
    assert got["g_eff"] == pytest.approx(1.6)
    assert got["fit_a_error"] == pytest.approx(0.6)
    assert got["fit_residual"] == pytest.approx(0, abs=1e-9)


def test_jitter_is_unsteady_but_keeps_g() -> None:
    jitter = np.random.default_rng(0).normal(0, 0.002, (17, 2))
    got = measure(track(throw()), track(throw() + jitter))
    assert 0.001 < got["fit_residual"] < 0.004
    assert got["rmse_a"] == pytest.approx(math.sqrt(12) * 0.002 * FPS**2, rel=0.5)  # sqrt(6) s fps^2 along each axis


def test_a_frozen_object_has_the_true_motion_as_error() -> None:
    truth = track(throw(2.0))
    got = measure(truth, track(np.repeat(throw()[:1], 17, axis=0)))
    assert got["rmse_a"] == pytest.approx(2.0)
    assert got["g_eff"] == pytest.approx(0, abs=1e-9)


def test_only_valid_frames_count() -> None:
    path = throw()
    bounced = path.copy()
    bounced[12:] = path[12] - (path[12:] - path[12])  # turns round: not the same law any more
    valid = np.arange(17) <= 12
    assert rmse_a(track(path, valid=valid), track(bounced)) == pytest.approx(0, abs=1e-9)
    assert rmse_a(track(path), track(bounced)) > 1


def test_a_vanished_object_counts_as_still_in_the_strict_error_only() -> None:
    truth = track(throw())
    gone = throw()
    gone[8:] = np.nan
    assert rmse_v(truth, track(gone)) == pytest.approx(0, abs=1e-9)
    assert rmse_v_strict(truth, track(gone)) > 0.3
    nothing = track(np.full((17, 2), np.nan))
    assert math.isnan(rmse_v(truth, nothing))
    assert measure(truth, nothing)["presence"] == 0


def test_other_frame_rate_gives_the_same_errors() -> None:
    truth = track(throw(1.0))
    assert rmse_a(truth, track(throw(1.6, frames=9, fps=10.0), fps=10.0)) == pytest.approx(0.6)
    assert rmse_v(truth, track(throw(1.0, frames=9, fps=10.0), fps=10.0)) == pytest.approx(0, abs=1e-9)


def test_fit_recovers_the_law() -> None:
    fit = fit_constant_acceleration(track(throw(1.3)))
    assert fit is not None
    assert fit.start == pytest.approx([0.2, 0.3])
    assert fit.velocity == pytest.approx([0.5, -0.2])
    assert fit.acceleration == pytest.approx([0, 1.3], abs=1e-9)
    assert fit.at(np.array([0.0, 1.0]))[1] == pytest.approx([0.7, 0.75])
    assert fit_constant_acceleration(track(throw()[:3])) is None


def test_growth_shows_in_the_area_ratio() -> None:
    truth = track(throw())
    grown = Track(truth.position, truth.hard, truth.area * 1.5, truth.valid, truth.fps)
    assert METRICS["area_ratio"].fn(truth, grown) == pytest.approx(1.5)
