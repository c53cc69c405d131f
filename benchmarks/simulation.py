"""How fast is the simulator, beside PyBullet drawing the same scenes? Writes the table of docs/simulation.md.

    .venv/bin/python benchmarks/simulation.py --out docs/simulation.md

Fall and throws of 32 frames; both know the motion beforehand and only draw. Ours draws with textures, soft shadows and
4 samples for each pixel, and gives RGB, masks, depth and optical flow; PyBullet's TinyRenderer draws the same shapes in
one colour with a shadow map and gives RGB, depth and segmentation. Times are CPU seconds of one process, so other work
on the machine matters little. Without `pip install pybullet` its column stays empty; the project doesn't depend on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pages import page_parser, write_below

from newtonrewards.simulation.ranges import default_ranges
from newtonrewards.simulation.render import pictures, render
from newtonrewards.simulation.scene import Scene, sample_scene
from newtonrewards.simulation.store import clip_files

SIZES = (64, 128, 256, 512)
MOTIONS = ("free_fall", "horizontal_throw", "parabolic_throw")
FRAMES, FPS = 32, 40.0


def scenes(size: int, count: int) -> list[Scene]:
    ranges = default_ranges()
    world = ranges.world.model_copy(update={"size_px": size, "num_frames": FRAMES, "capture_fps": FPS})
    changed = ranges.model_copy(update={"world": world})
    return [sample_scene(1, i, primitive=MOTIONS[i % len(MOTIONS)], ranges=changed) for i in range(count)]


def seconds(draws: Sequence[Callable[[Scene], Any]], drawn: Sequence[Scene]) -> list[float]:
    """Median CPU seconds of a clip for each way to draw it, after one to warm up; they take turns, clip by clip."""
    taken = np.empty((len(drawn), len(draws)))
    for draw in draws:
        draw(drawn[0])
    for row, scene in enumerate(drawn):
        for column, draw in enumerate(draws):
            started = time.process_time()
            draw(scene)
            taken[row, column] = time.process_time() - started
    return [float(value) for value in np.median(taken, axis=0)]


def without_truth(scene: Scene) -> None:
    pictures(scene)


def as_files(scene: Scene) -> None:
    clip_files("000000", render(scene))


def pybullet_renderer() -> Callable[[Scene], None] | None:
    """Draws a scene's frames with PyBullet: RGB, depth and segmentation. None where it isn't installed."""
    try:
        import pybullet as p
    except ImportError:
        return None
    p.connect(p.DIRECT)

    def draw(scene: Scene) -> None:
        p.resetSimulation()

        def visual(kind: int, colour: Sequence[float], **size: Any) -> int:
            return int(p.createVisualShape(kind, rgbaColor=[*colour, 1.0], **size))

        floor = visual(p.GEOM_BOX, scene.floor.colours[0], halfExtents=[8, 8, 0.05])
        wall = visual(p.GEOM_BOX, scene.wall.colours[0], halfExtents=[8, 0.05, 8])
        look = scene.object_surface.colours[0]
        if scene.shape == "sphere":
            thing = visual(p.GEOM_SPHERE, look, radius=scene.half_size[0])
        else:
            x, y, z = scene.half_size
            thing = visual(p.GEOM_BOX, look, halfExtents=[x, z, y])
        p.createMultiBody(baseVisualShapeIndex=floor, basePosition=[0, 0, -0.05])
        p.createMultiBody(baseVisualShapeIndex=wall, basePosition=[0, scene.wall_m + 0.05, 0])
        moving = p.createMultiBody(baseVisualShapeIndex=thing)
        height, distance = scene.camera_height, scene.camera_distance
        view = p.computeViewMatrix([0, -distance, height], [0, 0, height], [0, 0, 1])
        angle = 2 * math.degrees(math.atan(scene.view_m / 2 / distance))
        lens = p.computeProjectionMatrixFOV(angle, 1.0, 0.1, 30.0)
        light = [scene.light[0], scene.light[2], scene.light[1]]
        turn = p.getQuaternionFromEuler([0, 0, scene.yaw])
        for x, y in scene.centres():
            p.resetBasePositionAndOrientation(moving, [x, 0, y], turn)
            p.getCameraImage(
                scene.size_px, scene.size_px, view, lens, lightDirection=light, shadow=1,
                renderer=p.ER_TINY_RENDERER,
            )  # fmt: skip

    return draw


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--clips", type=int, default=9, help="clips of each size (default 9)")
    a = parser.parse_args()
    other = pybullet_renderer()
    if other is None:
        print("PyBullet isn't installed: its column stays empty")
    rows = [
        "| px | frames | with truth | with truth, as files | PyBullet: RGB, depth, segmentation | ours / PyBullet |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        drawn = scenes(size, a.clips)
        ways = [without_truth, render, as_files, *([] if other is None else [other])]
        plain, truth, files, *rest = seconds(ways, drawn)
        theirs = rest[0] if rest else None
        ratio = "-" if theirs is None else f"{theirs / truth:.1f}"
        column = "-" if theirs is None else f"{1 / theirs:.2f}"
        rows.append(f"| {size} | {1 / plain:.2f} | {1 / truth:.2f} | {1 / files:.2f} | {column} | {ratio} |")
        print(rows[-1])
    head = f"Clips of {FRAMES} frames for each CPU second of one core; medians of {a.clips}:\n\n"
    write_below(a.out, "simulation.py", head + "\n".join(rows))


if __name__ == "__main__":
    main()
