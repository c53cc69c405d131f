"""Where the object is, if somebody knows: masks or tracks from files, brought to the clip that is measured.

Letters: T frames, H height, W width of the clip.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError

# Without an area the object is taken for a disc of this radius, in H: only its centre counts then.
RADIUS = 0.02
NEEDED = ("frame", "x_px", "y_px")


def masks_of(path: Path, clip: Clip, start: int = 0) -> Float[np.ndarray, "T H W"]:
    """Masks from NAME.npz (`masks`, (T, h, w), 0 to 1, or 0 to 255 in 8 bits); `start`: the clip's first frame.

    Raises:
        InputError: no such file, no such array, or too few frames.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            array = np.asarray(content["masks"])
    except (OSError, ValueError, KeyError) as error:
        fix = "It must hold an array `masks` of shape (T, H, W)."
        raise InputError(f"can't read the masks ({error})", where=path, fix=fix) from None
    if array.ndim != 3 or len(array) < start + clip.num_frames:
        fix = "Give one mask for each frame, and no --fps, with which frames would be left out."
        raise InputError(f"masks of shape {array.shape} for {start + clip.num_frames} frames", where=path, fix=fix)
    masks = torch.from_numpy(array[start : start + clip.num_frames].astype(np.float32)) / (
        255 if array.dtype == np.uint8 else 1
    )
    size = (clip.frames.shape[-2], clip.frames.shape[-1])
    return torch.nn.functional.interpolate(masks[None], size, mode="area")[0].clamp(0, 1).numpy()


def track_of(
    path: Path, video: Path, clip: Clip, native: tuple[int, int], start: int = 0
) -> Float[np.ndarray, "T H W"]:
    """A track as masks: discs at its centres.

    Args:
        path: CSV with a head line: `frame` (from 0), `x_px`, `y_px` (of the video's own pixels, origin top left),
            optionally `area_px`, and `file` where it holds the tracks of several videos. Lines that begin with # and
            other columns are ignored.
        video: whose track is wanted. clip: as it was read. native: (height, width) of the video before any resizing.
        start: number of the clip's first frame in the video.
    Raises:
        InputError: unreadable, a column missing, a line that holds no number, or no row for this video.
    """
    height, width = clip.frames.shape[-2:]
    scale = (width / native[1], height / native[0])
    masks = np.zeros((clip.num_frames, height, width), dtype=np.float32)
    rows, columns = np.mgrid[:height, :width]
    named = False
    for line, row in _rows(path):
        if row.get("file") and Path(row["file"]).stem != video.stem:
            continue
        named = True
        try:
            frame, x, y = int(row["frame"]) - start, float(row["x_px"]) * scale[0], float(row["y_px"]) * scale[1]
            area = float(row.get("area_px") or 0) * scale[0] * scale[1]
        except ValueError as error:
            raise InputError(f"line {line}: {error}", where=path, fix="Give numbers, one row for each frame.") from None
        if 0 <= frame < clip.num_frames and np.isfinite([x, y]).all():
            radius = (area / np.pi) ** 0.5 if area > 0 else RADIUS * height
            distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
            masks[frame] = np.clip(max(radius, 1.5) + 0.5 - distance, 0, 1)
    if not named:
        raise InputError(f"no row for {video.name}", where=path, fix="Name the video in a column `file`.")
    return masks


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows by column name, with their line numbers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the tracks ({error})", where=path, fix="Give a CSV file.") from None
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(line for _, line in kept)
    missing = [name for name in NEEDED if name not in (reader.fieldnames or [])]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where=path, fix=f"Columns are {', '.join(NEEDED)}.")
    return [(number, row) for (number, _), row in zip(kept[1:], reader, strict=False)]
