"""Solid bodies: volume, middle and inertia of what triangles enclose; and stones, irregular bodies by number.

A stone is the hull of points scattered around a middle, with its centre of mass at the origin and its principal axes
along x, y and z, so large that it reaches 1 along x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

Array = NDArray[np.float64]
CORNERS = 14
COUNT = 8


class Solid(NamedTuple):
    """Of density 1: volume (m^3), centre of mass (3,), and inertia (3, 3) about it (m^5)."""

    volume: float
    centre: Array
    inertia: Array


def solid(vertices: Array, faces: NDArray[np.int64]) -> Solid:
    """What triangles (F, 3), anticlockwise from outside, enclose: a sum over tetrahedra that end in the origin."""
    corners = vertices[faces]
    volumes = np.linalg.det(corners) / 6
    volume = float(volumes.sum())
    centre = (volumes[:, None] * corners.sum(1) / 4).sum(0) / volume
    # of x_i x_j over a tetrahedron from the origin to corners a: volume / 20 (sum_ab a_i b_j + sum_a a_i a_j)
    total = corners.sum(1)
    second = np.einsum("f,fi,fj->ij", volumes, total, total) + np.einsum("f,fai,faj->ij", volumes, corners, corners)
    second = second / 20 - volume * np.outer(centre, centre)
    return Solid(volume, centre, np.trace(second) * np.eye(3) - second)


def hull(points: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Vertices (V, 3) of the hull of points, triangles (F, 3) anticlockwise from outside, and planes (F, 4): unit
    normal outwards, and how far from the origin.
    """
    made = ConvexHull(points)
    used = np.unique(made.simplices)
    vertices, faces = made.points[used], np.searchsorted(used, made.simplices)
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inside_out = (across * made.equations[:, :3]).sum(1) < 0
    faces[inside_out] = faces[inside_out][:, ::-1]
    return vertices, faces, made.equations * [1.0, 1.0, 1.0, -1.0]


def stone(number: int) -> Array:
    """Corners (V, 3) of a stone, V <= `CORNERS`."""
    rng = np.random.default_rng(number)
    height = 1 - (2 * np.arange(CORNERS) + 1) / CORNERS  # even over the ball (Fibonacci), then pushed about
    turn = math.pi * (1 + math.sqrt(5)) * np.arange(CORNERS)
    round_ = np.stack([np.sqrt(1 - height**2) * np.cos(turn), height, np.sqrt(1 - height**2) * np.sin(turn)], 1)
    points = (round_ + rng.normal(0, 0.15, round_.shape)) * [1.0, rng.uniform(0.6, 0.8), rng.uniform(0.7, 0.9)]
    vertices, faces, _ = hull(points)
    body = solid(vertices, faces)
    _, axes = np.linalg.eigh(body.inertia)  # the least inertia first: a stone is longest along x
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(3)])
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    own = (vertices - body.centre) @ axes
    return np.asarray(own / np.abs(own[:, 0]).max())


def _planes() -> Array:
    """(COUNT, F, 4) planes of each stone; those with fewer have one several times."""
    found = [hull(corners)[2] for corners in STONES]
    most = max(map(len, found))
    return np.stack([np.concatenate([one, np.repeat(one[-1:], most - len(one), 0)]) for one in found])


STONES = [stone(number) for number in range(COUNT)]
PLANES = _planes()
