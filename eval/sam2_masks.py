"""SAM 2 as one more way to mask the moving object: our own finder shows it the object in one frame.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from jaxtyping import Float

from newtonrewards.core.clip import Clip
from newtonrewards.rewards.sam2 import Sam2Segmenter, load_sam2


@functools.lru_cache(maxsize=1)
def segmenter(name: str) -> Sam2Segmenter:
    """Loaded once in each process; see `rewards.sam2.load_sam2`."""
    return load_sam2(name)


def sam2_masks(name: str, clip: Clip, soft: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T H W"]:
    """Soft masks of the object in the whole clip.

    Args:
        name: folder or hub name of the model.
        clip: the clip.
        soft: silhouettes of the object that was found, in [0, 1]; not all empty.
    """
    frame = shown_frame(soft)
    mask = torch.from_numpy(soft[frame] > 0.5)
    return segmenter(name)(clip.frames, mask=mask, frame=frame).cpu().numpy()


def shown_frame(soft: Float[np.ndarray, "T H W"]) -> int:
    """The frame whose silhouette has the most usual area: neither cut by the edge nor smeared by a shadow."""
    area = (soft > 0.5).sum(axis=(1, 2))
    there = np.flatnonzero(area)
    usual = np.median(area[there])
    return int(there[np.abs(area[there] - usual).argmin()])
