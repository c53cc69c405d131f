"""Which pieces of a video are looked at: shots between cuts, and of what moves slowly only each k-th frame.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from newtonrewards.core.clip import Clip
from newtonrewards.eval.tracks import centroid

# In a cut this share of the coarse picture changes by more than that, just before and after it at most the third one.
CUT_SHARE, CUT_CHANGE, CALM_SHARE = 0.5, 0.03, 0.25
# A shot shorter than this shows no law.
LEAST_SHOT = 6
# What goes less far than `SLOW_PX` in a frame, on average, is looked at in every k-th frame, so that it goes
# `WANTED_PX`: steps well above the instruments' noise. At least so many frames are left.
SLOW_PX, WANTED_PX, LEAST_LEFT, LARGEST_STRIDE = 0.75, 1.5, 20, 12


def shots(clip: Clip) -> Iterator[tuple[int, Clip]]:
    """The shots of a clip, each with the number of its first frame; the whole clip where nothing is cut."""
    cuts = [0, *(cuts_of(clip) + 1).tolist(), clip.num_frames]
    long = [(a, b) for a, b in itertools.pairwise(cuts) if b - a >= LEAST_SHOT]
    if len(cuts) == 2 or not long:
        yield 0, clip
        return
    for first, end in long:
        yield first, part(clip, slice(first, end), f"cut: frames {first} to {end - 1} are one shot")


def cuts_of(clip: Clip) -> np.ndarray:
    """Numbers of the frames after which another picture begins."""
    small = torch.nn.functional.adaptive_avg_pool2d(clip.frames, 32).mean(1)
    changed = (small.diff(dim=0).abs() > CUT_CHANGE).float().mean((1, 2)).numpy()
    beside = np.pad(changed, 1)
    calm = np.maximum(beside[:-2], beside[2:]) < CALM_SHARE
    return np.flatnonzero((changed > CUT_SHARE) & calm)


def stride(soft: Float[np.ndarray, "T H W"]) -> int:
    """Each how-manieth frame shows enough motion of what the masks follow; 1 where every frame does."""
    position, _ = centroid(soft)
    seen = np.flatnonzero(np.isfinite(position).all(axis=1))
    if len(seen) < 2:
        return 1
    way = float(np.linalg.norm(np.ptp(position[seen], axis=0))) * soft.shape[1]
    speed = way / int(seen[-1] - seen[0])
    if speed >= SLOW_PX or way < WANTED_PX:
        return 1
    return max(1, min(math.ceil(WANTED_PX / speed), len(soft) // LEAST_LEFT, LARGEST_STRIDE))


def part(clip: Clip, frames: slice, done: str) -> Clip:
    """Some frames of a clip, with what was done written down; the rate goes with the step."""
    step = frames.step or 1
    return replace(
        clip,
        frames=clip.frames[frames],
        fps=clip.fps / step,
        masks=None if clip.masks is None else clip.masks[frames],
        valid=None if clip.valid is None else clip.valid[frames],
        truth=None,
        source=replace(clip.source, preprocessing=(*clip.source.preprocessing, done)),
    )
