"""Pinhole camera that looks straight at the plane of motion: projection and metres per pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]


def focal_px(scene: Scene, size: int) -> float:
    """Focal length in pixels of a `size` px image: the plane of motion is `view_m` wide."""
    return size * scene.camera_distance / scene.view_m


def to_image_heights(scene: Scene, points: Array) -> Array:
    """World points (N, 2) of the plane of motion to image coordinates in frame heights, x right, y down, origin
    top left.
    """
    x, y = points[:, 0], points[:, 1]
    return np.stack([x / scene.view_m + 0.5, (scene.camera_height - y) / scene.view_m + 0.5], axis=1)


def vector_to_image(scene: Scene, vectors: Array) -> Array:
    """World vectors (N, 2) in m (or m/s, m/s^2) to frame heights (H/s, H/s^2), y down."""
    return vectors * np.array([1.0, -1.0]) / scene.view_m
