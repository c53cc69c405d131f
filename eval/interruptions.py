"""What breaks into a motion at one moment: jumps, and starts that nothing explains."""

from __future__ import annotations

import numpy as np

from newtonrewards.eval.evidence import Evidence
from newtonrewards.eval.find import resting
from newtonrewards.eval.laws import SIGNIFICANT
from newtonrewards.eval.scale import diameter

# A step that is off those beside it by so many times their size, and so many px more, is a jump. Where the object isn't
# seen afterwards, the other instrument must see the same step to this share, or it must be as long as the object.
JUMP_FACTOR, JUMP_PX, CONFIRMED = 2.0, 3.0, 0.3
# What was let go gets no faster in its first frame than in so many frames of its fall.
JERK_FRAMES = 2.5


def told_jump(evidence: Evidence, frame: int) -> str:
    """A jump after a frame, in words."""
    return f"the object jumps between the frames {evidence.first_frame + frame} and {evidence.first_frame + frame + 1}"


def jump_at(evidence: Evidence) -> int | None:
    """A single interval in which the object goes another way than just before and after, and much further: no bounce
    does that, since between two velocities it only passes through what lies between them."""
    step = evidence.velocity * evidence.height / evidence.fps
    seen = [bool(np.isfinite(v).all()) for v in step]
    other = step if evidence.other is None else evidence.other
    wide = diameter(evidence.area) * evidence.height
    for n in range(1, len(step)):
        if not (seen[n] and seen[n - 1] and np.isfinite(other[n]).all()):
            continue  # what only one of two instruments saw may be its own mistake
        after = n + 1 < len(step) and seen[n + 1]
        beside = step[[n - 1, n + 1]] if after else step[[n - 1]]
        away = float(np.linalg.norm(step[n] - beside.mean(axis=0)))
        confirmed = float(np.linalg.norm(other[n] - evidence.velocity[n])) < CONFIRMED * float(
            np.linalg.norm(evidence.velocity[n])
        )
        least = JUMP_PX if after or confirmed else max(JUMP_PX, wide)
        if away > JUMP_FACTOR * float(np.linalg.norm(beside, axis=1).max()) + least:
            return n
    return None


def jerk(evidence: Evidence) -> list[str]:
    """For falls: what rests and then moves at once at speed was not let go."""
    start, fit = evidence.window.start, evidence.fit
    if evidence.motion != "fall" or fit is None or start < 2:
        return []
    rests = resting(evidence.velocity, evidence.fps, evidence.height)[start - 2 : start]
    speed = float(np.linalg.norm(fit.start))
    let_go = (
        JERK_FRAMES / evidence.fps * float(np.linalg.norm(fit.acceleration)) + SIGNIFICANT * fit.error * fit.seconds
    )
    if not rests.all() or speed <= let_go:
        return []
    return [f"it rests until frame {evidence.first_frame + start} and then moves at {speed:.2f} H/s at once"]
