"""Simulated clips that are wrong in one known way and by a known amount: what a reward must rank.

Each corruption takes a scene and a strength in (0, 1] and gives a clip that begins with the true first frame. Strength
0 is the true clip. Wrong motions are drawn anew, wrong looks are composed from the object and the empty background.
What begins or ends at some moment does so before the first event: afterwards nothing is asked of a motion.
Letters: T frames, H height, W width, p centres in world metres (T, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.core.run import stream_seed
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]
FAR = 1e3  # metres: out of sight


def corrupt(scene: Scene, name: str, strength: float) -> Clip:
    """The clip of a scene with one corruption.

    Args:
        scene: right physics.
        name: a key of `MOTIONS` or `LOOKS`.
        strength: in [0, 1].
    Returns:
        frames, rate, caption and valid frames of the true clip, without its masks and truth: those of what is drawn
        are not known.
    """
    if strength == 0:
        clip = render(scene)
    elif name in MOTIONS:
        rng = np.random.default_rng(stream_seed(scene.seed, 0, scene.index, f"corrupt/{name}"))
        centres = MOTIONS[name](scene, strength, rng)
        centres[0] = scene.centres()[0]
        clip = render(scene, centres)
    else:
        clip = _looks(scene, LOOKS[name], strength)
    return replace(clip, masks=None, truth=None)


def lawful_frames(scene: Scene) -> int:
    """How many frames lie before the first event."""
    return int(scene.lawful().sum())


# ---- wrong motions --------------------------------------------------------------------------------------------------


def jitter(scene: Scene, strength: float, rng: np.random.Generator) -> Array:
    """Each frame's place is off by up to 4 % of the frame (one standard deviation)."""
    return scene.centres() + rng.normal(size=(scene.num_frames, 2)) * 0.04 * strength * scene.view_m


def wrong_g(scene: Scene, strength: float, _: np.random.Generator) -> Array:
    """Acceleration weaker by up to 80 %, the start and its velocity as they were."""
    p = scene.centres()
    start = p[:1] + scene.trajectory.at(scene.times[:1])[1] * scene.times[:, None]
    return start + (p - start) * (1 - 0.8 * strength)


def constant_speed(scene: Scene, strength: float, _: np.random.Generator) -> Array:
    """Towards a straight line at constant speed from the first place to the last."""
    p = scene.centres()
    line = p[:1] + (p[-1:] - p[:1]) * np.linspace(0, 1, len(p))[:, None]
    return (1 - strength) * p + strength * line


def hover(scene: Scene, strength: float, _: np.random.Generator) -> Array:
    """Stands still in mid-motion for up to half the law's time, then goes on as if nothing had been."""
    p, count = scene.centres(), lawful_frames(scene)
    pause, middle = round(strength * count / 2), count // 4
    frames = np.arange(len(p))
    return p[np.where(frames <= middle, frames, np.maximum(middle, frames - pause))]


def teleport(scene: Scene, strength: float, rng: np.random.Generator) -> Array:
    """Jumps by up to 30 % of the frame halfway, to the side or up, and goes on from there."""
    p, middle = scene.centres(), lawful_frames(scene) // 2
    steep = np.pi / 4 if scene.wedge else 0.0  # not into the ramp
    angles = rng.uniform(steep, np.pi - steep, 64)
    jumps = 0.3 * scene.view_m * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # the same way for all strengths: the one on which it stays in the picture even for 1, or nearly does
    jump = min(jumps, key=lambda jump: _beyond_edges(scene, p[middle : lawful_frames(scene)] + jump))
    p[middle:] += strength * jump
    return p


def _beyond_edges(scene: Scene, centres: Array) -> float:
    """How far the object would reach over the edges of the picture, in frame heights; 0 where it stays inside."""
    inside = 0.5 - max(scene.half_size[:2]) / scene.view_m
    return float((np.abs(scene.camera.to_image(centres) - 0.5) - inside).max(initial=0.0))


def reverse(scene: Scene, strength: float, _: np.random.Generator) -> Array:
    """Time runs slower from halfway on, and from strength .5 on backwards, in the end as fast as it ran before; what is
    back where it began rests."""
    times, turn = scene.times, scene.times[lawful_frames(scene) // 2]
    return scene.centres(np.maximum(0, np.where(times <= turn, times, turn + (1 - 2 * strength) * (times - turn))))


def freeze(scene: Scene, strength: float, _: np.random.Generator) -> Array:
    """Stands still from some moment on, from the start for strength 1."""
    p, count = scene.centres(), lawful_frames(scene)
    return p[np.minimum(np.arange(len(p)), round((1 - strength) * (count - 1)))]


# ---- wrong looks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layers:
    """A clip taken apart: frames (T, 3, H, W), empty background (T, 3, H, W), soft masks (T, 1, H, W), and the share of
    the law's time that has passed in each frame, (T, 1, 1, 1) in [0, 1]."""

    frames: Float[Tensor, "T 3 H W"]
    background: Float[Tensor, "T 3 H W"]
    masks: Float[Tensor, "T 1 H W"]
    passed: Float[Tensor, "T 1 1 1"]
    seed: int

    @property
    def empty(self) -> Float[Tensor, "T 3 H W"]:
        """The frames without the object; its shadow is gone where it stood."""
        return self.frames * (1 - self.masks) + self.background * self.masks

    def with_object(self, colours: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
        """The frames with other colours under the masks."""
        return self.frames * (1 - self.masks) + colours * self.masks

    def noise(self, *shape: int) -> Float[Tensor, "..."]:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed))


def _looks(scene: Scene, change: Callable[[Layers, float], Tensor], strength: float) -> Clip:
    clip = render(scene)
    background = render(scene, scene.centres() + FAR).frames
    assert clip.masks is not None, "the renderer gives them"
    passed = (torch.arange(clip.num_frames) / (lawful_frames(scene) - 1)).clamp(max=1).reshape(-1, 1, 1, 1)
    layers = Layers(
        clip.frames, background, clip.masks[:, None], passed, stream_seed(scene.seed, 0, scene.index, "look")
    )
    frames = change(layers, strength).clamp(0, 1)
    return replace(clip, frames=torch.cat([clip.frames[:1], frames[1:]]))


def fade(layers: Layers, strength: float) -> Tensor:
    """Becomes transparent, wholly at the end for strength 1."""
    return torch.lerp(layers.frames, layers.empty, strength * layers.passed)


def vanish(layers: Layers, strength: float) -> Tensor:
    """Is gone for the last part of the clip, from the second frame on for strength 1."""
    gone = layers.passed > 1 - strength
    return torch.where(gone, layers.empty, layers.frames)


def grow(layers: Layers, strength: float) -> Tensor:
    """Grows to twice its width at the end for strength 1."""
    sizes = (1 + strength * layers.passed).flatten()
    return _resized(layers, sizes)


def shrink(layers: Layers, strength: float) -> Tensor:
    """Shrinks to a third of its width at the end for strength 1."""
    sizes = (1 - strength * layers.passed * 2 / 3).flatten()
    return _resized(layers, sizes)


def split(layers: Layers, strength: float) -> Tensor:
    """A copy leaves it sideways, up to a third of the frame away."""
    width = layers.frames.shape[-1]
    frames = []
    for frame, mask, passed in zip(layers.frames, layers.masks, layers.passed.flatten().tolist(), strict=True):
        shift = round(strength * passed * width / 3)
        copy, where = (torch.roll(x, shift, -1) for x in (frame, mask))
        frames.append(frame * (1 - where) + copy * where)
    return torch.stack(frames)


def colour(layers: Layers, strength: float) -> Tensor:
    """Turns into its complementary colours."""
    return layers.with_object(torch.lerp(layers.frames, 1 - layers.frames, strength * layers.passed))


def texture_noise(layers: Layers, strength: float) -> Tensor:
    """Noise on the object, new in each frame, of up to .4."""
    return layers.with_object((layers.frames + 0.4 * strength * layers.noise(*layers.frames.shape)).clamp(0, 1))


def flicker(layers: Layers, strength: float) -> Tensor:
    """The object's brightness changes from frame to frame by up to 50 % (one standard deviation)."""
    factor = 1 + 0.5 * strength * layers.noise(len(layers.frames), 1, 1, 1)
    return layers.with_object((layers.frames * factor).clamp(0, 1))


def _resized(layers: Layers, sizes: Float[Tensor, "T"]) -> Float[Tensor, "T 3 H W"]:
    """The object enlarged by a factor about its centre in each frame."""
    height, width = layers.masks.shape[-2:]
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    total = layers.masks.sum((-3, -2, -1)).clamp(min=1e-6)
    x = (layers.masks.sum((1, 2)) @ columns) / total / width * 2 - 1
    y = (layers.masks.sum((1, 3)) @ rows) / total / height * 2 - 1
    theta = torch.zeros(len(sizes), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / sizes
    theta[:, 0, 2], theta[:, 1, 2] = x - x / sizes, y - y / sizes
    both = torch.cat([layers.frames * layers.masks, layers.masks], 1)
    grid = torch.nn.functional.affine_grid(theta, list(both.shape), align_corners=False)
    large = torch.nn.functional.grid_sample(both, grid, align_corners=False)
    return layers.empty * (1 - large[:, 3:]) + large[:, :3]


MOTIONS: dict[str, Callable[[Scene, float, np.random.Generator], Array]] = {
    "jitter": jitter,
    "wrong_g": wrong_g,
    "constant_speed": constant_speed,
    "hover": hover,
    "teleport": teleport,
    "reverse": reverse,
    "freeze": freeze,
}
LOOKS: dict[str, Callable[[Layers, float], Tensor]] = {
    "fade": fade,
    "vanish": vanish,
    "grow": grow,
    "shrink": shrink,
    "split": split,
    "colour": colour,
    "texture_noise": texture_noise,
    "flicker": flicker,
}
