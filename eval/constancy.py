"""Does the object stay what it is: its look, its colour, its size?

A network's features see what kind of thing it is and hardly notice that it fades or flickers; its mean colour does.
Letters: T frames, C channels, H height, W width. All is taken over the frames of a lawful window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from newtonrewards.eval.results import finite
from newtonrewards.eval.tracks import whole
from newtonrewards.rewards import mass
from newtonrewards.rewards.window import Window

# Frames at either end of a window whose median stands for its start and its end.
ENDS = 3


@dataclass(frozen=True)
class Constancy:
    """How an object changes over a window; None: can't be measured.

    Attributes:
        mass: 1 - cos of its features against the first frame of the window for which there are any, in [0, 2]; see
            `rewards.mass.conserved`.
        area_change: log of its area at the end over that at the start.
        colour_change: distance of its mean colour at the end from that at the start, RGB in [0, 1].
        flicker: root mean square second difference of its mean colour from frame to frame; the only one that is
            known without a window.
    """

    mass: float | None = None
    area_change: float | None = None
    colour_change: float | None = None
    flicker: float | None = None


def constancy(
    frames: Float[np.ndarray, "T H W 3"],
    soft: Float[np.ndarray, "T H W"],
    features: Float[np.ndarray, "T C"] | None,
    window: Window,
) -> Constancy:
    """Measure an object under its soft masks; `features` are pooled over it, None without a network.

    Without a window only its flicker, over the time in which it is seen as a whole.
    """
    if not len(window):
        seen = whole(soft.sum(axis=(1, 2)))
        return Constancy(flicker=_flicker(mean_colour(frames[seen], soft[seen]))) if len(seen) > 2 else Constancy()
    inside = slice(window.start, window.stop + 1)
    colour = mean_colour(frames[inside], soft[inside])
    return Constancy(
        mass=None if features is None else _mass(features[inside]),
        area_change=area_change(soft, window),
        colour_change=finite(float(np.linalg.norm(_end(colour) - _start(colour)))),
        flicker=_flicker(colour),
    )


def _flicker(colour: Float[np.ndarray, "T 3"]) -> float | None:
    return finite(float(np.sqrt((np.diff(colour, 2, axis=0) ** 2).sum(axis=1).mean())))


def mean_colour(frames: Float[np.ndarray, "T H W 3"], soft: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T 3"]:
    """Mean colour under the masks, with the changes of the whole picture's light taken out; NaN without a mask.

    The light is the mean of what the masks never cover, so that an exposure that wanders isn't held against the object.
    """
    total = np.maximum(soft.sum(axis=(1, 2)), 1e-6)[:, None]
    colour = np.einsum("thwc,thw->tc", frames, soft) / total
    away = soft.max(axis=0) < 0.01
    light = frames[:, away].mean(axis=(1, 2)) if away.any() else np.ones(len(frames))
    gain = np.maximum(light, 1e-3) / max(float(light.mean()), 1e-3)
    return np.where(total > 1e-3, colour / gain[:, None], np.nan)


def _start(values: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(np.median(values[:ENDS], axis=0))


def _end(values: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(np.median(values[-ENDS:], axis=0))


def area_change(soft: Float[np.ndarray, "T H W"], window: Window) -> float | None:
    """Log of the area at a window's end over that at its start; None where it is empty, or there is no mask."""
    if not len(window):
        return None
    area = soft[window.start : window.stop + 1].sum(axis=(1, 2))
    first, last = float(_start(area)), float(_end(area))
    return float(np.log(last / first)) if first > 0 and last > 0 else None


def _mass(features: Float[np.ndarray, "T C"]) -> float | None:
    """Over the frames that the network looked at; an object that is gone is `vanish.vanished_at`'s to tell."""
    pooled = torch.from_numpy(features[np.isfinite(features).all(axis=1)])[None]
    if pooled.shape[1] < 2:
        return None
    return finite(float(mass.conserved(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool))[0]))
