"""The lookup of `correlation.py` on a CPU: plain numba on arrays, one position after another.

A window's pixels are copied into a patch of fixed size, with zeros beyond the frame, and blended there: torch's
operations would pass over tensors of 64 indices for each position and level several times.

Letters as there, and a = x, b = y within a window. `levels` has one row (width, height, first cell) for each level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, no_type_check

import numpy as np
from numba import njit


@no_type_check  # jaxtyping's import hook must not wrap what numba compiles
@njit(nogil=True, cache=True)
def place(centre, scale, radius, size):
    """First pixel of a window along one axis, how far its points lie beyond the pixels, and which of its pixels are in
    the frame (none where the centre is no number)."""
    at = centre * scale
    if not -radius - 2 < at < size + radius + 1:
        return 0, scale - scale, 0, 0
    low = np.floor(at)
    first = int(low) - radius
    return first, at - low, max(0, -first), min(2 * radius + 2, size - first)


@cache
@no_type_check
def read_windows(radius: int) -> Callable[..., Any]:
    """Kernel (levels, volume, centres, windows): fills `windows` (positions, L S S) from `volume` (positions, K)."""
    side = 2 * radius + 1  # a constant of the kernel, which is twice as fast for it

    @njit(nogil=True, cache=True, fastmath={"contract"})
    def kernel(levels, volume, centres, windows):
        number = volume.dtype.type
        patch, line = np.zeros((side + 1, side + 1), volume.dtype), np.zeros(side + 1, volume.dtype)
        for i in range(len(centres)):
            out, scale = 0, number(1)
            for level in range(len(levels)):
                width, height, start = levels[level]
                left, x, a0, a1 = place(centres[i, 0], scale, radius, width)
                top, y, b0, b1 = place(centres[i, 1], scale, radius, height)
                patch[:] = 0
                for a in range(a0, a1):
                    first = start + (left + a) * height + top
                    for b in range(b0, b1):
                        patch[a, b] = volume[i, first + b]
                for a in range(side):
                    for b in range(side + 1):
                        line[b] = patch[a, b] + x * (patch[a + 1, b] - patch[a, b])
                    for b in range(side):
                        windows[i, out + b] = line[b] + y * (line[b + 1] - line[b])
                    out += side
                scale *= number(0.5)

    return kernel


@cache
@no_type_check
def add_windows(radius: int) -> Callable[..., Any]:
    """Kernel (levels, volume, centres, windows): the transpose, adds `windows` to `volume`."""
    side = 2 * radius + 1

    @njit(nogil=True, cache=True, fastmath={"contract"})
    def kernel(levels, volume, centres, windows):
        number = volume.dtype.type
        patch, line = np.zeros((side + 1, side + 1), volume.dtype), np.zeros(side + 1, volume.dtype)
        for i in range(len(centres)):
            out, scale = 0, number(1)
            for level in range(len(levels)):
                width, height, start = levels[level]
                left, x, a0, a1 = place(centres[i, 0], scale, radius, width)
                top, y, b0, b1 = place(centres[i, 1], scale, radius, height)
                patch[:] = 0
                for a in range(side):
                    line[:] = 0
                    for b in range(side):
                        line[b] = (number(1) - y) * windows[i, out + b]
                    for b in range(side):
                        line[b + 1] += y * windows[i, out + b]
                    for b in range(side + 1):
                        patch[a, b] += (number(1) - x) * line[b]
                        patch[a + 1, b] += x * line[b]
                    out += side
                for a in range(a0, a1):
                    first = start + (left + a) * height + top
                    for b in range(b0, b1):
                        volume[i, first + b] += patch[a, b]
                scale *= number(0.5)

    return kernel
