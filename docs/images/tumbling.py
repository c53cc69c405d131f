"""Draws docs/images/tumbling.jpg: objects that tumble and touch others, a clip to a line; of metal, of stone, of paint.

.venv/bin/python docs/images/tumbling.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from newtonrewards.core.video import to_8bit
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

# motion, number of the clip, what stands in its way, materials, whether it is a stone
CLIPS = (
    ("free_fall", 0, 2, ("metallic",), False),
    ("parabolic_throw", 7, 0, ("glossy",), True),
    ("horizontal_throw", 1, 3, (), False),
)
FRAMES = (0, 6, 10, 13, 16, 20, 24)


def world(targets: int, materials: tuple[str, ...], stones: bool) -> Ranges:
    ranges = default_ranges()
    changes = {"after_contact": "tumble", "targets": targets, "materials": materials, "restitution": (0.3, 0.3),
               "size_px": 160, "num_frames": 25}  # fmt: skip
    shapes = {"shapes": ("stone_0", "stone_1", "stone_2", "stone_3")} if stones else {}
    assets = {name: part.model_copy(update=shapes) for name, part in ranges.assets.items()}
    return ranges.model_copy(update={"world": ranges.world.model_copy(update=changes), "assets": assets})


def main() -> None:
    lines = []
    for primitive, index, targets, materials, stones in CLIPS:
        clip = render(sample_scene(3, index, primitive=primitive, ranges=world(targets, materials, stones)))
        lines.append(np.concatenate(list(to_8bit(clip.frames[list(FRAMES)])), 1))
    page, quality = Path(__file__).with_name("tumbling.jpg"), [cv2.IMWRITE_JPEG_QUALITY, 88]
    cv2.imwrite(str(page), np.concatenate(lines)[..., ::-1], quality)


if __name__ == "__main__":
    main()
