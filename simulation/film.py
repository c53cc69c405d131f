"""A scene as a hand-held camera would film it: open shutter, shaking hand, sensor noise, changing exposure.

The perfect camera of `render` is what training uses; this one is for testing instruments that must work on footage.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation.render import pictures, render
from newtonrewards.simulation.scene import Scene

EXPOSURES = 4  # moments that an open shutter averages


class Film(Config):
    """What is imperfect about a camera; the default is the perfect one.

    Attributes:
        shutter: share of the time between frames in which the shutter is open, in [0, 1].
        shake: how far the hand wanders, frame heights (one standard deviation), slowly.
        roll: how far it turns, degrees (one standard deviation).
        noise: sensor noise of a pixel (one standard deviation), of 1.
        exposure: how much brightness wanders, as a share (one standard deviation).
        wander_s: time constant of all that wanders, s.
    """

    shutter: float = Field(0.0, ge=0, le=1)
    shake: float = Field(0.0, ge=0, le=0.1)
    roll: float = Field(0.0, ge=0, le=10)
    noise: float = Field(0.0, ge=0, le=0.5)
    exposure: float = Field(0.0, ge=0, le=0.5)
    wander_s: float = Field(0.3, gt=0)


def film(scene: Scene, camera: Film) -> Clip:
    """Film a scene; see `handheld` for the truth of the clip."""
    clip = render(scene) if camera.shutter == 0 else _exposed(scene, camera.shutter)
    return handheld(clip, camera, stream_seed(scene.seed, 0, scene.index, "film"))


def handheld(clip: Clip, camera: Film, seed: int) -> Clip:
    """Let the hand shake, the sensor be noisy and the exposure change, on a clip of the perfect camera.

    Returns:
        The clip; its truth is that of the camera at rest. To have something to show beyond the frame's edges, a shaking
        camera zooms in by `zoom`, and positions, velocities and accelerations grow with it. Flow, depth and masks are
        left out: they are those of the perfect camera.
    """
    rng = np.random.default_rng(seed)
    count, smooth = clip.num_frames, camera.wander_s * float(clip.fps)
    shift = camera.shake * _wander(rng, (count, 2), smooth)
    roll = np.deg2rad(camera.roll) * _wander(rng, (count,), smooth)
    zoom = 1 + 2 * float(np.abs(shift).max() + np.abs(np.sin(roll)).max() / 2)
    frames = clip.frames if zoom == 1 else _warped(clip.frames, shift, roll, zoom)
    light = 1 + camera.exposure * _wander(rng, (count,), smooth)
    frames = frames * torch.from_numpy(light).to(frames.dtype)[:, None, None, None]
    frames = frames + camera.noise * torch.from_numpy(rng.standard_normal(frames.shape, np.float32))
    truth = clip.truth and replace(
        clip.truth,
        position=(clip.truth.position - 0.5) * zoom + 0.5,
        velocity=clip.truth.velocity * zoom,
        acceleration=clip.truth.acceleration * zoom,
        metres_per_height=clip.truth.metres_per_height / zoom,
        flow=None,
        depth=None,
    )
    return replace(clip, frames=(frames.clamp(0, 1) * 255).round() / 255, masks=None, truth=truth)


def _exposed(scene: Scene, shutter: float) -> Clip:
    """Frames that gather light from their own time on, for a share of the time to the next one."""
    parts = round(EXPOSURES / shutter)
    fine = replace(scene, num_frames=scene.num_frames * parts, capture_fps=scene.capture_fps * parts)
    lit = np.flatnonzero(np.arange(fine.num_frames) % parts < EXPOSURES)
    sharp = pictures(fine, fine.centres()[lit], fine.tilts()[lit])
    return replace(render(scene), frames=sharp.unflatten(0, (scene.num_frames, EXPOSURES)).mean(1))


def _wander(rng: np.random.Generator, shape: tuple[int, ...], frames: float) -> NDArray[np.float64]:
    """Smooth noise along the first axis with standard deviation 1 on average; 0 at its start."""
    margin = int(4 * frames) + 1
    rough = rng.normal(size=(shape[0] + 2 * margin, *shape[1:]))
    smooth = gaussian_filter1d(rough, frames, axis=0)[margin : margin + shape[0]] * np.sqrt(2 * np.sqrt(np.pi) * frames)
    return np.asarray(smooth - smooth[:1], np.float64)


def _warped(
    frames: Float[Tensor, "T 3 H W"], shift: NDArray[np.float64], roll: NDArray[np.float64], zoom: float
) -> Float[Tensor, "T 3 H W"]:
    """What a camera sees that looks `shift` (T, 2) frame heights beside, is turned by `roll` (T,) and zooms in."""
    height, width = frames.shape[-2:]
    shape = width / height
    theta = np.zeros((len(roll), 2, 3))
    theta[:, 0, 0] = theta[:, 1, 1] = np.cos(roll) / zoom
    theta[:, 0, 1], theta[:, 1, 0] = -np.sin(roll) / zoom / shape, np.sin(roll) / zoom * shape
    theta[:, 0, 2], theta[:, 1, 2] = 2 * shift[:, 0] / shape, 2 * shift[:, 1]
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta).to(frames), list(frames.shape), align_corners=False)
    return torch.nn.functional.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False)
