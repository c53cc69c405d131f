"""A scene as a hand-held camera would film it: open shutter, shaking hand, sensor noise, changing exposure.

The perfect camera of `render` is what training uses; this one is for testing instruments that must work on footage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from newtonrewards.core.clip import BystanderTruth, Clip, Truth
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation.render import pictures, render
from newtonrewards.simulation.scene import Scene

Take = Callable[[Scene, NDArray[np.int64] | None], Tensor]
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


def film(scene: Scene, camera: Film, take: Take | None = None) -> Clip:
    """Film a scene; see `handheld` for the truth of the clip.

    With an open shutter a frame's soft mask is the share of its light that came from the object; track, flow and depth
    are those of the moment when the shutter opens, and the blur runs ahead of them.

    Args:
        take: gives the frames of a scene, all or some of them; None: the fast renderer does.
    """
    clip = render(scene)
    if camera.shutter > 0:
        clip = _exposed(clip, scene, camera.shutter, take)
    elif take is not None:
        clip = replace(clip, frames=take(scene, None))
    if camera == Film():
        return clip
    return handheld(clip, camera, stream_seed(scene.seed, 0, scene.index, "film"))


def handheld(clip: Clip, camera: Film, seed: int) -> Clip:
    """Let the hand shake, the sensor be noisy and the exposure change, on a clip of the perfect camera.

    Returns:
        The clip. Its track is that of the camera at rest, and `truth.shake` leads from there to each frame. Masks and
        depth are those of the frames, and the flow is relative to the moving camera: the background's isn't zero. To
        have something to show beyond the frame's edges, a shaking camera zooms in by `zoom`, and positions, velocities
        and accelerations grow with it.
    """
    rng = np.random.default_rng(seed)
    count, smooth = clip.num_frames, camera.wander_s * float(clip.fps)
    shift = camera.shake * _wander(rng, (count, 2), smooth)
    roll = np.deg2rad(camera.roll) * _wander(rng, (count,), smooth)
    zoom = 1 + 2 * float(np.abs(shift).max() + np.abs(np.sin(roll)).max() / 2)
    frames = clip.frames
    if zoom > 1:
        hand = _Hand(shift, roll, zoom, frames.shape[-1] / frames.shape[-2])
        frames, masks, truth = _shaken(clip, hand)
        clip = replace(clip, masks=masks, truth=truth)
    light = 1 + camera.exposure * _wander(rng, (count,), smooth)
    frames = frames * torch.from_numpy(light).to(frames.dtype)[:, None, None, None]
    frames = frames + camera.noise * torch.from_numpy(rng.standard_normal(frames.shape, np.float32))
    return replace(clip, frames=(frames.clamp(0, 1) * 255).round() / 255)


def _exposed(clip: Clip, scene: Scene, shutter: float, take: Take | None) -> Clip:
    """The clip with frames that gather light from their own time on, for a share of the time to the next one."""
    parts = round(EXPOSURES / shutter)
    fine = replace(scene, num_frames=scene.num_frames * parts, capture_fps=scene.capture_fps * parts)
    lit = np.flatnonzero(np.arange(fine.num_frames) % parts < EXPOSURES)
    frames, masks = pictures(fine, lit)
    frames = frames if take is None else take(fine, lit)
    blurred, masks = (
        x.unflatten(dim, (scene.num_frames, EXPOSURES)).mean(dim + 1) for dim, x in enumerate((frames, masks))
    )
    assert clip.truth is not None, "the renderer gives it"
    bystanders = zip(clip.truth.bystanders, masks[1:], strict=True)
    truth = replace(clip.truth, bystanders=tuple(replace(one, masks=mask) for one, mask in bystanders))
    return replace(clip, frames=blurred, masks=masks[0], truth=truth)


def _wander(rng: np.random.Generator, shape: tuple[int, ...], frames: float) -> NDArray[np.float64]:
    """Smooth noise along the first axis with standard deviation 1 on average; 0 at its start."""
    margin = int(4 * frames) + 1
    rough = rng.normal(size=(shape[0] + 2 * margin, *shape[1:]))
    smooth = gaussian_filter1d(rough, frames, axis=0)[margin : margin + shape[0]] * np.sqrt(2 * np.sqrt(np.pi) * frames)
    return np.asarray(smooth - smooth[:1], np.float64)


@dataclass(frozen=True, eq=False)
class _Hand:
    """A camera that looks `shift` (T, 2) frame heights beside, is turned by `roll` (T,) rad and zooms in by `zoom`;
    `shape` is width over height.
    """

    shift: NDArray[np.float64]
    roll: NDArray[np.float64]
    zoom: float
    shape: float

    def source(self) -> Float[Tensor, "T 2 3"]:
        """Where in the resting camera's frame a pixel is taken from, both from -1 to 1 across the frame."""
        theta = np.zeros((len(self.roll), 2, 3))
        theta[:, 0, 0] = theta[:, 1, 1] = np.cos(self.roll) / self.zoom
        theta[:, 0, 1] = -np.sin(self.roll) / self.zoom / self.shape
        theta[:, 1, 0] = np.sin(self.roll) / self.zoom * self.shape
        theta[:, 0, 2], theta[:, 1, 2] = 2 * self.shift[:, 0] / self.shape, 2 * self.shift[:, 1]
        return torch.from_numpy(theta)

    def truth(self) -> Float[Tensor, "T 2 3"]:
        """Where a place of the resting camera's zoomed frame is seen, both in frame heights."""
        middle = np.array([self.shape / 2, 0.5])
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)
        offset = middle - np.einsum("tij,tj->ti", turn, middle + self.zoom * self.shift)
        return torch.from_numpy(np.concatenate([turn, offset[:, :, None]], 2))

    def cameras(
        self, intrinsics: Float[Tensor, "T 3 3"], extrinsics: Float[Tensor, "T 3 4"]
    ) -> tuple[Float[Tensor, "T 3 3"], Float[Tensor, "T 3 4"]]:
        """Those of the frames, from the resting camera's: it turns about its axis, zooms, and shifts its lens."""
        turn, offset = self.truth()[..., :2].to(intrinsics), self.truth()[..., 2:].to(intrinsics)
        middle = torch.tensor([[self.shape / 2], [0.5]]).to(intrinsics)
        zoomed = (intrinsics[:, :2, 2:] - middle) * self.zoom + middle
        moved = intrinsics.clone()
        moved[:, :2, :2] *= self.zoom  # equal in x and y, so it changes places with the turn
        moved[:, :2, 2:] = turn @ zoomed + offset
        turned = extrinsics.clone()
        turned[:, :2] = turn @ extrinsics[:, :2]
        return moved, turned


def _shaken(clip: Clip, hand: _Hand) -> tuple[Tensor, Tensor | None, Truth | None]:
    """Frames (which may overshoot [0, 1]), masks and truth of the moving camera."""
    source = hand.source().to(clip.frames)
    grid = affine_grid(source, list(clip.frames.shape), align_corners=False)

    def seen(values: Tensor, mode: str) -> Tensor:
        return grid_sample(values, grid[: len(values)], mode=mode, padding_mode="border", align_corners=False)

    def zoomed(values: Truth | BystanderTruth) -> dict[str, Any]:
        middle = torch.tensor([hand.shape / 2, 0.5])
        return {
            "position": (values.position - middle) * hand.zoom + middle,
            "velocity": values.velocity * hand.zoom,
            "acceleration": values.acceleration * hand.zoom,
        }

    def other(one: BystanderTruth) -> BystanderTruth:
        mask = None if one.masks is None else seen(one.masks[:, None], "bilinear")[:, 0]
        return replace(one, masks=mask, **zoomed(one))

    truth = clip.truth
    if truth is not None:
        truth = replace(
            truth,
            **zoomed(truth),
            bystanders=tuple(map(other, truth.bystanders)),
            metres_per_height=truth.metres_per_height / hand.zoom,
            flow=None if truth.flow is None else _flow(seen(truth.flow, "nearest"), grid, source),
            depth=None if truth.depth is None else seen(truth.depth[:, None], "bilinear")[:, 0],
            shake=hand.truth().to(truth.position),
        )
        if truth.intrinsics is not None and truth.extrinsics is not None:
            intrinsics, extrinsics = hand.cameras(truth.intrinsics, truth.extrinsics)
            truth = replace(truth, intrinsics=intrinsics, extrinsics=extrinsics)
    masks = None if clip.masks is None else seen(clip.masks[:, None], "bilinear")[:, 0]
    return seen(clip.frames, "bicubic"), masks, truth


def _flow(
    flow: Float[Tensor, "t 2 H W"], grid: Float[Tensor, "T H W 2"], source: Float[Tensor, "T 2 3"]
) -> Float[Tensor, "t 2 H W"]:
    """Flow in the frames of a moving camera: from where a pixel was taken, along the flow, to where it is seen."""
    height, width = flow.shape[-2:]
    half = torch.tensor([width / 2, height / 2]).to(flow)
    landed = grid[:-1] + flow.permute(0, 2, 3, 1) / half
    nxt = source[1:, None, None]
    seen = torch.linalg.solve(nxt[..., :2], (landed - nxt[..., 2])[..., None])[..., 0]
    still = torch.eye(2, 3).expand(1, 2, 3).to(flow)
    own = affine_grid(still, [1, 1, height, width], align_corners=False)
    return ((seen - own) * half).permute(0, 3, 1, 2).contiguous()
