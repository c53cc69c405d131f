"""The instruments that measure an object's velocity, and which of them to believe.

Masks give centres; flow under the same masks gives velocities that know nothing of them. Masks of several kinds are
tried, and those count that let the object follow a law for long while both ways agree.
Letters: T frames, N = T - 1 pairs, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from newtonrewards.core.clip import Clip
from newtonrewards.eval.find import Found, lawful_velocities
from newtonrewards.eval.look import Seen
from newtonrewards.eval.tracks import centroid
from newtonrewards.eval.verdict import agreement, disagreement
from newtonrewards.rewards.window import Window

# Flow reads a little low: it is believed where the centres follow a law for at least so many velocities less.
FLOW_HANDICAP = 2
# Masks that let an object follow a law for this share of the time in which it is seen, agreed upon, are good enough.
GOOD_SHARE = 0.8

# Name of the masks of `match.matched`.
MATCHED = "matched patch"


@dataclass(frozen=True, eq=False)
class Instrument:
    """One way to measure velocity: centres of masks, or flow under masks.

    Attributes:
        masks: their name. method: of the flow that was read under them, or None: their centres.
        soft: (T, H, W) the masks. velocity: (N, 2) H/s. window: its longest lawful stretch in motion.
    """

    masks: str
    method: str | None
    soft: Float[np.ndarray, "T H W"]
    velocity: Float[np.ndarray, "N 2"]
    window: Window

    @property
    def name(self) -> str:
        return self.masks if self.method is None else f"{self.method} under {self.masks}"

    @property
    def outlined(self) -> bool:
        """Whether the masks are the object's outline, and not a patch that holds it."""
        return self.masks != MATCHED


def instruments_of(clip: Clip, name: str, soft: Float[np.ndarray, "T H W"], seen: Seen | None) -> list[Instrument]:
    """All ways to measure velocity with these masks: their centres first."""
    fps, height = float(clip.fps), clip.frames.shape[-2]
    velocities: dict[str | None, Float[np.ndarray, "N 2"]] = {None: np.diff(centroid(soft)[0], axis=0) * fps}
    if seen is not None:
        velocities |= {method: seen.velocity_under(soft, method) * fps / height for method in seen.flows}
    return [
        Instrument(name, method, soft, velocity, lawful_velocities(velocity, fps, height))
        for method, velocity in velocities.items()
    ]


def _handicap(one: Instrument) -> float:
    """By how many velocities an instrument must see a longer law than another; where silhouettes fail, so does flow."""
    if one.method is None:
        return 0.0
    return float("inf") if one.masks == MATCHED else FLOW_HANDICAP


def best_of(groups: Sequence[Sequence[Instrument]]) -> tuple[Instrument | None, Sequence[Instrument]]:
    """The instrument to believe, and all that looked at the same masks; None and nothing where there are no masks."""
    group = max(groups, key=_worth, default=())
    return max(group, key=lambda one: len(one.window) - _handicap(one), default=None), group


def good(groups: Sequence[Sequence[Instrument]], found: Found) -> bool:
    """Whether some masks tell of most of the time in which something is seen."""
    frames = int((found.soft > 0.5).any(axis=(1, 2)).sum())
    return max((_worth(group) for group in groups), default=0.0) >= GOOD_SHARE * (frames - 1)


def _worth(instruments: Sequence[Instrument]) -> float:
    """How long masks let an object follow a law, times how well their centres and the flow under them agree."""
    longest = max(instruments, key=lambda one: len(one.window))
    if len(instruments) < 2:
        return float(len(longest.window))
    other = second(longest, instruments)
    return len(longest.window) * agreement(disagreement(longest.velocity, other.velocity, longest.window))


def second(best: Instrument, instruments: Sequence[Instrument]) -> Instrument:
    """The one of the other kind that agrees best: two methods hardly make the same mistake over a whole window, while
    one of them failing says nothing about the video."""
    return min(
        (one for one in instruments if (one.method is None) != (best.method is None)),
        key=lambda one: _inf(disagreement(best.velocity, one.velocity, best.window)),
    )


def _inf(value: float | None) -> float:
    return float("inf") if value is None else value
