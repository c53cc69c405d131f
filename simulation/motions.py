"""The five motions in closed form, with their events; also bouncing, and a ball that rolls.

A trajectory is a list of phases of constant acceleration; the breaks between them are the events. Nothing is
integrated,
so the truth has no step error. Coordinates: metres, x along the plane of motion, y up, of the object's centre relative
to its rest position on the floor (y = 0: it touches). Source of the formulas: docs/physics.md §8.

Letters: t time (s), p position (m), v velocity (m/s), a acceleration (m/s^2), th incline, mu Coulomb friction, g
gravity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

PRIMITIVES = ("free_fall", "horizontal_throw", "parabolic_throw", "ramp_down", "ramp_up")
RAMPS = ("ramp_down", "ramp_up")
ROLLING = ("roll_down",)  # not one of the five: drawn only where it is asked for
KNOWN = (*PRIMITIVES, *ROLLING)
GRAVITY = 9.81
RESTING = 0.05  # m/s: a body that would leave the floor more slowly than that stays on it

Vector = tuple[float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Phase:
    """Constant acceleration from `start` on: p(t) = position + velocity (t - start) + acceleration (t - start)^2 /
    2.
    """

    start: float
    position: Vector
    velocity: Vector
    acceleration: Vector = (0.0, 0.0)

    def at(self, time: float) -> tuple[Vector, Vector]:
        """Position and velocity at a time (s) of this phase."""
        s = time - self.start
        (px, py), (vx, vy), (ax, ay) = self.position, self.velocity, self.acceleration
        return (px + vx * s + ax * s * s / 2, py + vy * s + ay * s * s / 2), (vx + ax * s, vy + ay * s)


@dataclass(frozen=True)
class Trajectory:
    """Phases in order of their start, the first at 0, and the time (s) of each event: `land`, `land_2`, ... (a contact
    with the floor), `turn`, `stop`.
    """

    phases: tuple[Phase, ...]
    events: dict[str, float]

    def at(self, times: Array) -> tuple[Array, Array, Array]:
        """Position, velocity and acceleration, each (N, 2), at N times (s); at an event the phase that begins
        counts.
        """
        starts = np.array([phase.start for phase in self.phases])
        which = np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)
        p0, v0, a = (
            np.array([getattr(phase, name) for phase in self.phases])[which]
            for name in ("position", "velocity", "acceleration")
        )
        s = (times - starts[which])[:, None]
        return p0 + v0 * s + a * s * s / 2, v0 + a * s, a

    def first_break(self) -> float:
        """Time (s) at which the first law ends; infinity if it never does."""
        return min(self.events.values(), default=math.inf)


def trajectory(primitive: str, p: Mapping[str, float], factor: float = 1.0) -> Trajectory:
    """The motion of one of `KNOWN` with its parameters (SI units and degrees); `factor` scales gravity (1 is right)."""
    g, bounce = GRAVITY * factor, p.get("restitution", 0.0)
    match primitive:
        case "free_fall":
            return flight(p["height_m"], (0.0, 0.0), 0.0, g, bounce)
        case "horizontal_throw":
            return flight(p["height_m"], (p["direction"] * p["speed_mps"], 0.0), p["friction"], g, bounce)
        case "parabolic_throw":
            angle = math.radians(p["angle_deg"])
            velocity = (p["direction"] * p["speed_mps"] * math.cos(angle), p["speed_mps"] * math.sin(angle))
            return flight(p["height_m"], velocity, p["friction"], g, bounce)
        case "roll_down":
            return roll_down(math.radians(p["incline_deg"]), p["direction"], g)
        case "ramp_down":
            return slide_down(math.radians(p["incline_deg"]), p["friction"], p["direction"], g)
        case _:
            return slide_up(math.radians(p["incline_deg"]), p["friction"], p["speed_mps"], p["direction"], g)


def flight(
    height: float, velocity: Vector, friction: float, g: float = GRAVITY, restitution: float = 0.0
) -> Trajectory:
    """Free flight from `height` metres above the floor, landings, and a slide to rest.

    A landing takes all vertical speed, or gives `restitution` times of it back; Coulomb friction during the impact
    takes up to `friction` times the change of vertical speed from the horizontal one, and friction * g afterwards. A
    body that doesn't tip or begin to turn: sliding, not rolling.

    Args:
        height: clearance under the object, metres, >= 0.
        velocity: launch velocity, m/s, y up.
        friction: Coulomb coefficient with the floor, >= 0.
        g: gravity, m/s^2, > 0.
        restitution: vertical speed after a landing over that before, in [0, 1).
    """
    phases = [Phase(0.0, (0.0, height), velocity, (0.0, -g))]
    events: dict[str, float] = {}
    while True:
        now = phases[-1]
        vx, vy = now.velocity
        land = now.start + (vy + math.sqrt(vy * vy + 2 * g * now.position[1])) / g
        (x, _), (_, impact) = now.at(land)
        events[f"land_{len(phases)}" if len(phases) > 1 else "land"] = land
        rebound = restitution * abs(impact) if restitution * abs(impact) > RESTING else 0.0
        speed = math.copysign(max(0.0, abs(vx) - friction * (abs(impact) + rebound)), vx)
        if rebound == 0.0:
            return _slide_to_rest(phases, events, land, (x, 0.0), speed, (1.0, 0.0), friction * g)
        phases.append(Phase(land, (x, 0.0), (speed, rebound), (0.0, -g)))


def slide(speed: float, friction: float, g: float = GRAVITY) -> Trajectory:
    """Along the floor at `speed` (m/s, negative to the left) until Coulomb friction has stopped it."""
    return _slide_to_rest([], {}, 0.0, (0.0, 0.0), speed, (1.0, 0.0), friction * g)


def roll_down(th: float, direction: float, g: float = GRAVITY) -> Trajectory:
    """A solid ball from rest down an incline of angle `th` (rad), rolling without slipping: a = 5/7 g sin th.

    Source: m a = m g sin th - f and 2/5 m r^2 a / r = f r. It grips where friction >= `grip(th)`.

    Args:
        direction: +1 if downhill points to +x, else -1.
    """
    downhill = (direction * math.cos(th), -math.sin(th))
    return Trajectory((Phase(0.0, (0.0, 0.0), (0.0, 0.0), _times(downhill, 5 / 7 * g * math.sin(th))),), {})


def grip(th: float) -> float:
    """Least Coulomb coefficient with which a solid ball rolls down an incline of angle `th` (rad) without slipping."""
    return 2 / 7 * math.tan(th)


def slide_down(th: float, mu: float, direction: float, g: float = GRAVITY) -> Trajectory:
    """From rest down an incline of angle `th` (rad): a = g (sin th - mu cos th), or no motion at all if tan th <= mu.

    Args:
        direction: +1 if downhill points to +x, else -1.
    """
    a = max(0.0, g * (math.sin(th) - mu * math.cos(th)))
    downhill = (direction * math.cos(th), -math.sin(th))
    return Trajectory((Phase(0.0, (0.0, 0.0), (0.0, 0.0), _times(downhill, a)),), {} if a > 0 else {"stop": 0.0})


def slide_up(th: float, mu: float, speed: float, direction: float, g: float = GRAVITY) -> Trajectory:
    """Launched uphill at `speed`: decelerates at g (sin th + mu cos th), then slides back at g (sin th - mu cos th)
    or stays.

    Args:
        direction: +1 if uphill points to +x, else -1.
    """
    uphill = (direction * math.cos(th), math.sin(th))
    brake = g * (math.sin(th) + mu * math.cos(th))
    back = g * (math.sin(th) - mu * math.cos(th))
    turn = speed / brake
    rise = Phase(0.0, (0.0, 0.0), _times(uphill, speed), _times(uphill, -brake))
    top, _ = rise.at(turn)
    after = Phase(turn, top, (0.0, 0.0), _times(uphill, -max(0.0, back)))
    return Trajectory((rise, after), {"turn" if back > 0 else "stop": turn})


def straight_line(truth: Trajectory, duration: float) -> Trajectory:
    """Wrong on purpose: constant velocity to where the true motion has its first break (or ends), then as the truth
    goes on.

    Used for the imperfect clips that the base model is pre-trained on.
    """
    end = min(truth.first_break(), duration)
    if end <= 0:
        return truth
    target, _, _ = truth.at(np.array([end - 1e-9]))
    (x0, y0), (x1, y1) = truth.phases[0].position, target[0]
    phase = Phase(0.0, (x0, y0), ((x1 - x0) / end, (y1 - y0) / end))
    return replace(truth, phases=(phase, *(later for later in truth.phases[1:] if later.start >= end - 1e-9)))


def _slide_to_rest(
    phases: list[Phase],
    events: dict[str, float],
    start: float,
    position: Vector,
    speed: float,
    axis: Vector,
    brake: float,
) -> Trajectory:
    if speed == 0.0:
        return Trajectory((*phases, Phase(start, position, (0.0, 0.0))), events)
    if brake == 0.0:
        return Trajectory((*phases, Phase(start, position, _times(axis, speed))), events)
    slide = Phase(start, position, _times(axis, speed), _times(axis, -math.copysign(brake, speed)))
    stop = start + abs(speed) / brake
    rest, _ = slide.at(stop)
    return Trajectory((*phases, slide, Phase(stop, rest, (0.0, 0.0))), {**events, "stop": stop})


def _times(vector: Vector, factor: float) -> Vector:
    return vector[0] * factor, vector[1] * factor
