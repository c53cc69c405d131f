"""What the law of a named motion demands of a fitted line, and what a scale adds to it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import run_command
from newtonrewards.core.video import write_video
from newtonrewards.eval import score
from newtonrewards.eval.laws import LawFit, broken
from newtonrewards.eval.measure import Flow, measure_clip
from newtonrewards.eval.scale import READ_OFF, Metres, Scale
from newtonrewards.eval.video_score import Motion
from newtonrewards.simulation.corrupt import corrupt
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene

G = 9.81


def line(start: tuple[float, float], acceleration: tuple[float, float]) -> LawFit:
    """Half a second of motion, in m and s."""
    return LawFit(np.array(start, float), np.array(acceleration, float), error=0.01, seconds=0.5, rms=0.02)


def in_heights(fit: LawFit, metres: float) -> LawFit:
    return LawFit(fit.start / metres, fit.acceleration / metres, fit.error / metres, fit.seconds, fit.rms / metres)


@given(st.floats(0.1, 30), st.floats(0, 5), st.floats(-4, 4))
def test_what_falls_with_g_is_lawful_at_any_scale(metres: float, down: float, across: float) -> None:
    fall, throw = line((0, down), (0, G)), line((across, -down), (0, G))
    assert not broken("fall", in_heights(fall, metres), Metres(metres, READ_OFF))
    assert not broken("throw", in_heights(throw, metres), Metres(metres, READ_OFF))


@given(st.floats(0.1, 30), st.floats(0.1, 0.65) | st.floats(1.35, 4))
def test_another_g_is_found_out_by_a_scale_only(metres: float, share: float) -> None:
    fall = in_heights(line((0, 0), (0, share * G)), metres)
    assert not broken("fall", fall)
    (reason,) = broken("fall", fall, Metres(metres, READ_OFF))
    assert f"{share * G:.1f} m/s²" in reason


def slope(degrees: float, speed: float, pull: float) -> LawFit:
    """Along a slope that goes down to the right, with so many m/s and m/s^2, down positive."""
    way = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    return LawFit(speed * way, pull * way, error=0.01, seconds=0.3, rms=0.02)


@given(st.floats(10, 60), st.floats(0, 1), st.floats(0.1, 20))
def test_down_a_ramp_friction_may_do_anything_but_push(degrees: float, friction: float, metres: float) -> None:
    angle = math.radians(degrees)
    pull = G * (math.sin(angle) - friction * math.cos(angle))
    assert not broken("ramp", in_heights(slope(degrees, 3.0, pull), metres), Metres(metres, READ_OFF))


@given(st.floats(10, 60), st.sampled_from([0.5, 0.6, 5 / 7, 1.0]), st.floats(0, 1), st.floats(0.1, 20))
def test_up_a_ramp_gravity_brakes_and_friction_besides(
    degrees: float, rolling: float, friction: float, metres: float
) -> None:
    """A hoop, a hollow ball and a ball that roll; a box that slides."""
    angle = math.radians(degrees)
    brake = G * (math.sin(angle) * rolling if rolling < 1 else math.sin(angle) + friction * math.cos(angle))
    assert not broken("ramp", in_heights(slope(degrees, -8.0, brake), metres), Metres(metres, READ_OFF))


@pytest.mark.parametrize(("speed", "share", "reason"), [(1.0, 1.8, "without friction"), (-8.0, 0.2, "gravity alone")])
def test_a_ramp_that_pushes_or_lets_go_is_found_out(speed: float, share: float, reason: str) -> None:
    fit = slope(30.0, speed, share * G * math.sin(math.radians(30)))
    assert not broken("ramp", fit)
    assert reason in broken("ramp", fit, Metres(1.0, READ_OFF))[0]


def scene_of(primitive: str) -> Scene:
    return sample_scene(5, 3, split="val", primitive=primitive)


def metres_of(clip: Clip) -> float:
    assert clip.truth is not None
    return clip.truth.metres_per_height


@pytest.mark.weights
@pytest.mark.parametrize(("primitive", "motion"), [("free_fall", "fall"), ("horizontal_throw", "throw")])
def test_a_clip_whose_g_is_half_as_large_is_found_out(primitive: str, motion: Motion, flow: Flow) -> None:
    scene = scene_of(primitive)
    scale = Scale(metres_of(render(scene)))
    right, wrong = (
        measure_clip(corrupt(scene, "wrong_g", s), None, flow, motion, scale=scale).score for s in (0.0, 0.7)
    )
    assert right.verdict == "lawful", right.reasons
    assert right.acceleration_metres == pytest.approx(G, rel=0.1)
    assert wrong.verdict == "unlawful"
    assert "not 9.8" in "; ".join(wrong.reasons)


def test_the_width_of_the_object_is_a_scale() -> None:
    clip = render(scene_of("free_fall"))
    assert clip.masks is not None
    area = clip.masks.sum((1, 2)).numpy() / clip.masks.shape[-1] ** 2
    wide = 2 * math.sqrt(float(np.median(area)) / math.pi) * metres_of(clip)
    got = measure_clip(clip, clip.masks.numpy(), None, "fall", scale=Scale(object_metres=wide)).score
    assert got.metres_per_height == pytest.approx(metres_of(clip), rel=0.05)
    assert got.acceleration_metres == pytest.approx(G, rel=0.1)


def test_the_command_takes_a_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = render(scene_of("free_fall"))
    write_video(tmp_path / "fall.mp4", clip.frames, clip.fps)
    plain = [str(tmp_path / "fall.mp4"), "--motion", "fall", "--flow", "none", "--workers", "0", "--no-report"]
    doubled = [*plain, "--metres-per-height", str(2 * metres_of(clip)), "--out", str(tmp_path / "out")]
    assert run_command(score.main, doubled) == 0
    record = json.loads((tmp_path / "out" / "scores.jsonl").read_text())
    assert record["acceleration_metres"] == pytest.approx(2 * G, rel=0.15)
    assert record["metres_per_height"] == pytest.approx(2 * metres_of(clip))
    assert "m/s², not 9.8" in "; ".join(record["reasons"])
    track = ["--tracks", str(tmp_path / "track.csv"), "--object-metres", "0.1"]
    assert run_command(score.main, [*plain, *track]) == 2
    assert "--metres-per-height" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score.main([*plain, "--object-metres", "0"])
    assert "is not a number above 0" in capsys.readouterr().err
