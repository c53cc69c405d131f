"""Things that stand in the way of an object that falls or is thrown, and are knocked about by it (`tumble.py`).

They are bystanders that stand on the floor in the plane of motion until they are touched, each from a stream of its
own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation import looks
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.motions import Phase, Trajectory
from newtonrewards.simulation.ranges import Ranges, bystanders_of, materials_of, tumble_of

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]
MAX_ATTEMPTS = 50
ROOM = 0.02  # m that is left between any two things at first
ASIDE = 0.1  # m that they stand before or behind the plane of motion, at most
UNDER = 0.3  # m that the first of them stands beside what falls, at most; each further one twice that more


def draw_targets(scene: Scene, ranges: Ranges) -> tuple[Bystander, ...]:
    """As many as `ranges.world.targets` asks for, or fewer where no place is left: that scene can't be used.

    Raises:
        InputError: the motion is on a ramp.
    """
    if ranges.world.targets and scene.wedge is not None:
        raise InputError(
            f"nothing stands in the way of {scene.primitive}", where="world.targets", fix="Draw falls and throws alone."
        )
    drawn: list[Bystander] = []
    for number in range(ranges.world.targets):
        stream = f"target/{scene.split}/{number}"
        rng = np.random.default_rng(stream_seed(scene.seed, 0, scene.index, stream))
        material = looks.material(materials_of(ranges), stream_seed(scene.seed, 0, scene.index, f"{stream}/material"))
        tries = (_draw(rng, ranges, scene, number, material) for _ in range(MAX_ATTEMPTS))
        fitting = next((one for one in tries if _fits(one, scene, drawn)), None)
        if fitting is None:
            break
        drawn.append(fitting)
    return tuple(drawn)


def _draw(
    rng: np.random.Generator, ranges: Ranges, scene: Scene, number: int, material: looks.Material | None
) -> Bystander:
    assets = ranges.assets["test" if scene.split == "test" else "train"]
    shape = str(rng.choice(looks.fit_shapes(assets.shapes, "ramp_down", "slide")))  # what has a flat side to stand on
    half = looks.half_size(rng, shape, rng.uniform(*bystanders_of(ranges).half_size_m))
    start, edge = scene.places(np.zeros(1))[0, 0], scene.view_m / 2 - half[0]
    if scene.primitive == "free_fall":
        x = start + rng.uniform(-UNDER, UNDER) * (1 + 2 * number)
    else:
        x = start + rng.random() * (scene.parameters["direction"] * edge - start)
    look = Surface(
        str(rng.choice(assets.textures)), looks.colours(rng)[3], rng.uniform(0.45, 0.7), int(rng.integers(1 << 20)),
        material,
    )  # fmt: skip
    return Bystander(
        motion="still",
        parameters={"friction": float(rng.uniform(*tumble_of(ranges).friction))},
        trajectory=Trajectory((Phase(0.0, (0.0, 0.0), (0.0, 0.0)),), {}),
        origin=(float(np.clip(x, -edge, edge)), half[1], rng.uniform(-ASIDE, ASIDE)),
        shape=shape,
        half_size=half,
        yaw=rng.uniform(-0.6, 0.6),
        surface=look,
    )


def _fits(one: Bystander, scene: Scene, others: list[Bystander]) -> bool:
    """Whether the balls around it and everything else are apart at first."""
    begin = np.zeros(1)
    things = [(scene.places(begin), math.hypot(*scene.half_size)), *((o.centres(begin), o.radius) for o in others)]
    return all(np.linalg.norm(one.centres(begin) - place) > one.radius + radius + ROOM for place, radius in things)
