"""Which frames of a video file make a clip, chosen by their time stamps before any is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from newtonrewards.core.errors import InputError

MIN_FRAMES = 2  # one picture has no motion
# Timestamps in milliseconds (Matroska) or in ticks (phones) wobble by some per cent: still a constant rate.
UNEVEN = 0.25
LONGEST_GAP = 3.0  # mean intervals; above it an even rate without repeated frames would throw most of the file away


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a file make the clip.

    Attributes:
        indices: frame numbers in the file, strictly rising.
        fps: frames per second of physical time between them.
        record: what was done, one sentence each.
        even: the frames lie at even times; else each is up to half an interval off.
    """

    indices: tuple[int, ...]
    fps: float
    record: tuple[str, ...]
    even: bool


def plan_frames(
    times: Sequence[float],
    playback_fps: float,
    *,
    fps: float | None = None,
    start: int = 0,
    num_frames: int | None = None,
    capture_fps: float | None = None,
    where: Path | None = None,
) -> FramePlan:
    """Choose frames by their time stamps (s, rising), without having decoded any; the rest as in `read_clip`.

    Raises:
        InputError: see `read_clip`; `where` is the file.
    """
    for name, value in (("fps", fps), ("num_frames", num_frames), ("capture_fps", capture_fps)):
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}, it must be positive", where=where)
    if len(times) < MIN_FRAMES:
        raise InputError("only one frame, motion needs two", where=where, fix="Give a longer clip.")
    physical = np.asarray(times, dtype=np.float64) - times[0]
    rate, record = playback_fps, []
    if capture_fps is not None and capture_fps != playback_fps:
        physical, rate = physical * (playback_fps / capture_fps), capture_fps
        record.append(f"played at {playback_fps:g} fps, taken at {capture_fps:g} fps of physical time")
    indices, rate, resampled = _resample(physical, rate, fps, where)
    record += resampled
    even = bool(np.abs(np.diff(physical[indices]) * rate - 1).max(initial=0.0) <= UNEVEN)
    if start:
        record.append(f"left out the first {start} of {len(indices)} frames")
        indices = indices[start:]
    wanted = MIN_FRAMES if num_frames is None else max(num_frames, MIN_FRAMES)
    if len(indices) < wanted:
        found = f"only {len(indices)} frames at {rate:g} fps, {wanted} are needed"
        raise InputError(found, where=where, fix="Ask for fewer frames or a higher fps.")
    if num_frames is not None and len(indices) > wanted:
        record.append(f"kept the first {wanted} of {len(indices)} frames")
        indices = indices[:wanted]
    return FramePlan(tuple(int(index) for index in indices), float(rate), tuple(record), even)


def _resample(
    times: np.ndarray, rate: float, fps: float | None, where: Path | None
) -> tuple[np.ndarray, float, list[str]]:
    """Frame numbers on an even grid, its rate, and what was done; all frames where the grid is even already."""
    record = []
    gaps = np.diff(times)
    if np.abs(gaps * rate - 1).max() > UNEVEN:
        record.append(f"variable frame rate: intervals from {gaps.min():.3g} to {gaps.max():.3g} s")
        if fps is None and gaps.max() * rate > LONGEST_GAP:
            missing = f"frames are missing: the longest interval is {gaps.max():.3g} s, the mean {gaps.mean():.3g} s"
            raise InputError(missing, where=where, fix="Cut the file there or give fps.")
        fps = 1 / float(gaps.max()) if fps is None else fps
    elif fps is None or fps == rate:
        return np.arange(len(times)), rate, record
    ratio = rate / fps
    spacing = "" if abs(ratio - round(ratio)) < 1e-3 else " (uneven spacing: not a whole multiple)"
    record.append(f"resampled from {rate:g} to {fps:g} fps, nearest frame{spacing}")
    return _nearest(times, fps, where), fps, record


def _nearest(times: np.ndarray, fps: float, where: Path | None) -> np.ndarray:
    """Index of the frame nearest to k / fps for k = 0, 1, ...: each at most once, or motion would seem to stop."""
    # The last one may lie half a frame of the file past its end, no more.
    count = math.floor((times[-1] + 0.5 * (times[-1] - times[-2])) * fps) + 1
    wanted = np.arange(count) / fps
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    # At a tie the earlier one: the tolerance keeps rounding of the time stamps from deciding.
    indices = np.where(wanted - times[right - 1] <= times[right] - wanted + 1e-3 / fps, right - 1, right)
    if np.any(np.diff(indices) == 0):
        fix = f"Ask for at most {1 / np.diff(times).max():.3g} fps."
        raise InputError(f"{fps:g} fps would repeat frames of this file", where=where, fix=fix)
    return indices
