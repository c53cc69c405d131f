"""The tracker sees what happened: it follows wrong physics, and a frozen, vanished, faded or split object as such."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, ShapeError
from newtonrewards.eval import segment, tracks
from newtonrewards.eval.metrics import measure, strict
from newtonrewards.eval.tracks import Track, track_from_masks, true_track
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene
from newtonrewards.simulation.spoil import Wobble


@functools.cache
def clip(index: int, amplitude: float = 0.0) -> Clip:
    """A clip; with an amplitude (m) its object sways off the lawful path, from the same first frame."""
    scene = sample_scene(5, index, split="val")
    sway = Wobble((amplitude, amplitude), (1.5, 2.3), (0.3, 1.0)) if amplitude else None
    return render(replace(scene, wobble=sway))


CLIPS = range(10)  # two of each motion


def learn(index: int) -> segment.Scene:
    return segment.learn_scene(clip(index))


def with_frames(index: int, frames: torch.Tensor) -> Clip:
    return Clip(frames=frames.clamp(0, 1), fps=clip(index).fps)


def plate(index: int) -> torch.Tensor:
    return torch.from_numpy(learn(index).plate).permute(2, 0, 1)


def exact(index: int, masks: torch.Tensor | None = None) -> Track:
    given = clip(index).masks if masks is None else masks
    assert given is not None
    return track_from_masks(given.numpy(), clip(index).fps)


def pixels_off(truth: Track, got: Track) -> float:
    return float(np.sqrt(np.nanmean(((truth.position - got.position) ** 2).sum(1)))) * truth.hard.shape[1]


@pytest.mark.parametrize("index", CLIPS)
def test_perfect_clip(index: int) -> None:
    got = segment.track(learn(index), clip(index))
    assert pixels_off(exact(index), got) < 0.25
    assert measure(true_track(clip(index)), got)["iou"] > 0.9


@pytest.mark.parametrize("index", CLIPS)
def test_wrong_physics_is_followed(index: int) -> None:
    wrong = clip(index, 0.15)
    assert wrong.masks is not None
    assert (wrong.frames[0] - clip(index).frames[0]).abs().max() < 0.02
    got = segment.track(learn(index), wrong)
    truth = track_from_masks(wrong.masks.numpy(), wrong.fps)
    assert pixels_off(truth, got) < 0.35
    assert strict(truth.hard, got.hard, 20.0, 20.0)["iou_strict"] > 0.85


@pytest.mark.parametrize("index", CLIPS)
def test_vanished_object_leaves_no_mask(index: int) -> None:
    frames = clip(index).frames.clone()
    masks = clip(index).masks
    assert masks is not None
    hole = masks[8:, None]
    frames[8:] = frames[8:] * (1 - hole) + plate(index) * hole  # its shadow stays
    got = segment.track(learn(index), with_frames(index, frames))
    assert got.present.tolist() == [True] * 8 + [False] * 9
    assert not got.hard[8:].any()
    assert (got.area[8:] == 0).all()


@pytest.mark.parametrize("index", CLIPS)
def test_frozen_object_stands_still(index: int) -> None:
    got = segment.track(learn(index), with_frames(index, clip(index).frames[:1].expand(17, -1, -1, -1)))
    assert got.present.all()
    assert np.ptp(got.position, axis=0).max() < 1e-6


@pytest.mark.parametrize("index", [1, 2, 6])
def test_faint_ghost_at_the_start_does_not_move_the_centre(index: int) -> None:
    masks = clip(index).masks
    assert masks is not None
    ghost = 0.2 * masks[0] * (1 - masks)
    frames = clip(index).frames * (1 - ghost[:, None]) + clip(index).frames[:1] * ghost[:, None]
    assert pixels_off(exact(index), segment.track(learn(index), with_frames(index, frames))) < 0.5


@pytest.mark.parametrize("index", [1, 6])
def test_both_halves_of_a_split_object_count(index: int) -> None:
    masks, frames = clip(index).masks, clip(index).frames
    assert masks is not None
    there, one, other = frames[0] * masks[0], torch.roll, masks[0]
    doubled = plate(index).clone()
    shares = [one(other, shift, dims=(0, 1)) for shift in ((-15, 3), (-15, 25))]
    for share, shift in zip(shares, ((-15, 3), (-15, 25)), strict=True):
        doubled = doubled * (1 - share) + one(there, shift, dims=(1, 2))
    clip_of_two = with_frames(index, torch.stack([frames[0], *[doubled] * 16]))
    got = segment.track(learn(index), clip_of_two)
    assert got.area[8] == pytest.approx(2 * got.area[0], rel=0.1)
    assert got.position[8] == pytest.approx(
        exact(index, torch.stack([sum(shares, torch.zeros(64, 64))])).position[0], abs=0.01
    )


def test_jpeg_like_noise_hardly_matters() -> None:
    noise = 0.02 * torch.randn(clip(6).frames.shape, generator=torch.Generator().manual_seed(0))
    assert pixels_off(exact(6), segment.track(learn(6), with_frames(6, clip(6).frames + noise))) < 0.3


def test_other_size_and_missing_masks_are_refused() -> None:
    with pytest.raises(ShapeError, match="32 x 32"):
        segment.track(learn(0), Clip(frames=torch.zeros(3, 3, 32, 32), fps=20.0))
    with pytest.raises(InputError, match="masks"):
        segment.learn_scene(Clip(frames=torch.zeros(3, 3, 32, 32), fps=20.0))
    with pytest.raises(InputError, match="no object"):
        segment.learn_scene(Clip(frames=torch.zeros(3, 3, 32, 32), fps=20.0, masks=torch.zeros(3, 32, 32)))


def test_true_track_is_the_simulators() -> None:
    truth = clip(6).truth
    assert truth is not None
    inner = tracks.inside(true_track(clip(6)).valid)
    measured = tracks.acceleration(true_track(clip(6)).position, clip(6).fps)[inner]
    assert measured == pytest.approx(truth.acceleration.numpy()[inner], abs=2e-3 * 400 / 20)
