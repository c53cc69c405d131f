"""How large the world of a video is: what turns frame heights into metres, so that the size of g can be judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Scale:
    """What somebody knows about the size of things; at most one of the two.

    Attributes:
        metres_per_height: metres in one frame height at the object's distance.
        object_metres: the object's own width: the diameter of a ball, or of a disc of the area that it shows.
    """

    metres_per_height: float | None = None
    object_metres: float | None = None

    def metres(self, area: Float[np.ndarray, " T"]) -> float | None:
        """Metres in one frame height, None where nothing tells.

        Args:
            area: of the object in each frame, H^2.
        """
        if self.object_metres is None:
            return self.metres_per_height
        wide = diameter(area)
        return self.object_metres / wide if wide > 0 else None


NO_SCALE = Scale()


def diameter(area: Float[np.ndarray, " T"]) -> float:
    """Of a disc of the object's usual area, H; 0 where it is never seen."""
    seen = area[area > 0]
    return 2 * float(np.sqrt(np.median(seen) / np.pi)) if len(seen) else 0.0
