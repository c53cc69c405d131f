"""The one currency of the project: a clip of frames with its rate, caption and whatever truth is known.

Letters: B clips, T frames, H height, W width. Pixels are RGB in [0, 1]. Image axes: x right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from newtonrewards.core.errors import ShapeError

# A frame that leaves the decoder of a generator may overshoot by a rounding error; more is a range mistake.
RANGE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class BystanderTruth:
    """What the simulator knows of another object in the scene, as `Truth` has it of the one that the clip is about.

    Attributes:
        motion: `still`, `slide`, `free_fall` or `horizontal_throw`.
        position, velocity, acceleration: (T, 2) in the image, H, H/s, H/s^2.
        world_position, world_velocity, world_acceleration: (T, 3) metres, m/s, m/s^2.
        visible: (T,) share of it that nothing hides; NaN where it is out of the frame.
        masks: (T, H, W) soft mask of what is visible, in [0, 1], or None where it wasn't kept.
        events: as there; a body that stands in the object's way may be `hit`.
    """

    motion: str
    position: Float[Tensor, "T 2"]
    velocity: Float[Tensor, "T 2"]
    acceleration: Float[Tensor, "T 2"]
    world_position: Float[Tensor, "T 3"]
    world_velocity: Float[Tensor, "T 3"]
    world_acceleration: Float[Tensor, "T 3"]
    visible: Float[Tensor, "T"] | None = None
    masks: Float[Tensor, "T H W"] | None = None
    events: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    assets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """What the simulator knows about a clip, all in image coordinates of this clip.

    Attributes:
        position: (T, 2) object centre in frame heights (H), x right, y down, origin top left.
        velocity: (T, 2) H/s.
        acceleration: (T, 2) H/s^2, the right-hand limit at an event.
        flow: (T-1, 2, H, W) exact optical flow in px/frame, or None where it wasn't kept.
        depth: (T, H, W) metres along the optical axis, or None where it wasn't kept.
        metres_per_height: metres in one frame height at the object's depth in the first frame.
        primitive: a motion of `simulation.motions`.
        split: `train`, `val` or `test`.
        shift: `id`, `ood_height`, `ood_speed`, `ood_friction` or `ood_all`.
        events: frame time (float) of each event by name: `land` (`land_2`, ... where a body bounces), `turn`, `stop`,
            `leave_view` (its silhouette first touches the frame's edge, where a clip may leave the view), `hit` (it
            touches another body, where some stand in its way).
        parameters: physical parameters in SI units.
        seed: the number from which the clip can be made again.
        acceleration_spread: how far the image acceleration is from constant before the first event, as a share of its
            mean (one standard deviation); 0 for a camera that looks straight at the plane of motion.
        shake: (T, 2, 3) affine map from the resting camera's image, in which the track is given, to each frame, both in
            H; masks, flow and depth are those of the frames. None: the camera rests.
        world_position: (T, 3) object centre in world metres: x right, y up from the floor, z from the plane of motion
            towards the viewer (right-handed). None, as the four below: a clip of an older version.
        world_velocity: (T, 3) m/s.
        world_acceleration: (T, 3) m/s^2, the right-hand limit at an event.
        intrinsics: (T, 3, 3) of the camera that took each frame, in H: upper triangular, last row 0 0 1.
        extrinsics: (T, 3, 4) rotation and translation from the world to that camera: x right, y down, z forward.
        captions: the same clip in other words, by phrasing (`simulation.captions`).
        assets: name of what object and surroundings are made of, by part.
        bystanders: the other objects; flow and depth are of whatever is seen.
        visible: (T,) share of the object that nothing hides; None: not known, for want of bystanders.
    """

    position: Float[Tensor, "T 2"]
    velocity: Float[Tensor, "T 2"]
    acceleration: Float[Tensor, "T 2"]
    metres_per_height: float
    primitive: str
    split: str = "train"
    shift: str = "id"
    flow: Float[Tensor, "T-1 2 H W"] | None = None
    depth: Float[Tensor, "T H W"] | None = None
    events: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    acceleration_spread: float = 0.0
    shake: Float[Tensor, "T 2 3"] | None = None
    world_position: Float[Tensor, "T 3"] | None = None
    world_velocity: Float[Tensor, "T 3"] | None = None
    world_acceleration: Float[Tensor, "T 3"] | None = None
    intrinsics: Float[Tensor, "T 3 3"] | None = None
    extrinsics: Float[Tensor, "T 3 4"] | None = None
    captions: dict[str, str] = field(default_factory=dict)
    assets: dict[str, str] = field(default_factory=dict)
    bystanders: tuple[BystanderTruth, ...] = ()
    visible: Float[Tensor, "T"] | None = None

    def pieces(self) -> Int[Tensor, "T"]:
        """Number of the law that holds at each frame: how many events lie before it. 0 up to the first event."""
        frames = torch.arange(len(self.position), dtype=torch.float64)
        times = torch.tensor(sorted(self.events.values()), dtype=torch.float64)
        return (frames[:, None] > times + 1e-6).sum(1)

    def seen(self) -> Float[Tensor, "T 3"] | None:
        """Where each frame's camera sees `world_position`: x and y in H, and depth in metres. None without cameras.

        K (R p + t), divided by its last row; x and y are `position`, through `shake` where the camera shakes.
        """
        if self.world_position is None or self.intrinsics is None or self.extrinsics is None:
            return None
        point = self.extrinsics[:, :, :3] @ self.world_position[:, :, None] + self.extrinsics[:, :, 3:]
        x, y, depth = (self.intrinsics @ point)[:, :, 0].unbind(1)
        return torch.stack([x / depth, y / depth, depth], 1)

    def metres_per_px(self, height: int) -> Float[Tensor, "T"] | None:
        """Metres in one pixel of frames `height` px high, at the object's depth in each frame. None without cameras."""
        seen = self.seen()
        return None if seen is None or self.intrinsics is None else seen[:, 2] / self.intrinsics[:, 1, 1] / height


@dataclass(frozen=True)
class Source:
    """Where a clip came from and everything that was done to its pixels.

    Attributes:
        path: file it was read from, empty for a clip made in memory.
        sha256: hash of that file, empty if none.
        playback_fps: frames per second at which the file plays.
        preprocessing: one sentence for each step, in order.
        even: frames were taken at even times; else each is up to half an interval away from where it is shown.
    """

    path: str = ""
    sha256: str = ""
    playback_fps: float | None = None
    preprocessing: tuple[str, ...] = ()
    even: bool = True


@dataclass(frozen=True, eq=False)
class Clip:
    """One video of any length and size.

    Attributes:
        frames: (T, 3, H, W) RGB in [0, 1].
        fps: frames per second of *physical* time (the playback rate sits in `source`).
        caption: text that describes the clip.
        masks: (T, H, W) soft object mask in [0, 1], or None.
        valid: (T,) frames between the same two events, where one law holds; None: not known.
        truth: what the simulator knows; None for a foreign video.
        source: file and pre-processing record.
    Raises:
        ShapeError: wrong shape, or pixels outside [0, 1].
    """

    frames: Float[Tensor, "T 3 H W"]
    fps: float
    caption: str = ""
    masks: Float[Tensor, "T H W"] | None = None
    valid: Bool[Tensor, "T"] | None = None
    truth: Truth | None = None
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        check_frames(self.frames, batched=False)
        if not self.fps > 0:
            raise ShapeError(f"fps is {self.fps}, it must be positive", where=self.source.path or None)

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """B clips of the same size: the fields of `Clip` with a leading B; fps is one number per clip.

    Attributes:
        frames: (B, T, 3, H, W) RGB in [0, 1].
        fps: (B,) frames per second of physical time.
        captions: B strings.
        masks: (B, T, H, W) in [0, 1] or None.
        valid: (B, T) bool or None.
        index: (B,) global sample index of each clip, which seeds its random streams.
        law: (B, 2) acceleration that the law demands from the first frame on, H/s^2, x right, y down; NaN rows where
            it isn't known; None: for no clip.
    """

    frames: Float[Tensor, "B T 3 H W"]
    fps: Float[Tensor, "B"]
    captions: tuple[str, ...]
    masks: Float[Tensor, "B T H W"] | None = None
    valid: Bool[Tensor, "B T"] | None = None
    index: tuple[int, ...] = ()
    law: Float[Tensor, "B 2"] | None = None

    def __len__(self) -> int:
        return self.frames.shape[0]

    @staticmethod
    def stack(clips: Sequence[Clip], index: Sequence[int] | None = None) -> ClipBatch:
        """Stack clips of equal size; a field stays None unless every clip has it."""
        shapes = {tuple(clip.frames.shape) for clip in clips}
        if len(shapes) != 1:
            raise ShapeError(
                f"can't stack clips of different shapes {sorted(shapes)}", fix="Resize them to one size first."
            )

        def stacked(name: str) -> Tensor | None:
            values = [getattr(clip, name) for clip in clips]
            return None if any(value is None for value in values) else torch.stack(values)

        return ClipBatch(
            frames=torch.stack([clip.frames for clip in clips]),
            fps=torch.tensor([clip.fps for clip in clips]),
            captions=tuple(clip.caption for clip in clips),
            masks=stacked("masks"),
            valid=stacked("valid"),
            index=tuple(range(len(clips)) if index is None else index),
            law=_laws(clips),
        )

    def to(self, device: torch.device | str) -> ClipBatch:
        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            frames=self.frames.to(device),
            fps=self.fps.to(device),
            masks=moved(self.masks),
            valid=moved(self.valid),
            law=moved(self.law),
        )

    def part(self, start: int, stop: int, step: int = 1) -> ClipBatch:
        """Clips start, start + step, ... below stop."""
        chosen = slice(start, stop, step)

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[chosen]

        return ClipBatch(
            self.frames[chosen],
            self.fps[chosen],
            self.captions[chosen],
            cut(self.masks),
            cut(self.valid),
            self.index[chosen],
            cut(self.law),
        )

    def repeated(self, count: int) -> ClipBatch:
        """Each clip `count` times in a row."""

        def times(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat_interleave(count, 0)

        return ClipBatch(
            self.frames.repeat_interleave(count, 0),
            self.fps.repeat_interleave(count, 0),
            tuple(caption for caption in self.captions for _ in range(count)),
            times(self.masks),
            times(self.valid),
            tuple(index for index in self.index for _ in range(count)),
            times(self.law),
        )

    def with_frames(self, frames: Float[Tensor, "B T 3 H W"]) -> ClipBatch:
        """The same captions, rates and indices with other pixels; masks belong to the old ones and are dropped."""
        return replace(self, frames=frames, masks=None)


def _laws(clips: Sequence[Clip]) -> Tensor | None:
    truths = [clip.truth for clip in clips]
    if all(truth is None for truth in truths):
        return None
    unknown = torch.full((2,), torch.nan)
    return torch.stack([unknown if truth is None else truth.acceleration[0].to(unknown) for truth in truths])


def check_frames(frames: Tensor, *, batched: bool) -> None:
    """Reject at the border what would be silent nonsense inside.

    Raises:
        ShapeError: not ([B,] T, 3, H, W), not floating point, not finite, or outside [0, 1].
    """
    want = 5 if batched else 4
    if frames.ndim != want or frames.shape[-3] != 3:
        raise ShapeError(
            f"frames have shape {tuple(frames.shape)}, want {'(B, T, 3, H, W)' if batched else '(T, 3, H, W)'}"
        )
    if not frames.is_floating_point():
        raise ShapeError(f"frames are {frames.dtype}, want floating point in [0, 1]", fix="Divide 8-bit frames by 255.")
    low, high = (extreme.item() for extreme in frames.detach().aminmax())
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ShapeError(
            f"pixels lie in [{low:.3g}, {high:.3g}], want [0, 1]",
            fix="Map [-1, 1] with (x + 1) / 2, 8-bit with x / 255.",
        )
