"""How an object goes on that has touched the floor: it tumbles, as a rigid-body engine says (`engine.py`).

Up to the contact the closed form holds, and so do valid frames.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newtonrewards.simulation import extras
from newtonrewards.simulation.engine import STEP, State, Tumbling, inertia, world
from newtonrewards.simulation.motions import ROLLING, Trajectory
from newtonrewards.simulation.poses import beyond, first_crossing, reach, rotations
from newtonrewards.simulation.ranges import Tumble

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
GAIN = 0.01  # of the energy at contact: what an impact may give back of what it took a step before
FLOOR = (np.array([[0.0, -1.0, 0.0]]), np.zeros(3))  # outward normal, point: as `poses.beyond` has them


def _turned(scene: Scene, limits: Tumble) -> Scene:
    """A flight whose object is let go at an angle and has friction with the floor; only its first law is left, for an
    engine says what comes then. What is on a ramp lies on it as it did.
    """
    if scene.wedge is not None:
        return scene
    key = (scene.seed, scene.index)
    degrees = extras.quantity(limits.tilt_deg, key, scene.split, "tilt_deg")
    friction = extras.quantity(limits.friction, key, scene.split, "tumble/friction")
    tilt = math.radians(degrees)
    own = FLOOR[0] @ rotations(np.array([[tilt, 0.0, scene.yaw]]))[0]
    return replace(
        scene,
        tilt=tilt,
        origin=(scene.origin[0], float(reach(scene.shape, scene.half_size, own)[0])),
        trajectory=Trajectory(scene.trajectory.phases[:1], {}),
        parameters={"friction": friction, **scene.parameters, "tilt_deg": degrees},
    )


def tumbled(scene: Scene, limits: Tumble) -> Scene:
    """The scene as it is where objects tumble after their first contact with the floor.

    Up to there the closed form holds; `land` is when the body's lowest point touches the floor. What becomes of a body
    on a ramp that never comes to its foot stays what it was.

    Raises:
        MissingExtra: PyBullet isn't installed.
    """
    scene = _turned(scene, limits)

    def below(times: Array) -> Array:
        return beyond(scene.shape, scene.half_size, FLOOR, scene.places(times), rotations(scene.angles(times)))

    land = first_crossing(below, scene.times)
    if land is None:
        return scene
    p, when = scene.parameters, np.array([land])
    velocity = np.pad(scene.trajectory.at(when)[1][0], (0, 1))
    spin = scene.spin
    if scene.primitive in ROLLING:
        spin = -p["direction"] * float(np.linalg.norm(velocity)) / scene.half_size[0]
    begin = State(scene.places(when)[0], velocity, rotations(scene.angles(when))[0], np.array([0.0, 0.0, spin]))
    seconds = scene.num_frames / scene.capture_fps - land  # to the end of the last frame's exposure
    with world(scene.wedge, scene.wall_m) as engine:
        body = engine.add(scene.shape, scene.half_size, begin, p["friction"], p.get("restitution", 0.0))
        tumbling = engine.run(body, land, math.ceil(seconds / STEP))
    events = {name: time for name, time in scene.trajectory.events.items() if time < land} | {"land": land}
    phases = tuple(phase for phase in scene.trajectory.phases if phase.start < land)
    return replace(scene, trajectory=Trajectory(phases, events), tumbling=tumbling)


def gains_energy(shape: str, half: Vector, made: Tumbling) -> bool:
    """Whether a body has more energy at some time than it had before, by more than `GAIN`: rarely, where much is given
    back at several points at once, the engine is as wrong as that.
    """
    energies = made.energies(inertia(shape, half))
    return bool((energies - np.minimum.accumulate(energies)).max() > GAIN * energies[0])
