"""A scene as pure data, drawn from (seed, split, index): object, background, camera, trajectory, parameters.

World coordinates: metres, x right, y up, z away from the viewer. The motion lies in the plane z = 0, the floor is y =
0.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation import extras, looks
from newtonrewards.simulation.bystanders import Bystander, draw_bystanders
from newtonrewards.simulation.camera import Camera
from newtonrewards.simulation.captions import caption, captions
from newtonrewards.simulation.engine import Tumbling
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.motions import PRIMITIVES, RAMPS, ROLLING, Trajectory, grip, trajectory
from newtonrewards.simulation.poses import beyond, first_crossing, rotations
from newtonrewards.simulation.ranges import SPLITS, Ranges, default_ranges, quantities
from newtonrewards.simulation.shapes import SHAPES, STONE
from newtonrewards.simulation.spoil import Wobble, spoilt
from newtonrewards.simulation.tumble import gains_energy, tumbled

Array = NDArray[np.float64]
MAX_ATTEMPTS = 200
EXTRAS = ("camera_yaw_deg", "camera_pitch_deg", "restitution")
SEEN = 4  # frames at least before an object leaves the view: three velocities, two accelerations


@dataclass(frozen=True)
class Wedge:
    """A ramp: a triangular prism that rises from `foot_x` to the side of `uphill` (+1 right, -1 left)."""

    foot_x: float
    uphill: float
    incline: float
    length: float
    half_depth: float = 0.6

    def contact(self, distance: float) -> tuple[float, float]:
        """World point on the slope at a distance (m) from the foot."""
        return self.foot_x + self.uphill * distance * math.cos(self.incline), distance * math.sin(self.incline)


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs, and nothing it computes.

    `imperfection` is `none` for right physics; `tilt` (rad) and `spin` (rad/s) turn the object about the line of sight,
    anticlockwise; `camera_yaw` and `camera_pitch` (rad) as in `camera.Camera`; `environment`, light from all around by
    its name and turned by an angle (rad), is the photo tier's alone. Where the object `may_leave` the view, the first
    time that it does is an event. `tumbling` is what becomes of it after its first contact, where an engine says so.
    """

    primitive: str
    split: str
    shift: str
    seed: int
    index: int
    parameters: dict[str, float]
    caption: str
    trajectory: Trajectory
    origin: tuple[float, float]
    shape: str
    half_size: tuple[float, float, float]
    tilt: float
    yaw: float
    object_surface: Surface
    wall: Surface
    floor: Surface
    wedge: Wedge | None
    wedge_surface: Surface
    light: tuple[float, float, float]
    size_px: int
    num_frames: int
    capture_fps: float
    playback_fps: float
    view_m: float
    camera_height: float
    camera_distance: float
    wall_m: float
    spin: float = 0.0
    camera_yaw: float = 0.0
    camera_pitch: float = 0.0
    wobble: Wobble | None = None
    imperfection: str = "none"
    bystanders: tuple[Bystander, ...] = ()
    environment: tuple[str, float] = ("", 0.0)
    may_leave: bool = False
    tumbling: Tumbling | None = None
    rejections: tuple[str, ...] = ()

    @property
    def times(self) -> Array:
        return np.arange(self.num_frames) / self.capture_fps

    @property
    def camera(self) -> Camera:
        return Camera(self.view_m, self.camera_height, self.camera_distance, self.camera_yaw, self.camera_pitch)

    @property
    def captions(self) -> dict[str, str]:
        """`caption` and the other phrasings of `captions.PHRASINGS`."""
        return captions(self.primitive, self.parameters) | {"quantities": self.caption}

    @property
    def assets(self) -> dict[str, str]:
        """Names of shape and textures: family, and the seed of what is drawn from it."""
        surfaces = {"texture": self.object_surface, "wall": self.wall, "floor": self.floor}
        surfaces |= {"ramp": self.wedge_surface} if self.wedge else {}
        return {"shape": self.shape} | {part: surface.name for part, surface in surfaces.items()}

    @cached_property
    def events(self) -> dict[str, float]:
        """Time (s) of each event: the trajectory's, and `leave_view`, the first moment at which the silhouette touches
        the frame's edge.

        The silhouette and not the centre: valid frames end there, and a mask that the edge cuts has another area and
        another middle. The camera is the resting one.
        """
        left = first_crossing(self.outside, self.times) if self.may_leave else None
        return self.trajectory.events | ({} if left is None else {"leave_view": left})

    def first_break(self) -> float:
        """Time (s) up to which one law holds and the object is seen whole; infinity if that never ends."""
        return min(self.events.values(), default=math.inf)

    def lawful(self) -> NDArray[np.bool_]:
        """(T,) frames up to the first event: those that are valid."""
        return np.asarray(self.times <= self.first_break() + 1e-9)

    def outside(self, times: Array) -> Array:
        """(T,) how far the silhouette lies beyond the nearest edge of the view, metres; negative: inside."""
        turned = rotations(self.angles(times))
        return beyond(self.shape, self.half_size, self.camera.edges(), self.places(times), turned)

    def angles(self, times: Array | None = None) -> Array:
        """(T, 3) tilt, pitch and yaw of the object (`poses`), at the times (s) of the frames or at others."""
        times = self.times if times is None else times
        tilts = self.tilts(times)
        angles = np.stack([tilts, np.zeros_like(tilts), np.full_like(tilts, self.yaw)], axis=1)
        if self.tumbling is not None:
            angles = self.tumbling.angles(times, angles)
        return angles

    def tilts(self, times: Array | None = None) -> Array:
        """(T,) angle of the object about the line of sight, rad; it turns until the first contact, or rolls. The closed
        form alone, without tumbling.
        """
        times = self.times if times is None else times
        if self.primitive in ROLLING:
            way = np.linalg.norm(self.trajectory.at(times)[0], axis=1)
            return self.tilt - self.parameters["direction"] * way / self.half_size[0]
        return self.tilt + self.spin * np.minimum(times, self.trajectory.first_break())

    def places(self, times: Array | None = None) -> Array:
        """(T, 3) object centre in world metres: `centres`, and how far behind the plane of motion, where it tumbles."""
        places = np.pad(self.centres() if times is None else self.centres(times), ((0, 0), (0, 1)))
        if self.tumbling is not None:
            places = self.tumbling.places(self.times if times is None else times, places)
        return places

    def centres(self, times: Array | None = None) -> Array:
        """(T, 2) object centre in world metres, at the times (s) of the frames or at others."""
        times = self.times if times is None else times
        position, _, _ = self.trajectory.at(times)
        if self.wobble is not None:
            position = position + self._along_ramp(self.wobble.offset(times))
            if self.wedge is None:
                position[:, 1] = np.maximum(position[:, 1], 0.0)
        centres = position + np.array(self.origin)
        if self.tumbling is not None:
            centres = self.tumbling.places(times, np.pad(centres, ((0, 0), (0, 1))))[:, :2]
        return centres

    def _along_ramp(self, offset: Array) -> Array:
        if self.wedge is None:
            return offset
        slope = np.array([self.wedge.uphill * math.cos(self.wedge.incline), math.sin(self.wedge.incline)])
        return offset[:, :1] * slope


def sample_scene(
    seed: int,
    index: int,
    *,
    split: str = "train",
    shift: str = "id",
    primitive: str | None = None,
    imperfect: float = 0.0,
    ranges: Ranges | None = None,
) -> Scene:
    """Draw a scene: the same for the same arguments, whatever was drawn before.

    Camera and place are drawn before the trajectory is looked at, so the first frame doesn't give the answer away; a
    scene
    is drawn again only for the reasons recorded in `rejections`.

    Args:
        seed: seed of the data set.
        index: number of the clip; without `primitive`, index % 5 chooses the motion.
        imperfect: share of clips with wrong physics, 0 to 1 (only for the base model's pre-training).
    Raises:
        InputError: unknown split, motion or shift, or ranges in which no scene fits.
        MissingExtra: objects shall tumble, and PyBullet isn't installed.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'", fix=f"Use one of {', '.join(SPLITS)}.")
    ranges = ranges or default_ranges()
    tumbles = ranges.world.after_contact == "tumble"
    if tumbles and imperfect > 0:
        raise InputError("nobody has made wrong physics tumble", where="imperfect", fix="Leave one of both out.")
    if ranges.world.targets and not tumbles:
        raise InputError(
            "nothing touches targets", where="world.targets", fix="Set world.after_contact=tumble with them."
        )
    primitive = primitive or PRIMITIVES[index % len(PRIMITIVES)]
    limits = quantities(primitive, shift, ranges)
    rng = np.random.default_rng(stream_seed(seed, 0, index, f"scene/{split}/{shift}/{primitive}"))
    reasons: list[str] = []
    for _ in range(MAX_ATTEMPTS):
        scene = _draw(
            rng, ranges, primitive, split, shift, {k: rng.uniform(*v) for k, v in limits.items()}, (seed, index)
        )
        scene = tumbled(scene, ranges) if tumbles else scene
        reason = _problem(scene) if len(scene.bystanders) == ranges.world.targets else "no room for a target"
        if reason is None and rng.random() < imperfect:
            scene = spoilt(rng, scene)
            reason = _problem(scene)
        if reason is None:
            bystanders, against = draw_bystanders(scene, ranges)
            return replace(scene, bystanders=(*scene.bystanders, *bystanders), rejections=(*reasons, *against))
        reasons.append(reason)
    raise InputError(
        f"no {primitive}/{shift} scene fits in {MAX_ATTEMPTS} draws: {dict(Counter(reasons))}", where="ranges.yaml"
    )


def _draw(
    rng: np.random.Generator,
    ranges: Ranges,
    primitive: str,
    split: str,
    shift: str,
    drawn: dict[str, float],
    key: tuple[int, int],
) -> Scene:
    world, assets = ranges.world, ranges.assets["test" if split == "test" else "train"]
    view, direction = rng.uniform(*world.view_m), float(rng.choice([-1.0, 1.0]))
    parameters = {**drawn, "direction": direction, "view_m": view}
    extra = {name: extras.quantity(getattr(world, name), key, split, name) for name in EXTRAS}
    parameters |= {name: value for name, value in extra.items() if getattr(world, name) != (0.0, 0.0)}
    shapes = looks.fit_shapes(assets.shapes, primitive, world.after_contact)
    shape = str(rng.choice(shapes))
    half_size = looks.half_size(rng, shape, rng.uniform(*world.half_size_m))
    wedge = _wedge(rng, primitive, drawn, direction, view)
    wall_colour, floor_colour, ramp_colour, object_colours = looks.colours(rng)
    return Scene(
        primitive=primitive,
        split=split,
        shift=shift,
        seed=key[0],
        index=key[1],
        parameters=parameters,
        caption=caption(primitive, parameters),
        trajectory=trajectory(primitive, parameters),
        origin=_origin(rng, primitive, direction, view, half_size, wedge),
        shape=shape,
        half_size=half_size,
        tilt=wedge.uphill * wedge.incline if wedge else 0.0,
        spin=0.0 if wedge else extras.spin(world.spin_rad_s, key, split),
        camera_yaw=math.radians(extra["camera_yaw_deg"]),
        camera_pitch=math.radians(extra["camera_pitch_deg"]),
        yaw=0.0 if shape == "capsule" or SHAPES[shape] >= STONE or wedge else rng.uniform(-0.6, 0.6),
        object_surface=Surface(
            str(rng.choice(assets.textures)),
            object_colours,
            rng.uniform(0.45, 0.7),
            _seed(rng),
            extras.material(ranges, key, split),
        ),
        wall=Surface(str(rng.choice(assets.walls)), wall_colour, rng.uniform(0.7, 1.4), _seed(rng)),
        floor=Surface("clouds", floor_colour, rng.uniform(0.8, 1.6), _seed(rng)),
        wedge=wedge,
        wedge_surface=Surface("clouds", ramp_colour, rng.uniform(1.0, 2.0), _seed(rng)),
        light=looks.light(rng),
        size_px=world.size_px,
        num_frames=world.num_frames,
        capture_fps=world.capture_fps,
        playback_fps=world.playback_fps,
        view_m=view,
        camera_height=view / 2 - world.floor_margin_m,
        camera_distance=world.camera_distance_m,
        wall_m=world.wall_m,
        environment=extras.environment(ranges, key, split),
        may_leave=world.may_leave,
    )


def _origin(
    rng: np.random.Generator,
    primitive: str,
    direction: float,
    view: float,
    half: tuple[float, float, float],
    wedge: Wedge | None,
) -> tuple[float, float]:
    """World place of trajectory point (0, 0): the object's centre at rest on the floor, or at its start on the ramp."""
    if wedge is None:
        spread = (-0.36, 0.36) if primitive == "free_fall" else (0.26, 0.38)
        sign = 1.0 if primitive == "free_fall" else -direction
        return sign * rng.uniform(*spread) * view, half[1]
    gap = rng.uniform(0.05, 0.35)
    x, y = wedge.contact(half[0] + gap if primitive == "ramp_up" else wedge.length - half[0] - gap)
    return x - wedge.uphill * half[1] * math.sin(wedge.incline), y + half[1] * math.cos(wedge.incline)


def _wedge(
    rng: np.random.Generator, primitive: str, drawn: dict[str, float], direction: float, view: float
) -> Wedge | None:
    if primitive not in (*RAMPS, *ROLLING):
        return None
    incline, length = math.radians(drawn["incline_deg"]), rng.uniform(0.80, 0.9) * view
    uphill = direction if primitive == "ramp_up" else -direction
    slack = view - length * math.cos(incline)
    middle = rng.uniform(-0.35, 0.35) * slack
    return Wedge(middle - uphill * length * math.cos(incline) / 2, uphill, incline, length)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 20))


def _problem(scene: Scene) -> str | None:
    """Why a drawn scene can't be used, or None."""
    centres = scene.centres()
    half = max(scene.half_size[:2])
    room = scene.view_m / 2 - half
    middle = scene.camera_height
    if not scene.may_leave and (np.abs(centres[:, 0]).max() > room or centres[:, 1].max() - middle > room):
        return "leaves the view"
    if not scene.may_leave and scene.tumbling is not None and scene.outside(scene.times).max() > 0:
        return "leaves the view"
    if scene.events.get("leave_view", math.inf) < scene.times[min(SEEN, scene.num_frames) - 1]:
        return "leaves the view too soon"
    if np.linalg.norm(centres - centres[0], axis=1).max() < 0.2:
        return "hardly moves"
    if not scene.may_leave and (scene.camera_yaw or scene.camera_pitch):
        room = 0.5 - half / scene.view_m
        if np.abs(scene.camera.to_image(centres) - 0.5).max() > room:
            return "leaves the view"
    if scene.tumbling is not None and gains_energy(scene):
        return "gains energy"
    if scene.primitive in ROLLING and scene.parameters["friction"] < grip(scene.wedge.incline if scene.wedge else 0.0):
        return "slips"
    if scene.wedge is not None:
        lawful = centres[scene.times <= scene.trajectory.first_break()] if scene.tumbling else centres
        along = np.abs(lawful[:, 0] - scene.wedge.foot_x) / math.cos(scene.wedge.incline)
        if (along.min() < half * 0.9 and scene.tumbling is None) or along.max() > scene.wedge.length - half * 0.5:
            return "leaves the ramp"
    return None
