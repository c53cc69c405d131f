"""The reward in other people's trainers: their shapes in, numbers or a loss out. docs/rewards.md shows each.

Letters: B clips, T frames, C = 3 channels, H height, W width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, ShapeError
from newtonrewards.rewards.reward import Reward

Videos = Tensor | np.ndarray | Sequence[Any]
RewardFunction = Callable[[Videos, Sequence[str], Sequence[Mapping[str, Any]] | None], list[float]]


def physics_loss(
    reward: Reward, frames: Tensor, fps: float | Sequence[float], *, reference: ClipBatch | None = None
) -> Float[Tensor, ""]:
    """Minus the mean reward of decoded frames; the gradient flows to them.

    Args:
        reward: with terms that need no reference, unless one is given.
        frames: (B, T, 3, H, W), or (B, 3, T, H, W) as video decoders give it, in [0, 1].
        fps: frames per second of physical time, one for all or one for each clip.
        reference: paired clips.
    Raises:
        ShapeError: another shape or range. InputError: a term lacks what it needs.
    """
    return -reward(_batch(_time_first(frames), fps), reference).total.mean()


@torch.no_grad()
def judge_frames(reward: Reward, frames: Videos, fps: float | Sequence[float]) -> list[float]:
    """One reward for each clip; higher is better.

    Args:
        reward: with terms that need no reference.
        frames: a batch as tensor or array, (B, T, 3, H, W), (B, 3, T, H, W) or (B, T, H, W, 3), or a list of clips,
            each such an array without B or a list of PIL images; in [0, 1], or 0 to 255 in 8 bits. Sizes may differ.
        fps: frames per second of physical time, one for all or one for each clip.
    Raises:
        ShapeError: another shape or range. InputError: a term lacks what it needs.
    """
    clips = [_clip(one) for one in frames]
    rates = [float(fps)] * len(clips) if isinstance(fps, int | float) else [float(rate) for rate in fps]
    if len(rates) != len(clips):
        raise ShapeError(f"{len(rates)} rates for {len(clips)} clips", fix="Give one fps, or one for each clip.")
    return [
        float(reward(_batch(clip[None], rate)).total[0]) for clip, rate in zip(clips, rates, strict=True)
    ]  # one by one: sizes may differ, and memory stays that of one clip


def reward_function(reward: Reward, fps: float | None = None) -> RewardFunction:
    """A function (videos, prompts, metadata) -> list of floats, the signature of TRL's and flow_grpo's rewards.

    Args:
        reward: with terms that need no reference.
        fps: of videos whose metadata has no `fps`.
    Returns:
        a function; it raises InputError for a video whose rate nobody knows.
    """

    def judge(
        videos: Videos, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> list[float]:
        rates = [(row or {}).get("fps", fps) for row in (metadata if metadata is not None else [{}] * len(videos))]
        if any(rate is None for rate in rates):
            number = rates.index(None)
            raise InputError(
                f"nobody says at which rate video {number} was taken", fix="Give fps, here or in metadata."
            )
        return judge_frames(reward, videos, [float(rate) for rate in rates])

    return judge


def _batch(frames: Tensor, fps: float | Sequence[float]) -> ClipBatch:
    count = len(frames)
    rates = torch.full((count,), float(fps)) if isinstance(fps, int | float) else torch.tensor(list(fps))
    return ClipBatch(frames, rates.to(frames.device), ("",) * count, index=tuple(range(count)))


def _clip(one: Any) -> Float[Tensor, "T 3 H W"]:
    """A clip in any of the usual forms."""
    if isinstance(one, Sequence):
        one = np.stack([np.asarray(picture) for picture in one])
    array = one if isinstance(one, Tensor) else torch.from_numpy(np.ascontiguousarray(one))
    if array.ndim == 4 and array.shape[-1] == 3 and array.shape[1] != 3:
        array = array.movedim(-1, 1)
    if array.dtype == torch.uint8:
        array = array.float() / 255
    return _time_first(array[None].float())[0]


def _time_first(frames: Tensor) -> Tensor:
    """(B, 3, T, H, W) to (B, T, 3, H, W).

    Raises:
        ShapeError: neither.
    """
    if frames.ndim == 5 and frames.shape[2] == 3:
        return frames
    if frames.ndim == 5 and frames.shape[1] == 3:
        return frames.movedim(1, 2)
    raise ShapeError(f"frames have shape {tuple(frames.shape)}", fix="Give (B, T, 3, H, W) or (B, 3, T, H, W).")
