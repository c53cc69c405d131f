"""Further objects of a scene: each stands still or moves by a law of its own, and none ever meets anything; what does
stands in `targets.py`.

They are drawn after the scene and from streams of their own, so the object, its motion and its surroundings are the
same with and without them. One that could touch something, would hide the object or leaves the view is drawn again, and
the reason is counted among the scene's rejections.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation import looks
from newtonrewards.simulation.engine import Tumbling
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.motions import Phase, Trajectory, flight, slide
from newtonrewards.simulation.ranges import Bystanders, Ranges, bystanders_of, materials_of

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]
MAX_ATTEMPTS = 200
FINE = 8  # times between frames at which collisions are looked for
ROOM = 0.05  # metres that must be left between any two things


@dataclass(frozen=True)
class Bystander:
    """An object beside the one that the clip is about; `origin` is where its trajectory's zero lies in the world."""

    motion: str
    parameters: dict[str, float]
    trajectory: Trajectory
    origin: tuple[float, float, float]
    shape: str
    half_size: tuple[float, float, float]
    yaw: float
    surface: Surface
    tumbling: Tumbling | None = None

    @property
    def radius(self) -> float:
        """Metres, of a ball around it."""
        return math.hypot(*self.half_size)

    def centres(self, times: Array) -> Array:
        """(T, 3) centre in world metres at these times (s)."""
        position = self.trajectory.at(times)[0] + np.array(self.origin[:2])
        centres = np.column_stack([position, np.full(len(times), self.origin[2])])
        return centres if self.tumbling is None else self.tumbling.places(times, centres)

    def angles(self, times: Array) -> Array:
        """(T, 3) tilt, pitch and yaw (`poses`) at these times (s)."""
        angles = np.tile([0.0, 0.0, self.yaw], (len(times), 1))
        return angles if self.tumbling is None else self.tumbling.angles(times, angles)


def draw_bystanders(scene: Scene, ranges: Ranges) -> tuple[tuple[Bystander, ...], list[str]]:
    """The further objects that `ranges.world.bystanders` asks for, and why others were drawn again.

    Raises:
        InputError: no place is left for one.
    """
    limits = bystanders_of(ranges)
    drawn: list[Bystander] = []
    reasons: list[str] = []
    for number in range(ranges.world.bystanders):
        stream = f"bystander/{scene.split}/{number}"
        rng = np.random.default_rng(stream_seed(scene.seed, 0, scene.index, stream))
        material = looks.material(materials_of(ranges), stream_seed(scene.seed, 0, scene.index, f"{stream}/material"))
        for _ in range(MAX_ATTEMPTS):
            one = _draw(rng, limits, ranges, scene)
            reason = _problem(one, scene, [*scene.bystanders, *drawn])
            if reason is None:
                drawn.append(replace(one, surface=replace(one.surface, material=material)))
                break
            reasons.append(reason)
        else:
            raise InputError(
                f"no bystander {number + 1} fits in {MAX_ATTEMPTS} draws: {dict(Counter(reasons))}",
                where="ranges.yaml",
                fix="Ask for fewer or smaller ones.",
            )
    return tuple(drawn), reasons


def _draw(rng: np.random.Generator, limits: Bystanders, ranges: Ranges, scene: Scene) -> Bystander:
    assets = ranges.assets["test" if scene.split == "test" else "train"]
    motion = str(rng.choice(list(limits.motions)))
    quantities = {name: value for name, value in limits.motions[motion] if value is not None}  # type: ignore[index]
    parameters = {name: float(rng.uniform(*value)) for name, value in quantities.items()}
    if "speed_mps" in parameters:
        parameters["direction"] = float(rng.choice([-1.0, 1.0]))
    shape = str(rng.choice(assets.shapes))
    half_size = looks.half_size(rng, shape, rng.uniform(*limits.half_size_m))
    colours = looks.colours(rng)[3]
    surface = Surface(str(rng.choice(assets.textures)), colours, rng.uniform(0.45, 0.7), int(rng.integers(1 << 20)))
    return Bystander(
        motion=motion,
        parameters=parameters,
        trajectory=_trajectory(motion, parameters),
        origin=(rng.uniform(-0.48, 0.48) * scene.view_m, half_size[1], rng.uniform(*limits.depth_m)),
        shape=shape,
        half_size=half_size,
        yaw=rng.uniform(-0.6, 0.6),
        surface=surface,
    )


def _trajectory(motion: str, p: dict[str, float]) -> Trajectory:
    speed = p.get("direction", 0.0) * p.get("speed_mps", 0.0)
    match motion:
        case "still":
            return Trajectory((Phase(0.0, (0.0, 0.0), (0.0, 0.0)),), {})
        case "slide":
            return slide(speed, p["friction"])
        case _:
            return flight(p["height_m"], (speed, 0.0), p.get("friction", 0.0))


def _problem(one: Bystander, scene: Scene, others: list[Bystander]) -> str | None:
    """Why a bystander can't be used, or None."""
    times = np.arange(scene.num_frames * FINE) / (scene.capture_fps * FINE)
    mine, camera = one.centres(times), scene.camera
    place = camera.to_image(mine)
    if np.abs(place - 0.5).max() > 0.5:
        return "bystander leaves the view"
    centres = scene.places(times)
    things = [(centres, math.hypot(*scene.half_size)), *((other.centres(times), other.radius) for other in others)]
    if any(np.linalg.norm(mine - theirs, axis=1).min() < one.radius + radius + ROOM for theirs, radius in things):
        return "bystander could collide"
    if mine[:, 2].max() + one.radius + ROOM > scene.wall_m or (scene.wedge is not None and _on_ramp(mine, one, scene)):
        return "bystander could collide"
    nearer = camera.depth(mine) < camera.depth(centres)
    reach = one.radius * camera.intrinsics()[0, 0] / camera.depth(mine)
    if (nearer & (np.linalg.norm(place - camera.to_image(centres), axis=1) < reach)).any():
        return "bystander hides the object"
    if scene.wedge is not None and _behind_ramp(mine, scene).mean() > 0.5:
        return "bystander is hidden"
    return None


def _behind_ramp(centres: Array, scene: Scene) -> NDArray[np.bool_]:
    """(T,) whether the line of sight to a centre passes through the ramp."""
    wedge, place = scene.wedge, scene.camera.place()
    assert wedge is not None
    hidden = np.zeros(len(centres), bool)
    for depth in np.linspace(-wedge.half_depth, wedge.half_depth, 5):
        share = (depth - place[2]) / (centres[:, 2] - place[2])
        x, y = (place[:2] + share[:, None] * (centres[:, :2] - place[:2])).T
        along = (x - wedge.foot_x) * wedge.uphill
        inside = (along > 0) & (along < wedge.length * math.cos(wedge.incline)) & (y < along * math.tan(wedge.incline))
        hidden |= inside & (share < 1)
    return hidden


def _on_ramp(centres: Array, one: Bystander, scene: Scene) -> bool:
    wedge, room = scene.wedge, one.radius + ROOM
    assert wedge is not None
    along = (centres[:, 0] - wedge.foot_x) * wedge.uphill
    over = centres[:, 1] * math.cos(wedge.incline) - along * math.sin(wedge.incline)  # above the slope
    beside = (along < -room) | (along > wedge.length * math.cos(wedge.incline) + room)
    return bool((~beside & (over < room) & (np.abs(centres[:, 2]) < wedge.half_depth + room)).any())
