"""How a body is turned, how far it reaches, and when it first leaves the view.

Coordinates as in `scene.py`: metres, x right, y up, z away from the viewer. A body is turned by three angles (rad): yaw
about its own vertical, then pitch about x, then tilt about the line of sight; the inverse of `shapes.local`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from newtonrewards.simulation.shapes import SHAPES, STONE
from newtonrewards.simulation.solids import STONES

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
FINE = 16  # times between frames at which a crossing is looked for


def rotations(angles: Array) -> Array:
    """(T, 3, 3) from a body's own axes to the world, for (T, 3) tilt, pitch and yaw."""
    (ct, cp, cy), (st, sp, sy) = np.cos(angles).T, np.sin(angles).T
    none, one = np.zeros(len(angles)), np.ones(len(angles))
    tilt = np.stack([ct, -st, none, st, ct, none, none, none, one], 1).reshape(-1, 3, 3)
    pitch = np.stack([one, none, none, none, cp, -sp, none, sp, cp], 1).reshape(-1, 3, 3)
    yaw = np.stack([cy, none, -sy, none, one, none, sy, none, cy], 1).reshape(-1, 3, 3)
    return tilt @ pitch @ yaw


def angles_of(turned: Array) -> Array:
    """(T, 3) tilt, pitch and yaw of rotations (T, 3, 3)."""
    tilt = np.arctan2(-turned[:, 0, 1], turned[:, 1, 1])
    pitch = np.arcsin(np.clip(turned[:, 2, 1], -1.0, 1.0))
    return np.stack([tilt, pitch, np.arctan2(turned[:, 2, 0], turned[:, 2, 2])], axis=1)


def reach(shape: str, half: Vector, directions: Array) -> Array:
    """How far a shape of `shapes.SHAPES` extends from its centre in `directions` (N, 3) along its own axes: the largest
    product with any of its points, (N,). Exact: all shapes are convex.
    """
    (hx, hy, hz), (x, y, z) = half, np.abs(directions).T
    match shape:
        case "sphere":
            return hx * np.linalg.norm(directions, axis=1)
        case "puck":
            return hx * np.hypot(x, z) + hy * y
        case "capsule":
            return (hx - hy) * x + hy * np.linalg.norm(directions, axis=1)
        case "hex_prism":  # a corner lies on +x
            return hx * np.maximum(x, 0.5 * x + math.sqrt(0.75) * z) + hy * y
        case "rounded_box":
            r = 0.35 * min(half)
            return (hx - r) * x + (hy - r) * y + (hz - r) * z + r * np.linalg.norm(directions, axis=1)
        case "box":
            return hx * x + hy * y + hz * z
    return hx * (directions @ STONES[SHAPES[shape] - STONE].T).max(1)


def beyond(shape: str, half: Vector, planes: tuple[Array, Array], centres: Array, turned: Array) -> Array:
    """(T,) how far a body lies beyond the outermost of several planes, metres; negative: on the near side of all.

    Args:
        planes: outward unit normals (P, 3) and a point on all of them (3,).
        centres: (T, 3). turned: (T, 3, 3) as `rotations` gives them.
    """
    normals, point = planes
    far = (centres - point) @ normals.T
    own = np.einsum("tij,pi->tpj", turned, normals)
    return (far + reach(shape, half, own.reshape(-1, 3)).reshape(far.shape)).max(1)


def first_crossing(value: Callable[[Array], Array], times: Array) -> float | None:
    """First time (s) from which on a value is positive, or None; 0 where it begins so.

    Looked for at `FINE` times between those given, and found to rounding. What is positive for less than the time
    between two of them may be missed.
    """
    fine = np.interp(np.arange((len(times) - 1) * FINE + 1) / FINE, np.arange(len(times)), times)
    outside = np.flatnonzero(value(fine) > 0)
    if len(outside) == 0 or outside[0] == 0:
        return None if len(outside) == 0 else float(fine[0])
    before, after = fine[outside[0] - 1], fine[outside[0]]
    return float(brentq(lambda t: float(value(np.array([t]))[0]), before, after, xtol=1e-12))
