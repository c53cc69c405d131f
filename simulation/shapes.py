"""An object by itself: its surface as a signed distance, its texture, the rays that meet it and the shadow it casts.

Plain numba on numbers, in metres. `half` sizes (hx, hy, hz) lie along the object's own axes; ct, st, cp, sp, cyaw, syaw
are the cosines and sines of its tilt about the line of sight, pitch about x and yaw about the vertical (`poses.py`).
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from newtonrewards.simulation.solids import COUNT, PLANES

STONE = 6  # the first of them
SHAPES = {"sphere": 0, "box": 1, "puck": 2, "rounded_box": 3, "hex_prism": 4, "capsule": 5}
SHAPES |= {f"stone_{number}": STONE + number for number in range(COUNT)}
TEXTURES = {"two_tone": 0, "checker": 1, "stripes": 2, "dots": 3, "rings": 4, "zigzag": 5}
AMBIENT = 0.55
TRACE_STEPS = 48
HIT = 1e-3


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def over_planes(kind, x, y, z, hx):
    """How far a point lies over the outermost plane of a stone: its distance, or less beside edges and corners."""
    far = -np.inf
    for k in range(PLANES.shape[1]):
        p = PLANES[kind - STONE, k]
        far = max(far, p[0] * x + p[1] * y + p[2] * z - hx * p[3])
    return far


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def strike_planes(kind, ox, oy, oz, ux, uy, uz, hx):
    """Distance at which a line enters a stone, infinity where it passes; along the stone's axes."""
    near, far = -np.inf, np.inf
    for k in range(PLANES.shape[1]):
        p = PLANES[kind - STONE, k]
        speed = p[0] * ux + p[1] * uy + p[2] * uz
        gap = hx * p[3] - (p[0] * ox + p[1] * oy + p[2] * oz)
        if speed < 0:
            near = max(near, gap / speed)
        elif speed > 0:
            far = min(far, gap / speed)
        elif gap < 0:
            return np.inf
    return near if near < far else np.inf


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
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
    if kind >= STONE:
        return over_planes(kind, x, y, z, hx)
    r = 0.35 * min(hx, hy, hz) if kind == 3 else 0.0
    dx, dy, dz = abs(x) - hx + r, abs(y) - hy + r, abs(z) - hz + r
    outside = math.sqrt(max(dx, 0.0) ** 2 + max(dy, 0.0) ** 2 + max(dz, 0.0) ** 2)
    return outside + min(max(dx, dy, dz), 0.0) - r


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def object_mix(kind, x, y, z, frequency, shift, cos, sin):
    """0 or 1, which of the object's colours; (x, y, z) in half sizes, texture shifted and turned.

    A number minus its floor is what `% 1.0` gives, sooner.
    """
    u, v = cos * x + sin * y, cos * y - sin * x
    if kind == 0:
        return 1.0 if u > 0.5 * shift else 0.0
    if kind == 1:
        cells = math.floor(x * frequency + shift) + math.floor(y * frequency + shift) + math.floor(z * frequency)
        return float(cells % 2)
    if kind == 2:
        u = u * frequency + shift
        return 1.0 if u - math.floor(u) < 0.5 else 0.0
    if kind == 3:
        u, v = x * frequency + shift, y * frequency + shift
        du, dv = u - math.floor(u) - 0.5, v - math.floor(v) - 0.5
        return 1.0 if du * du + dv * dv < 0.1 else 0.0
    if kind == 4:
        u = math.sqrt(x * x + y * y) * 1.5 * frequency + shift
        return 1.0 if u - math.floor(u) < 0.5 else 0.0
    v = v * 1.5
    u = u * frequency + 0.5 * abs(v - math.floor(v) - 0.5) + shift
    return 1.0 if u - math.floor(u) < 0.5 else 0.0


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def local(x, y, z, ct, st, cp, sp, cy, sy):
    """World offset from the object's centre to its own axes: undo the tilt about z, the pitch about x, then the yaw
    about y.
    """
    a, b = ct * x + st * y, ct * y - st * x
    b, z = cp * b + sp * z, cp * z - sp * b
    return cy * a + sy * z, b, cy * z - sy * a


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def sines(tilt, pitch, yaw):
    """Cosine and sine of each."""
    return math.cos(tilt), math.sin(tilt), math.cos(pitch), math.sin(pitch), math.cos(yaw), math.sin(yaw)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def turning(before, after):
    """What takes a body's point from where it is turned to by `before` to where by `after`, less the point itself: nine
    numbers, row by row. Tilts alone are taken together first, which rounds less.
    """
    if before[1] == 0 and after[1] == 0 and before[2] == after[2]:
        turn = after[0] - before[0]
        c, s = math.cos(turn) - 1, math.sin(turn)
        return c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 0.0
    cb, sb, cpb, spb, cyb, syb = sines(before[0], before[1], before[2])
    ca, sa, cpa, spa, cya, sya = sines(after[0], after[1], after[2])
    unit, m = np.eye(3), np.empty((3, 3))
    for i in range(3):
        ax, ay, az = local(unit[i, 0], unit[i, 1], unit[i, 2], ca, sa, cpa, spa, cya, sya)
        for j in range(3):
            bx, by, bz = local(unit[j, 0], unit[j, 1], unit[j, 2], cb, sb, cpb, spb, cyb, syb)
            m[i, j] = ax * bx + ay * by + az * bz - unit[i, j]
    return m[0, 0], m[0, 1], m[0, 2], m[1, 0], m[1, 1], m[1, 2], m[2, 0], m[2, 1], m[2, 2]


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def entry(ox, oy, oz, ux, uy, uz, hx, hy, hz, room):
    """Distance at which a line enters a box with `room` around it, infinity where it passes; along the box's axes."""
    hx, hy, hz = max(hx, hz) + room, hy + room, max(hx, hz) + room
    ax, bx, ay, by, az, bz = (
        (-hx - ox) / ux,
        (hx - ox) / ux,
        (-hy - oy) / uy,
        (hy - oy) / uy,
        (-hz - oz) / uz,
        (hz - oz) / uz,
    )
    near = max(min(ax, bx), min(ay, by), min(az, bz))
    return np.inf if near > min(max(ax, bx), max(ay, by), max(az, bz)) + 1e-9 else near


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def object_shadow(ox, oy, oz, lx, ly, lz, kind, hx, hy, hz, bound, ct, st, cp, sp, cyaw, syaw):
    """1 in full light, 0 in full shadow; penumbra by the closest pass of the shadow ray (k d / t).

    (ox, oy, oz) from the object's centre to the point, (lx, ly, lz) to the light.
    """
    along = -(ox * lx + oy * ly + oz * lz)
    if along < 0:
        return 1.0
    qx, qy, qz = ox + along * lx, oy + along * ly, oz + along * lz
    reach = bound + 0.12 * along + 0.02
    if qx * qx + qy * qy + qz * qz > reach * reach:
        return 1.0
    kx, ky, kz = local(ox, oy, oz, ct, st, cp, sp, cyaw, syaw)
    vx, vy, vz = local(lx, ly, lz, ct, st, cp, sp, cyaw, syaw)
    # lit is 1 where the ray stays farther than t / 9; a hexagon's distance is up to 1 / .866 times too short
    if entry(kx, ky, kz, vx, vy, vz, hx, hy, hz, 0.01 + 1.2 * (along + reach) / 9) == np.inf:
        return 1.0
    t, lit = max(0.01, along - reach), 1.0
    for _ in range(TRACE_STEPS):
        x, y, z = local(ox + t * lx, oy + t * ly, oz + t * lz, ct, st, cp, sp, cyaw, syaw)
        d = sdf(kind, x, y, z, hx, hy, hz)
        if d < HIT:
            return 0.0
        lit = min(lit, 9.0 * d / t)
        t += max(d, 0.01)
        if t > along + reach:
            break
    return lit * lit * (3 - 2 * lit)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def strike(ox, oy, oz, ux, uy, uz, kind, hx, hy, hz, bound, ct, st, cp, sp, cyaw, syaw):
    """Distance at which a ray meets an object, infinity where it misses; (ox, oy, oz) from its centre to the camera."""
    along = -(ox * ux + oy * uy + oz * uz)
    miss = (ox + along * ux) ** 2 + (oy + along * uy) ** 2 + (oz + along * uz) ** 2
    if miss > bound * bound:
        return np.inf
    kx, ky, kz = local(ox, oy, oz, ct, st, cp, sp, cyaw, syaw)
    vx, vy, vz = local(ux, uy, uz, ct, st, cp, sp, cyaw, syaw)
    if kind == 0:
        return along - math.sqrt(hx * hx - miss) if miss < hx * hx else np.inf
    if kind >= STONE:
        return strike_planes(kind, kx, ky, kz, vx, vy, vz, hx)
    t = entry(kx, ky, kz, vx, vy, vz, hx, hy, hz, 0.0)
    if t == np.inf:
        return np.inf
    t = max(t, along - bound)
    for _ in range(TRACE_STEPS):
        d = sdf(kind, kx + t * vx, ky + t * vy, kz + t * vz, hx, hy, hz)
        if d < HIT:
            return t
        t += d
        if t > along + bound:
            break
    return np.inf


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def slope(x, y, z, kind, hx, hy, hz):
    """Which way the distance grows, and how long that is; along the object's own axes."""
    e = 2e-3
    gx = sdf(kind, x + e, y, z, hx, hy, hz) - sdf(kind, x - e, y, z, hx, hy, hz)
    gy = sdf(kind, x, y + e, z, hx, hy, hz) - sdf(kind, x, y - e, z, hx, hy, hz)
    gz = sdf(kind, x, y, z + e, hx, hy, hz) - sdf(kind, x, y, z - e, hx, hy, hz)
    return gx, gy, gz, math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-12


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def shading(x, y, z, kind, hx, hy, hz, lx, ly, lz):
    """Light on a point of the surface; all along the object's own axes."""
    gx, gy, gz, length = slope(x, y, z, kind, hx, hy, hz)
    facing = max(0.0, (gx * lx + gy * ly + gz * lz) / length)
    return AMBIENT + (1 - AMBIENT) * facing


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def shine(x, y, z, kind, hx, hy, hz, lx, ly, lz, vx, vy, vz, sharpness, metallic):
    """Light that a point of a material takes the colour of, and light that it throws back as it came.

    All along the object's own axes, (vx, vy, vz) to the viewer. The lamp's highlight after Blinn and Phong, about as
    bright for any exponent n by (n + 2) / 8 (F. Giesen, Phong normalization factor derivations, 2009): 4 % of it in
    white on what isn't metal; on metal all of it in the metal's colour, and nothing is scattered. Light from all around
    is the same either way.
    """
    gx, gy, gz, length = slope(x, y, z, kind, hx, hy, hz)
    facing = max(0.0, (gx * lx + gy * ly + gz * lz) / length)
    wx, wy, wz = lx + vx, ly + vy, lz + vz
    half = max(0.0, (gx * wx + gy * wy + gz * wz) / length / math.sqrt(wx * wx + wy * wy + wz * wz))
    gleam = (1 - AMBIENT) * facing * (sharpness + 2) / 8 * half**sharpness
    return AMBIENT + (1 - AMBIENT) * facing * (1 - metallic) + gleam * metallic, 0.04 * gleam * (1 - metallic)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def slopes(kind, points, half):
    """(N, 3) unit normals: which way the distance to a shape grows."""
    normals, e = np.empty_like(points), 1e-6
    hx, hy, hz = half
    for n in range(len(points)):
        x, y, z = points[n]
        gx = sdf(kind, x + e, y, z, hx, hy, hz) - sdf(kind, x - e, y, z, hx, hy, hz)
        gy = sdf(kind, x, y + e, z, hx, hy, hz) - sdf(kind, x, y - e, z, hx, hy, hz)
        gz = sdf(kind, x, y, z + e, hx, hy, hz) - sdf(kind, x, y, z - e, hx, hy, hz)
        length = math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-12
        normals[n, 0], normals[n, 1], normals[n, 2] = gx / length, gy / length, gz / length
    return normals


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def object_map(kind, texture, hx, hy, hz, frequency, shift, cos, sin, colours, rows):
    """See `meshes.object_map`; texture shifted and turned as in `object_mix`."""
    out = np.empty((rows, 2 * rows, 3))
    for i in range(rows):
        rise = math.pi * (0.5 - (i + 0.5) / rows)
        for j in range(2 * rows):
            turn = math.pi * (1 - (j + 0.5) / rows)
            x, y, z = math.cos(rise) * math.cos(turn), math.sin(rise), math.cos(rise) * math.sin(turn)
            near, far = 0.0, math.sqrt(hx * hx + hy * hy + hz * hz)
            for _ in range(24):  # halves of the way out: the surface to 1e-7
                t = (near + far) / 2
                if sdf(kind, x * t, y * t, z * t, hx, hy, hz) < 0:
                    near = t
                else:
                    far = t
            mix = object_mix(texture, x * far / hx, y * far / hy, z * far / hz, frequency, shift, cos, sin)
            out[i, j] = colours[0] * (1 - mix) + colours[1] * mix
    return out
