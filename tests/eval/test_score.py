"""A score for videos that nobody knows anything about: right where it can be, silent where it can't."""

from __future__ import annotations

import csv
import functools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.video import write_video
from newtonrewards.eval import measure as measuring
from newtonrewards.eval import score, segment
from newtonrewards.eval.find import lawful_velocities, resting
from newtonrewards.eval.measure import Flow, Options, measure_clip, measure_video
from newtonrewards.eval.score_store import read_scores
from newtonrewards.eval.video_score import Motion, VideoFailure, VideoScore, columns
from newtonrewards.simulation.corrupt import corrupt
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene


@functools.cache
def clip(index: int) -> Clip:
    return render(sample_scene(5, index, split="val"))


def scored(frames: torch.Tensor, flow: Flow | None, fps: float = 20.0, motion: Motion = "auto") -> VideoScore:
    return measure_clip(Clip(frames=frames.clamp(0, 1), fps=fps), None, flow, motion).score


def vector(score: VideoScore) -> tuple[float, float]:
    assert score.acceleration is not None
    return score.acceleration.x, score.acceleration.y


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
    assert got.verdict == "lawful", got.reasons
    assert got.confidence > 0.5
    assert got.window is not None
    assert got.window[1] <= int(clip(index).valid.sum()) + 1  # type: ignore[union-attr]
    assert vector(got) == pytest.approx(truth.acceleration[1].tolist(), abs=0.35)
    assert got.score is not None
    assert got.score > 0.6


def test_jitter_and_teleport_are_unsteady(flow: Flow) -> None:
    rng = np.random.default_rng(0)
    jitter = [(int(a), int(b)) for a, b in rng.integers(-3, 4, (17, 2))]
    assert scored(moved(2, jitter), flow).verdict == "unlawful"
    jump = scored(moved(2, [(0, 0)] * 7 + [(-14, 6)] * 10), flow)
    assert jump.verdict == "unlawful"
    assert "jumps between the frames 6 and 7" in jump.reasons[0]
    assert jump.score is not None
    assert jump.score < 0.5


def test_a_vanished_object_is_lost(flow: Flow) -> None:
    plate, _, masks = taken_apart(2)
    frames = clip(2).frames.clone()
    frames[8:] = frames[8:] * (1 - masks[8:]) + plate * masks[8:]
    got = scored(frames, flow)
    assert got.verdict == "unlawful"
    assert "gone from frame 8 on" in got.reasons[0]


def test_a_static_clip_never_gets_a_good_score(flow: Flow) -> None:
    for frames in (clip(2).frames[:1].expand(17, -1, -1, -1), torch.full((9, 3, 32, 32), 0.5)):
        got = scored(frames, flow)
        assert got.verdict == "cannot_tell"
        assert got.reasons == ["nothing moves"]
        assert (got.confidence, got.score, got.kinematic_residual, got.acceleration) == (0, None, None, None)


def test_noise_and_a_moving_camera_cannot_be_told(flow: Flow) -> None:
    noise = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert scored(noise, flow).verdict == "cannot_tell"
    pan = torch.stack([torch.roll(clip(0).frames[0], 3 * t, 2) for t in range(12)])
    assert scored(pan, flow).verdict == "cannot_tell"


def canvas(seed: int, size: int) -> torch.Tensor:
    """(3, size, size): a wall with blots of many sizes, on which a camera can be followed."""
    generator = torch.Generator().manual_seed(seed)
    wall = torch.full((1, 3, size, size), 0.5)
    for cells, share in ((8, 0.15), (24, 0.12), (64, 0.1)):
        blots = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
        wall = wall + 2 * share * torch.nn.functional.interpolate(blots, (size, size), mode="bicubic")
    return wall[0].clamp(0, 1)


def test_a_hand_held_camera_is_held_still(flow: Flow) -> None:
    """A fall before a wall, filmed by a camera that pans: the same acceleration as from a tripod."""
    wall, frames = canvas(0, 220), []
    rows, columns_ = torch.meshgrid(torch.arange(220) + 0.5, torch.arange(220) + 0.5, indexing="ij")
    for t in range(20):
        mask = (11.5 - torch.hypot(columns_ - 110, rows - (60 + 0.22 * t * t))).clamp(0, 1)
        scene = wall * (1 - mask) + mask * torch.tensor([0.95, 0.2, 0.1])[:, None, None]
        left, top = 20 + round(1.6 * t), 24 + round(5 * np.sin(t / 4))
        frames.append(scene[:, top : top + 160, left : left + 160])
    got = scored(torch.stack(frames), flow)
    assert any("camera motion removed" in step for step in got.preprocessing)
    assert got.verdict == "lawful", got.reasons
    assert vector(got) == pytest.approx((0.0, 0.44 * 20**2 / 160), abs=0.08)


def test_slow_motion_is_measured_in_physical_time() -> None:
    fast, slow = (scored(clip(2).frames, None, fps) for fps in (20.0, 40.0))
    assert fast.acceleration_magnitude is not None
    assert slow.acceleration_magnitude == pytest.approx(4 * fast.acceleration_magnitude)
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
    got = measure_video(tmp_path / "ramp.mp4", Options(masks=tmp_path), None).score
    truth = clip(8).truth
    assert truth is not None
    assert got.source == "mask"
    assert vector(got) == pytest.approx(truth.acceleration[1].tolist(), abs=0.3)


def test_bad_files_are_named_and_the_others_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "good.mp4", clip(2).frames, 10.0)
    write_video(tmp_path / "single.mp4", clip(2).frames[:1], 10.0)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    command = [str(tmp_path), "--flow", "none", "--playback-fps", "20", "--out", str(out)]
    assert run_command(score.main, command) == 1
    told = capsys.readouterr()
    for name in ("single.mp4", "text.mp4", "empty.mp4"):
        assert f"{tmp_path / name}:" in told.err
    assert "good.mp4" in told.out
    rows = {Path(row["file"]).name: row for row in map(json.loads, (out / "scores.jsonl").read_text().splitlines())}
    assert set(rows) == {"good.mp4", "single.mp4", "text.mp4", "empty.mp4"}
    assert rows["good.mp4"]["verdict"] == "lawful"
    assert rows["good.mp4"]["fps"] == 20
    assert any("20 fps of physical time" in step for step in rows["good.mp4"]["preprocessing"])
    assert rows["text.mp4"]["verdict"] == "cannot_tell"
    assert "text.mp4" in rows["text.mp4"]["error"]
    with (out / "scores.csv").open() as file:
        table = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert list(next(iter(table.values()))) == columns()
    assert float(table["good.mp4"]["acceleration_y"]) == pytest.approx(rows["good.mp4"]["acceleration"]["y"])
    assert table["empty.mp4"]["error"]
    page = (out / "report.html").read_text()
    assert "good.mp4" in page
    films = list((out / "overlays").glob("*.mp4"))
    assert [film.name.split(".")[0] for film in films] == ["good"]
    assert f'src="overlays/{films[0].name}"' in page


FAULTY = """
    import os, signal, sys, time
    from newtonrewards.eval import score
    whole = score.measure_video
    def faulty(path, *rest):
        if path.stem == "abort":  # as a decoder does that trips over its own memory
            os.abort()
        if path.stem == "killed":  # as the kernel does when memory is used up
            os.kill(os.getpid(), signal.SIGKILL)
        if path.stem == "hang":
            time.sleep(600)
        return whole(path, *rest)
    score.measure_video = faulty
    sys.exit(score.main(sys.argv[1:]))
"""


def test_a_crash_and_a_hang_cost_one_video_each(tmp_path: Path) -> None:
    """Through the whole command; run again with the fault gone, it does what is missing."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in ("abort", "after", "hang", "killed", "last"):
        write_video(videos / f"{name}.mp4", falling((0.1, 0.0), (0.0, 1.4))[:6, :, ::2, ::2], 20.0)
    command = [str(videos), "--flow", "none", "--no-report", "--out", str(out), "--workers", "2"]
    code = [sys.executable, "-c", textwrap.dedent(FAULTY), *command, "--time-limit", "15"]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "3 of 5 files could not be scored" in done.stderr
    assert "Traceback" not in done.stderr
    rows = {Path(record.file).stem: record for record in read_scores(out)}
    errors = {name: record.error for name, record in rows.items() if isinstance(record, VideoFailure)}
    assert set(rows) == {"abort", "after", "hang", "killed", "last"}
    assert set(errors) == {"abort", "hang", "killed"}
    for name, words in (("abort", "SIGABRT"), ("hang", "longer than 15 s"), ("killed", "want of memory")):
        assert errors[name].startswith(str(videos / f"{name}.mp4"))
        assert words in errors[name]
    assert score.main([*command[:-1], "0"]) == 0
    assert all(isinstance(record, VideoScore) for record in read_scores(out))


@pytest.mark.slow
def test_odd_and_damaged_files_cost_themselves_only() -> None:
    """The first 60 of the thousand of `benchmarks/fuzz.py`."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(script), "--videos", "60", "--flow", "none", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise was kept" in done.stdout


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


def falling(
    velocity: tuple[float, float],
    acceleration: tuple[float, float],
    size: float = 7.0,
    off: torch.Tensor | None = None,
) -> torch.Tensor:
    """A disc on a plain wall for 17 frames at 20 fps, from (.3, .25) H; velocities in H/s, `off` (17, 2) in px."""
    rows, columns_ = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    wall = 0.4 + 0.1 * torch.sin(columns_ / 5) * torch.cos(rows / 7)
    frames = []
    for k in range(17):
        t = k / 20
        x, y = ((p + v * t + a * t * t / 2) * 64 for p, v, a in zip((0.3, 0.25), velocity, acceleration, strict=True))
        if off is not None:
            x, y = x + float(off[k, 0]), y + float(off[k, 1])
        mask = (size + 0.5 - torch.hypot(columns_ - x, rows - y)).clamp(0, 1)
        frames.append((wall * (1 - mask))[None] + mask * torch.tensor([0.9, 0.3, 0.1])[:, None, None])
    return torch.stack(frames)


@pytest.mark.parametrize(
    ("motion", "velocity", "acceleration", "reason"),
    [
        ("fall", (0.0, 0.0), (0.0, 1.4), ""),
        ("fall", (0.0, 0.6), (0.0, 0.0), "keeps its velocity"),
        ("fall", (0.4, 0.0), (0.0, 1.4), "moves sideways"),
        ("fall", (0.0, 0.0), (0.8, 1.0), "degrees away from straight down"),
        ("fall", (0.0, -0.5), (0.0, 1.6), "starts upwards"),
        ("throw", (0.4, -0.4), (0.0, 1.6), ""),
        ("throw", (0.3, 0.4), (0.0, 0.0), "nothing pulls it down"),
        ("throw", (0.0, 0.6), (0.8, -0.3), "degrees away"),
        ("ramp", (0.2, 0.2), (0.5, 0.5), ""),
        ("ramp", (0.4, 0.0), (0.0, 1.2), "the way bends"),
        ("auto", (0.4, 0.0), (0.0, 1.2), ""),
        ("auto", (0.0, 0.6), (0.0, 0.0), ""),
    ],
)
def test_each_motion_has_its_own_law(
    motion: Motion, velocity: tuple[float, float], acceleration: tuple[float, float], reason: str, flow: Flow
) -> None:
    got = scored(falling(velocity, acceleration), flow, motion=motion)
    assert vector(got) == pytest.approx(acceleration, abs=0.12)
    assert got.verdict == ("unlawful" if reason else "lawful"), got.reasons
    assert reason in "; ".join(got.reasons)


def test_a_track_from_a_file_is_used(tmp_path: Path) -> None:
    write_video(tmp_path / "fall.mp4", falling((0.1, 0.0), (0.0, 1.4)), 20.0)
    track = ["# by hand", "file,frame,x_px,y_px"]
    track += [f"fall,{t},{19.2 + 0.32 * t},{16 + 64 * 0.9 * (t / 20) ** 2 / 2}" for t in range(17)]
    (tmp_path / "tracks.csv").write_text("\n".join([*track, "other,3,1,1"]))
    got = measure_video(tmp_path / "fall.mp4", Options(tracks=tmp_path / "tracks.csv"), None).score
    assert vector(got) == pytest.approx((0.0, 0.9), abs=0.02)  # what the track says, not what the video shows
    (tmp_path / "tracks.csv").write_text("frame,x\n1,2\n")
    with pytest.raises(InputError, match=r"tracks\.csv: no column x_px, y_px"):
        measure_video(tmp_path / "fall.mp4", Options(tracks=tmp_path / "tracks.csv"), None)


def test_a_long_video_is_looked_at_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: Flow) -> None:
    """A fall after a long rest: found in its stretch, at its own frame numbers, with the memory of one stretch."""
    fall = falling((0.0, 0.0), (0.0, 1.4))
    write_video(tmp_path / "long.mp4", torch.cat([fall[:1].expand(45, -1, -1, -1), fall]), 20.0)
    longest: list[int] = []
    measure = measuring.measure_clip
    monkeypatch.setattr(measuring, "STRETCH", 30)
    monkeypatch.setattr(measuring, "OVERLAP", 12)
    monkeypatch.setattr(
        measuring, "measure_clip", lambda clip, *rest: (longest.append(clip.num_frames), measure(clip, *rest))[1]
    )
    got = measure_video(tmp_path / "long.mp4", Options(), flow).score
    assert max(longest) == 30
    assert got.first_frame == 36
    assert got.window is not None
    assert 45 <= got.window[0] <= 48
    assert got.window[1] == 61
    assert vector(got) == pytest.approx((0.0, 1.4), abs=0.15)
    assert f"frames {got.window[0]} to 61" in got.reasons[0]
    assert any("left out the first 36 of 62 frames" in step for step in got.preprocessing)


def test_shards_meet_and_a_second_start_only_does_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_video(videos / f"{number}.mp4", falling((0.1 * number, 0.0), (0.0, 1.4)), 20.0)
    command = [str(videos), "--flow", "none", "--no-report", "--workers", "0", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert score.main([*command, str(whole)]) == 0
    assert score.main([*command, str(parts), "--shard", "1/2"]) == 0
    assert not (parts / "scores.csv").exists()
    assert score.main([*command, str(parts), "--shard", "0/2"]) == 0
    for name in ("scores.jsonl", "scores.csv"):
        assert (parts / name).read_text() == (whole / name).read_text()
    seen: list[Path] = []
    measure = score.measure_video
    monkeypatch.setattr(score, "measure_video", lambda path, *rest: (seen.append(path), measure(path, *rest))[1])
    write_video(videos / "1.mp4", falling((0.3, 0.0), (0.0, 1.0)), 20.0)
    assert score.main([*command, str(whole)]) == 0
    assert [path.name for path in seen] == ["1.mp4"]
    changed = {Path(record.file).stem: record for record in read_scores(whole)}["1"]
    assert isinstance(changed, VideoScore)
    assert vector(changed) == pytest.approx((0.0, 1.0), abs=0.12)
    with pytest.raises(InputError, match=r"other settings \(fps\)"):
        score.main([*command, str(whole), "--fps", "10"])


def test_before_and_after_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for side, shake in (("before", 3.0), ("after", 0.0)):
        (tmp_path / side).mkdir()
        for number in range(4):
            off = torch.from_numpy(shake * rng.uniform(-1, 1, (17, 2)))
            write_video(tmp_path / side / f"{number}.mp4", falling((0.1 * number, 0.0), (0.0, 1.4), off=off), 20.0)
    out = tmp_path / "out"
    command = [str(tmp_path / "after"), "--reference", str(tmp_path / "before"), "--flow", "none", "--out", str(out)]
    assert score.main(command) == 0
    rows = {row["name"]: row for row in json.loads((out / "comparison.json").read_text())}
    assert rows["lawful"]["before"] < rows["lawful"]["after"] == 1
    assert "Against the reference" in (out / "report.html").read_text()
    (tmp_path / "before" / "0.mp4").rename(tmp_path / "before" / "9.mp4")
    for number in (1, 2, 3):
        (tmp_path / "before" / f"{number}.mp4").unlink()
    command[-1] = str(tmp_path / "other")
    with pytest.raises(InputError, match="no video has the name"):
        score.main(command)


VIDEOS = os.environ.get("NEWTONREWARDS_VIDEOS")


@pytest.mark.skipif(not VIDEOS, reason="set NEWTONREWARDS_VIDEOS to a folder with real_throw_trflorian.mp4")
def test_real_ball_has_its_measured_acceleration(flow: Flow) -> None:
    got = measure_video(Path(VIDEOS or "") / "real_throw_trflorian.mp4", Options(), flow).score
    assert vector(got)[1] == pytest.approx(10160 / 720, rel=0.05)  # measured by its colour, px/s^2 over the height
    assert got.verdict == "lawful"
    assert not any("less far than it is wide" in doubt for doubt in got.doubts)


@pytest.mark.skipif(not VIDEOS, reason="set NEWTONREWARDS_VIDEOS to a folder with real_fall_oliverius.mp4")
def test_real_fall_through_a_wide_lens_is_flagged(flow: Flow) -> None:
    got = measure_video(Path(VIDEOS or "") / "real_fall_oliverius.mp4", Options(capture_fps=120), flow).score
    assert got.acceleration_magnitude == pytest.approx(5329 / 1716, rel=0.05)  # px/s^2 over the height
    assert any("not constant in the image" in doubt for doubt in got.doubts)


@pytest.mark.skipif(not VIDEOS, reason="set NEWTONREWARDS_VIDEOS to a folder with ai_fall_videocrafter2_frisbee.gif")
def test_a_generated_object_that_changes_its_colour_is_found_out(flow: Flow) -> None:
    """A dithered gif: a frisbee turns from pink to blue and back."""
    got = measure_video(Path(VIDEOS or "") / "ai_fall_videocrafter2_frisbee.gif", Options(), flow).score
    assert got.verdict == "unlawful"
    assert "flickers" in got.reasons[0]


def dithered(frames: torch.Tensor) -> torch.Tensor:
    """Four of ten pixels of each frame are a little brighter than they should be."""
    bright = torch.rand(frames[:, :1].shape, generator=torch.Generator().manual_seed(0)) < 0.4
    return (frames + 0.08 * bright).clamp(0, 1)


def test_a_picture_that_shimmers_still_shows_what_moves(flow: Flow) -> None:
    right = scored(dithered(falling((0.1, 0.0), (0.0, 1.4))), flow, motion="throw")
    assert right.verdict == "lawful", right.reasons
    assert "most of the picture shimmers" in right.doubts
    assert vector(right) == pytest.approx((0.0, 1.4), abs=0.3)
    moved_all = torch.stack([torch.roll(clip(2).frames[0], (3 * t, 5 * t), (1, 2)) for t in range(12)])
    assert scored(dithered(moved_all), flow).verdict == "cannot_tell"


def test_a_cut_is_no_jump(flow: Flow) -> None:
    """Two shots in one video: the longer motion is judged by itself, and the record says so."""
    bright = (clip(7).frames * 0.5 + 0.5).clamp(0, 1)
    got = scored(torch.cat([clip(2).frames, bright]), flow)
    assert got.verdict == "lawful"
    assert any(step.startswith("cut: ") for step in got.preprocessing)


def test_fading_and_flickering_objects_score_lower(flow: Flow) -> None:
    for index in (2, 6):
        scene = sample_scene(5, index, split="val")
        for name in ("fade", "flicker", "colour"):
            got, right = (measure_clip(corrupt(scene, name, s), None, flow).score for s in (1.0, 0.0))
            assert right.verdict == "lawful" and right.score is not None
            assert (got.score or 0.0) < right.score - 0.1, name
            change, usual = (s.flicker if name == "flicker" else s.colour_change for s in (got, right))
            assert change is not None and usual is not None
            assert change > 3 * usual


def test_a_fade_to_black_is_not_held_against_the_object(flow: Flow) -> None:
    light = torch.linspace(1, 0, 17)[:, None, None, None]
    got = scored(clip(2).frames * light, flow)
    assert got.verdict != "unlawful" and got.confidence < 0.5
    assert any("brightness" in doubt for doubt in got.doubts)


def test_slow_motion_is_looked_at_in_larger_steps(flow: Flow) -> None:
    scene = replace(sample_scene(5, 2, split="val"), num_frames=129, capture_fps=160.0)
    shown = render(scene)
    assert shown.truth is not None
    got = measure_clip(replace(shown, masks=None, truth=None), None, flow, "throw").score
    assert got.verdict == "lawful"
    assert any("moves slowly" in step for step in got.preprocessing)
    assert vector(got)[1] == pytest.approx(float(shown.truth.acceleration[1, 1]), rel=0.1)
