"""From measured motion to a verdict in words, with its reason and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from newtonrewards.core.recipe import Config
from newtonrewards.eval.find import resting
from newtonrewards.eval.results import Path2D, finite
from newtonrewards.rewards.window import Window

Verdict = Literal["steady", "unsteady", "object lost", "cannot tell"]

# Under this way the motion drowns in the noise of any instrument.
LEAST_WAY_PX = 3.0
# One law must hold for this share of the time in which the object moves, or for this many velocities.
STEADY_SHARE, STEADY_VELOCITIES = 0.5, 8
# Fewer moving velocities than this can't show unsteadiness.
LEAST_VELOCITIES = 6
LEAST_CONFIDENCE = 0.3
# A video is blamed only if the instruments agree better than that.
BLAME_CONFIDENCE = 0.5
# Both instruments differ by this share of the speed even on perfect clips; what is more costs confidence one to one.
AGREEMENT = 0.15
# A step of so many times the steps beside it, and so many px more, is a jump.
JUMP_FACTOR, JUMP_PX = 2.0, 3.0
# Faster than this (px/frame) an object doesn't just stop existing.
MOVING_PX = 0.7


class Where(Config):
    """The file and everything done to its pixels. Sizes and rates are those after it."""

    file: str
    sha256: str
    fps: float
    playback_fps: float | None
    num_frames: int
    height: int
    width: int
    preprocessing: list[str]


class VideoScore(Config):
    """One line of the scores of videos. H is one frame height; None: can't be measured.

    Attributes:
        verdict, reason: in words. confidence: 0 to 1; doubts: what lowers it.
        source: which instrument the kinematics come from. window: first and last frame of the stretch used.
        coverage: share of the moving time that the window covers.
        acceleration: fitted, H/s^2, x right, y down; acceleration_size: its length, acceleration_px: in px/frame^2.
        start_velocity: at the window's first frame, H/s.
        residual: root mean square change of acceleration from frame to frame, H/s^2, lower is better;
            residual_relative: over acceleration_size. fit_rms: distance of velocities from the fitted line, H/s.
        mass_conserved: 1 - cos of the object's look against the window's start, lower is better.
        area_change: log of its area at the end over the start; 0 is right.
        presence: share of frames in which it was found.
        disagreement: difference of both instruments over the speed.
        saturation, high_frequency: sentinels (`rewards.sentinels`).
        path: its centre and speed in each frame.
    """

    schema_version: Literal[1] = 1
    kind: Literal["newtonrewards.score"] = "newtonrewards.score"
    where: Where
    verdict: Verdict
    reason: str
    confidence: float
    doubts: list[str]
    source: str
    window: tuple[int, int] | None
    coverage: float | None
    acceleration: tuple[float, float] | None = None
    acceleration_size: float | None = None
    acceleration_px: float | None = None
    start_velocity: tuple[float, float] | None = None
    residual: float | None = None
    residual_relative: float | None = None
    fit_rms: float | None = None
    mass_conserved: float | None = None
    area_change: float | None = None
    presence: float
    disagreement: float | None
    saturation: float | None
    high_frequency: float | None
    path: Path2D


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured.

    Attributes:
        reason: why no object was found, empty if one was.
        source: instrument of `velocity`. velocity: (N, 2) H/s. other: that of the other instrument, or None.
        window: lawful stretch of `velocity`.
        position: (T, 2) H. area: (T,) H^2.
        last_place_changed: something lies where the object was last seen.
        others: things that moved for about as long.
    """

    reason: str
    source: str
    window: Window
    velocity: Float[np.ndarray, "N 2"]
    other: Float[np.ndarray, "N 2"] | None
    position: Float[np.ndarray, "T 2"]
    area: Float[np.ndarray, " T"]
    last_place_changed: bool
    others: int
    fps: float
    height: int
    width: int


def judge(evidence: Evidence) -> dict[str, Any]:
    """Verdict, reason, confidence and what they rest on, as fields of `VideoScore`."""
    apart = None if evidence.other is None else disagreement(evidence.velocity, evidence.other, evidence.window)
    confidence, doubts = _confidence(evidence, apart)
    moving = _moving(evidence)
    coverage = len(evidence.window) / moving if moving else None
    verdict, reason = _verdict(evidence, confidence, moving)
    if verdict == "cannot tell":
        confidence = min(confidence, LEAST_CONFIDENCE)
    window = (evidence.window.start, evidence.window.stop) if len(evidence.window) else None
    return {
        "verdict": verdict,
        "reason": reason,
        "confidence": round(confidence, 3),
        "doubts": doubts,
        "source": evidence.source,
        "window": window,
        "coverage": coverage,
        "presence": float(np.isfinite(evidence.position).all(axis=1).mean()),
        "disagreement": apart,
        "path": _path(evidence),
    }


def _verdict(evidence: Evidence, confidence: float, moving: int) -> tuple[Verdict, str]:
    if evidence.reason:
        return "cannot tell", evidence.reason
    way = _way_px(evidence)
    if way < LEAST_WAY_PX:
        return "cannot tell", f"hardly anything moves ({way:.1f} px)"
    lost = _lost_at(evidence)
    if lost is not None:
        return "object lost", f"the object is gone from frame {lost} on, in mid-motion"
    if confidence < LEAST_CONFIDENCE:
        return "cannot tell", "masks and flow don't agree on the motion"
    jump, count = _jump_at(evidence), len(evidence.window)
    stretch = f"frames {evidence.window.start} to {evidence.window.stop}"
    if jump is None and count and (count >= STEADY_SHARE * moving or count >= STEADY_VELOCITIES):
        return "steady", f"constant acceleration in {stretch}"
    if confidence < BLAME_CONFIDENCE:
        return "cannot tell", "no long law, but masks and flow don't agree well enough to blame the video"
    if jump is not None:
        return "unsteady", f"the object jumps between the frames {jump} and {jump + 1}"
    if moving < LEAST_VELOCITIES and not count:
        return "cannot tell", f"it moves in {moving} frames only"
    if not count:
        return "unsteady", "no stretch of five frames follows one law of constant acceleration"
    return "unsteady", f"one law holds in {stretch} only, {count} of {moving} moving intervals"


def _way_px(evidence: Evidence) -> float:
    """Largest distance between two places of the object, as either instrument saw it."""
    velocity = evidence.velocity[np.isfinite(evidence.velocity).all(axis=1)]
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(velocity, axis=0)]) / evidence.fps
    return float(np.linalg.norm(np.ptp(path, axis=0))) * evidence.height


def _jump_at(evidence: Evidence) -> int | None:
    """A single interval in which the object goes several times as far as just before and after: no bounce does that."""
    step = np.linalg.norm(evidence.velocity, axis=1) * evidence.height / evidence.fps
    if evidence.other is not None:  # what only one of two instruments saw there may be its own mistake
        step = np.where(np.isfinite(evidence.other).all(axis=1), step, np.nan)
    for n in range(1, len(step) - 1):
        around = np.maximum(step[n - 1], step[n + 1])
        if np.isfinite(around) and step[n] > JUMP_FACTOR * around + JUMP_PX:
            return n
    return None


def _moving(evidence: Evidence) -> int:
    """Intervals in which the object is seen and doesn't rest."""
    known = np.isfinite(evidence.velocity).all(axis=1)
    return int((known & ~resting(evidence.velocity, evidence.fps, evidence.height)).sum())


def _lost_at(evidence: Evidence) -> int | None:
    """First frame without the object, if it vanished inside the picture while it moved; else None."""
    seen = np.flatnonzero(np.isfinite(evidence.position).all(axis=1))
    last = int(seen[-1]) if len(seen) else 0
    if not len(seen) or last >= len(evidence.position) - 2 or evidence.last_place_changed:
        return None
    size = 2 * float(np.sqrt(np.median(evidence.area[seen]) / np.pi))
    x, y = evidence.position[last]
    edge = min(x, y, evidence.width / evidence.height - x, 1 - y)
    steps = np.diff(evidence.position[seen[-4:]], axis=0) * evidence.height
    speed = float(np.linalg.norm(steps, axis=1).mean()) if len(steps) else 0.0
    # Faster than its own width it is a smear that any background may hide.
    followed = MOVING_PX < speed < size * evidence.height
    return last + 1 if followed and edge > size + speed / evidence.height else None


def disagreement(ours: Float[np.ndarray, "N 2"], theirs: Float[np.ndarray, "N 2"], window: Window) -> float | None:
    """Root mean square difference of two instruments over the root mean square speed, inside the window (or
    everywhere, if it is empty); None where they have nothing in common."""
    rows = slice(window.start, window.stop) if len(window) else slice(None)
    known = np.isfinite(ours[rows]).all(axis=1) & np.isfinite(theirs[rows]).all(axis=1)
    if not known.any():
        return None
    speed = float(np.sqrt((ours[rows][known] ** 2).sum(axis=1).mean()))
    away = float(np.sqrt(((ours - theirs)[rows][known] ** 2).sum(axis=1).mean()))
    return finite(away / speed) if speed > 0 else None


def agreement(apart: float | None) -> float:
    """A disagreement as a confidence in [0, 1]; .6 where there was only one instrument."""
    if apart is None:
        return 0.6
    return 1.0 if apart <= AGREEMENT else max(0.0, 1 - (apart - AGREEMENT))


def _confidence(evidence: Evidence, apart: float | None) -> tuple[float, list[str]]:
    if evidence.reason:
        return 0.0, [evidence.reason]
    confidence, doubts = agreement(apart), []
    if apart is None:
        doubts.append("only one instrument saw it")
    elif apart > AGREEMENT:
        doubts.append(f"masks and flow differ by {apart:.0%} of the speed")
    if evidence.others:
        confidence *= 0.8
        doubts.append(f"{evidence.others} other things move too")
    if 0 < len(evidence.window) < 6:
        confidence *= 0.8
        doubts.append("a short stretch")
    return confidence, doubts


def _path(evidence: Evidence) -> Path2D:
    seconds = [round(t / evidence.fps, 5) for t in range(len(evidence.position))]
    speed = [finite(float(v), 5) for v in np.linalg.norm(evidence.velocity, axis=1)]
    x, y = ([finite(float(v), 5) for v in column] for column in evidence.position.T)
    return Path2D(seconds=seconds, x=x, y=y, speed=[*speed, None])
