"""The shapes of `shapes.py` as meshes, and their textures as maps: what another renderer needs to draw the same things.

All shapes are convex, so a mesh is the hull of points that lie on it, and a texture is a map of the directions from the
centre. Lengths in metres, along the object's own axes.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newtonrewards.simulation import backdrop, shapes
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.raycast import pattern
from newtonrewards.simulation.shapes import SHAPES, STONE, TEXTURES
from newtonrewards.simulation.solids import STONES, hull

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
Range = tuple[float, float]
ROUND = 128  # corners of a circle: it is nowhere more than 3e-4 of its radius from round
INWARDS = 0.02  # share of the way to a triangle's middle at which the normal of its corner is taken


class Mesh(NamedTuple):
    """Triangles of a convex body.

    `vertices` (V, 3); `faces` (F, 3) anticlockwise from outside; `normals` (F, 3, 3) of the true surface at each corner
    of each face: edges stay sharp, and what is round is round.
    """

    vertices: Array
    faces: NDArray[np.int64]
    normals: Array


def mesh(shape: str, half: Vector) -> Mesh:
    """A shape of `shapes.SHAPES` with half extents `half`."""
    vertices, faces, _ = hull(points(shape, half))
    corners = vertices[faces]
    near = corners + INWARDS * (corners.mean(1, keepdims=True) - corners)
    normals = shapes.slopes(SHAPES[shape], near.reshape(-1, 3), np.array(half))
    return Mesh(vertices, faces, normals.reshape(corners.shape))


def points(shape: str, half: Vector, around: int = ROUND) -> Array:
    """Points of the surface whose hull is the shape; `around` of them on a circle."""
    hx, hy, _ = half
    match shape:
        case "sphere":
            return hx * _ball(around)
        case "capsule":
            along = np.array([hx - hy, 0.0, 0.0])
            return np.concatenate([hy * _ball(around) + along, hy * _ball(around) - along])
        case "box":
            return signs() * half
        case "rounded_box":
            r = 0.35 * min(half)
            return np.concatenate([r * _ball(around // 2) + corner for corner in signs() * (np.array(half) - r)])
        case "puck":
            return _prism(hx, hy, around)
        case "hex_prism":
            return _prism(hx, hy, 6)
    return hx * STONES[SHAPES[shape] - STONE]


def signs() -> Array:
    """(8, 3) corners of the box with half extents 1."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=3)))


def _prism(radius: float, half_height: float, corners: int) -> Array:
    angles = np.arange(corners) * 2 * math.pi / corners
    ring = np.stack([radius * np.cos(angles), np.zeros(corners), radius * np.sin(angles)], 1)
    up = np.array([0.0, half_height, 0.0])
    return np.concatenate([ring + up, ring - up])


def _ball(around: int) -> Array:
    """Points of the unit sphere, in circles about y; those on the axes are among them."""
    turns = np.arange(around) * 2 * math.pi / around
    rises = np.linspace(-math.pi / 2, math.pi / 2, around // 2 + 1)[1:-1, None]
    flat = np.broadcast_to(np.sin(rises), (len(rises), around))
    points = np.stack([np.cos(rises) * np.cos(turns), flat, np.cos(rises) * np.sin(turns)], -1).reshape(-1, 3)
    return np.concatenate([points, [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]])


def object_map(shape: str, half: Vector, surface: Surface, rows: int) -> Array:
    """(rows, 2 rows, 3) colours, from 0 to 1, of an object by the direction from its centre.

    Rows run from +y to -y; columns around y, the middle one to +x and the one a quarter to its left to +z.
    """
    kind, texture = SHAPES[shape], TEXTURES[surface.texture]
    return shapes.object_map(
        kind, texture, *half, surface.frequency, *pattern(surface.seed), np.array(surface.colours), rows
    )


def plane_map(kind: int, surface: Surface, area: tuple[Range, Range], per_metre: float) -> Array:
    """(rows, columns, 3) colours, from 0 to 1, of floor, wall or ramp; rows from the second coordinate's end down.

    Args:
        kind: of `backdrop.WALLS`.
        area: from and to of both coordinates, metres.
        per_metre: pixels.
    """
    (left, right), (low, high) = area
    columns, rows = round((right - left) * per_metre), round((high - low) * per_metre)
    return backdrop.plane_map(kind, left, high, 1 / per_metre, rows, columns, surface.frequency, surface.seed,
                      np.array(surface.colours))  # fmt: skip
