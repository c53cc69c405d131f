"""Draws docs/images/tiers.jpg: the same clips in both tiers, one line for each.

simulate="newtonrewards simulate --num-clips 5 --seed 5 --set world.size_px=256 --set world.num_frames=32"
$simulate --set world.capture_fps=40 --out runs/fast
$simulate --set world.capture_fps=40 --out runs/photo --tier photo
.venv/bin/python docs/images/tiers.py runs/fast runs/photo
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from newtonrewards.core.video import to_8bit
from newtonrewards.simulation.store import ClipFolder

FRAMES, PX = 4, 160


def strip(folder: Path, index: int) -> np.ndarray:
    frames = ClipFolder(folder)[index].frames
    chosen = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
    return np.concatenate([cv2.resize(frame, (PX, PX), interpolation=cv2.INTER_AREA) for frame in to_8bit(chosen)], 1)


def main(fast: Path, photo: Path) -> None:
    gap = np.full((PX, 8, 3), 255, np.uint8)
    lines = [np.concatenate([strip(fast, i), gap, strip(photo, i)], 1) for i in range(len(ClipFolder(fast)))]
    cv2.imwrite(
        str(Path(__file__).with_name("tiers.jpg")), np.concatenate(lines)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
