"""Intervals cover what they promise, pairing cancels what makes clips hard, and missing clips are counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from newtonrewards.core.errors import ShapeError
from newtonrewards.eval.stats import mean, relative_change


def test_mean_covers_the_truth_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        got = mean(rng.exponential(1.0, 60), seed=trial, resamples=400)
        covered += got.low <= 1.0 <= got.high
    assert 0.88 < covered / 200 < 0.98


def test_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 80)
    ours = mean(values, resamples=20_000)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_what_is_zero_in_every_clip_is_surely_zero() -> None:
    got = mean(np.zeros((2, 5)))
    assert (got.value, got.low, got.high, got.n) == (0.0, 0.0, 0.0, 5)


def test_missing_clips_are_counted_and_not_averaged() -> None:
    got = mean(np.array([1.0, math.nan, 3.0, 2.0]))
    assert (got.value, got.n, got.n_missing) == (2.0, 3, 1)
    got = mean(np.array([math.nan, math.nan]))
    assert math.isnan(got.value)
    assert (got.n, got.n_missing) == (0, 2)


def test_pairing_finds_a_small_change_among_very_different_clips() -> None:
    rng = np.random.default_rng(2)
    before = rng.lognormal(0.0, 1.5, 60)
    after = before * 0.9 * rng.normal(1.0, 0.02, 60)
    got = relative_change(before, after)
    assert got.value == pytest.approx(-10, abs=1)
    assert -12 < got.low < got.high < -8
    unpaired = relative_change(before, rng.permutation(after))
    assert unpaired.high > 0  # the same numbers without their partners say nothing


def test_change_is_of_the_means_and_drops_pairs_with_a_gap() -> None:
    got = relative_change(np.array([1.0, 3.0, math.nan, 5.0]), np.array([2.0, 2.0, 9.0, math.nan]))
    assert (got.value, got.n, got.n_missing) == (pytest.approx(0.0), 2, 2)
    assert math.isnan(got.low)  # two clips carry no interval


def test_same_numbers_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=30)
    assert mean(values, seed=4) == mean(values, seed=4)
    assert mean(values, seed=4) != mean(values, seed=5)


def test_zero_baseline_and_unequal_lengths() -> None:
    assert math.isnan(relative_change(np.zeros(5), np.ones(5)).value)
    with pytest.raises(ShapeError, match="paired"):
        relative_change(np.zeros(5), np.ones(4))


def test_one_run_is_counted_as_without_runs() -> None:
    values = np.random.default_rng(2).gamma(2.0, 1.0, (2, 40))
    assert mean(values[:1]) == mean(values[0])
    assert relative_change(values[:1], values[1:]) == relative_change(values[0], values[1])


def test_the_luck_of_a_run_widens_the_interval() -> None:
    """Clips agree, runs don't: over clips alone one would be sure of what another seed would not repeat."""
    rng = np.random.default_rng(3)
    clips, luck = rng.gamma(2.0, 0.1, 100), np.array([[0.5], [1.0], [1.5]])
    got, alone = mean(clips + luck), mean((clips + luck).mean(0))
    assert got.value == pytest.approx(alone.value)
    assert got.high - got.low > 3 * (alone.high - alone.low)
    assert (got.n, got.n_missing) == (100, 0)


def test_intervals_over_runs_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(4), 0
    for trial in range(150):
        values = 1.0 + rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 0.3, (1, 40)) + rng.normal(0, 0.5, (8, 40))
        got = mean(values, seed=trial, resamples=400)
        covered += got.low <= 1.0 <= got.high
    assert 0.85 < covered / 150 < 0.99


def test_runs_are_paired_by_number_and_a_single_run_with_all() -> None:
    rng = np.random.default_rng(5)
    before = 1 + rng.gamma(2.0, 1.0, (3, 30)) + np.array([[0.0], [5.0], [10.0]])
    paired = relative_change(before, 0.9 * before)
    assert paired.value == pytest.approx(-10)
    assert (paired.low, paired.high) == (pytest.approx(-10), pytest.approx(-10))
    single = relative_change(before[:1], before * 0.9)
    assert single.n == 30 and single.low < single.value < single.high
    with pytest.raises(ShapeError, match="3 runs and 2 runs"):
        relative_change(before, before[:2])


def test_clips_missing_in_one_run_are_left_out_there() -> None:
    values = np.array([[1.0, 2.0, math.nan, 3.0], [1.0, 2.0, 6.0, 3.0]])
    got = mean(values)
    assert got.value == pytest.approx(18 / 7)
    assert (got.n, got.n_missing) == (4, 1)
    assert mean(np.full((2, 3), math.nan)).n == 0
