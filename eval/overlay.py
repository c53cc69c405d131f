"""A scored video to look at: the object's outline, its path, and an arrow for its velocity, drawn into the frames.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from newtonrewards.eval.film import OWN_PATH, RIM, draw_dot, draw_path, enlarged, even
from newtonrewards.eval.measure import Measured

# At most so many frames are drawn, around the window.
FRAMES = 240
OUTLINE, ARROW = (0.0, 0.9, 0.9), (1.0, 0.35, 0.1)
# An arrow shows the way that the object goes in so many frames.
ARROW_FRAMES = 3


def overlay(measured: Measured) -> Float[torch.Tensor, "t 3 h w"]:
    """The frames around the window, enlarged to at least 240 px and of even size."""
    score = measured.score
    first, last = shown(score.num_frames, score.window_inside)
    frames = measured.frames[first:last].astype(np.float32) / 255
    large = enlarged(frames)
    factor = large.shape[1] // frames.shape[1]
    for place, picture in enumerate(large):
        frame = first + place
        _outline(picture, measured.mask[frame], factor)
        draw_path(picture, score.path.x[first : frame + 1], score.path.y[first : frame + 1], OWN_PATH)
        _arrow(picture, measured, frame)
    return torch.from_numpy(np.ascontiguousarray(even(large))).permute(0, 3, 1, 2)


def shown(num_frames: int, window: tuple[int, int] | None) -> tuple[int, int]:
    """First frame that is drawn, and the one after the last."""
    middle = num_frames // 2 if window is None else sum(window) // 2
    first = max(0, min(middle - FRAMES // 2, num_frames - FRAMES))
    return first, min(num_frames, first + FRAMES)


def _outline(picture: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "H W"], factor: int) -> None:
    large = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    picture[large & ~ndimage.binary_erosion(large)] = OUTLINE


def _arrow(picture: Float[np.ndarray, "h w 3"], measured: Measured, frame: int) -> None:
    """A row of dots that grows towards where the object goes."""
    path, height = measured.score.path, picture.shape[0]
    x, y, vx, vy = (column[frame] for column in (path.x, path.y, path.velocity_x, path.velocity_y))
    if x is None or y is None or vx is None or vy is None:
        return
    reach = ARROW_FRAMES / measured.score.fps
    for share in np.linspace(0.25, 1, 8):
        place = ((x + vx * reach * share) * height, (y + vy * reach * share) * height)
        draw_dot(picture, *place, 1.0 + 2.0 * float(share), ARROW if share < 1 else RIM)
