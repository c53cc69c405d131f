"""What a score must not depend on: size, frame rate, mirror, colour; and what must turn and scale with the picture.

Simulated falls and throws at 128 px, drawn twice the usual size. Tolerances: accelerations to .12 H/s^2 and 6 % (a
tenth of a pixel at 20 fps is .1 H/s^2 over ten frames), verdicts the same, scores to .1; to .2 where every
second frame is left out, because the noise of the centres then weighs less in the unsteadiness.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.eval.measure import measure_clip
from newtonrewards.eval.video_score import VideoScore
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

FPS = 40.0
CLIPS = [2, 10]


@functools.cache
def film(index: int, size: int = 128) -> Tensor:
    """(33, 3, size, size) of a fall or a throw, .8 s at 40 fps."""
    scene = sample_scene(5, index, split="val")
    return render(replace(scene, size_px=size, num_frames=33, capture_fps=FPS)).frames


def scored(frames: Tensor, fps: float = FPS) -> VideoScore:
    return measure_clip(Clip(frames=frames.contiguous().clamp(0, 1), fps=fps), None, None).score


@functools.cache
def plain(index: int) -> VideoScore:
    return scored(film(index))


def vector(score: VideoScore) -> Tensor:
    assert score.acceleration is not None
    return torch.tensor([score.acceleration.x, score.acceleration.y])


def same(got: VideoScore, index: int, expected: Tensor | None = None, error: float = 0.12, apart: float = 0.1) -> None:
    """The verdict and score of the clip as it is, and `expected` or its acceleration."""
    before = plain(index)
    assert before.score is not None
    expected = vector(before) if expected is None else expected
    assert got.verdict == before.verdict == "lawful", got.reasons
    assert torch.linalg.vector_norm(vector(got) - expected) < error + 0.06 * torch.linalg.vector_norm(expected)
    assert got.score == pytest.approx(before.score, abs=apart)


@pytest.mark.parametrize("index", CLIPS)
def test_acceleration_is_the_simulators(index: int) -> None:
    truth = render(replace(sample_scene(5, index, split="val"), num_frames=33, capture_fps=FPS)).truth
    assert truth is not None
    same(plain(index), index, truth.acceleration[1].float())


@pytest.mark.slow
@pytest.mark.parametrize("index", CLIPS)
def test_the_size_of_the_picture_changes_nothing(index: int) -> None:
    same(scored(film(index, 256)), index)


@pytest.mark.parametrize("index", CLIPS)
def test_half_the_frames_change_nothing(index: int) -> None:
    same(scored(film(index)[::2], FPS / 2), index, apart=0.2)


@pytest.mark.parametrize("index", CLIPS)
def test_a_mirror_turns_the_sign_of_x_alone(index: int) -> None:
    same(scored(film(index).flip(-1)), index, vector(plain(index)) * torch.tensor([-1.0, 1.0]), error=0.02)


@pytest.mark.parametrize("index", CLIPS)
@pytest.mark.parametrize("quarters", [1, 2])
def test_acceleration_turns_with_the_picture(index: int, quarters: int) -> None:
    """A quarter turn to the left takes (x, y) to (y, -x), in an image whose y points down."""
    expected = vector(plain(index))
    for _ in range(quarters):
        expected = torch.stack([expected[1], -expected[0]])
    same(scored(torch.rot90(film(index), quarters, (-2, -1))), index, expected, error=0.02)


@pytest.mark.parametrize("index", CLIPS)
@pytest.mark.parametrize("factor", [1.5])
def test_acceleration_shrinks_with_the_picture_in_a_larger_frame(index: int, factor: float) -> None:
    """The picture in the middle of a grey frame `factor` times as high: the same motion in a larger H."""
    height = round(128 * factor)
    frames = torch.full((33, 3, height, height), 0.5)
    edge = (height - 128) // 2
    frames[..., edge : edge + 128, edge : edge + 128] = film(index)
    got = scored(frames)
    assert got.verdict == "lawful", got.reasons
    assert torch.linalg.vector_norm(vector(got) * height / 128 - vector(plain(index))) < 0.15


@hypothesis.settings(max_examples=5)
@given(
    index=st.sampled_from(CLIPS),
    gamma=st.floats(0.75, 1.35),
    light=st.floats(0.7, 1.0),
    tint=st.tuples(*[st.floats(0.85, 1.0)] * 3),
)
def test_colour_gamma_and_brightness_change_nothing(
    index: int, gamma: float, light: float, tint: tuple[float, float, float]
) -> None:
    changed = (film(index) ** gamma) * light * torch.tensor(tint)[:, None, None]
    same(scored((changed * 255).round() / 255), index)


@pytest.mark.parametrize("index", CLIPS)
def test_time_twice_as_fast_is_four_times_the_acceleration(index: int) -> None:
    same(scored(film(index), 2 * FPS), index, 4 * vector(plain(index)))
