"""What the law of a named motion demands beyond constant acceleration, of the line fitted to an object's velocity.

A residual can't see the wrong law: most generated falls are smooth, but drift sideways, fall at constant speed, hover.
Where a scale is known, the size of g is part of the law.
Letters: v velocity, a acceleration, T duration of the window. H is one frame height; x right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.constants import g as GRAVITY  # m/s^2

from newtonrewards.eval.scale import Metres
from newtonrewards.eval.video_score import Motion

# Directions are right within this angle, in degrees: a camera is rarely held straighter.
ANGLE = 15.0
# What is not this many standard errors away from the law is not held against it.
SIGNIFICANT = 3.0
# A fall or throw must change its velocity over the window by this share of its speed.
SPEED_CHANGE = 0.25
# A fall may drift sideways by this share of its speed, and rise by this many H/s.
SIDEWAYS, RISE = 0.25, 0.15
# Gravity is right within this share and that by which the scale may be off: drag, a slant, the measurement.
GRAVITY_SHARE = 0.2
# A slope is known within this many degrees, from the way in the picture.
SLOPE = 5.0
# The least share of gravity's pull along a slope that brakes what goes up: that of a hoop which rolls. What slides
# is braked by friction besides.
ROLLING_UP = 0.5


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


def broken(motion: Motion, fit: LawFit, metres: Metres | None = None) -> list[str]:
    """What is wrong with a motion of this kind, in words; nothing for `auto`.

    Args:
        metres: the scale. Without it the size of g isn't judged.
    Source: physics.md §8; with a scale ours.
    """
    match motion:
        case "auto":
            return []
        case "fall":
            return [*_downwards(fit), *_speeds_up(fit), *_straight_down(fit), *_falls(fit, metres)]
        case "throw":
            return [*_downwards(fit), *_speeds_up(fit), *_falls(fit, metres)]
        case "ramp":
            return [*_along_the_way(fit), *_slides(fit, metres)]


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


def _falls(fit: LawFit, metres: Metres | None) -> list[str]:
    """What flies freely has the acceleration of gravity."""
    if metres is None:
        return []
    size = float(np.linalg.norm(fit.acceleration)) * metres.per_height
    unsure = (GRAVITY_SHARE + metres.off) * GRAVITY + SIGNIFICANT * fit.error * metres.per_height
    if abs(size - GRAVITY) <= unsure:
        return []
    return [f"it falls with {size:.1f} m/s², not {GRAVITY:.1f}, if scale and frame rate are right"]


def _slides(fit: LawFit, metres: Metres | None) -> list[str]:
    """Down a ramp nothing speeds up more than without friction; up, all is braked by gravity at least."""
    speed = float(np.linalg.norm(fit.mean))
    # what turns back within the window has no one way
    if metres is None or speed * speed == 0 or float(fit.start @ (2 * fit.mean - fit.start)) < 0:
        return []
    way = fit.mean / speed
    slope = math.asin(min(1.0, abs(float(way[1]))))
    gain = float(fit.acceleration @ way) * metres.per_height
    unsure, share = SIGNIFICANT * fit.error * metres.per_height, GRAVITY_SHARE + metres.off
    steepest = GRAVITY * math.sin(min(math.pi / 2, slope + math.radians(SLOPE))) * (1 + share)
    flattest = GRAVITY * math.sin(max(0.0, slope - math.radians(SLOPE))) * (1 - share) * ROLLING_UP
    degrees = f"a slope of {math.degrees(slope):.0f} degrees"
    if way[1] >= 0 and gain > steepest + unsure:
        return [f"it speeds up by {gain:.1f} m/s² on {degrees}: more than without friction"]
    if way[1] < 0 and -gain < flattest - unsure:
        return [f"it slows down by {-gain:.1f} m/s² going up {degrees}: less than gravity alone does"]
    return []
