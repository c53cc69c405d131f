"""The record that `newtonrewards score` writes for each video, as JSON and as a row of a table.

H is one frame height, s a second of physical time; x points right, y down. None: can't be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from newtonrewards.core.recipe import Config

SCHEMA_VERSION: Literal[3] = 3
Verdict = Literal["lawful", "unlawful", "cannot_tell"]
Motion = Literal["auto", "fall", "throw", "ramp"]


class Vector(Config):
    """x right, y down."""

    x: float
    y: float


class ObjectPath(Config):
    """The object frame by frame; None where it wasn't seen.

    Attributes:
        seconds: physical time. x, y: centre in H. velocity_x, velocity_y: to the next frame, H/s, as the instrument of
            the kinematics saw it.
    """

    seconds: list[float]
    x: list[float | None]
    y: list[float | None]
    velocity_x: list[float | None]
    velocity_y: list[float | None]


class VideoScore(Config):
    """One line of `scores.jsonl`.

    Attributes:
        file, sha256: the video as given on the command line. playback_fps: of the file.
        first_frame: where what was measured begins: a long video is looked at in stretches, and the one that shows most
            counts; other frame numbers count from the video's beginning. num_frames, height, width, fps: of what was
            measured, after preprocessing; fps in physical time.
        preprocessing: all that was done to the pixels, in order.
        motion: what the video was said to show; `auto`: any motion under one law.
        verdict: `lawful`, `unlawful` or `cannot_tell`; reasons: why, in words.
        confidence: 0 to 1, how far the verdict can be trusted; doubts: what lowers it.
        score: 0 to 1, to sort by: above .5 lawful, below unlawful; None where nothing can be told.
        source: which instrument the kinematics come from. window: first and last frame of the stretch where one law
            holds. coverage: share of the moving time that it covers.
        acceleration: fitted over the window, H/s^2; acceleration_magnitude: its length; acceleration_px: in
            px/frame^2 of the measured pixels; acceleration_error: its standard error, H/s^2; acceleration_metres: its
            length in m/s^2, and metres_per_height: metres in one frame height, where a scale was given.
        start_velocity, start_speed: of the fit at the window's first frame, H/s.
        kinematic_residual: root mean square change of acceleration from frame to frame, H/s^2, lower is better;
            residual_floor: what perfect clips get; relative_residual: over acceleration_magnitude.
        fit_rms: distance of velocities from the fitted line, H/s.
        mass: 1 - cos of the object's look against the window's start, lower is better.
        area_change: log of the object's area at the window's end over that at its start; 0 is right.
        colour_change: distance of the object's mean colour at the window's end from that at its start, RGB in [0, 1].
        flicker: root mean square second difference of that colour from frame to frame.
        presence: share of frames in which it was found. disagreement: difference of both instruments over the speed.
        sentinels: see `rewards.sentinels`; they watch for tricks and enter no verdict.
        path: where the object was in each frame, and how fast.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    kind: Literal["newtonrewards.score"] = "newtonrewards.score"
    file: str
    sha256: str
    first_frame: int = 0
    num_frames: int
    height: int
    width: int
    fps: float
    playback_fps: float | None
    preprocessing: list[str]
    motion: Motion
    verdict: Verdict
    reasons: list[str]
    confidence: float
    doubts: list[str]
    score: float | None
    source: str
    window: tuple[int, int] | None
    coverage: float | None
    acceleration: Vector | None = None
    acceleration_magnitude: float | None = None
    acceleration_px: float | None = None
    acceleration_error: float | None = None
    acceleration_metres: float | None = None
    metres_per_height: float | None = None
    start_velocity: Vector | None = None
    start_speed: float | None = None
    kinematic_residual: float | None = None
    residual_floor: float | None = None
    relative_residual: float | None = None
    fit_rms: float | None = None
    mass: float | None = None
    area_change: float | None = None
    colour_change: float | None = None
    flicker: float | None = None
    presence: float
    disagreement: float | None
    sentinels: dict[str, float | None]
    path: ObjectPath

    @property
    def window_inside(self) -> tuple[int, int] | None:
        """The window counted from `first_frame`, as the path is."""
        return None if self.window is None else (self.window[0] - self.first_frame, self.window[1] - self.first_frame)


class VideoFailure(Config):
    """The line of a video that can't be read.

    Attributes:
        file: as given. sha256: of its bytes, or None if there are none to read. error: what is wrong and what to do.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    kind: Literal["newtonrewards.score"] = "newtonrewards.score"
    file: str
    sha256: str | None
    verdict: Literal["cannot_tell"] = "cannot_tell"
    reasons: list[str] = ["the file could not be read"]
    confidence: float = 0.0
    score: None = None
    error: str


def parse_record(row: Mapping[str, Any]) -> VideoScore | VideoFailure:
    """A line of `scores.jsonl`.

    Raises:
        pydantic.ValidationError: of another schema.
    """
    return VideoFailure.model_validate(row) if "error" in row else VideoScore.model_validate(row)


# Fields that a flat table has no room or no use for.
_LEFT_OUT = {"path", "kind"}


def columns() -> list[str]:
    """Names of the CSV columns."""
    names: list[str] = []
    for name in VideoScore.model_fields:
        if name in ("acceleration", "start_velocity"):
            names += [f"{name}_x", f"{name}_y"]
        elif name == "window":
            names += ["window_first", "window_last"]
        elif name not in _LEFT_OUT:
            names.append(name)
    return [*names, "error"]


def csv_row(record: VideoScore | VideoFailure) -> dict[str, Any]:
    """A record as one flat row: lists joined by `; `, empty where there is nothing."""
    content = record.model_dump(mode="json")
    row = {key: content.get(key) for key in columns()}
    for name in ("acceleration", "start_velocity"):
        vector = content.get(name) or {}
        row |= {f"{name}_{axis}": vector.get(axis) for axis in ("x", "y")}
    first, last = content.get("window") or (None, None)
    row |= {"window_first": first, "window_last": last}
    for name in ("reasons", "doubts", "preprocessing"):
        row[name] = "; ".join(content.get(name) or [])
    row["sentinels"] = "; ".join(f"{k}={v:.4g}" for k, v in (content.get("sentinels") or {}).items() if v is not None)
    return row
