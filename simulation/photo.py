"""The photo tier: the frames of a scene as Blender's path tracer Cycles sees them.

Motion, camera, shapes and textures are those of the fast tier, and so is all truth; light, shadows and what a surface
is like are Cycles'. Blender runs as a process (`blender.py`) in an environment of its own (`photo_setup.py`).

What stands still is drawn once, and of each frame the part that objects and their shadows may reach, blended in with a
soft edge.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from newtonrewards.core.errors import NewtonError
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import write_atomic
from newtonrewards.simulation import photo_setup
from newtonrewards.simulation.backdrop import WALLS
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.meshes import mesh, object_map, plane_map, signs
from newtonrewards.simulation.poses import rotations
from newtonrewards.simulation.scene import Scene, Wedge

Array = NDArray[np.float64]
Box = tuple[int, int, int, int]  # columns from, to, rows from, to
FEATHER = 0.03  # width of the soft edge, frame heights
TINTED = 0.5  # how far the colours of what stands still are drawn to those of wood and plaster
APERTURE = 0.12  # m: a background a little out of focus
SUN = 0.1  # rad, width of the lamp: a window
REACH = 8.0  # m to each side that floor and wall go on
BLENDER = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # our x, y, z (up, away) as Blender's
WARM = (1.0, 0.96, 0.9)


class Photo(Config):
    """How the photo tier draws.

    Attributes:
        samples: light paths for each pixel of a frame; what stands still gets twice as many.
    """

    samples: int = Field(16, ge=1)


DEFAULT = Photo()


class NotTaken(NewtonError):
    """Blender gave no pictures of a clip."""


def photograph(
    scene: Scene,
    chosen: NDArray[np.int64] | None = None,
    *,
    settings: Photo = DEFAULT,
    seconds: float | None = None,
    keep: Path | None = None,
) -> Float[Tensor, "T 3 S S"]:
    """The frames of a scene, or some of them.

    Args:
        seconds: after which Blender is given up.
        keep: file that keeps them, and gives them where it is there.
    Raises:
        MissingExtra: Blender isn't set up.
        NotTaken: it crashed, took too long, or wrote something else.
    """
    if keep is not None and keep.is_file():
        with np.load(keep, allow_pickle=False) as content:
            return torch.from_numpy(content["frames"]).float() / 255
    frames = _photograph(scene, chosen, settings, seconds)
    if keep is not None:
        keep.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, frames=(frames * 255).round().to(torch.uint8).numpy())
        write_atomic(keep, buffer.getvalue())
    return frames


def _photograph(
    scene: Scene, chosen: NDArray[np.int64] | None, settings: Photo, seconds: float | None
) -> Float[Tensor, "T 3 S S"]:
    python = photo_setup.python()
    with tempfile.TemporaryDirectory(prefix="newtonrewards-photo-") as name:
        folder = Path(name)
        borders = describe(scene, folder, chosen, settings)
        _run([str(python), "-I", str(Path(__file__).with_name("blender.py")), name], seconds)
        pictures = [_picture(folder / f"{number:04d}.png") for number in range(len(borders))]
        return composed(_picture(folder / "background.png"), pictures, borders)


def _run(command: Sequence[str], seconds: float | None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        raise NotTaken(f"Blender took longer than {seconds:g} s and was given up", fix="Raise --time-limit.") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise NotTaken(f"Blender ended with exit code {done.returncode}: {said[-1][:200]}")


def _picture(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path)) if path.is_file() else None
    if picture is None:
        raise NotTaken(f"Blender left no picture {path.name}")
    return np.ascontiguousarray(picture[..., ::-1])


def composed(
    background: NDArray[np.uint8], pictures: Sequence[NDArray[np.uint8]], borders: Sequence[Box]
) -> Float[Tensor, "T 3 S S"]:
    """Pictures of parts of the frame, each blended into the background over `FEATHER` of the frame.

    Args:
        background: (S, S, 3). pictures: (rows, columns, 3) of each border.
    """
    size = len(background)
    frames = np.empty((len(pictures), size, size, 3), np.uint8)
    for frame, picture, (left, right, top, bottom) in zip(frames, pictures, borders, strict=True):
        if picture.shape != (bottom - top, right - left, 3):
            raise NotTaken(f"Blender drew a part of {picture.shape} instead of {(bottom - top, right - left, 3)}")
        weight = (_edge(top, bottom, size)[:, None] * _edge(left, right, size))[..., None]
        frame[:] = background
        part = frame[top:bottom, left:right]
        part[:] = (weight * picture + (1 - weight) * part).round()
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def _edge(start: int, stop: int, size: int) -> Array:
    """Weights (stop - start,) that rise from 0 to 1 within the feather, except at the edges of the frame."""
    pixels, width = np.arange(start, stop) + 0.5, max(1.0, FEATHER * size)
    rise = np.ones(stop - start) if start == 0 else np.clip((pixels - start) / width, 0, 1)
    fall = np.ones(stop - start) if stop == size else np.clip((stop - pixels) / width, 0, 1)
    return rise * fall


# ---- what Blender is told -------------------------------------------------------------------------------------------


def describe(scene: Scene, folder: Path, chosen: NDArray[np.int64] | None, settings: Photo) -> list[Box]:
    """Write what `blender.py` reads; which part of each frame it will draw."""
    picked = np.arange(scene.num_frames) if chosen is None else chosen
    arrays: dict[str, NDArray[Any]] = {}
    bodies, stills = {}, {}
    things: list[tuple[Scene | Bystander, Surface]] = [(scene, scene.object_surface)]
    things += [(other, other.surface) for other in scene.bystanders]
    for number, ((thing, look), poses) in enumerate(zip(things, all_poses(scene), strict=True)):
        name = f"body{number}"
        shape = mesh(thing.shape, thing.half_size)
        arrays[f"{name}_vertices"] = shape.vertices @ BLENDER
        arrays[f"{name}_faces"] = shape.faces[:, ::-1]  # two axes have changed places: what turned left turns right
        arrays[f"{name}_normals"] = shape.normals[:, ::-1] @ BLENDER
        arrays[f"{name}_poses"] = _in_blender(poses[picked])
        write_picture(folder / f"{name}.png", object_map(thing.shape, thing.half_size, look, 512))
        made = look.material
        bodies[name] = {"image": f"{name}.png", **BODY} | (
            {"roughness": made.roughness, "metallic": made.metallic} if made else {}
        )
    per_metre = 2 * scene.size_px / scene.view_m
    for name, (image, vertices, faces, uv) in _stills(scene, per_metre).items():
        write_picture(folder / f"{name}.png", worn(image, FINISHES[name], per_metre, scene.index))
        arrays |= {f"{name}_vertices": vertices @ BLENDER, f"{name}_faces": faces, f"{name}_uv": uv}
        stills[name] = {"image": f"{name}.png", "roughness": FINISHES[name].roughness, "relief": FINISHES[name].relief}
    boxes = borders(scene)
    chosen_boxes = [boxes[frame] for frame in picked]
    content = {
        "size_px": scene.size_px,
        "samples": settings.samples,
        "background_samples": 2 * settings.samples,
        "seed": scene.index,
        "view_transform": "AgX",
        "look": "AgX - Medium High Contrast",
        "exposure": -0.65,
        "camera": {
            "focal": scene.camera.intrinsics()[0, 0],
            "pose": _camera_pose(scene).tolist(),
            "focus": scene.camera_distance,
            "aperture": APERTURE,
        },
        "environment": {"name": scene.environment[0], "turn": scene.environment[1], "strength": 0.35},
        "sun": {"pose": _sun_pose(scene).tolist(), "angle": SUN, "strength": 3.2, "colour": WARM},
        "bodies": bodies,
        "stills": stills,
        "borders": chosen_boxes,
    }
    np.savez(folder / "meshes.npz", **arrays)  # type: ignore[arg-type]
    (folder / "scene.json").write_text(json.dumps(content, indent=1))
    return chosen_boxes


class Finish(NamedTuple):
    """What floor, wall or ramp is made of: the tint that its colours are drawn to; the grain's length along and across
    (m) and its strength; how rough it is, 0 to 1; how deep what is dark lies (m).
    """

    tint: tuple[float, float, float]
    grain: tuple[float, float]
    wear: float
    roughness: float
    relief: float


FINISHES = {
    "wall": Finish((0.80, 0.76, 0.70), (0.15, 0.15), 0.06, 0.9, 0.05),
    "floor": Finish((0.55, 0.40, 0.28), (1.2, 0.06), 0.35, 0.4, 0.02),
    "ramp": Finish((0.80, 0.66, 0.47), (0.8, 0.03), 0.25, 0.5, 0.01),
}
BODY = {"roughness": 0.4, "metallic": 0.0, "edge": 0.012}


def worn(colours: Array, finish: Finish, per_metre: float, seed: int) -> Array:
    """The colours (rows, columns, 3) of a plane, less gaudy, and with a grain: walls aren't smooth."""
    rng, (rows, columns, _) = np.random.default_rng(seed), colours.shape
    grain = np.zeros((rows, columns), np.float32)
    for octave in range(4):
        along, across = (max(1.0, length * per_metre / 2**octave) for length in finish.grain)
        rough = rng.random((math.ceil(rows / across) + 2, math.ceil(columns / along) + 2), np.float32) - 0.5
        grain += cv2.resize(rough, (columns, rows), interpolation=cv2.INTER_CUBIC) / 2**octave
    tinted = (1 - TINTED) * colours + TINTED * np.array(finish.tint)
    return np.clip(tinted * (1 + finish.wear * grain[..., None]), 0, 1)


def write_picture(path: Path, colours: Array) -> None:
    done = cv2.imwrite(str(path), (colours[..., ::-1] * 255).round().astype(np.uint8))
    assert done, "8-bit RGB can always be written as PNG"


def all_poses(scene: Scene) -> list[Array]:
    """(T, 4, 4) from each body's own axes to the world: the object's, then the bystanders'."""
    mine = _poses(scene.places(), scene.angles())
    return [mine, *(_poses(other.centres(scene.times), other.angles(scene.times)) for other in scene.bystanders)]


def _poses(centres: Array, angles: Array) -> Array:
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    poses[:, :3, :3] = rotations(angles)
    poses[:, :3, 3] = centres
    return poses


def _in_blender(poses: Array) -> Array:
    """Both sides of a pose in Blender's order of axes."""
    swap = np.eye(4)
    swap[:3, :3] = BLENDER
    return swap @ poses @ swap


def _camera_pose(scene: Scene) -> Array:
    """(4, 4) in Blender's world; its cameras look along -z, y up."""
    right, up, forward = scene.camera.axes() @ BLENDER
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, up, -forward], 1)
    pose[:3, 3] = scene.camera.place() @ BLENDER
    return pose


def _sun_pose(scene: Scene) -> Array:
    """(4, 4): Blender's lamps shine along -z."""
    pose = np.eye(4)
    z = np.array(scene.light) @ BLENDER
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    pose[:3, :3] = np.stack([x, np.cross(z, x), z], 1)
    return pose


Still = tuple[Array, Array, NDArray[np.int64], Array]


def _stills(scene: Scene, per_metre: float) -> dict[str, Still]:
    """Picture, vertices, faces and place in the picture of each corner of each face: wall, floor, ramp."""
    far = scene.wall_m
    side = ((-REACH, REACH), (0.0, REACH))
    wall = np.array([[-REACH, 0, far], [REACH, 0, far], [REACH, REACH, far], [-REACH, REACH, far]])
    ground = ((-REACH, REACH), (-REACH, far))
    floor = np.array([[-REACH, 0, -REACH], [REACH, 0, -REACH], [REACH, 0, far], [-REACH, 0, far]])
    quad = np.array([[0, 1, 2, 3]])
    found = {
        "wall": _still(scene.wall, side, per_metre, wall, quad, [(0, 1)]),
        "floor": _still(scene.floor, ground, per_metre, floor, quad, [(0, 2)]),
    }
    if scene.wedge is not None:
        corners, faces, axes = _prism(scene.wedge)
        low, high = corners.min(0), corners.max(0)
        area = ((low[0], high[0]), (min(low[1], low[2]), max(high[1], high[2])))
        found["ramp"] = _still(scene.wedge_surface, area, per_metre, corners, faces, axes)
    return found


def _prism(wedge: Wedge) -> tuple[Array, NDArray[np.int64], list[tuple[int, int]]]:
    """Vertices, faces (a triangle as a quadrangle with a corner twice would be none: the ends have an edge's middle),
    and the two coordinates that place each face in the picture.
    """
    foot, deep = wedge.foot_x, wedge.half_depth
    top = foot + wedge.uphill * wedge.length * math.cos(wedge.incline)
    high = wedge.length * math.sin(wedge.incline)
    outline = [(foot, 0.0), (top, 0.0), (top, high), ((foot + top) / 2, high / 2)]
    corners = np.array([(x, y, z) for z in (-deep, deep) for x, y in outline])
    faces = np.array([[0, 1, 2, 3], [7, 6, 5, 4], [1, 5, 6, 2], [2, 6, 7, 3], [3, 7, 4, 0]])
    return corners, faces, [(0, 1), (0, 1), (2, 1), (0, 2), (0, 2)]


def _still(
    look: Surface,
    area: tuple[tuple[float, float], tuple[float, float]],
    per_metre: float,
    vertices: Array,
    faces: NDArray[np.int64],
    axes: Sequence[tuple[int, int]],
) -> Still:
    low, size = np.array(area)[:, 0], np.ptp(np.array(area), axis=1)
    uv = np.stack([(vertices[face][:, list(pair)] - low) / size for face, pair in zip(faces, axes, strict=True)])
    return plane_map(WALLS[look.texture], look, area, per_metre), vertices, faces, uv


# ---- which part of a frame changes ----------------------------------------------------------------------------------


def borders(scene: Scene) -> list[Box]:
    """For each frame a box around all objects and what they shade, with room for the feather."""
    size, camera = scene.size_px, scene.camera
    things: list[Scene | Bystander] = [scene, *scene.bystanders]
    rows = []
    for thing, poses in zip(things, all_poses(scene), strict=True):
        box = 1.1 * signs() * thing.half_size
        corners = np.einsum("tij,cj->tci", poses[:, :3, :3], box) + poses[:, None, :3, 3]
        reached = [corners, *(_shaded(corners, way, scene.wall_m) for way in _lights(scene))]
        points = np.concatenate(reached, 1)
        rows.append(camera.to_image(points.reshape(-1, 3)).reshape(*points.shape[:2], 2))
    seen, room = np.concatenate(rows, 1), FEATHER + 0.01
    low = np.floor((seen.min(1) - room) * size).clip(0, size - 1).astype(int)
    high = np.ceil((seen.max(1) + room) * size).clip(1, size).astype(int)
    return [(x0, x1, y0, y1) for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)]


def _lights(scene: Scene) -> Array:
    """Unit vectors to the light: the lamp's middle and rim, and straight up, for the shade of what lies beneath."""
    middle = np.array(scene.light)
    rim = [middle + SUN / 2 * np.array(step) for step in ((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1))]
    ways = np.array([middle, *rim, [0.0, 1.0, 0.0]])
    return ways / np.linalg.norm(ways, axis=1, keepdims=True)


def _shaded(points: Array, light: Array, wall: float) -> Array:
    """Where the shadow of points (T, N, 3) falls: on the floor, or on the wall before it."""
    down = np.maximum(points[..., 1], 0) / light[1]
    back = np.maximum(wall - points[..., 2], 0) / max(-light[2], 1e-9)
    return points - np.minimum(down, back)[..., None] * light
