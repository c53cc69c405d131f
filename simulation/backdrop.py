"""What stands still in a scene: floor, wall and ramp, their light and their textures.

Plain numba on arrays; `render.py` is the readable side. Lengths in metres, `focal` in pixels of the (sub)sampled image,
`camera` (4, 3): where it stands, then unit vectors right, up and forward, in the world.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

WALLS = {"clouds": 0, "bricks": 1, "panels": 2}


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def hashed(i, j, seed):
    n = (i * 374761393 + j * 668265263 + seed * 2147483647) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def noise(x, y, seed):
    """Smooth value noise in [0, 1], period about 1."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    i, j = int(i), int(j)
    low = hashed(i, j, seed) * (1 - fx) + hashed(i + 1, j, seed) * fx
    high = hashed(i, j + 1, seed) * (1 - fx) + hashed(i + 1, j + 1, seed) * fx
    return low * (1 - fy) + high * fy


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def background_mix(kind, x, y, frequency, seed):
    """Share of the second colour on wall, floor or ramp."""
    u, v = x * frequency, y * frequency
    clouds = 0.65 * noise(u, v, seed) + 0.35 * noise(2.3 * u, 2.3 * v, seed + 1)
    if kind == 1:
        row = math.floor(v * 1.6)
        shifted = u * 0.9 + 0.5 * (row % 2)
        joint = min(shifted - math.floor(shifted), 1.0) < 0.1 or v * 1.6 - row < 0.14
        return 1.0 if joint else 0.5 * hashed(math.floor(shifted), int(row), seed)
    if kind == 2:
        panel = math.floor(u * 1.1)
        return 1.0 if u * 1.1 - panel < 0.08 else 0.3 * clouds + 0.4 * hashed(int(panel), 0, seed)
    return clouds


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def wedge_hit(ox, oy, oz, dx, dy, dz, wedge):
    """Entry distance and face (0 slope, 1 end, 2 front, 3 bottom, 4 back) of a ray into the ramp, or (inf, -1).

    The ramp is the convex body of five half spaces n.p <= d; `wedge` = (foot_x, uphill, incline, length, half_depth).
    """
    foot, up, th, length, depth = wedge[0], wedge[1], wedge[2], wedge[3], wedge[4]
    near, far, face = -1e9, 1e9, -1
    for k in range(5):
        nx, ny, nz, d = 0.0, 0.0, 0.0, 0.0
        if k == 0:
            nx, ny = -up * math.sin(th), math.cos(th)
            d = nx * foot
        elif k == 1:
            nx, d = up, up * foot + length * math.cos(th)
        elif k == 2:
            nz, d = -1.0, depth
        elif k == 3:
            ny = -1.0
        else:
            nz, d = 1.0, depth
        speed = nx * dx + ny * dy + nz * dz
        gap = d - (nx * ox + ny * oy + nz * oz)
        if abs(speed) < 1e-12:
            if gap < 0:
                return np.inf, -1
        elif speed < 0:
            if gap / speed > near:
                near, face = gap / speed, k
        else:
            far = min(far, gap / speed)
    if near > far or far < 1e-4 or near < 1e-4:
        return np.inf, -1
    return near, face


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def world_ray(dx, dy, camera):
    """Direction of the ray (dx, dy, 1) of the camera in the world: one step along it is one metre of depth."""
    return (
        dx * camera[1, 0] + dy * camera[2, 0] + camera[3, 0],
        dx * camera[1, 1] + dy * camera[2, 1] + camera[3, 1],
        dx * camera[1, 2] + dy * camera[2, 2] + camera[3, 2],
    )


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def trace_background(size, focal, camera, wall_z, wedge, has_wedge, light, kinds, frequencies, seeds, colours):
    """Static part of the picture: hit point, lit colour split into ambient and direct light, and depth, for each
    sample.

    Args:
        kinds, frequencies, seeds, colours: of wall, floor, ramp; colours (3, 2, 3).
    Returns:
        points (N, N, 3), albedo (N, N, 3), direct (N, N) = n.l without shadow of the object, depth (N, N) metres
        along the optical axis.
    """
    points, albedo = np.empty((size, size, 3)), np.empty((size, size, 3))
    direct, depth = np.empty((size, size)), np.empty((size, size))
    ox, oy, oz = camera[0, 0], camera[0, 1], camera[0, 2]
    for i in range(size):
        for j in range(size):
            dx, dy, dz = world_ray((j + 0.5 - size / 2) / focal, -(i + 0.5 - size / 2) / focal, camera)
            t, which, nx, ny, nz = (wall_z - oz) / dz, 0, 0.0, 0.0, -1.0
            if dy < 0 and -oy / dy < t:
                t, which, nx, ny, nz = -oy / dy, 1, 0.0, 1.0, 0.0
            if has_wedge:
                near, face = wedge_hit(ox, oy, oz, dx, dy, dz, wedge)
                if near < t:
                    t, which, nx, ny, nz = near, 2, 0.0, 0.0, -1.0
                    if face == 0:
                        nx, ny, nz = -wedge[1] * math.sin(wedge[2]), math.cos(wedge[2]), 0.0
                    elif face == 1:
                        nx, nz = wedge[1], 0.0
            x, y, z = ox + dx * t, oy + dy * t, oz + dz * t
            u, v = x, y
            if which == 1 or (which == 2 and nz == 0.0):
                v = z
            mix = background_mix(kinds[which], u + 31.7, v + 17.3, frequencies[which], seeds[which])
            shade = max(0.0, nx * light[0] + ny * light[1] + nz * light[2])
            if has_wedge and which != 2:
                blocked, _ = wedge_hit(x, y + 1e-3, z, light[0], light[1], light[2], wedge)
                if blocked < np.inf:
                    shade = 0.0
            points[i, j, 0], points[i, j, 1], points[i, j, 2] = x, y, z
            direct[i, j], depth[i, j] = shade, t
            for c in range(3):
                albedo[i, j, c] = colours[which, 0, c] * (1 - mix) + colours[which, 1, c] * mix
    return points, albedo, direct, depth


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def plane_map(kind, left, high, step, rows, columns, frequency, seed, colours):
    """Colours (rows, columns, 3) of pixels `step` m wide, from `left` to the right and from `high` down."""
    out = np.empty((rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            u, v = left + (j + 0.5) * step, high - (i + 0.5) * step
            mix = background_mix(kind, u + 31.7, v + 17.3, frequency, seed)
            out[i, j] = colours[0] * (1 - mix) + colours[1] * mix
    return out
