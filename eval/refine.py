"""Masks made better once it is roughly known where the object is: the background without it, and its colours.

The median over time shows the object where it stays long, and a silhouette against it has holes and ghosts there. But
wherever the object roughly is, the background can be taken from the other frames, and its colours from there; then
each pixel of each frame is explained as one or the other (`segment`), and the masks are good enough to do it again.
On a slow plain disc the centre is then .05 px off instead of 2.
Letters: T frames, H height, W width; pixels are RGB in [0, 1].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from newtonrewards.eval import segment
from newtonrewards.eval.find import follow
from newtonrewards.eval.tracks import PRESENT_PIXELS, box_around

ROUNDS = 3
# So many px around the object may be blurred with it, and count for neither side.
MARGIN = 2
# What is certainly object: this share of it, and this far (RGB distance) from the background.
CERTAIN, AWAY = 0.9, 0.12
# The part of the clip that is looked at reaches so far around the rough masks.
PART_FRAMES, PART_PIXELS = 12, 12
# Fewer pixels than this teach no colours.
LEAST_PIXELS = 12


def refine(
    frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"], fps: float
) -> Float[np.ndarray, "T H W"] | None:
    """Better masks of the object that rough masks show; None where they show too little to learn from.

    Args:
        frames: of a still camera. soft: rough masks, in [0, 1]. fps: frames per second of physical time.
    Source: ours.
    """
    part = box_around(soft > 0.5, PART_FRAMES, PART_PIXELS)
    if part is None:
        return None
    result, seen, rough = np.zeros_like(soft), frames[part], soft[part]
    for _ in range(ROUNDS):
        scene = _scene(seen, rough)
        if scene is None:
            return None
        every = segment.soft_masks(scene, seen)
        rough, _ = follow(every, every > 0.5, fps, frames.shape[1])
    result[part] = rough
    return result if (rough > 0.5).sum() >= PRESENT_PIXELS else None


def _scene(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"]) -> segment.Scene | None:
    around = ndimage.binary_dilation(soft > 0.2, segment.IN_FRAME, iterations=MARGIN)
    free = ~around
    if not (soft > 0.5).any() or not free.any():
        return None
    plate = segment.background(frames, free)
    away = np.sqrt(np.einsum("thwc,thwc->thw", frames - plate, frames - plate))
    certain = frames[(soft > CERTAIN) & (away > AWAY)]
    if len(certain) < LEAST_PIXELS:
        return None
    areas = soft.sum(axis=(1, 2))
    return segment.scene_of(frames, free, plate, certain, float(np.median(areas[areas > PRESENT_PIXELS])))
