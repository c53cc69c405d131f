"""Draws docs/images/tiers.jpg: the same clips in both tiers, fast to the left, one line for each motion.

simulate="newtonrewards simulate --num-clips 5 --seed 5 --set world.num_frames=4 --set world.capture_fps=5"
$simulate --set world.size_px=256 --out runs/fast
$simulate --set world.size_px=256 --out runs/photo --tier photo
.venv/bin/python docs/images/tiers.py runs/fast runs/photo
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from newtonrewards.core.video import to_8bit
from newtonrewards.simulation.store import ClipFolder

PX = 160


def strip(folder: Path, index: int) -> np.ndarray:
    frames = to_8bit(ClipFolder(folder)[index].frames)
    return np.concatenate([cv2.resize(frame, (PX, PX), interpolation=cv2.INTER_AREA) for frame in frames], 1)


def main(fast: Path, photo: Path) -> None:
    gap = np.full((PX, 8, 3), 255, np.uint8)
    lines = [np.concatenate([strip(fast, i), gap, strip(photo, i)], 1) for i in range(len(ClipFolder(fast)))]
    page, quality = Path(__file__).with_name("tiers.jpg"), [cv2.IMWRITE_JPEG_QUALITY, 88]
    cv2.imwrite(str(page), np.concatenate(lines)[..., ::-1], quality)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
