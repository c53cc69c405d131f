"""How an object goes on that has touched the floor: it tumbles, as a rigid-body engine says (`engine.py`).

Up to the contact the closed form holds, and so do valid frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newtonrewards.simulation import extras
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.engine import GROUND, STEP, Run, State, Tumbling, mass, world
from newtonrewards.simulation.motions import GRAVITY, ROLLING, Trajectory
from newtonrewards.simulation.poses import beyond, first_crossing, reach, rotations
from newtonrewards.simulation.ranges import Ranges, Tumble, tumble_of
from newtonrewards.simulation.targets import draw_targets

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]
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


def tumbled(scene: Scene, ranges: Ranges) -> Scene:
    """The scene as it is where objects tumble after their first contact, with the targets that the ranges ask for.

    Up to there the closed form holds. `land` is when the body's lowest point touches the floor, `hit` when it touches a
    target, to a step of the engine; after a hit that goes for `land` too. What becomes of a body on a ramp that never
    comes to its foot stays what it was.

    Returns:
        the scene as it was, with fewer targets, where there is no room for all of them: it can't be used.
    Raises:
        InputError: there shall be targets on a ramp.
        MissingExtra: PyBullet isn't installed.
    """
    scene = _turned(scene, tumble_of(ranges))
    targets = draw_targets(scene, ranges)
    if len(targets) < ranges.world.targets:
        return replace(scene, bystanders=targets)

    def below(times: Array) -> Array:
        return beyond(scene.shape, scene.half_size, FLOOR, scene.places(times), rotations(scene.angles(times)))

    land = first_crossing(below, scene.times)
    if land is None and not targets:
        return scene
    begin = _begin(land, targets)
    seconds = scene.num_frames / scene.capture_fps - begin  # to the end of the last frame's exposure
    restitution = scene.parameters.get("restitution", 0.0)
    with world(scene.wedge, scene.wall_m) as engine:
        mine = _state(scene, begin)
        if targets:  # it flies: its places are exact until it touches something, if its speed is that of half a step on
            mine = mine._replace(velocity=mine.velocity + np.array([0.0, GRAVITY * STEP / 2, 0.0]))
        bodies = [engine.add(scene.shape, scene.half_size, mine, scene.parameters["friction"], restitution)]
        for one in targets:
            rest = State(one.centres(np.zeros(1))[0], np.zeros(3), rotations(one.angles(np.zeros(1)))[0], np.zeros(3))
            bodies.append(engine.add(one.shape, one.half_size, rest, one.parameters["friction"], restitution))
        run = engine.run(bodies, begin, math.ceil(seconds / STEP))
    return _after(scene, land, targets, run, bodies)


def _begin(land: float | None, targets: Sequence[Bystander]) -> float:
    """When the engine takes over: at the contact with the floor; whole steps before it where there is more to touch."""
    if not targets:
        return land or 0.0
    return 0.0 if land is None else land % STEP


def _state(scene: Scene, begin: float) -> State:
    when = np.array([begin])
    velocity = np.pad(scene.trajectory.at(when)[1][0], (0, 1))
    spin = scene.spin
    if scene.primitive in ROLLING:
        spin = -scene.parameters["direction"] * float(np.linalg.norm(velocity)) / scene.half_size[0]
    return State(scene.places(when)[0], velocity, rotations(scene.angles(when))[0], np.array([0.0, 0.0, spin]))


def _after(scene: Scene, land: float | None, targets: Sequence[Bystander], run: Run, bodies: Sequence[int]) -> Scene:
    """The scene with what the engine made of it."""
    between = {pair: time for pair, time in run.touched.items() if pair <= set(bodies)}
    hits = [min((time for pair, time in between.items() if body in pair), default=math.inf) for body in bodies]
    hit = hits[0]
    if land is None or hit < land:
        land = run.touched.get(frozenset((bodies[0], GROUND)))
    contacts = {"land": math.inf if land is None else land, "hit": hit}
    start = min(contacts.values())
    before = {name: time for name, time in scene.trajectory.events.items() if time < start}
    events = before | {name: time for name, time in contacts.items() if time < math.inf}
    phases = tuple(phase for phase in scene.trajectory.phases if phase.start < start)
    moved = []
    for one, made, time in zip(targets, run.bodies[1:], hits[1:], strict=True):
        touched = {} if time == math.inf else {"hit": time}
        moved.append(
            replace(one, trajectory=replace(one.trajectory, events=touched), tumbling=replace(made, start=time))
        )
    # the engine may give way within the step before: from there on the body is where it says
    pressed = min((time for pair, time in run.touched.items() if bodies[0] in pair), default=math.inf)
    mine = replace(run.bodies[0], start=min(start, pressed))
    return replace(scene, trajectory=Trajectory(phases, events), tumbling=mine, bystanders=tuple(moved))


def gains_energy(scene: Scene) -> bool:
    """Whether all that tumbles has more energy at some time than it had before, by more than `GAIN`: rarely, where much
    is given back at several points at once, the engine is as wrong as that.
    """
    things: list[Scene | Bystander] = [scene, *scene.bystanders]
    made = [(mass(thing.shape, thing.half_size), thing.tumbling) for thing in things]
    energies = np.sum([body.energies(tumbling) for body, tumbling in made if tumbling is not None], axis=0)
    return bool((energies - np.minimum.accumulate(energies)).max() > GAIN * energies[0])


def derivatives(trajectory: Trajectory, tumbling: Tumbling | None, times: Array) -> tuple[Array, Array]:
    """Velocity and acceleration at times (s), m/s and m/s^2: (T, 2) in the plane of motion, or (T, 3) where a body
    tumbles. There the acceleration is the mean over the two times around: an impact has no other.
    """
    _, velocity, acceleration = trajectory.at(times)
    if tumbling is None:
        return velocity, acceleration
    velocity, acceleration = (np.pad(values, ((0, 0), (0, 1))) for values in (velocity, acceleration))
    velocity = tumbling.speeds(times, velocity)
    after = (times > tumbling.start)[:, None]
    return velocity, np.where(after, np.gradient(velocity, times, axis=0), acceleration)
