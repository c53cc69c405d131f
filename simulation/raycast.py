"""The fast renderer: objects (`shapes.py`) before what stands still (`backdrop.py`), in all frames of a clip.

All of it is plain numba on arrays; `render.py` is the readable side. Lengths in metres, `focal` in pixels of the
(sub)sampled image, `camera` (4, 3): where it stands, then unit vectors right, up and forward, in the world.

A frame is the still picture where nothing moved: only tiles that an object or its shadow may reach are traced, and the
samples gathered into pixels at once. Letters: B objects, T frames, S pixels and N = 2 S samples to a side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from newtonrewards.simulation.backdrop import hashed, world_ray
from newtonrewards.simulation.shapes import (
    AMBIENT,
    HIT,
    local,
    object_mix,
    object_shadow,
    shading,
    shine,
    sines,
    strike,
    turning,
)

# First digits of the sha256 of backdrop.py, shapes.py and solids.py, in this order: numba's cache of this file doesn't
# see changes there, and would go on drawing with the old ones. A test says what to write here.
COMPILED_WITH = "9efa57a8"
TILE = 4  # pixels to a side
FULL, QUARTER, HALF = np.float32(255), np.float32(4), np.float32(2)


class View(NamedTuple):
    """Camera and light: `size` in samples, `camera` (4, 3), `light` (3,) a unit vector to it."""

    size: int
    focal: float
    camera: Any
    light: Any


class Backdrop(NamedTuple):
    """What `backdrop.trace_background` gives."""

    points: Any
    albedo: Any
    direct: Any
    depth: Any


class Pictures(NamedTuple):
    """What is drawn; depth and flow of length 0 aren't.

    `frames` (T, 3, S, S) in steps of 1 / 255, `masks` (B, T, S, S) share of a pixel that shows an object, `depth`
    (T, S, S) metres, `flow` (T - 1, 2, S, S) px of the object that covers half a pixel or more (else zero), `samples`
    (B, T, 2) how many show an object, and how many would if nothing were before it.
    """

    frames: Any
    masks: Any
    depth: Any
    flow: Any
    samples: Any


class Bodies(NamedTuple):
    """Objects: poses `centres` and `angles` (B, T, 3), tilt, pitch and yaw (`poses.py`); kinds and textures by number,
    `halves` (B, 3), `colours` (B, 2, 3), the rest (B,). `sharpness` is a highlight's exponent, 0 for none.
    """

    centres: Any
    angles: Any
    kinds: Any
    halves: Any
    textures: Any
    frequencies: Any
    seeds: Any
    colours: Any
    sharpness: Any
    metallic: Any


class Pose(NamedTuple):
    """A body in a frame: texture, centre, half extents and their bounding ball, sines of its angles, the light along
    its own axes, its step and turn to the next frame, the rows and columns of samples beyond which it isn't, and its
    material.
    """

    kind: int
    texture: int
    frequency: float
    shift: float
    ctex: float
    stex: float
    x: float
    y: float
    z: float
    hx: float
    hy: float
    hz: float
    bound: float
    ct: float
    st: float
    cp: float
    sp: float
    cyaw: float
    syaw: float
    lx: float
    ly: float
    lz: float
    turn: Any
    mx: float
    my: float
    mz: float
    top: float
    bottom: float
    left: float
    right: float
    sharpness: float
    metallic: float


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def around(x, y, z, hx, hy, hz, ct, st, cp, sp, cyaw, syaw, camera, focal, size):
    """Rows from, to, and columns from, to, outside of which no ray meets a body: around its box's corners, seen."""
    up, down, left, right = np.inf, -np.inf, np.inf, -np.inf
    hx, hy, hz = max(hx, hz) + 2 * HIT, hy + 2 * HIT, max(hx, hz) + 2 * HIT
    for corner in range(8):
        # from the body's axes to the world: the inverse of `local`
        a, b, c = (hx if corner & 1 else -hx), (hy if corner & 2 else -hy), (hz if corner & 4 else -hz)
        a, c = cyaw * a - syaw * c, syaw * a + cyaw * c
        b, c = cp * b - sp * c, sp * b + cp * c
        px, py, pz = x + ct * a - st * b - camera[0, 0], y + st * a + ct * b - camera[0, 1], z + c - camera[0, 2]
        away = camera[3, 0] * px + camera[3, 1] * py + camera[3, 2] * pz
        if away < 1e-3:
            return 0.0, float(size), 0.0, float(size)
        row = size / 2 - focal * (camera[2, 0] * px + camera[2, 1] * py + camera[2, 2] * pz) / away
        column = size / 2 + focal * (camera[1, 0] * px + camera[1, 1] * py + camera[1, 2] * pz) / away
        up, down, left, right = min(up, row), max(down, row), min(left, column), max(right, column)
    return max(0.0, up - 1), min(float(size), down + 1), max(0.0, left - 1), min(float(size), right + 1)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def still_picture(backdrop, picture, depth, tiles):
    """Frame without objects: `picture` (3, S, S), `depth` (S, S), and a ball around each tile's points, `tiles`
    (S / TILE, S / TILE, 4), as its centre and radius.
    """
    points, size = backdrop.points, depth.shape[0]
    for i in range(size):
        for j in range(size):
            for c in range(3):
                total = np.float32(0)
                for s in range(4):
                    a, b = 2 * i + s // 2, 2 * j + s % 2
                    light = AMBIENT + (1 - AMBIENT) * backdrop.direct[a, b]
                    total += np.float32(backdrop.albedo[a, b, c] * light)
                picture[c, i, j] = eight_bits(total / QUARTER)
            total = np.float32(0)
            for s in range(4):
                total += np.float32(backdrop.depth[2 * i + s // 2, 2 * j + s % 2])
            depth[i, j] = total / QUARTER
    side = 2 * TILE
    for i in range(tiles.shape[0]):
        for j in range(tiles.shape[1]):
            low, high = np.full(3, np.inf), np.full(3, -np.inf)
            for a in range(i * side, min((i + 1) * side, 2 * size)):
                for b in range(j * side, min((j + 1) * side, 2 * size)):
                    for c in range(3):
                        low[c], high[c] = min(low[c], points[a, b, c]), max(high[c], points[a, b, c])
            for c in range(3):
                tiles[i, j, c] = (low[c] + high[c]) / 2
            tiles[i, j, 3] = math.sqrt(((high - low) ** 2).sum()) / 2 + 1e-6


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def eight_bits(value):
    """Rounded to steps of 1 / 255, so that a file holds the same numbers."""
    return np.float32(np.rint(min(max(value, np.float32(0)), np.float32(1)) * FULL)) / FULL


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def shaded(x, y, z, radius, body, lx, ly, lz):
    """Whether a point of a ball may lie in the shadow of a body."""
    ox, oy, oz = x - body.x, y - body.y, z - body.z
    along = -(ox * lx + oy * ly + oz * lz)
    if along + radius < 0:
        return False
    qx, qy, qz = ox + along * lx, oy + along * ly, oz + along * lz
    reach = body.bound + 0.12 * (along + radius) + 0.02 + radius + 1e-6
    return qx * qx + qy * qy + qz * qz <= reach * reach


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def pattern(seed):
    """How a texture is shifted and turned: shift, cosine and sine."""
    angle = 3.14159 * hashed(seed, 5, 1)
    return hashed(seed, 7, 3) - 0.5, math.cos(angle), math.sin(angle)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def body_at(bodies, b, f, view):
    """A body in a frame: what doesn't change from sample to sample. See `Pose`."""
    hx, hy, hz = bodies.halves[b, 0], bodies.halves[b, 1], bodies.halves[b, 2]
    x, y, z = bodies.centres[b, f, 0], bodies.centres[b, f, 1], bodies.centres[b, f, 2]
    bound = math.sqrt(hx**2 + hy**2 + hz**2)
    tilt, pitch, yaw = bodies.angles[b, f]
    ct, st, cp, sp, cyaw, syaw = sines(tilt, pitch, yaw)
    lx, ly, lz = local(view.light[0], view.light[1], view.light[2], ct, st, cp, sp, cyaw, syaw)
    nxt = min(f + 1, bodies.angles.shape[1] - 1)
    turn = turning(bodies.angles[b, f], bodies.angles[b, nxt])
    mx, my, mz = (
        bodies.centres[b, nxt, 0] - x,
        bodies.centres[b, nxt, 1] - y,
        bodies.centres[b, nxt, 2] - z,
    )
    top, bottom, left, right = around(
        x, y, z, hx, hy, hz, ct, st, cp, sp, cyaw, syaw, view.camera, view.focal, view.size
    )
    shift, ctex, stex = pattern(bodies.seeds[b])
    return Pose(
        bodies.kinds[b], bodies.textures[b], bodies.frequencies[b], shift, ctex, stex,
        x, y, z, hx, hy, hz, bound, ct, st, cp, sp, cyaw, syaw, lx, ly, lz, turn, mx, my, mz,
        top, bottom, left, right, bodies.sharpness[b], bodies.metallic[b],
    )  # fmt: skip


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def motion(rx, ry, rz, body, dx, dy, away, camera, focal):
    """Flow, samples per frame, of a point (rx, ry, rz) from the centre of a body and `away` metres deep."""
    t = body.turn
    mx = body.mx + rx * t[0] + ry * t[1] + rz * t[2]
    my = body.my + rx * t[3] + ry * t[4] + rz * t[5]
    mz = body.mz + rx * t[6] + ry * t[7] + rz * t[8]
    sideways = camera[1, 0] * mx + camera[1, 1] * my + camera[1, 2] * mz
    upwards = camera[2, 0] * mx + camera[2, 1] * my + camera[2, 2] * mz
    farther = camera[3, 0] * mx + camera[3, 1] * my + camera[3, 2] * mz
    return focal * (sideways - dx * farther) / (away + farther), -focal * (upwards - dy * farther) / (away + farther)


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def light_on(x, y, z, poses, lx, ly, lz):
    """Light that reaches a point past all bodies, from 1, full, to 0."""
    lit = 1.0
    for k in range(len(poses)):
        p = poses[k]
        ox, oy, oz = x - p.x, y - p.y, z - p.z
        shadow = object_shadow(
            ox, oy, oz, lx, ly, lz, p.kind, p.hx, p.hy, p.hz, p.bound, p.ct, p.st, p.cp, p.sp, p.cyaw, p.syaw
        )
        lit = min(lit, shadow)
    return lit


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def draw_tile(f, rows, columns, dark, poses, view, backdrop, bodies, out, sums):
    """The pixels of a tile in frame `f`; `dark`: shadows may lie on it, `sums` (B, 3) is scratch."""
    size, focal, camera = view.size, view.focal, view.camera
    points, albedo, direct, far, c = backdrop.points, backdrop.albedo, backdrop.direct, backdrop.depth, bodies.colours
    frames, masks, depths, flow, samples = (
        out.frames,
        out.masks,
        out.depth,
        out.flow,
        out.samples,
    )  # each look-up counts
    lx, ly, lz = view.light[0], view.light[1], view.light[2]
    for i in range(rows[0], rows[1]):
        for j in range(columns[0], columns[1]):
            sums[:] = 0
            red, green, blue, depth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for s in range(4):
                a, b = 2 * i + s // 2, 2 * j + s % 2
                dx, dy = (b + 0.5 - size / 2) / focal, -(a + 0.5 - size / 2) / focal
                norm = math.sqrt(dx * dx + dy * dy + 1)
                wx, wy, wz = world_ray(dx, dy, camera)
                ux, uy, uz, forward = wx / norm, wy / norm, wz / norm, 1 / norm
                which, t, away = -1, 0.0, far[a, b]
                for k in range(len(poses)):
                    p = poses[k]
                    if a < p.top or a >= p.bottom or b < p.left or b >= p.right:
                        continue
                    ox, oy, oz = camera[0, 0] - p.x, camera[0, 1] - p.y, camera[0, 2] - p.z
                    way = strike(
                        ox,
                        oy,
                        oz,
                        ux,
                        uy,
                        uz,
                        p.kind,
                        p.hx,
                        p.hy,
                        p.hz,
                        p.bound,
                        p.ct,
                        p.st,
                        p.cp,
                        p.sp,
                        p.cyaw,
                        p.syaw,
                    )
                    if way == np.inf:
                        continue
                    samples[k, f, 1] += 1
                    if way * forward <= away:
                        which, t, away = k, way, way * forward
                depth += np.float32(away)
                if which < 0:
                    lit = 1.0
                    if dark:
                        x, y, z = points[a, b, 0], points[a, b, 1], points[a, b, 2]
                        lit = light_on(x, y, z, poses, lx, ly, lz)
                    shade = AMBIENT + (1 - AMBIENT) * direct[a, b] * lit
                    red += np.float32(albedo[a, b, 0] * shade)
                    green += np.float32(albedo[a, b, 1] * shade)
                    blue += np.float32(albedo[a, b, 2] * shade)
                    continue
                p = poses[which]
                rx, ry, rz = camera[0, 0] - p.x + t * ux, camera[0, 1] - p.y + t * uy, camera[0, 2] - p.z + t * uz
                x, y, z = local(rx, ry, rz, p.ct, p.st, p.cp, p.sp, p.cyaw, p.syaw)
                gleam = 0.0
                if p.sharpness == 0:
                    shade = shading(x, y, z, p.kind, p.hx, p.hy, p.hz, p.lx, p.ly, p.lz)
                else:
                    vx, vy, vz = local(-ux, -uy, -uz, p.ct, p.st, p.cp, p.sp, p.cyaw, p.syaw)
                    shade, gleam = shine(
                        x, y, z, p.kind, p.hx, p.hy, p.hz, p.lx, p.ly, p.lz, vx, vy, vz, p.sharpness, p.metallic
                    )
                mix = object_mix(p.texture, x / p.hx, y / p.hy, z / p.hz, p.frequency, p.shift, p.ctex, p.stex)
                red += np.float32((c[which, 0, 0] * (1 - mix) + c[which, 1, 0] * mix) * shade + gleam)
                green += np.float32((c[which, 0, 1] * (1 - mix) + c[which, 1, 1] * mix) * shade + gleam)
                blue += np.float32((c[which, 0, 2] * (1 - mix) + c[which, 1, 2] * mix) * shade + gleam)
                samples[which, f, 0] += 1
                sums[which, 0] += np.float32(1)
                if f < flow.shape[0]:
                    u, v = motion(rx, ry, rz, p, dx, dy, away, camera, focal)
                    sums[which, 1] += np.float32(u)
                    sums[which, 2] += np.float32(v)
            frames[f, 0, i, j] = eight_bits(red / QUARTER)
            frames[f, 1, i, j] = eight_bits(green / QUARTER)
            frames[f, 2, i, j] = eight_bits(blue / QUARTER)
            if f < depths.shape[0]:
                depths[f, i, j] = depth / QUARTER
            most = 0
            for k in range(len(poses)):
                masks[k, f, i, j] = sums[k, 0] / QUARTER
                if sums[k, 0] > sums[most, 0]:
                    most = k
            share = sums[most, 0] / QUARTER
            if f < flow.shape[0] and share >= 0.5:
                flow[f, 0, i, j] = sums[most, 1] / QUARTER / share / HALF
                flow[f, 1, i, j] = sums[most, 2] / QUARTER / share / HALF


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(cache=True, error_model="numpy")
def draw(view, backdrop, bodies, out):
    """All frames, into `out`, whose masks, flow and samples must be zero."""
    count, size = bodies.angles.shape[0], out.frames.shape[2]
    picture, depth = np.empty((3, size, size), np.float32), np.empty((size, size), np.float32)
    number = (size + TILE - 1) // TILE
    tiles, sums = np.empty((number, number, 4)), np.empty((count, 3), np.float32)
    lx, ly, lz = view.light[0], view.light[1], view.light[2]
    still_picture(backdrop, picture, depth, tiles)
    for f in range(out.frames.shape[0]):
        out.frames[f] = picture
        if f < out.depth.shape[0]:
            out.depth[f] = depth
        poses = [body_at(bodies, b, f, view) for b in range(count)]
        for i in range(number):
            for j in range(number):
                dark, near = False, False
                for k in range(count):
                    p = poses[k]
                    dark = dark or shaded(tiles[i, j, 0], tiles[i, j, 1], tiles[i, j, 2], tiles[i, j, 3], p, lx, ly, lz)
                    below, beside = 2 * TILE * i + 2 * TILE > p.top, 2 * TILE * j + 2 * TILE > p.left
                    near = near or (below and 2 * TILE * i < p.bottom and beside and 2 * TILE * j < p.right)
                if dark or near:
                    rows = (i * TILE, min(i * TILE + TILE, size))
                    columns = (j * TILE, min(j * TILE + TILE, size))
                    draw_tile(f, rows, columns, dark, poses, view, backdrop, bodies, out, sums)
