"""From measured motion to a verdict in words, with its reason and how far it can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from newtonrewards.eval.evidence import Evidence
from newtonrewards.eval.find import Smooth, resting, smooth_run
from newtonrewards.eval.interruptions import jerk, jump_at, told_jump
from newtonrewards.eval.laws import broken
from newtonrewards.eval.results import finite
from newtonrewards.eval.scale import diameter
from newtonrewards.eval.video_score import ObjectPath, Verdict
from newtonrewards.rewards.window import Window

# Under this way the motion drowns in the noise of any instrument.
LEAST_WAY_PX = 3.0
# One law must hold for this share of the time in which the object moves, or for this many velocities.
STEADY_SHARE, STEADY_VELOCITIES = 0.5, 8
# Acceleration is said to change in runs of so many velocities or more, by this share, where F is above this.
SMOOTH_VELOCITIES, SMOOTH_CHANGE, SMOOTH_GAIN = 10, 0.3, 12.0
CAMERA = "a wide lens, a slant or drag do that"
# The camera may make one end of a run weaker, to no less than this share.
PERSPECTIVE = 0.25
# What goes less far than so many of its own widths has masks that can't be trusted with its size.
WIDTHS = 1.0
# First seen after so many frames is late.
LATE_FRAMES = 4
# Fewer moving velocities than this can't show unsteadiness.
LEAST_VELOCITIES = 6
LEAST_CONFIDENCE = 0.3
# A picture whose brightness changes by this share is faded or lit anew.
LIGHT_CHANGE = 0.3
# A video is blamed only if the instruments agree better than that.
BLAME_CONFIDENCE = 0.5
# Both instruments differ by this share of the speed even on perfect clips; what is more costs confidence one to one.
AGREEMENT = 0.15
# 1 - cos of the look, |log| of the area, changes of the mean colour (RGB in [0, 1]) over the window and from frame to
# frame above which the object isn't the same any more. Over 150 true clips no value is above half of these.
LEAST_MASS, LEAST_AREA, LEAST_COLOUR, LEAST_FLICKER = 0.4, 0.5, 0.2, 0.12
# Masks follow an object if they have it in this share of the frames, in steps shorter than itself.
FOLLOWED_SHARE = 0.9
# Scales on which quality falls to 1/e: unsteadiness as a share of the speed, look, area, colour, flicker.
STEADY_SCALE, MASS_SCALE, AREA_SCALE, COLOUR_SCALE, FLICKER_SCALE = 0.2, 0.25, 0.5, 0.15, 0.15


def judge(evidence: Evidence) -> dict[str, Any]:
    """Verdict, reasons, score, confidence and what they rest on, as fields of `VideoScore`."""
    apart = None if evidence.other is None else disagreement(evidence.velocity, evidence.other, evidence.window)
    confidence, doubts = _confidence(evidence, apart)
    moving = _moving(evidence)
    coverage = len(evidence.window) / moving if moving else None
    verdict, reasons = _verdict(evidence, confidence, moving)
    if verdict == "cannot_tell":
        confidence = min(confidence, LEAST_CONFIDENCE)
    window = tuple(evidence.first_frame + frame for frame in (evidence.window.start, evidence.window.stop))
    return {
        "verdict": verdict,
        "reasons": reasons,
        "confidence": round(confidence, 3),
        "doubts": doubts,
        "score": _score(evidence, verdict, moving),
        "source": evidence.source,
        "window": window if len(evidence.window) else None,
        "coverage": coverage,
        "presence": float(np.isfinite(evidence.position).all(axis=1).mean()),
        "disagreement": apart,
        "path": _path(evidence),
    }


def _verdict(evidence: Evidence, confidence: float, moving: int) -> tuple[Verdict, list[str]]:
    if evidence.reason:
        return "cannot_tell", [evidence.reason]
    way = _way_px(evidence)
    if way < LEAST_WAY_PX:
        return "cannot_tell", [f"hardly anything moves ({way:.1f} px)"]
    blame = confidence >= BLAME_CONFIDENCE
    if evidence.jumped is not None:
        return "unlawful", [told_jump(evidence, evidence.jumped)]  # seen in the pixels themselves
    if evidence.vanished is not None:
        told = f"the object is gone from frame {evidence.first_frame + evidence.vanished} on, in mid-motion"
        return ("unlawful" if blame else "cannot_tell"), [told]
    if confidence < LEAST_CONFIDENCE:
        return "cannot_tell", ["masks and flow don't agree on the motion"]
    unsteady = _unsteady(evidence, moving)
    if evidence.smooth is not None and not _perspective(evidence.smooth):
        unsteady = [_told(evidence, evidence.smooth)]
    elif evidence.smooth is not None and unsteady:
        return "cannot_tell", [f"{_told(evidence, evidence.smooth)}: {CAMERA}"]
    if not len(evidence.window) and (flickers := _flickers(evidence)):
        return "unlawful", flickers
    if unsteady and not (blame and _agree_throughout(evidence)):
        return "cannot_tell", ["no long law, but masks and flow don't agree well enough to blame the video"]
    if unsteady and not evidence.even:
        return "cannot_tell", ["no long law, but its frames come at uneven times"]
    if unsteady and moving < LEAST_VELOCITIES and not len(evidence.window):
        return "cannot_tell", [f"it moves in {moving} frames only"]
    wrong = (
        unsteady
        + jerk(evidence)
        + _changed(evidence)
        + ([] if evidence.fit is None else broken(evidence.motion, evidence.fit, evidence.metres))
    )
    if wrong:
        return ("unlawful" if blame else "cannot_tell"), wrong
    if (resized := _resized(evidence)) and _unsized(evidence):
        return "cannot_tell", [f"{resized}, or so it seems: it goes less far than it is wide"]
    return "lawful", [f"constant acceleration in {_frames(evidence, evidence.window)}"]


def _agree_throughout(evidence: Evidence) -> bool:
    """Whether the instruments mostly agree also where no law holds; a jump is seen by one of them alone."""
    if evidence.other is None:
        return True  # `_confidence` has counted it
    away = np.linalg.norm(evidence.velocity - evidence.other, axis=1)
    both = np.isfinite(away)
    if not both.any():
        return False
    speed = float(np.sqrt((evidence.velocity[both] ** 2).sum(axis=1).mean()))
    return agreement(float(np.median(away[both])) / max(speed, 1e-9)) >= BLAME_CONFIDENCE


def _unsteady(evidence: Evidence, moving: int) -> list[str]:
    """Why no single law holds for long enough, or nothing."""
    jump, count = jump_at(evidence), len(evidence.window)
    if jump is not None:
        return [told_jump(evidence, jump)]
    if count and (count >= STEADY_SHARE * moving or count >= STEADY_VELOCITIES):
        return []
    if not count:
        return ["no stretch of five frames follows one law of constant acceleration"]
    stretch = _frames(evidence, evidence.window)
    return [f"one law holds in {stretch} only, {count} of {moving} moving intervals"]


def _frames(evidence: Evidence, run: Window | Smooth) -> str:
    return f"frames {evidence.first_frame + run.start} to {evidence.first_frame + run.stop}"


def drifting(velocity: Float[np.ndarray, "N 2"], window: Window, fps: float, height: int) -> Smooth | None:
    """The run around a lawful window in which the acceleration changes steadily, if it clearly does.

    Where the object turns back nothing is held against it: on a ramp friction then changes its sign.
    """
    if len(window) < SMOOTH_VELOCITIES:
        return None
    run = smooth_run(velocity, window, fps, height)
    if float(velocity[run.start] @ velocity[run.stop - 1]) < 0:
        return None
    sizes = [float(np.linalg.norm(a)) for a in (run.first, run.last)]
    change = float(np.linalg.norm(run.last - run.first)) / max(*sizes, 1e-9)
    return run if run.gain > SMOOTH_GAIN and change > SMOOTH_CHANGE else None


def _perspective(run: Smooth) -> bool:
    """Whether the camera may explain it: one direction all along, and no end much weaker than the other."""
    sizes = [float(np.linalg.norm(a)) for a in (run.first, run.middle, run.last)]
    along = min(float(run.first @ run.middle), float(run.middle @ run.last), float(run.first @ run.last))
    return along > 0 and min(sizes) > PERSPECTIVE * max(sizes)


def _told(evidence: Evidence, run: Smooth) -> str:
    first, last = (float(np.linalg.norm(a)) for a in (run.first, run.last))
    return f"in {_frames(evidence, run)} the acceleration changes steadily from {first:.2f} to {last:.2f} H/s²"


def _changed(evidence: Evidence) -> list[str]:
    """How the object fails to stay what it is."""
    found, reasons = evidence.constancy, []
    if found.mass is not None and found.mass > LEAST_MASS:
        reasons.append(f"the object changes its look (1 - cos = {found.mass:.2f})")
    if (resized := _resized(evidence)) and not _unsized(evidence):
        reasons.append(resized)
    if found.colour_change is not None and found.colour_change > LEAST_COLOUR:
        reasons.append(f"the object changes its colour, by {found.colour_change:.2f} of full brightness")
    if found.flicker is not None and found.flicker > LEAST_FLICKER:
        reasons.append(_told_flicker(found.flicker))
    return reasons


def _told_flicker(flicker: float) -> str:
    return f"the object flickers, by {flicker:.2f} of full brightness"


def _flickers(evidence: Evidence) -> list[str]:
    """Where no law holds: whether one thing, which masks never lose, changes its colour all the time. That needs no
    flow to be believed, and flow that fails is what such an object does to it."""
    seen = np.isfinite(evidence.position).all(axis=1)
    steps = np.linalg.norm(np.diff(evidence.position[seen], axis=0), axis=1)
    followed = not evidence.others and seen.mean() >= FOLLOWED_SHARE and steps.max(initial=0) < diameter(evidence.area)
    flicker = evidence.constancy.flicker
    return [_told_flicker(flicker)] if followed and flicker is not None and flicker > 2 * LEAST_FLICKER else []


def _resized(evidence: Evidence) -> str:
    """How its area changes, empty if not by much."""
    change = evidence.constancy.area_change
    if change is None or abs(change) <= LEAST_AREA + _blur_change(evidence):
        return ""
    return f"the object {'grows' if change > 0 else 'shrinks'}, its area by a factor of {np.exp(change):.2f}"


def within_itself(position: Float[np.ndarray, "T 2"], area: Float[np.ndarray, " T"], window: Window) -> bool:
    """Whether an object goes less far in the window than it is wide: what it always covers is never seen without it,
    so that masks are its edges rather than itself."""
    places = position[window.start : window.stop + 1]
    places = places[np.isfinite(places).all(axis=1)]
    return len(places) > 0 and float(np.linalg.norm(np.ptp(places, axis=0))) <= WIDTHS * diameter(area)


def _unsized(evidence: Evidence) -> bool:
    """Whether nothing tells how its size changes."""
    return not evidence.sized and within_itself(evidence.position, evidence.area, evidence.window)


def _blur_change(evidence: Evidence) -> float:
    """How much |log area| motion blur may add: an open shutter draws a disc of diameter d as a streak d + step long."""
    first, last = evidence.window.start, evidence.window.stop
    areas = evidence.area[[first, last]]
    narrow = 2 * float(np.sqrt(max(areas.min(), 1e-9) / np.pi))
    steps = np.linalg.norm(evidence.velocity[[first, last - 1]], axis=1) / evidence.fps
    before, after = np.log(1 + 4 / np.pi * steps / narrow)
    return abs(float(after - before))


def _score(evidence: Evidence, verdict: Verdict, moving: int) -> float | None:
    """Quality in the upper half for what is lawful, in the lower for what isn't; None where nothing can be told.

    Quality is the share of the law (of half the moving time, or of `STEADY_VELOCITIES`) times exp(-x / scale) for
    unsteadiness, change of look, area and colour, and flicker. Source: ours.
    """
    if verdict == "cannot_tell":
        return None
    quality = 0.0
    if evidence.fit is not None:
        covered = len(evidence.window) / min(STEADY_SHARE * moving, STEADY_VELOCITIES)
        unsteady, found = evidence.fit.rms / max(evidence.fit.speed, 1e-6), evidence.constancy
        quality = min(1.0, covered) * float(
            np.exp(
                -unsteady / STEADY_SCALE
                - (found.mass or 0.0) / MASS_SCALE
                - abs(found.area_change or 0.0) / AREA_SCALE
                - (found.colour_change or 0.0) / COLOUR_SCALE
                - (found.flicker or 0.0) / FLICKER_SCALE
            )
        )
    return round(quality / 2 + (0.5 if verdict == "lawful" else 0.0), 4)


def _way_px(evidence: Evidence) -> float:
    """Largest distance between two places of the object, as either instrument saw it."""
    velocity = evidence.velocity[np.isfinite(evidence.velocity).all(axis=1)]
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(velocity, axis=0)]) / evidence.fps
    return float(np.linalg.norm(np.ptp(path, axis=0))) * evidence.height


def _moving(evidence: Evidence) -> int:
    """Intervals in which the object is seen and doesn't rest."""
    known = np.isfinite(evidence.velocity).all(axis=1)
    return int((known & ~resting(evidence.velocity, evidence.fps, evidence.height)).sum())


def _appears(evidence: Evidence) -> bool:
    """Whether the object is first seen late and away from every edge: more likely it was overlooked before."""
    seen = np.flatnonzero(np.isfinite(evidence.position).all(axis=1))
    if not len(seen) or seen[0] < LATE_FRAMES:
        return False
    x, y = evidence.position[seen[0]]
    return bool(min(x, y, evidence.width / evidence.height - x, 1 - y) > diameter(evidence.area))


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
    light = float(np.ptp(evidence.light)) / max(float(evidence.light.max()), 1e-6)
    if light > LIGHT_CHANGE:
        confidence *= 0.4
        doubts.append(f"the whole picture's brightness changes by {light:.0%}")
    if not evidence.even:
        doubts.append("frames come at uneven times")
    if _appears(evidence) and evidence.jumped is None:
        confidence *= 0.45
        doubts.append("it is first seen in mid-picture")
    if len(evidence.window) and _unsized(evidence):
        doubts.append("it goes less far than it is wide, so its size isn't judged")
    if evidence.others:
        confidence *= 0.8
        doubts.append(f"{evidence.others} other things move too")
    if evidence.shimmers:
        confidence *= 0.8
        doubts.append("most of the picture shimmers")
    if evidence.smooth is not None and _perspective(evidence.smooth):
        confidence *= 0.7
        doubts.append(f"not constant in the image: {_told(evidence, evidence.smooth)}; {CAMERA}")
    if 0 < len(evidence.window) < 6:
        confidence *= 0.8
        doubts.append("a short stretch")
    return confidence, doubts


def _path(evidence: Evidence) -> ObjectPath:
    seconds = [round(t / evidence.fps, 5) for t in range(len(evidence.position))]
    x, y = ([finite(float(v), 5) for v in column] for column in evidence.position.T)
    across, down = ([*(finite(float(v), 5) for v in column), None] for column in evidence.velocity.T)
    return ObjectPath(seconds=seconds, x=x, y=y, velocity_x=across, velocity_y=down)
