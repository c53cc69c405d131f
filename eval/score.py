"""`newtonrewards score`: does the object in a video move by one law? For any video files, without truth or masks.

Two instruments look at each video: masks (silhouettes against the still background, or the object's colours) and
optical flow. Kinematics come from the one that follows a law for longer; how well they agree is the confidence. A video
in which nothing moves, or in which the motion can't be measured, gets the verdict `cannot tell` and no good score.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich import box
from rich.console import Console
from rich.table import Table

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, NewtonError, run_command
from newtonrewards.core.run import append_jsonl, write_atomic
from newtonrewards.core.video import read_clip
from newtonrewards.eval.find import Found, find_object, lawful_velocities
from newtonrewards.eval.look import Seen, look
from newtonrewards.eval.results import finite
from newtonrewards.eval.tracks import centroid
from newtonrewards.eval.verdict import Evidence, VideoScore, Where, agreement, disagreement, judge
from newtonrewards.rewards import kinematics, mass, sentinels
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, load_flow
from newtonrewards.rewards.window import Window

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v"}
# A video is made smaller until a frame holds no more pixels than this (320 x 200): silhouettes need no more.
PIXELS = 64_000
MAX_BYTES = 2**30
FLOW_HANDICAP = 2

Flow = Callable[[], RaftFlow]


@dataclass(frozen=True)
class Options:
    """How videos are read; see `core.video.read_clip`.

    Attributes:
        fps: resample to this physical rate. capture_fps: rate at which the frames were taken (slow motion).
        num_frames: keep the first so many.
        masks: folder with NAME.npz (`masks`, (T, H, W), 0 to 1 or 0 to 255) for videos NAME.*, or None.
    """

    fps: float | None = None
    capture_fps: float | None = None
    num_frames: int | None = None
    masks: Path | None = None


def score_video(path: Path, options: Options, flow: Flow | None) -> VideoScore:
    """Measure one file.

    Args:
        path: the video.
        options: how to read it.
        flow: gives the flow network when it is first needed; None: silhouettes alone.
    Raises:
        InputError: no readable video of at least two frames, or masks that don't fit.
    """
    clip = _read(path, options)
    given = None if options.masks is None else _given_masks(options.masks / f"{path.stem}.npz", clip)
    return score_clip(clip, given, flow)


def score_clip(clip: Clip, masks: Float[np.ndarray, "T H W"] | None, flow: Flow | None) -> VideoScore:
    """Measure a clip in memory; `masks` if they are known. See `score_video`."""
    frames = np.ascontiguousarray(clip.frames.permute(0, 2, 3, 1).numpy())
    found = find_object(frames, float(clip.fps)) if masks is None else _known(masks)
    views = {} if found.reason else {"mask" if masks is not None else "silhouette": found.soft}
    seen = None if found.reason or flow is None else look(clip, found, flow(), given=masks is not None)
    if seen is not None and seen.colour is not None:
        views["colour"] = seen.colour
    pairs = [list(_instruments(clip, name, soft, seen)) for name, soft in views.items()]
    pair = max(pairs, key=_worth, default=[])
    # Flow reads a little low: it wins only where the centres follow a law for clearly less long.
    best = max(pair, key=lambda one: len(one.window) - (FLOW_HANDICAP if one.kind == "flow" else 0), default=None)
    evidence = _evidence(clip, frames, found, best, pair)
    where = Where(
        file=clip.source.path,
        sha256=clip.source.sha256,
        fps=float(clip.fps),
        playback_fps=clip.source.playback_fps,
        num_frames=clip.num_frames,
        height=frames.shape[1],
        width=frames.shape[2],
        preprocessing=list(clip.source.preprocessing),
    )
    numbers = _numbers(clip, evidence, None if seen is None or best is None else seen.features_over(best.soft))
    return VideoScore(where=where, **judge(evidence), **numbers)


@dataclass(frozen=True, eq=False)
class Instrument:
    """One way to measure velocity: centres of masks, or flow under masks.

    Attributes:
        name: of the masks, with `flow under` where flow was read. kind: `centre` or `flow`.
        soft: (T, H, W) the masks. velocity: (N, 2) H/s. window: its longest lawful stretch in motion.
    """

    name: str
    kind: str
    soft: Float[np.ndarray, "T H W"]
    velocity: Float[np.ndarray, "N 2"]
    window: Window


def _instruments(clip: Clip, name: str, soft: Float[np.ndarray, "T H W"], seen: Seen | None) -> Iterator[Instrument]:
    fps, height = float(clip.fps), clip.frames.shape[-2]
    velocity = np.diff(centroid(soft)[0], axis=0) * fps
    yield Instrument(name, "centre", soft, velocity, lawful_velocities(velocity, fps, height))
    if seen is not None:
        velocity = seen.velocity_under(soft) * fps / height
        yield Instrument(f"flow under {name}", "flow", soft, velocity, lawful_velocities(velocity, fps, height))


def _worth(pair: Sequence[Instrument]) -> float:
    """How long masks let an object follow a law, times how well their centres and the flow under them agree."""
    longest = max(pair, key=lambda one: len(one.window))
    if len(pair) < 2:
        return float(len(longest.window))
    apart = disagreement(pair[0].velocity, pair[1].velocity, longest.window)
    return len(longest.window) * agreement(apart)


def _evidence(
    clip: Clip, frames: np.ndarray, found: Found, best: Instrument | None, instruments: Sequence[Instrument]
) -> Evidence:
    """The best instrument beside the one of the other kind with the same masks."""
    soft = found.soft if best is None else best.soft
    position, area = centroid(soft)
    other = next((one for one in instruments if best and one.soft is best.soft and one.kind != best.kind), None)
    nothing = np.full((clip.num_frames - 1, 2), np.nan)
    return Evidence(
        reason=found.reason,
        source="none" if best is None else best.name,
        window=Window(0, 0, float("nan")) if best is None else best.window,
        velocity=nothing if best is None else best.velocity,
        other=None if other is None else other.velocity,
        position=position,
        area=area,
        last_place_changed=_stays(frames, soft),
        others=found.others,
        fps=float(clip.fps),
        height=frames.shape[1],
        width=frames.shape[2],
    )


def _known(masks: Float[np.ndarray, "T H W"]) -> Found:
    return Found(masks, "" if masks.max() > 0.5 else "the masks are empty", True, 0)


# ---- reading --------------------------------------------------------------------------------------------------------


def _read(path: Path, options: Options) -> Clip:
    """The video, small enough; its size is known after two frames."""
    first = read_clip(path, num_frames=2, capture_fps=options.capture_fps)
    height, width = first.frames.shape[-2:]
    factor = min(1.0, (PIXELS / (height * width)) ** 0.5)
    size = None if factor == 1.0 else (round(height * factor), round(width * factor))
    return read_clip(
        path,
        num_frames=options.num_frames,
        fps=options.fps,
        capture_fps=options.capture_fps,
        size=size,
        max_bytes=MAX_BYTES,
    )


def _given_masks(path: Path, clip: Clip) -> Float[np.ndarray, "T H W"]:
    """Masks from a file, brought to the clip's size."""
    try:
        with np.load(path, allow_pickle=False) as content:
            array = np.asarray(content["masks"])
    except (OSError, ValueError, KeyError) as error:
        fix = "It must hold an array `masks` of shape (T, H, W)."
        raise InputError(f"can't read the masks ({error})", where=path, fix=fix) from None
    if array.ndim != 3 or len(array) < clip.num_frames:
        fix = "Give one mask for each frame, and no --fps, with which frames would be left out."
        raise InputError(f"masks of shape {array.shape} for {clip.num_frames} frames", where=path, fix=fix)
    masks = torch.from_numpy(array[: clip.num_frames].astype(np.float32)) / (255 if array.dtype == np.uint8 else 1)
    size = (clip.frames.shape[-2], clip.frames.shape[-1])
    return torch.nn.functional.interpolate(masks[None], size, mode="area")[0].clamp(0, 1).numpy()


def _stays(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"]) -> bool:
    """Whether something lies to the end where the object was last seen: then it came to rest and didn't vanish."""
    seen = np.flatnonzero((soft > 0.5).any(axis=(1, 2)))
    if not len(seen) or seen[-1] == len(frames) - 1:
        return True
    place = soft[seen[-1]] > 0.5
    return float(np.abs(frames[-1] - frames[seen[-1]])[place].mean()) < 0.5 * float(
        np.abs(frames[0] - frames[seen[-1]])[place].mean()
    )


# ---- numbers --------------------------------------------------------------------------------------------------------


def _numbers(clip: Clip, evidence: Evidence, features: np.ndarray | None) -> dict[str, object]:
    """Kinematics inside the window, and sentinels."""
    frames = clip.frames[None]
    result: dict[str, object] = {
        "saturation": finite(float(sentinels.saturation(frames))),
        "high_frequency": finite(float(sentinels.high_frequency(frames))),
    }
    window, fps = evidence.window, evidence.fps
    if not len(window):
        return result
    velocity = torch.from_numpy(np.nan_to_num(evidence.velocity))[None]
    valid = torch.zeros(1, velocity.shape[1], dtype=torch.bool)
    valid[:, window.start : window.stop] = True
    line = kinematics.fit(velocity, valid, torch.tensor([fps], dtype=torch.float64))
    acceleration = line.acceleration[0].numpy()
    size = float(np.linalg.norm(acceleration))
    # The velocity of frame pair n belongs to the time between its two frames.
    start = line.start[0].numpy() + acceleration * (window.start - 0.5) / fps
    # Both axes together, and per frame interval: how much the acceleration changes from frame to frame.
    residual = float((2 * kinematics.second_difference(velocity, valid)[0]).sqrt()) * fps
    result |= {
        "acceleration": (float(acceleration[0]), float(acceleration[1])),
        "acceleration_size": size,
        "acceleration_px": size * evidence.height / fps**2,
        "start_velocity": (float(start[0]), float(start[1])),
        "residual": residual,
        "residual_relative": residual / size if size > 0.02 else None,
        "fit_rms": float((2 * line.residual[0]).sqrt()),
        "area_change": _area_change(evidence.area, window),
    }
    if features is not None:
        result["mass_conserved"] = _mass_conserved(features, window)
    return result


def _area_change(area: Float[np.ndarray, " T"], window: Window) -> float | None:
    """log of the object's area at the window's end over that at its start, medians of three frames."""
    inside = area[window.start : window.stop + 1]
    first, last = np.median(inside[:3]), np.median(inside[-3:])
    return float(np.log(last / first)) if first > 0 and last > 0 else None


def _mass_conserved(look: Float[np.ndarray, "T C"], window: Window) -> float | None:
    """`rewards.mass.conserved` over the window's frames."""
    pooled = torch.from_numpy(look[window.start : window.stop + 1])[None]
    return finite(float(mass.conserved(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool))[0]))


# ---- command --------------------------------------------------------------------------------------------------------


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files as given, folders searched for videos.

    Raises:
        InputError: a folder without any video.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise InputError("no video in this folder", where=path, fix=f"Known are {', '.join(sorted(SUFFIXES))}.")
        files += inside
    return files


def table(scores: Sequence[VideoScore]) -> Table:
    """One row for each video: acceleration and residual in H/s^2, 1 - cos of the look, log of the area ratio."""
    result = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    heads = ("video", "verdict", "frames", "|a|", "residual", "mass", "area", "sure")
    for head in heads:
        result.add_column(head, justify="right" if head in heads[2:] else "left", overflow="fold")
    for score in scores:
        window = "-" if score.window is None else f"{score.window[0]}-{score.window[1]}"
        mark = {"steady": "green", "unsteady": "red", "object lost": "red"}.get(score.verdict, "dim")
        result.add_row(
            Path(score.where.file).name,
            f"[{mark}]{score.verdict}",
            window,
            _text(score.acceleration_size),
            _text(score.residual),
            _text(score.mass_conserved),
            _text(score.area_change, "{:+.2f}"),
            f"{score.confidence:.0%}",
        )
    return result


def _text(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def _scored(files: Sequence[Path], options: Options, flow: Flow | None) -> Iterator[VideoScore | NewtonError]:
    for file in files:
        try:
            yield score_video(file, options, flow)
        except NewtonError as error:
            yield error


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards score", description=__doc__)
    p.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="video files, or folders that are searched for them"
    )
    p.add_argument("--masks", type=Path, help="folder with NAME.npz (array `masks`, T x H x W) for each video NAME.*")
    p.add_argument("--fps", type=float, help="resample to so many frames per second of physical time")
    p.add_argument("--capture-fps", type=float, help="rate at which the frames were taken, for slow motion")
    p.add_argument("--num-frames", type=int, help="look at the first so many frames only")
    p.add_argument("--flow", default="embedded", choices=("embedded", "raft_small", "raft_large", "none"),
                   help="second instrument (default embedded; none: silhouettes alone, faster)")  # fmt: skip
    p.add_argument("--flow-weights", type=Path, help="weights file, for raft_small and raft_large")
    p.add_argument("--out", type=Path, help="also write one line of JSON for each video to this file")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every video was scored; 1: some files couldn't be, the others are."""
    a = parser().parse_args(argv)
    config = None if a.flow == "none" else FlowConfig(network=a.flow, weights=a.flow_weights)
    flow = None if config is None else functools.cache(lambda: load_flow(config))
    options = Options(a.fps, a.capture_fps, a.num_frames, a.masks)
    files = files_of(a.paths)
    if a.out is not None:
        write_atomic(a.out, "")
    scores, failed = [], 0
    for outcome in _scored(files, options, flow):
        if isinstance(outcome, NewtonError):
            failed += 1
            print(f"error: {outcome}", file=sys.stderr)
            continue
        scores.append(outcome)
        if a.out is not None:
            append_jsonl(a.out, outcome.model_dump(mode="json"))
    console = Console()
    console.print(table(scores))
    for score in scores:
        doubts = f" ({'; '.join(score.doubts)})" if score.doubts and score.doubts != [score.reason] else ""
        console.print(f"{Path(score.where.file).name}: {score.verdict}, {score.reason}{doubts}", markup=False)
    if failed:
        print(f"{failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
