"""The kernels of the fast renderer: sphere-traced SDF objects over an analytic floor, wall and wedge.

All of it is plain numba on arrays; `render.py` is the readable side. Lengths in metres, `focal` in pixels of the
(sub)sampled image, `camera` (4, 3): where it stands, then unit vectors right, up and forward, in the world.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

SHAPES = {"sphere": 0, "box": 1, "puck": 2, "rounded_box": 3, "hex_prism": 4, "capsule": 5}
TEXTURES = {"two_tone": 0, "checker": 1, "stripes": 2, "dots": 3, "rings": 4, "zigzag": 5}
WALLS = {"clouds": 0, "bricks": 1, "panels": 2}
AMBIENT = 0.55
TRACE_STEPS = 48
HIT = 1e-3


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
def sdf(kind, x, y, z, hx, hy, hz):
    """Signed distance to a shape with half extents (hx, hy, hz); formulas after Inigo Quilez,
    iquilezles.org/articles/distfunctions.
    """
    if kind == 0:
        return math.sqrt(x * x + y * y + z * z) - hx
    if kind == 2:
        dx, dy = math.sqrt(x * x + z * z) - hx, abs(y) - hy
        return min(max(dx, dy), 0.0) + math.sqrt(max(dx, 0.0) ** 2 + max(dy, 0.0) ** 2)
    if kind == 4:
        ax, az = abs(x), abs(z)
        side = max(ax * 0.8660254 + az * 0.5, az) - hx * 0.8660254
        dy = abs(y) - hy
        return min(max(side, dy), 0.0) + math.sqrt(max(side, 0.0) ** 2 + max(dy, 0.0) ** 2)
    if kind == 5:
        along = max(abs(x) - (hx - hy), 0.0)
        return math.sqrt(along * along + y * y + z * z) - hy
    r = 0.35 * min(hx, hy, hz) if kind == 3 else 0.0
    dx, dy, dz = abs(x) - hx + r, abs(y) - hy + r, abs(z) - hz + r
    outside = math.sqrt(max(dx, 0.0) ** 2 + max(dy, 0.0) ** 2 + max(dz, 0.0) ** 2)
    return outside + min(max(dx, dy, dz), 0.0) - r


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
def hashed(i, j, seed):
    n = (i * 374761393 + j * 668265263 + seed * 2147483647) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
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
@njit(cache=True)
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
@njit(cache=True)
def object_mix(kind, x, y, z, frequency, seed):
    """0 or 1, which of the object's colours; (x, y, z) in half sizes."""
    shift = hashed(seed, 7, 3) - 0.5
    tilt = 3.14159 * hashed(seed, 5, 1)
    u, v = math.cos(tilt) * x + math.sin(tilt) * y, math.cos(tilt) * y - math.sin(tilt) * x
    if kind == 0:
        return 1.0 if u > 0.5 * shift else 0.0
    if kind == 1:
        cells = math.floor(x * frequency + shift) + math.floor(y * frequency + shift) + math.floor(z * frequency)
        return float(cells % 2)
    if kind == 2:
        return 1.0 if (u * frequency + shift) % 1.0 < 0.5 else 0.0
    if kind == 3:
        du, dv = (x * frequency + shift) % 1.0 - 0.5, (y * frequency + shift) % 1.0 - 0.5
        return 1.0 if du * du + dv * dv < 0.1 else 0.0
    if kind == 4:
        return 1.0 if (math.sqrt(x * x + y * y) * 1.5 * frequency + shift) % 1.0 < 0.5 else 0.0
    return 1.0 if (u * frequency + 0.5 * abs((v * 1.5) % 1.0 - 0.5) + shift) % 1.0 < 0.5 else 0.0


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
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
@njit(cache=True)
def world_ray(dx, dy, camera):
    """Direction of the ray (dx, dy, 1) of the camera in the world: one step along it is one metre of depth."""
    return (
        dx * camera[1, 0] + dy * camera[2, 0] + camera[3, 0],
        dx * camera[1, 1] + dy * camera[2, 1] + camera[3, 1],
        dx * camera[1, 2] + dy * camera[2, 2] + camera[3, 2],
    )


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
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
@njit(cache=True)
def local(x, y, z, ct, st, cy, sy):
    """World offset from the object's centre to its own axes: undo the tilt about z, then the yaw about y."""
    a, b = ct * x + st * y, ct * y - st * x
    return cy * a + sy * z, b, cy * z - sy * a


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
def object_shadow(px, py, pz, cx, cy_, light, kind, half, bound, ct, st, cyaw, syaw):
    """1 in full light, 0 in full shadow; penumbra by the closest pass of the shadow ray (k d / t)."""
    ox, oy, oz = px - cx, py - cy_, pz
    along = -(ox * light[0] + oy * light[1] + oz * light[2])
    if along < 0:
        return 1.0
    qx, qy, qz = ox + along * light[0], oy + along * light[1], oz + along * light[2]
    reach = bound + 0.12 * along + 0.02
    if qx * qx + qy * qy + qz * qz > reach * reach:
        return 1.0
    t, lit = max(0.01, along - reach), 1.0
    for _ in range(TRACE_STEPS):
        x, y, z = local(ox + t * light[0], oy + t * light[1], oz + t * light[2], ct, st, cyaw, syaw)
        d = sdf(kind, x, y, z, half[0], half[1], half[2])
        if d < HIT:
            return 0.0
        lit = min(lit, 9.0 * d / t)
        t += max(d, 0.01)
        if t > along + reach:
            break
    return lit * lit * (3 - 2 * lit)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
def around(cx, cy, bound, camera, focal, size):
    """Rows from, to, and columns from, to, outside of which no ray meets a ball of this radius; generous."""
    x, y, z = cx - camera[0, 0], cy - camera[0, 1], -camera[0, 2]
    away = camera[3, 0] * x + camera[3, 1] * y + camera[3, 2] * z
    if away < 2 * bound:
        return 0.0, float(size), 0.0, float(size)
    u = (camera[1, 0] * x + camera[1, 1] * y + camera[1, 2] * z) / away
    v = (camera[2, 0] * x + camera[2, 1] * y + camera[2, 2] * z) / away
    reach = 1.5 * (1 + u * u + v * v) * focal * bound / (away - bound) + 2
    row, column = size / 2 - focal * v, size / 2 + focal * u
    return (
        max(0.0, row - reach),
        min(float(size), row + reach),
        max(0.0, column - reach),
        min(float(size), column + reach),
    )


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True)
def trace_frames(
    centres,
    size,
    focal,
    camera,
    points,
    albedo,
    direct,
    depth,
    light,
    kind,
    half,
    tilts,
    yaw,
    texture,
    frequency,
    seed,
    colours,
):
    """All samples of all frames; `centres` (T, 2) and `tilts` (T,), about the line of sight, are the object's poses.

    Returns:
        colour (T, N, N, 3), hit (T, N, N) 0 or 1, z (T, N, N) metres along the optical axis, flow (T, N, N, 2) in
        samples per frame (zero off the object; the last frame has none).
    """
    frames = centres.shape[0]
    colour, hit = np.empty((frames, size, size, 3), np.float32), np.zeros((frames, size, size), np.float32)
    deep, flow = np.empty((frames, size, size), np.float32), np.zeros((frames, size, size, 2), np.float32)
    cyaw, syaw = math.cos(yaw), math.sin(yaw)
    bound = math.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
    plain, far = np.empty((size, size, 3), np.float32), np.empty((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            far[i, j] = depth[i, j]
            for c in range(3):
                plain[i, j, c] = albedo[i, j, c] * (AMBIENT + (1 - AMBIENT) * direct[i, j])
    for f in range(frames):
        colour[f], deep[f] = plain, far
        cx, cy = centres[f, 0], centres[f, 1]
        top, bottom, left, right = around(cx, cy, bound, camera, focal, size)
        ct, st = math.cos(tilts[f]), math.sin(tilts[f])
        for i in range(size):
            for j in range(size):
                lit = object_shadow(
                    points[i, j, 0],
                    points[i, j, 1],
                    points[i, j, 2],
                    cx,
                    cy,
                    light,
                    kind,
                    half,
                    bound,
                    ct,
                    st,
                    cyaw,
                    syaw,
                )
                if lit < 1:
                    shade = AMBIENT + (1 - AMBIENT) * direct[i, j] * lit
                    for c in range(3):
                        colour[f, i, j, c] = albedo[i, j, c] * shade
                if i < top or i >= bottom or j < left or j >= right:
                    continue
                dx, dy = (j + 0.5 - size / 2) / focal, -(i + 0.5 - size / 2) / focal
                norm = math.sqrt(dx * dx + dy * dy + 1)
                wx, wy, wz = world_ray(dx, dy, camera)
                ux, uy, uz, forward = wx / norm, wy / norm, wz / norm, 1 / norm
                ox, oy, oz = camera[0, 0] - cx, camera[0, 1] - cy, camera[0, 2]
                along = -(ox * ux + oy * uy + oz * uz)
                miss = (ox + along * ux) ** 2 + (oy + along * uy) ** 2 + (oz + along * uz) ** 2
                if miss > bound * bound:
                    continue
                t = along - bound
                found = False
                for _ in range(TRACE_STEPS):
                    x, y, z = local(ox + t * ux, oy + t * uy, oz + t * uz, ct, st, cyaw, syaw)
                    d = sdf(kind, x, y, z, half[0], half[1], half[2])
                    if d < HIT:
                        found = True
                        break
                    t += d
                    if t > along + bound:
                        break
                if not found or t * forward > depth[i, j]:
                    continue
                e = 2e-3
                gx = sdf(kind, x + e, y, z, half[0], half[1], half[2]) - sdf(
                    kind, x - e, y, z, half[0], half[1], half[2]
                )
                gy = sdf(kind, x, y + e, z, half[0], half[1], half[2]) - sdf(
                    kind, x, y - e, z, half[0], half[1], half[2]
                )
                gz = sdf(kind, x, y, z + e, half[0], half[1], half[2]) - sdf(
                    kind, x, y, z - e, half[0], half[1], half[2]
                )
                length = math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-12
                lx, ly, lz = local(light[0], light[1], light[2], ct, st, cyaw, syaw)
                facing = max(0.0, (gx * lx + gy * ly + gz * lz) / length)
                mix = object_mix(texture, x / half[0], y / half[1], z / half[2], frequency, seed)
                shade = AMBIENT + (1 - AMBIENT) * facing
                for c in range(3):
                    colour[f, i, j, c] = (colours[0, c] * (1 - mix) + colours[1, c] * mix) * shade
                hit[f, i, j] = 1.0
                deep[f, i, j] = t * forward
                if f + 1 < frames:
                    # the body moves in the plane of motion and turns about its normal: no point's z changes
                    rx, ry, turn = ox + t * ux, oy + t * uy, tilts[f + 1] - tilts[f]
                    mx = centres[f + 1, 0] - cx + rx * (math.cos(turn) - 1) - ry * math.sin(turn)
                    my = centres[f + 1, 1] - cy + rx * math.sin(turn) + ry * (math.cos(turn) - 1)
                    sideways = camera[1, 0] * mx + camera[1, 1] * my
                    upwards = camera[2, 0] * mx + camera[2, 1] * my
                    away = camera[3, 0] * mx + camera[3, 1] * my
                    flow[f, i, j, 0] = focal * (sideways - dx * away) / (t * forward + away)
                    flow[f, i, j, 1] = -focal * (upwards - dy * away) / (t * forward + away)
    return colour, hit, deep, flow
