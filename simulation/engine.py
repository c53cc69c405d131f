"""A rigid-body engine for what closed forms can't give: PyBullet at 1 kHz, without damping.

It is an extra, loaded where it is asked for. Coordinates as in `scene.py`; that its z points away changes nothing, for
the laws are the same in a mirror. How far it is from the closed forms: `tests/simulation/test_tumble.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
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


class State(NamedTuple):
    """Of a body at one time: position (m), velocity (m/s) and spin (rad/s), (3,) each, and rotation (3, 3)."""

    position: Array
    velocity: Array
    rotation: Array
    spin: Array


@dataclass(frozen=True, eq=False)
class Tumbling:
    """What becomes of a body from `start` (s) on: its states at N times, `STEP` apart, the first at `start`."""

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

    def energies(self, moments: Array) -> Array:
        """(N,) of 1 kg, J: moving, turning with these moments (`inertia`), and above the floor."""
        own = np.einsum("tji,tj->ti", self.turns.as_matrix(), self.spins)
        moving: Array = (self.velocities**2).sum(1) / 2 + GRAVITY * self.positions[:, 1]
        return moving + (own**2 * moments).sum(1) / 2

    def _then(self, times: Array, before: Array, after: Array) -> Array:
        return np.where((times > self.start)[:, None], after, before)

    def _between(self, times: Array, values: Array) -> Array:
        """Between two steps in proportion."""
        return np.stack([np.interp(times, self._known(), column) for column in values.T], 1)

    def _known(self) -> Array:
        return self.start + STEP * np.arange(len(self.positions), dtype=np.float64)


@dataclass(frozen=True)
class Engine:
    """A world of PyBullet's, in a client of its own."""

    bullet: Any
    client: int

    def add(self, shape: str, half: Vector, state: State, friction: float, restitution: float) -> int:
        """A body of 1 kg; both coefficients are those of its contact with anything that stands still.

        Returns:
            the engine's number for it.
        """
        turn = Rotation.from_matrix(state.rotation).as_quat()
        number = self.bullet.createMultiBody(
            1.0,
            self._shape(shape, half),
            basePosition=state.position,
            baseOrientation=turn,
            physicsClientId=self.client,
        )
        # without damping: by default a throw of two seconds ends 1.4 m off. The margin would be added around hulls.
        self._be(
            number, lateralFriction=friction, restitution=restitution, linearDamping=0, angularDamping=0,
            localInertiaDiagonal=inertia(shape, half), collisionMargin=0.0,
        )  # fmt: skip
        self.bullet.resetBaseVelocity(number, state.velocity, state.spin, physicsClientId=self.client)
        return int(number)

    def run(self, body: int, start: float, steps: int) -> Tumbling:
        """Let time pass from `start` (s), and see what becomes of a body."""
        poses, speeds = [], []
        for step in range(steps + 1):
            if step:
                self.bullet.stepSimulation(physicsClientId=self.client)
            poses.append(self.bullet.getBasePositionAndOrientation(body, physicsClientId=self.client))
            speeds.append(self.bullet.getBaseVelocity(body, physicsClientId=self.client))
        positions, turns = (np.array(column) for column in zip(*poses, strict=True))
        velocities, spins = (np.array(column) for column in zip(*speeds, strict=True))
        return Tumbling(start, positions, velocities, Rotation.from_quat(turns), spins)

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


@contextlib.contextmanager
def world(wedge: Wedge | None = None, wall_m: float | None = None) -> Iterator[Engine]:
    """A new one with floor, ramp and wall, the same each time.

    Raises:
        MissingExtra: PyBullet isn't installed.
    """
    try:
        import pybullet
    except ImportError:
        raise MissingExtra(
            "tumbling needs PyBullet", where="world.after_contact", fix="pip install 'newtonrewards[tumble]'"
        ) from None
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


def inertia(shape: str, half: Vector) -> Array:
    """(3,) moments of 1 kg about a shape's own axes, kg m^2; they are its principal ones."""
    if shape == "sphere":
        return np.full(3, 0.4 * half[0] ** 2)
    vertices, faces, _ = hull(points(shape, half, ROUND))
    body = solid(vertices, faces)
    return np.diag(body.inertia) / body.volume
