"""Example clips for the report: arms side by side in one film, so that they always show the same instant.

Every pixel becomes a block, so that a small clip looks sharp; the measured path is drawn over it.
Letters: T frames, H height, W width.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from newtonrewards.core.clip import Clip
from newtonrewards.core.video import write_video
from newtonrewards.eval.results import Path2D

# Tiles are enlarged by a whole number to at least this height.
TILE_HEIGHT = 240
GAP = 6
PAPER = 1.0
TRUE_PATH, OWN_PATH, RIM = (1.0, 1.0, 1.0), (1.0, 0.83, 0.0), (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Tile:
    """A clip, its measured path, and the true path if it is to be shown too."""

    clip: Clip
    path: Path2D
    truth: Path2D | None


def film(tiles: Sequence[Tile]) -> Float[np.ndarray, "T H W 3"]:
    """Tiles beside each other; a shorter clip holds its last frame. Its size is even, as H.264 needs."""
    length = max(tile.clip.num_frames for tile in tiles)
    factor = magnification(tiles[0].clip.frames.shape[-2])
    columns: list[np.ndarray] = []
    for tile in tiles:
        picture = _drawn(tile, factor, length)
        columns += [picture, np.full((*picture.shape[:2], GAP, 3), PAPER, dtype=np.float32)]
    return even(np.concatenate(columns[:-1], axis=2))


def even(frames: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T h w 3"]:
    """Without the last row or column of an odd size, which H.264 can't hold."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def magnification(height: int) -> int:
    """Smallest whole factor that brings a frame to `TILE_HEIGHT`."""
    return max(1, -(-TILE_HEIGHT // height))


def enlarged(frames: Float[np.ndarray, "T H W 3"], factor: int | None = None) -> Float[np.ndarray, "T h w 3"]:
    """Every pixel as a block, a copy to draw into; by `magnification` unless a factor is given."""
    factor = magnification(frames.shape[1]) if factor is None else factor
    return frames.repeat(factor, axis=1).repeat(factor, axis=2).astype(np.float32, copy=False)


def data_uri(frames: Float[np.ndarray, "T H W 3"], playback_fps: float) -> str:
    """The film as an H.264 mp4 inside a `data:` address: the page needs no other file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_video(path, torch.from_numpy(frames).permute(0, 3, 1, 2), playback_fps, lossless=False)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _drawn(tile: Tile, factor: int, length: int) -> Float[np.ndarray, "T H W 3"]:
    large = enlarged(tile.clip.frames.permute(0, 2, 3, 1).numpy(), factor)
    large = np.concatenate([large, np.repeat(large[-1:], length - len(large), axis=0)])
    for now in range(length):
        if tile.truth is not None:
            draw_path(large[now], tile.truth.x[: now + 1], tile.truth.y[: now + 1], TRUE_PATH)
        draw_path(large[now], tile.path.x[: now + 1], tile.path.y[: now + 1], OWN_PATH)
    return large


def draw_path(
    picture: Float[np.ndarray, "H W 3"],
    x: Sequence[float | None],
    y: Sequence[float | None],
    colour: tuple[float, ...],
) -> None:
    """A path in frame heights up to now as small dots, its last place as a larger one."""
    height = len(picture)
    for t, (across, down) in enumerate(zip(x, y, strict=True)):
        if across is not None and down is not None:
            draw_dot(picture, across * height, down * height, 4.5 if t == len(x) - 1 else 2.2, colour)


def draw_dot(picture: np.ndarray, x: float, y: float, radius: float, colour: tuple[float, ...]) -> None:
    """An anti-aliased disc with a dark rim, cut at the picture's edge; the place in px of the picture."""
    left, top = max(0, int(x - radius - 3)), max(0, int(y - radius - 3))
    patch = picture[top : int(y + radius + 4), left : int(x + radius + 4)]
    if not patch.size:
        return
    rows, columns = np.mgrid[: patch.shape[0], : patch.shape[1]]
    distance = np.hypot(columns + left + 0.5 - x, rows + top + 0.5 - y)[..., None]
    for edge, paint in ((radius + 1.2, RIM), (radius, colour)):
        share = np.clip(edge + 0.5 - distance, 0, 1).astype(np.float32)
        patch[:] = patch * (1 - share) + share * np.array(paint, dtype=np.float32)
