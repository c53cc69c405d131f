"""The fast renderer: Scene -> Clip with frames and every ground-truth channel, from poses and never from pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from newtonrewards.core.clip import BystanderTruth, Clip, Source, Truth
from newtonrewards.simulation import raycast
from newtonrewards.simulation.backdrop import WALLS, trace_background
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.camera import acceleration_spread
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.scene import Scene
from newtonrewards.simulation.shapes import SHAPES, TEXTURES
from newtonrewards.simulation.tumble import derivatives

Array = NDArray[np.float64]
OVERSAMPLING = 2  # 2x2 samples for each pixel


def render(scene: Scene, centres: Array | None = None) -> Clip:
    """Draw a scene.

    Args:
        scene: what to draw.
        centres: (T, 2) object centre in world metres, to draw another motion than the scene's, whose truth is then
            kept: the clip shows something wrong on purpose (`simulation.corrupt`).
    Returns:
        A clip of (T, 3, S, S) frames rounded to 8 bits (so that a file holds the same numbers), soft masks (the share
        of a pixel's samples that hit the object), exact flow and depth, track, events, and the frames before the first
        event.
    """
    drawn = _drawn(scene, _bodies(scene, centres), truth=True)
    masks, truth = torch.from_numpy(drawn.masks), truth_of(scene)
    if scene.bystanders:
        with np.errstate(invalid="ignore"):  # 0 / 0: out of view
            visible = _tensor(drawn.samples[..., 0] / drawn.samples[..., 1])
        seen = zip(truth.bystanders, visible[1:], masks[1:], strict=True)
        bystanders = tuple(replace(one, visible=share, masks=mask) for one, share, mask in seen)
        truth = replace(truth, visible=visible[0], bystanders=bystanders)
    return Clip(
        frames=torch.from_numpy(drawn.frames),
        fps=scene.capture_fps,
        caption=scene.caption,
        masks=masks[0],
        valid=torch.from_numpy(scene.lawful()),
        truth=replace(truth, flow=torch.from_numpy(drawn.flow), depth=torch.from_numpy(drawn.depth)),
        source=Source(playback_fps=scene.playback_fps, preprocessing=("rendered, 8 bits",)),
    )


def pictures(
    scene: Scene, chosen: NDArray[np.int64] | None = None
) -> tuple[Float[torch.Tensor, "T 3 S S"], Float[torch.Tensor, "B T S S"]]:
    """The frames of a scene, or some of them, without the rest of their truth; and the soft masks of the object and of
    each bystander.
    """
    bodies = _bodies(scene)
    if chosen is not None:
        bodies = bodies._replace(centres=bodies.centres.take(chosen, 1), angles=bodies.angles.take(chosen, 1))
    drawn = _drawn(scene, bodies, truth=False)
    return torch.from_numpy(drawn.frames), torch.from_numpy(drawn.masks)


def _bodies(scene: Scene, centres: Array | None = None) -> raycast.Bodies:
    """The object, at `centres` (T, 2) if they are given, and the bystanders."""
    mine = scene.places() if centres is None else np.column_stack([centres, scene.places()[:, 2]])
    others = scene.bystanders
    things: list[Scene | Bystander] = [scene, *others]
    looks = [scene.object_surface, *(other.surface for other in others)]
    return raycast.Bodies(
        centres=np.stack([mine, *(other.centres(scene.times) for other in others)]),
        angles=np.stack([scene.angles(), *(other.angles(scene.times) for other in others)]),
        kinds=np.array([SHAPES[thing.shape] for thing in things]),
        halves=np.array([thing.half_size for thing in things]),
        textures=np.array([TEXTURES[look.texture] for look in looks]),
        frequencies=np.array([look.frequency for look in looks]),
        seeds=np.array([look.seed for look in looks]),
        colours=np.array([look.colours for look in looks]),
        sharpness=np.array([look.material.sharpness if look.material else 0.0 for look in looks]),
        metallic=np.array([look.material.metallic if look.material else 0.0 for look in looks]),
    )


def _drawn(scene: Scene, bodies: raycast.Bodies, *, truth: bool) -> raycast.Pictures:
    samples = scene.size_px * OVERSAMPLING
    focal = scene.camera.focal_px(samples)
    camera = np.concatenate([scene.camera.place()[None], scene.camera.axes()])
    light = np.array(scene.light)
    still = trace_background(samples, focal, camera, scene.wall_m, *_wedge(scene), light, *_surfaces(scene))
    size, (number, count) = scene.size_px, bodies.angles.shape[:2]
    out = raycast.Pictures(
        frames=np.empty((count, 3, size, size), np.float32),
        masks=np.zeros((number, count, size, size), np.float32),
        depth=np.empty((count if truth else 0, size, size), np.float32),
        flow=np.zeros((count - 1 if truth else 0, 2, size, size), np.float32),
        samples=np.zeros((number, count, 2), np.int64),
    )
    raycast.draw(raycast.View(samples, focal, camera, light), raycast.Backdrop(*still), bodies, out)
    return out


def truth_of(scene: Scene) -> Truth:
    """Track, events and parameters of a scene, without drawing it."""
    centres, camera = scene.centres() if scene.tumbling is None else scene.places(), scene.camera
    velocity, acceleration = derivatives(scene.trajectory, scene.tumbling, scene.times)
    lawful = scene.lawful()
    spread = acceleration_spread(camera.derivatives(centres, velocity, acceleration)[1][lawful])
    if scene.wobble is not None:  # no closed form is kept for a spoilt clip's derivatives: take them from its track
        velocity = np.gradient(centres, scene.times, axis=0)
        acceleration = np.gradient(velocity, scene.times, axis=0)
    world = {"position": centres, "velocity": velocity, "acceleration": acceleration}
    velocity, acceleration = camera.derivatives(centres, velocity, acceleration)
    return Truth(
        **{f"world_{name}": _tensor(_right_handed(track)) for name, track in world.items()},
        intrinsics=_tensor(camera.intrinsics()).expand(len(centres), 3, 3),
        extrinsics=_tensor(camera.extrinsics()).expand(len(centres), 3, 4),
        captions=scene.captions,
        assets=scene.assets,
        bystanders=tuple(_bystander_truth(one, scene) for one in scene.bystanders),
        position=_tensor(camera.to_image(centres)),
        velocity=_tensor(velocity),
        acceleration=_tensor(acceleration),
        metres_per_height=scene.view_m * float(camera.depth(centres[:1])[0] / camera.distance),
        acceleration_spread=spread,
        primitive=scene.primitive,
        split=scene.split,
        shift=scene.shift,
        events={name: time * scene.capture_fps for name, time in scene.events.items()},
        parameters=_parameters(scene),
        seed=scene.seed,
    )


def _bystander_truth(one: Bystander, scene: Scene) -> BystanderTruth:
    centres, camera = one.centres(scene.times), scene.camera
    velocity, acceleration = derivatives(one.trajectory, one.tumbling, scene.times)
    seen = camera.derivatives(centres, velocity, acceleration)
    return BystanderTruth(
        motion=one.motion,
        position=_tensor(camera.to_image(centres)),
        velocity=_tensor(seen[0]),
        acceleration=_tensor(seen[1]),
        world_position=_tensor(_right_handed(centres)),
        world_velocity=_tensor(_right_handed(velocity)),
        world_acceleration=_tensor(_right_handed(acceleration)),
        events={name: time * scene.capture_fps for name, time in one.trajectory.events.items()},
        parameters={**one.parameters, "half_size_m": one.half_size[0], **_material(one.surface)},
        assets={"shape": one.shape, "texture": one.surface.name},
    )


def _right_handed(track: Array) -> Array:
    """(T, 2) of the plane of motion, or (T, 3), as (T, 3) in the truth's world, whose z points to the viewer."""
    return np.pad(track, ((0, 0), (0, 1))) if track.shape[1] == 2 else track * [1.0, 1.0, -1.0]


def _parameters(scene: Scene) -> dict[str, Any]:
    return {
        **scene.parameters,
        "index": scene.index,
        "shape": scene.shape,
        "texture": scene.object_surface.texture,
        "wall": scene.wall.texture,
        "half_size_m": scene.half_size[0],
        "imperfection": scene.imperfection,
        "rejections": list(scene.rejections),
        **_material(scene.object_surface),
    }


def _material(surface: Surface) -> dict[str, Any]:
    made = surface.material
    return {} if made is None else {"material": made.name, "roughness": made.roughness, "metallic": made.metallic}


def _wedge(scene: Scene) -> tuple[Array, bool]:
    wedge = scene.wedge
    if wedge is None:
        return np.zeros(5), False
    return np.array([wedge.foot_x, wedge.uphill, wedge.incline, wedge.length, wedge.half_depth]), True


def _surfaces(scene: Scene) -> tuple[NDArray[np.int64], Array, NDArray[np.int64], Array]:
    surfaces: tuple[Surface, ...] = (scene.wall, scene.floor, scene.wedge_surface)
    return (
        np.array([WALLS[surface.texture] for surface in surfaces]),
        np.array([surface.frequency for surface in surfaces]),
        np.array([surface.seed for surface in surfaces]),
        np.array([surface.colours for surface in surfaces]),
    )


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
