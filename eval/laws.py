"""What the law of a named motion demands beyond constant acceleration, of the line fitted to an object's velocity.

A residual can't see the wrong law: most generated falls are smooth, but drift sideways, fall at constant speed, hover.
Letters: v velocity, a acceleration, T duration of the window. H is one frame height; x right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from newtonrewards.eval.video_score import Motion

# Directions are right within this angle, in degrees: a camera is rarely held straighter.
ANGLE = 15.0
# What is not this many standard errors away from the law is not held against it.
SIGNIFICANT = 3.0
# A fall or throw must change its velocity over the window by this share of its speed.
SPEED_CHANGE = 0.25
# A fall may drift sideways by this share of its speed, and rise by this many H/s.
SIDEWAYS, RISE = 0.25, 0.15


@dataclass(frozen=True, eq=False)
class LawFit:
    """The line v(t) = start + acceleration t through the velocities of a window.

    Attributes:
        start: (2,) H/s at the window's first frame. acceleration: (2,) H/s^2; error: its standard error, one axis.
        seconds: T. rms: distance of velocities from the line, both axes, H/s.
    """

    start: Float[np.ndarray, " 2"]
    acceleration: Float[np.ndarray, " 2"]
    error: float
    seconds: float
    rms: float

    @property
    def mean(self) -> Float[np.ndarray, " 2"]:
        """Velocity in the middle of the window, H/s."""
        return self.start + self.acceleration * self.seconds / 2

    @property
    def speed(self) -> float:
        """Root mean square speed over the window, H/s."""
        change = self.acceleration * self.seconds
        return float(np.sqrt((self.mean**2).sum() + (change**2).sum() / 12))


def broken(motion: Motion, fit: LawFit) -> list[str]:
    """What is wrong with a motion of this kind, in words; nothing for `auto`.

    Source: physics.md §8. The size of g is not judged: it needs a scale.
    """
    match motion:
        case "auto":
            return []
        case "fall":
            return [*_downwards(fit), *_speeds_up(fit), *_straight_down(fit)]
        case "throw":
            return [*_downwards(fit), *_speeds_up(fit)]
        case "ramp":
            return _along_the_way(fit)


def _downwards(fit: LawFit) -> list[str]:
    ax, ay = fit.acceleration
    if math.hypot(ax, ay) < SIGNIFICANT * fit.error:
        return []  # there is none, which `_speeds_up` says
    angle = math.degrees(math.atan2(abs(ax), ay))
    if angle <= ANGLE or (ay > 0 and abs(ax) - ay * math.tan(math.radians(ANGLE)) < SIGNIFICANT * fit.error):
        return []
    return [f"the acceleration points {angle:.0f} degrees away from straight down"]


def _speeds_up(fit: LawFit) -> list[str]:
    change = float(np.linalg.norm(fit.acceleration)) * fit.seconds
    if change >= SPEED_CHANGE * fit.speed or change + SIGNIFICANT * fit.error * fit.seconds >= 2 * fit.speed:
        return []
    return [f"it keeps its velocity of {fit.speed:.2f} H/s: nothing pulls it down"]


def _straight_down(fit: LawFit) -> list[str]:
    reasons = []
    if abs(fit.mean[0]) > SIDEWAYS * fit.speed:
        reasons.append(f"it moves sideways at {abs(fit.mean[0]):.2f} H/s")
    if fit.start[1] < -RISE:
        reasons.append(f"it starts upwards at {-fit.start[1]:.2f} H/s")
    return reasons


def _along_the_way(fit: LawFit) -> list[str]:
    """On a ramp the way is straight: the acceleration has no part across it."""
    way = fit.mean / max(float(np.linalg.norm(fit.mean)), 1e-9)
    across = abs(float(fit.acceleration[0] * way[1] - fit.acceleration[1] * way[0]))
    along = abs(float(fit.acceleration @ way))
    if across <= math.tan(math.radians(ANGLE)) * along + SIGNIFICANT * fit.error:
        return []
    return [f"the way bends: acceleration across it is {across:.2f} H/s², along it {along:.2f}"]
