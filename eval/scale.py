"""How large the world of a video is: what turns frame heights into metres, so that the size of g can be judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# A scale may be off by this share: one that somebody read off a picture, and one from the width of masks (within 10 %
# in clips by an imperfect camera, 16 % too narrow on a real ball).
READ_OFF, MASKS_OFF = 0.05, 0.15


class Metres(NamedTuple):
    """Metres in one frame height at the object's distance, and the share by which that may be off."""

    per_height: float
    off: float


@dataclass(frozen=True)
class Scale:
    """What somebody knows about the size of things; at most one of the two.

    Attributes:
        metres_per_height: metres in one frame height at the object's distance.
        object_metres: the object's own width: the diameter of a ball, or of a disc of the area that it shows.
    """

    metres_per_height: float | None = None
    object_metres: float | None = None

    def metres(self, area: Float[np.ndarray, " T"] | None) -> Metres | None:
        """The scale of a video, None where nothing tells it.

        Args:
            area: of the object in each frame, H^2; None where the masks don't know it.
        """
        if self.metres_per_height is not None:
            return Metres(self.metres_per_height, READ_OFF)
        wide = 0.0 if area is None else diameter(area)
        return Metres(self.object_metres / wide, MASKS_OFF) if self.object_metres is not None and wide > 0 else None


NO_SCALE = Scale()


def diameter(area: Float[np.ndarray, " T"]) -> float:
    """Of a disc of the object's usual area, H; 0 where it is never seen."""
    seen = area[area > 0]
    return 2 * float(np.sqrt(np.median(seen) / np.pi)) if len(seen) else 0.0
