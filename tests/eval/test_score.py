"""A score for videos that nobody knows anything about: right where it can be, silent where it can't."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import run_command
from newtonrewards.core.video import write_video
from newtonrewards.eval import score, segment
from newtonrewards.eval.find import lawful_velocities, resting
from newtonrewards.eval.score import Flow, score_clip
from newtonrewards.eval.verdict import VideoScore
from newtonrewards.rewards.flow import EMBEDDED_WEIGHTS, FlowConfig, load_flow
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene


@functools.cache
def clip(index: int) -> Clip:
    return render(sample_scene(5, index, split="val"))


@pytest.fixture(scope="module")
def flow() -> Flow:
    if not EMBEDDED_WEIGHTS.is_file():
        pytest.skip(f"the embedded flow network has no weights yet ({EMBEDDED_WEIGHTS.name})")
    return functools.cache(lambda: load_flow(FlowConfig()))


def scored(frames: torch.Tensor, flow: Flow | None, fps: float = 20.0) -> VideoScore:
    return score_clip(Clip(frames=frames.clamp(0, 1), fps=fps), None, flow)


@functools.cache
def taken_apart(index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Background of a clip, object on black, and object masks (T, 1, H, W)."""
    masks = clip(index).masks
    assert masks is not None
    plate = torch.from_numpy(segment.learn_scene(clip(index)).plate).permute(2, 0, 1)
    return plate, clip(index).frames * masks[:, None], masks[:, None]


def moved(index: int, shifts: list[tuple[int, int]]) -> torch.Tensor:
    """The clip with its object shifted by (rows, columns) in each frame; its shadow stays on its way."""
    plate, objects, masks = taken_apart(index)
    empty = clip(index).frames * (1 - masks) + plate * masks
    frames = []
    for t, shift in enumerate(shifts):
        mask, thing = torch.roll(masks[t], shift, (1, 2)), torch.roll(objects[t], shift, (1, 2))
        frames.append(empty[t] * (1 - mask) + thing)
    return torch.stack(frames)


@pytest.mark.parametrize("index", [0, 2, 6, 10])  # falls and throws
def test_perfect_motion_is_steady_with_the_right_acceleration(index: int, flow: Flow) -> None:
    got = scored(clip(index).frames, flow)
    truth = clip(index).truth
    assert truth is not None
    assert got.verdict == "steady", got.reason
    assert got.confidence > 0.5
    assert got.window is not None
    assert got.window[1] <= int(clip(index).valid.sum()) + 1  # type: ignore[union-attr]
    assert got.acceleration == pytest.approx(truth.acceleration[1].tolist(), abs=0.35)


def test_jitter_and_teleport_are_unsteady(flow: Flow) -> None:
    rng = np.random.default_rng(0)
    jitter = [(int(a), int(b)) for a, b in rng.integers(-3, 4, (17, 2))]
    assert scored(moved(2, jitter), flow).verdict == "unsteady"
    jump = scored(moved(2, [(0, 0)] * 7 + [(-14, 6)] * 10), flow)
    assert jump.verdict == "unsteady"
    assert "jumps between the frames 6 and 7" in jump.reason


def test_a_vanished_object_is_lost(flow: Flow) -> None:
    plate, _, masks = taken_apart(2)
    frames = clip(2).frames.clone()
    frames[8:] = frames[8:] * (1 - masks[8:]) + plate * masks[8:]
    got = scored(frames, flow)
    assert got.verdict == "object lost"
    assert "frame 8" in got.reason


def test_a_static_clip_never_gets_a_good_score(flow: Flow) -> None:
    for frames in (clip(2).frames[:1].expand(17, -1, -1, -1), torch.full((9, 3, 32, 32), 0.5)):
        got = scored(frames, flow)
        assert got.verdict == "cannot tell"
        assert got.reason == "nothing moves"
        assert (got.confidence, got.residual, got.acceleration) == (0, None, None)


def test_noise_and_a_moving_camera_cannot_be_told(flow: Flow) -> None:
    noise = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert scored(noise, flow).verdict == "cannot tell"
    pan = torch.stack([torch.roll(clip(0).frames[0], 3 * t, 2) for t in range(12)])
    assert scored(pan, flow).verdict == "cannot tell"


def test_slow_motion_is_measured_in_physical_time() -> None:
    fast, slow = (scored(clip(2).frames, None, fps) for fps in (20.0, 40.0))
    assert fast.acceleration_size is not None
    assert slow.acceleration_size == pytest.approx(4 * fast.acceleration_size)
    assert slow.acceleration_px == pytest.approx(fast.acceleration_px)


def test_growth_shows(flow: Flow) -> None:
    plate, objects, masks = taken_apart(11)
    sized = []
    for t in range(12):
        factor = 1 + 0.06 * t
        large = [
            torch.nn.functional.interpolate(x[None], scale_factor=factor, mode="bilinear")[0]
            for x in (masks[t], objects[t])
        ]
        cut = (large[0].shape[-1] - 64) // 2
        mask, thing = (x[:, cut : cut + 64, cut : cut + 64] for x in large)
        sized.append(plate * (1 - mask) + thing)
    got = scored(torch.stack(sized), flow)
    assert got.area_change is not None
    assert got.area_change > 0.2


def test_given_masks_are_used(tmp_path: Path) -> None:
    masks = clip(8).masks
    assert masks is not None
    write_video(tmp_path / "ramp.mp4", clip(8).frames, 20.0)
    np.savez(tmp_path / "ramp.npz", masks=(masks * 255).round().to(torch.uint8).numpy())
    got = score.score_video(tmp_path / "ramp.mp4", score.Options(masks=tmp_path), None)
    truth = clip(8).truth
    assert truth is not None
    assert got.source == "mask"
    assert got.acceleration == pytest.approx(truth.acceleration[1].tolist(), abs=0.3)


def test_bad_files_are_named_and_the_others_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "good.mp4", clip(2).frames, 10.0)
    write_video(tmp_path / "single.mp4", clip(2).frames[:1], 10.0)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not looked at")
    out = tmp_path / "scores.jsonl"
    assert run_command(score.main, [str(tmp_path), "--flow", "none", "--capture-fps", "20", "--out", str(out)]) == 1
    told = capsys.readouterr()
    for name in ("single.mp4", "text.mp4", "empty.mp4"):
        assert f"{tmp_path / name}:" in told.err
    assert "good.mp4" in told.out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 1
    assert rows[0]["verdict"] == "steady"
    assert rows[0]["where"]["fps"] == 20
    assert any("20 fps of physical time" in step for step in rows[0]["where"]["preprocessing"])


def test_a_folder_without_videos_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(score.main, [str(tmp_path)]) == 2
    assert "no video" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["score", "evaluate", "report"])
def test_it_runs_without_diffusers(module: str) -> None:
    code = (
        f"import sys, newtonrewards.eval.{module}; sys.exit(bool({{'diffusers', 'transformers'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rest_is_no_law() -> None:
    velocity = np.concatenate([np.linspace([0.5, 0], [0.5, 1.4], 10), np.zeros((12, 2))])
    assert resting(velocity, 20.0, 64).tolist() == [False] * 10 + [True] * 12
    window = lawful_velocities(velocity, 20.0, 64)
    assert (window.start, window.stop) == (0, 10)  # the longer stretch of standing still doesn't count
    turn = np.linspace([0, 1.0], [0, -1.0], 12)
    assert not resting(turn, 20.0, 64).any()


VIDEOS = os.environ.get("NEWTONREWARDS_VIDEOS")


@pytest.mark.skipif(not VIDEOS, reason="set NEWTONREWARDS_VIDEOS to a folder with real_throw_trflorian.mp4")
def test_real_ball_has_its_measured_acceleration(flow: Flow) -> None:
    got = score.score_video(Path(VIDEOS or "") / "real_throw_trflorian.mp4", score.Options(), flow)
    assert got.acceleration is not None
    assert got.acceleration[1] == pytest.approx(10160 / 720, rel=0.1)  # measured by its colour, px/s^2 over the height
    assert got.verdict == "steady"
