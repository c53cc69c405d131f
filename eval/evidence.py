"""What was measured of one video, for `eval.verdict` to judge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from newtonrewards.eval.constancy import Constancy
from newtonrewards.eval.find import Smooth
from newtonrewards.eval.laws import LawFit
from newtonrewards.eval.scale import Metres
from newtonrewards.eval.video_score import Motion
from newtonrewards.rewards.window import Window


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured.

    Attributes:
        reason: why no object was found, empty if one was.
        source: instrument of `velocity`. velocity: (N, 2) H/s. other: that of the other instrument, or None.
        window: lawful stretch of `velocity`.
        fit: line through `velocity` in the window, None where there is none. constancy: of the object over the window
            (without one, its flicker while it is seen).
        sized: the change of its area can be trusted, however little it moves.
        smooth: run around the window in which acceleration changes steadily; None: it doesn't.
        motion: what the video is said to show. metres: the scale, None if nobody knows.
        position: (T, 2) H. area: (T,) H^2.
        vanished: first frame without the object, where it stopped existing in mid-motion (`vanish.vanished_at`).
        jumped: last frame before it stands elsewhere all at once (`vanish.jumped_at`).
        light: (T,) mean brightness of the picture, in [0, 1]. even: frames lie at even times.
        shimmers: most of the picture changes a little all the time. others: things that moved for about as long.
        first_frame: number of the first frame in the video.
    """

    reason: str
    source: str
    window: Window
    fit: LawFit | None
    constancy: Constancy
    sized: bool
    smooth: Smooth | None
    motion: Motion
    metres: Metres | None
    velocity: Float[np.ndarray, "N 2"]
    other: Float[np.ndarray, "N 2"] | None
    position: Float[np.ndarray, "T 2"]
    area: Float[np.ndarray, " T"]
    vanished: int | None
    jumped: int | None
    light: Float[np.ndarray, " T"]
    even: bool
    others: int
    shimmers: bool
    first_frame: int
    fps: float
    height: int
    width: int
