"""A rigid-body engine for what closed forms can't give: PyBullet at 1 kHz, without damping.

It is an extra, loaded where it is asked for. Coordinates as in `scene.py`; that its z points away changes nothing, for
the laws are the same in a mirror. How far it is from the closed forms: `tests/simulation/test_tumble.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from newtonrewards.core.errors import MissingExtra
from newtonrewards.simulation.meshes import points
from newtonrewards.simulation.motions import GRAVITY, RESTING
from newtonrewards.simulation.poses import angles_of
from newtonrewards.simulation.solids import hull, solid

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Wedge

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
STEP = 1e-3  # s
ROUND = 32  # corners of a circle in the engine's hulls: up to half a percent of the radius from round
BASE = -1  # PyBullet's number for a body that has no joints
GROUND = 0  # and for what was made first
FORCE = 9  # where the normal force stands in what it says of a contact


class State(NamedTuple):
    """Of a body at one time: position (m), velocity (m/s) and spin (rad/s), (3,) each, and rotation (3, 3)."""

    position: Array
    velocity: Array
    rotation: Array
    spin: Array


@dataclass(frozen=True, eq=False)
class Tumbling:
    """What becomes of a body from `start` (s) on: its states at N times, `STEP` apart, the first at `begin` (s)."""

    begin: float
    start: float
    positions: Array
    velocities: Array
    turns: Rotation
    spins: Array

    def places(self, times: Array, before: Array) -> Array:
        """(T, 3) positions in world metres at times (s): what was `before` up to the start, these after it."""
        return self._then(times, before, self._between(times, self.positions))

    def speeds(self, times: Array, before: Array) -> Array:
        """The same of velocities, (T, 3) m/s."""
        return self._then(times, before, self._between(times, self.velocities))

    def angles(self, times: Array, before: Array) -> Array:
        """The same of (T, 3) tilt, pitch and yaw (`poses`)."""
        known = self._known()
        turned = Slerp(known, self.turns)(np.clip(times, known[0], known[-1]))
        return self._then(times, before, angles_of(turned.as_matrix()))

    def _then(self, times: Array, before: Array, after: Array) -> Array:
        return np.where((times > self.start)[:, None], after, before)

    def _between(self, times: Array, values: Array) -> Array:
        """Between two steps in proportion."""
        return np.stack([np.interp(times, self._known(), column) for column in values.T], 1)

    def _known(self) -> Array:
        return self.begin + STEP * np.arange(len(self.positions), dtype=np.float64)


class Run(NamedTuple):
    """What became of bodies, and when (s) two of the engine's numbers first pressed on each other; the floor's is
    `GROUND`.
    """

    bodies: list[Tumbling]
    touched: dict[frozenset[int], float]


@dataclass(frozen=True)
class Engine:
    """A world of PyBullet's, in a client of its own."""

    bullet: Any
    client: int

    def add(self, shape: str, half: Vector, state: State, friction: float, restitution: float) -> int:
        """A body as heavy as it is large; both coefficients are those of its contact with anything that stands still,
        and between two bodies their products count.

        Returns:
            the engine's number for it.
        """
        volume, moments = mass(shape, half)
        turn = Rotation.from_matrix(state.rotation).as_quat()
        number = self.bullet.createMultiBody(
            volume,
            self._shape(shape, half),
            basePosition=state.position,
            baseOrientation=turn,
            physicsClientId=self.client,
        )
        # without damping: by default a throw of two seconds ends 1.4 m off. The margin would be added around hulls.
        self._be(
            number, lateralFriction=friction, restitution=restitution, linearDamping=0, angularDamping=0,
            localInertiaDiagonal=volume * moments, collisionMargin=0.0,
        )  # fmt: skip
        self.bullet.resetBaseVelocity(number, state.velocity, state.spin, physicsClientId=self.client)
        return int(number)

    def run(self, bodies: Sequence[int], begin: float, steps: int) -> Run:
        """Let time pass from `begin` (s), and see what becomes of bodies."""
        states: list[list[tuple[float, ...]]] = [[] for _ in bodies]
        touched: dict[frozenset[int], float] = {}
        for step in range(steps + 1):
            if step:
                self.bullet.stepSimulation(physicsClientId=self.client)
                for contact in self.bullet.getContactPoints(physicsClientId=self.client):
                    if contact[FORCE] > 0:
                        touched.setdefault(frozenset(contact[1:3]), begin + (step - 1) * STEP)
            for body, rows in zip(bodies, states, strict=True):
                place, turn = self.bullet.getBasePositionAndOrientation(body, physicsClientId=self.client)
                speed, spin = self.bullet.getBaseVelocity(body, physicsClientId=self.client)
                rows.append((*place, *turn, *speed, *spin))
        made = []
        for rows in states:
            place, turn, speed, spin = np.split(np.array(rows), (3, 7, 10), axis=1)
            made.append(Tumbling(begin, begin, place, speed, Rotation.from_quat(turn), spin))
        return Run(made, touched)

    def plane(self, normal: Vector, position: Vector) -> None:
        shape = self.bullet.createCollisionShape(
            self.bullet.GEOM_PLANE, planeNormal=normal, physicsClientId=self.client
        )
        self._still(shape, np.array(position), np.array([0.0, 0.0, 0.0, 1.0]))

    def ramp(self, wedge: Wedge) -> None:
        """The slope is a side of a box, the rest of which lies within the ramp or under the floor."""
        turn = Rotation.from_euler("z", wedge.uphill * wedge.incline)
        middle = np.array([*wedge.contact(wedge.length / 2), 0.0]) - turn.apply([0.0, 1.0, 0.0])
        shape = self.bullet.createCollisionShape(
            self.bullet.GEOM_BOX, halfExtents=[wedge.length / 2, 1.0, wedge.half_depth], physicsClientId=self.client
        )
        self._still(shape, middle, turn.as_quat())

    def _still(self, shape: int, position: Array, turn: Array) -> None:
        number = self.bullet.createMultiBody(
            0.0, shape, basePosition=position, baseOrientation=turn, physicsClientId=self.client
        )
        self._be(number, lateralFriction=1.0, restitution=1.0)  # the engine multiplies those of both sides

    def _shape(self, shape: str, half: Vector) -> int:
        b, client = self.bullet, {"physicsClientId": self.client}
        if shape == "sphere":
            return int(b.createCollisionShape(b.GEOM_SPHERE, radius=half[0], **client))
        if shape == "box":
            return int(b.createCollisionShape(b.GEOM_BOX, halfExtents=half, **client))
        return int(b.createCollisionShape(b.GEOM_MESH, vertices=points(shape, half, ROUND).tolist(), **client))

    def _be(self, body: int, **values: Any) -> None:
        self.bullet.changeDynamics(body, BASE, physicsClientId=self.client, **values)


def bullet() -> Any:
    """PyBullet.

    Raises:
        MissingExtra: it isn't installed.
    """
    try:
        import pybullet
    except ImportError:
        raise MissingExtra(
            "tumbling needs PyBullet", where="world.after_contact", fix="pip install 'newtonrewards[tumble]'"
        ) from None
    return pybullet


@contextlib.contextmanager
def world(wedge: Wedge | None = None, wall_m: float | None = None) -> Iterator[Engine]:
    """A new one with floor, ramp and wall, the same each time.

    Raises:
        MissingExtra: PyBullet isn't installed.
    """
    pybullet = bullet()
    engine = Engine(pybullet, pybullet.connect(pybullet.DIRECT))
    try:
        pybullet.setGravity(0.0, -GRAVITY, 0.0, physicsClientId=engine.client)
        pybullet.setPhysicsEngineParameter(
            fixedTimeStep=STEP, numSubSteps=0, restitutionVelocityThreshold=RESTING, deterministicOverlappingPairs=1,
            physicsClientId=engine.client,
        )  # fmt: skip
        engine.plane((0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
        if wall_m is not None:
            engine.plane((0.0, 0.0, -1.0), (0.0, 0.0, wall_m))
        if wedge is not None:
            engine.ramp(wedge)
        yield engine
    finally:
        pybullet.disconnect(engine.client)


class Mass(NamedTuple):
    """Volume, m^3, and moments of 1 kg about the own axes of a shape, (3,) kg m^2; they are its principal ones."""

    volume: float
    moments: Array

    def energies(self, made: Tumbling) -> Array:
        """(N,) J per unit of density: moving, turning, and above the floor."""
        own = np.einsum("tji,tj->ti", made.turns.as_matrix(), made.spins)
        moving: Array = (made.velocities**2).sum(1) / 2 + GRAVITY * made.positions[:, 1]
        return self.volume * (moving + (own**2 * self.moments).sum(1) / 2)


@lru_cache(maxsize=64)
def mass(shape: str, half: Vector) -> Mass:
    if shape == "sphere":
        return Mass(4 / 3 * math.pi * half[0] ** 3, np.full(3, 0.4 * half[0] ** 2))
    vertices, faces, _ = hull(points(shape, half, ROUND))
    body = solid(vertices, faces)
    return Mass(body.volume, np.diag(body.inertia) / body.volume)
