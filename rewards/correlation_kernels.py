"""The lookup of `correlation.py` on a CPU: plain numba on arrays, one position after another.

A window's pixels are copied into a patch of fixed size, with zeros beyond the frame, and blended there: torch's
operations would pass over tensors of 64 indices for each position and level several times.

Letters as there, and a = x, b = y within a window. `levels` has one row (width, height, first cell) for each level.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
from filelock import FileLock
from numba import njit, typeof

# Of this user, on this machine.
LOCK = Path(tempfile.gettempdir()) / f"newtonrewards-kernels-{os.getuid()}.lock"


def ready(kernel: Any, *arguments: Any) -> Any:
    """A kernel, compiled for arguments of these types.

    One process at a time reads numba's cache or adds to it: of two that add a kernel each, both may take the same file,
    and whoever comes later would run one radius in the place of the other, past the end of its arrays. Ranks that start
    together compile once.
    """
    types = tuple(map(typeof, arguments))
    if types not in kernel.overloads:
        with FileLock(LOCK):
            kernel.compile(types)
    return kernel


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
    side = 2 * radius + 1  # constants of the kernel, which is twice as fast for them
    wide = side + 1

    @njit(nogil=True, cache=True, fastmath={"contract"})
    def kernel(levels, volume, centres, windows):
        number = volume.dtype.type
        patch, line = np.zeros((wide + 1) * wide, volume.dtype), np.zeros((wide + 1) * wide, volume.dtype)
        for i in range(len(centres)):
            cells, out, scale = volume[i], 0, number(1)
            for level in range(len(levels)):
                width, height, start = levels[level]
                left, x, a0, a1 = place(centres[i, 0], scale, radius, width)
                top, y, b0, b1 = place(centres[i, 1], scale, radius, height)
                patch[:] = 0
                first = np.uint64(start + (left + a0) * height + top)  # may wrap; where it is read it is a cell again
                for a in range(a0, a1):
                    for b in range(wide):
                        if b0 <= b < b1:
                            patch[a * wide + b] = cells[first + np.uint64(b)]
                    first += np.uint64(height)
                for k in range(side * wide):  # over the seams between rows too: what comes of those is left out below
                    line[k] = patch[k] + x * (patch[k + wide] - patch[k])
                for k in range(side * wide):
                    patch[k] = line[k] + y * (line[k + 1] - line[k])
                for a in range(side):
                    for b in range(side):
                        windows[i, out + b] = patch[a * wide + b]
                    out += side
                scale *= number(0.5)

    return kernel


@cache
@no_type_check
def add_windows(radius: int) -> Callable[..., Any]:
    """Kernel (levels, volume, centres, windows): the transpose, adds `windows` to `volume`."""
    side = 2 * radius + 1
    wide = side + 1

    @njit(nogil=True, cache=True, fastmath={"contract"})
    def kernel(levels, volume, centres, windows):
        number = volume.dtype.type
        # of the window's values: rows with a zero before each, below a row of zeros, above another
        given = np.zeros((wide + 2) * wide, volume.dtype)
        patch, line = np.zeros(wide * wide, volume.dtype), np.zeros((wide + 1) * wide, volume.dtype)
        for i in range(len(centres)):
            cells, out, scale = volume[i], 0, number(1)
            for level in range(len(levels)):
                width, height, start = levels[level]
                left, x, a0, a1 = place(centres[i, 0], scale, radius, width)
                top, y, b0, b1 = place(centres[i, 1], scale, radius, height)
                for a in range(side):
                    for b in range(side):
                        given[(a + 1) * wide + b + 1] = windows[i, out + b]
                    out += side
                for k in range((wide + 1) * wide):
                    line[k] = given[k + 1] + y * (given[k] - given[k + 1])
                for k in range(wide * wide):
                    patch[k] = line[k + wide] + x * (line[k] - line[k + wide])
                first = np.uint64(start + (left + a0) * height + top)
                for a in range(a0, a1):
                    for b in range(wide):
                        if b0 <= b < b1:
                            cells[first + np.uint64(b)] += patch[a * wide + b]
                    first += np.uint64(height)
                scale *= number(0.5)

    return kernel
