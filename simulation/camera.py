"""Pinhole camera that looks at the plane of motion, straight or from the side: projection and its derivatives.

World coordinates: metres, x right, y up, z away from the viewer; the motion lies in the plane z = 0. Points (N, 2) lie
in that plane, points (N, 3) anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A camera `distance` m from the point (0, height, 0), which it looks at.

    `view_m` is the width and height of its view there. It stands to the left by `yaw` (rad) and above by `pitch`; with
    both zero, image acceleration is constant where that of the world is.
    """

    view_m: float
    height: float
    distance: float
    yaw: float = 0.0
    pitch: float = 0.0

    def axes(self) -> Array:
        """(3, 3) unit vectors in the world: right, up, and forward."""
        cy, sy, cp, sp = math.cos(self.yaw), math.sin(self.yaw), math.cos(self.pitch), math.sin(self.pitch)
        return np.array([[cy, 0.0, -sy], [sy * sp, cp, cy * sp], [sy * cp, -sp, cy * cp]])

    def place(self) -> Array:
        """(3,) where it stands, world metres."""
        return np.array([0.0, self.height, 0.0]) - self.distance * self.axes()[2]

    def edges(self) -> tuple[Array, Array]:
        """The planes through the camera and the frame's edges: (4, 3) unit normals that point out of the view, and a
        point on all of them.
        """
        right, up, forward = self.axes()
        slope = self.view_m / 2 / self.distance
        normals = np.stack([right, -right, up, -up]) - slope * forward
        return normals / math.hypot(1.0, slope), self.place()

    def focal_px(self, size: int) -> float:
        """Focal length in pixels of a `size` px image."""
        return size * self.distance / self.view_m

    def intrinsics(self) -> Array:
        """(3, 3) in frame heights, as `core.clip.Truth` has it."""
        focal = self.distance / self.view_m
        return np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])

    def extrinsics(self) -> Array:
        """(3, 4) as `core.clip.Truth` has it: the world's z points to the viewer there, the camera's y down."""
        down = np.diag([1.0, -1.0, 1.0]) @ self.axes()
        return np.concatenate([down @ np.diag([1.0, 1.0, -1.0]), -(down @ self.place())[:, None]], axis=1)

    def to_image(self, points: Array) -> Array:
        """World points to image coordinates (N, 2) in frame heights, x right, y down, origin top left."""
        x, y, z = self._seen(points)
        near = self.distance / z
        return np.stack([x * near / self.view_m + 0.5, -y * near / self.view_m + 0.5], axis=1)

    def depth(self, points: Array) -> Array:
        """(N,) metres along the optical axis of world points."""
        return self._seen(points)[2]

    def derivatives(self, points: Array, velocity: Array, acceleration: Array) -> tuple[Array, Array]:
        """Velocity (H/s) and acceleration (H/s^2) in the image, each (N, 2), of world points that move with (N, 3) m/s
        and m/s^2, or (N, 2) parallel to the plane of motion.

        Twice the derivative of u = x / z: u' = (x' - u z') / z and u'' = (x'' - u z'' - 2 u' z') / z.
        """
        down = np.array([1.0, -1.0])
        if self.yaw == self.pitch == 0 and points.shape[1] == 2:  # nothing comes nearer
            return velocity * down / self.view_m, acceleration * down / self.view_m
        (x, y, z), axes = self._seen(points), self.axes()[:, : velocity.shape[1]]
        (vx, vy, vz), (ax, ay, az) = axes @ velocity.T, axes @ acceleration.T
        near = self.distance / z
        first, second = [], []
        for position, v, a in ((x, vx, ax), (y, vy, ay)):
            slope = position / z
            rate = v - slope * vz
            first.append(rate * near)
            second.append((a - slope * az - 2 * rate / z * vz) * near)
        return np.stack(first, 1) * down / self.view_m, np.stack(second, 1) * down / self.view_m

    def _seen(self, points: Array) -> Array:
        """(3, N) camera coordinates of world points."""
        away = points[:, 2] if points.shape[1] == 3 else np.zeros(len(points))
        offset = np.stack([points[:, 0], points[:, 1] - self.height, away])
        return self.axes() @ offset + np.array([[0.0], [0.0], [self.distance]])


def acceleration_spread(acceleration: Array) -> float:
    """How far an acceleration (N, 2) is from constant: rms distance from its mean, as a share of the mean's length."""
    mean = acceleration.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-9:
        return 0.0
    return round(float(np.sqrt(((acceleration - mean) ** 2).sum(1).mean())) / length, 6)
