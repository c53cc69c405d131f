"""Does an object stop existing in mid-motion, or stand somewhere else all at once?

That masks lose it says little: it may have bounced, be a blur, or lie still and have become background. It vanished if
it moved, would still be in the picture, and nothing is to be seen where it could have gone. It jumped if in the very
frame in which it left its place, something of its size and colour came up too far away.
Letters: T frames, H height, W width; lengths in H unless they end in px.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from newtonrewards.eval.scale import diameter
from newtonrewards.eval.tracks import centroid, whole

# Slower than this (px/frame) it may have been lost against the background; so many steps on it would still be in the
# picture as a whole.
MOVING_PX, LOST_STEPS = 0.3, 3
# Something is to be seen where this share of the object's area differs by that much from the still background.
SEEN_SHARE, SEEN_CHANGE = 0.5, 0.1
# It is looked for in so many frames, as far away as that many of its last steps.
LOOK_FRAMES, LOOK_STEPS = 4, 5
# It has left its place if so much of it changes. What comes up elsewhere is the object if it is that share of all that
# changes there, between half and twice its size, and its colour is no further away than that (RGB in [0, 1]).
LEFT_SHARE, ALONE_SHARE, ALIKE = 0.6, 0.5, 0.1


def vanished_at(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"]) -> int | None:
    """First frame without the object, if it vanished inside the picture while it moved; else None."""
    height, width = frames.shape[1:3]
    position, area = centroid(soft)
    seen = whole(area)
    last = int(seen[-1]) if len(seen) else 0
    steps = np.diff(position[seen[-4:]], axis=0)
    if last >= len(frames) - 2 or not len(steps) or _lies_still(frames, soft, last):
        return None
    size = diameter(area[seen])
    speed = float(np.linalg.norm(steps, axis=1).mean())
    x, y = position[last] + LOST_STEPS * steps.mean(axis=0)
    edge = min(x, y, width / height - x, 1 - y)
    # Faster than its own width it is a smear that any background may hide.
    followed = MOVING_PX / height < speed < size
    if not followed or edge <= size / 2:
        return None
    reach = (size + LOOK_STEPS * speed) * height
    return None if _seen_near(frames, position[last] * height, reach, last, float(area[last]) * height**2) else last + 1


def _lies_still(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"], last: int) -> bool:
    """Whether something lies to the end where the object was last seen: then it came to rest."""
    place = soft[last] > 0.5
    return float(np.abs(frames[-1] - frames[last])[place].mean()) < 0.5 * float(
        np.abs(frames[0] - frames[last])[place].mean()
    )


def _seen_near(
    frames: Float[np.ndarray, "T H W 3"], centre_px: Float[np.ndarray, " 2"], reach_px: float, last: int, area_px: float
) -> bool:
    """Whether anything of the object's size differs from the still background around its last place, soon after."""
    x, y = centre_px
    rows = slice(max(0, int(y - reach_px)), int(y + reach_px) + 1)
    columns = slice(max(0, int(x - reach_px)), int(x + reach_px) + 1)
    box = frames[:, rows, columns]
    after = box[last + 1 : last + 1 + LOOK_FRAMES]
    differs = np.abs(after - np.median(box, axis=0)).max(axis=-1) > SEEN_CHANGE
    return bool((differs.sum(axis=(1, 2)) > SEEN_SHARE * area_px).any())


def jumped_at(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"]) -> int | None:
    """Last frame before the object stands elsewhere all at once; None if it never does.

    Masks may lose it there, follow it, or see it only afterwards: time is therefore looked at both ways.
    """
    position, area = centroid(soft)
    there = _leap(frames, soft, position, area)
    if there is not None:
        return there
    back = _leap(frames[::-1], soft[::-1], position[::-1], area[::-1])
    return None if back is None else len(frames) - 2 - back


def _leap(
    frames: Float[np.ndarray, "T H W 3"],
    soft: Float[np.ndarray, "T H W"],
    position: Float[np.ndarray, "T 2"],
    area: Float[np.ndarray, " T"],
) -> int | None:
    position, seen = position * frames.shape[1], whole(area)
    if not len(seen):
        return None
    size = diameter(area[seen]) * frames.shape[1]
    for place, frame in enumerate(seen):
        if frame + 1 >= len(frames):
            break
        steps = np.diff(position[seen[max(0, place - 3) : place + 1]], axis=0)
        speed = float(np.linalg.norm(steps, axis=1).max()) if len(steps) else 0.0
        reach = size + LOOK_STEPS * speed
        away = float(np.linalg.norm(position[frame + 1] - position[frame]))  # NaN where it is lost
        if not away <= reach and _stands_elsewhere(frames[frame], frames[frame + 1], soft[frame] > 0.5, reach):
            return int(frame)
    return None


def _stands_elsewhere(
    before: Float[np.ndarray, "H W 3"], after: Float[np.ndarray, "H W 3"], place: Bool[np.ndarray, "H W"], reach: float
) -> bool:
    """Whether what was at a place is gone from there, and its like further away than `reach` px, from one frame to the
    next."""
    differs = np.abs(after - before).max(axis=-1) > SEEN_CHANGE
    if not place.any() or differs[place].mean() < LEFT_SHARE:
        return False
    far = differs & (ndimage.distance_transform_edt(~place) > reach - np.sqrt(place.sum() / np.pi))
    labels, count = ndimage.label(far)
    if not count:
        return False
    sizes = np.bincount(labels.ravel())[1:]
    patch = labels == 1 + int(sizes.argmax())
    alone = sizes.max() > ALONE_SHARE * far.sum()
    sized = 0.5 < sizes.max() / place.sum() < 2
    alike = float(np.abs(after[patch].mean(axis=0) - before[place].mean(axis=0)).max()) < ALIKE
    return bool(alone and sized and alike)
