"""The fast renderer: Scene -> Clip with frames and every ground-truth channel, from poses and never from pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from newtonrewards.core.clip import Clip, Source, Truth
from newtonrewards.simulation import raycast
from newtonrewards.simulation.backdrop import WALLS, trace_background
from newtonrewards.simulation.camera import acceleration_spread
from newtonrewards.simulation.scene import Scene, Surface
from newtonrewards.simulation.shapes import SHAPES, TEXTURES

OVERSAMPLING = 2  # 2x2 samples for each pixel


def render(scene: Scene, centres: NDArray[np.float64] | None = None) -> Clip:
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
    drawn = _drawn(scene, scene.centres() if centres is None else centres, scene.tilts(), truth=True)
    return Clip(
        frames=torch.from_numpy(drawn.frames),
        fps=scene.capture_fps,
        caption=scene.caption,
        masks=torch.from_numpy(drawn.masks[0]),
        valid=torch.from_numpy(scene.times <= scene.trajectory.first_break() + 1e-9),
        truth=replace(truth_of(scene), flow=torch.from_numpy(drawn.flow), depth=torch.from_numpy(drawn.depth)),
        source=Source(playback_fps=scene.playback_fps, preprocessing=("rendered, 8 bits",)),
    )


def pictures(
    scene: Scene, centres: NDArray[np.float64], tilts: NDArray[np.float64]
) -> tuple[Float[torch.Tensor, "T 3 S S"], Float[torch.Tensor, "T S S"]]:
    """The scene with its object at these places (T, 2) in world metres, turned by these angles (T,) in rad, and the
    object's soft masks.
    """
    drawn = _drawn(scene, centres, tilts, truth=False)
    return torch.from_numpy(drawn.frames), torch.from_numpy(drawn.masks[0])


def _drawn(scene: Scene, centres: NDArray[np.float64], tilts: NDArray[np.float64], *, truth: bool) -> raycast.Pictures:
    samples = scene.size_px * OVERSAMPLING
    focal = scene.camera.focal_px(samples)
    camera = np.concatenate([scene.camera.place()[None], scene.camera.axes()])
    light = np.array(scene.light)
    still = trace_background(samples, focal, camera, scene.wall_m, *_wedge(scene), light, *_surfaces(scene))
    look = scene.object_surface
    bodies = raycast.Bodies(
        centres=np.pad(centres, ((0, 0), (0, 1)))[None],
        tilts=tilts[None],
        kinds=np.array([SHAPES[scene.shape]]),
        halves=np.array([scene.half_size]),
        yaws=np.array([scene.yaw]),
        textures=np.array([TEXTURES[look.texture]]),
        frequencies=np.array([look.frequency]),
        seeds=np.array([look.seed]),
        colours=np.array([look.colours]),
    )
    size, count = scene.size_px, len(tilts)
    out = raycast.Pictures(
        frames=np.empty((count, 3, size, size), np.float32),
        masks=np.zeros((1, count, size, size), np.float32),
        depth=np.empty((count if truth else 0, size, size), np.float32),
        flow=np.zeros((count - 1 if truth else 0, 2, size, size), np.float32),
        samples=np.zeros((1, count, 2), np.int64),
    )
    raycast.draw(raycast.View(samples, focal, camera, light), raycast.Backdrop(*still), bodies, out)
    return out


def truth_of(scene: Scene) -> Truth:
    """Track, events and parameters of a scene, without drawing it."""
    centres, camera = scene.centres(), scene.camera
    _, velocity, acceleration = scene.trajectory.at(scene.times)
    lawful = scene.times <= scene.trajectory.first_break() + 1e-9
    spread = acceleration_spread(camera.derivatives(centres, velocity, acceleration)[1][lawful])
    if scene.wobble is not None:  # no closed form is kept for a spoilt clip's derivatives: take them from its track
        velocity = np.gradient(centres, scene.times, axis=0)
        acceleration = np.gradient(velocity, scene.times, axis=0)
    world = {"position": centres, "velocity": velocity, "acceleration": acceleration}
    velocity, acceleration = camera.derivatives(centres, velocity, acceleration)
    return Truth(
        **{f"world_{name}": _tensor(_right_handed(track)) for name, track in world.items()},
        intrinsics=_tensor(camera.intrinsics()).expand(scene.num_frames, 3, 3),
        extrinsics=_tensor(camera.extrinsics()).expand(scene.num_frames, 3, 4),
        captions=scene.captions,
        assets=scene.assets,
        position=_tensor(camera.to_image(centres)),
        velocity=_tensor(velocity),
        acceleration=_tensor(acceleration),
        metres_per_height=scene.view_m * float(camera.depth(centres[:1])[0] / camera.distance),
        acceleration_spread=spread,
        primitive=scene.primitive,
        split=scene.split,
        shift=scene.shift,
        events={name: time * scene.capture_fps for name, time in scene.trajectory.events.items()},
        parameters=_parameters(scene),
        seed=scene.seed,
    )


def _right_handed(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 2) of the plane of motion, as (T, 3) in the truth's world, whose z points to the viewer."""
    return np.pad(track, ((0, 0), (0, 1)))


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
    }


def _wedge(scene: Scene) -> tuple[NDArray[np.float64], bool]:
    wedge = scene.wedge
    if wedge is None:
        return np.zeros(5), False
    return np.array([wedge.foot_x, wedge.uphill, wedge.incline, wedge.length, wedge.half_depth]), True


def _surfaces(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    surfaces: tuple[Surface, ...] = (scene.wall, scene.floor, scene.wedge_surface)
    return (
        np.array([WALLS[surface.texture] for surface in surfaces]),
        np.array([surface.frequency for surface in surfaces]),
        np.array([surface.seed for surface in surfaces]),
        np.array([surface.colours for surface in surfaces]),
    )


def _tensor(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
