"""How fast is the simulator, beside PyBullet and MuJoCo drawing the same scenes? The table of docs/simulation.md.

    pip install pybullet mujoco
    .venv/bin/python benchmarks/simulation.py --out docs/simulation.md

Fall and throws of 32 frames; all know the motion beforehand and only draw. Ours draws with textures, soft shadows and 4
samples for each pixel, and gives RGB, masks, depth and optical flow. The others draw the same shapes in one colour with
a shadow map, and give RGB, depth and segmentation: PyBullet by its TinyRenderer, without anti-aliasing; MuJoCo by
OpenGL without a screen (EGL; MUJOCO_GL=osmesa changes it), with 4 samples. Times are CPU seconds of one process and
take turns clip by clip, so other work on the machine matters little. What isn't installed is named and left out; the
project depends on neither. `--photo N` also times N clips of 256 px of the photo tier.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pages import page_parser, write_below

from newtonrewards.simulation.film import Film, film
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.photo import photograph
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


def mujoco_renderer() -> Callable[[Scene], None] | None:
    """The same with MuJoCo. None where it isn't installed, or finds no OpenGL without a screen."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except (ImportError, AttributeError, RuntimeError):  # its OpenGL is loaded with it
        return None

    def draw(scene: Scene) -> None:
        model = mujoco.MjModel.from_xml_string(_mujoco_world(scene))
        data = mujoco.MjData(model)
        with mujoco.Renderer(model, scene.size_px, scene.size_px) as renderer:
            for x, y in scene.centres():
                data.mocap_pos[0] = x, 0, y
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera="view")
                renderer.render()
                renderer.enable_depth_rendering()
                renderer.render()
                renderer.disable_depth_rendering()
                renderer.enable_segmentation_rendering()
                renderer.render()
                renderer.disable_segmentation_rendering()

    return draw


def _mujoco_world(scene: Scene) -> str:
    """x right, y away, z up."""
    x, y, z = scene.half_size
    size = f"{x}" if scene.shape == "sphere" else f"{x} {z} {y}"
    kind = "sphere" if scene.shape == "sphere" else "box"
    across, up, away = scene.light
    turn = math.degrees(scene.yaw)
    lens = 2 * math.degrees(math.atan(scene.view_m / 2 / scene.camera_distance))

    def colour(surface: Surface) -> str:
        return " ".join(f"{value:.3f}" for value in surface.colours[0]) + " 1"

    return f"""<mujoco>
<visual><global offwidth="1024" offheight="1024"/><quality shadowsize="1024" offsamples="4"/></visual>
<worldbody>
<light directional="true" castshadow="true" pos="{4 * across} {4 * away} {4 * up}" dir="{-across} {-away} {-up}"/>
<camera name="view" pos="0 {-scene.camera_distance} {scene.camera_height}" xyaxes="1 0 0 0 0 1" fovy="{lens}"/>
<geom type="box" size="8 8 .05" pos="0 0 -.05" rgba="{colour(scene.floor)}"/>
<geom type="box" size="8 .05 8" pos="0 {scene.wall_m + 0.05} 0" rgba="{colour(scene.wall)}"/>
<body mocap="true" euler="0 0 {turn}"><geom type="{kind}" size="{size}" rgba="{colour(scene.object_surface)}"/></body>
</worldbody></mujoco>"""


OTHERS = {"PyBullet": pybullet_renderer, "MuJoCo": mujoco_renderer}


def photo_line(count: int) -> str:
    """CPU seconds of a clip of the photo tier, Blender's among them, beside the fast one's."""
    drawn = scenes(256, count)
    (fast,) = seconds([render], drawn)
    before = os.times()
    for scene in drawn:
        film(scene, Film(), photograph)
    after = os.times()
    taken = sum(after[:4]) - sum(before[:4])
    return (
        f"\nA clip of the photo tier, 256 px: {taken / count:.0f} CPU seconds ({count} clips, Blender's start "
        f"included), {taken / count / fast:.0f} times as long as the fast tier's in the same run.\n"
    )


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--clips", type=int, default=9, help="clips of each size (default 9)")
    parser.add_argument("--photo", type=int, default=0, metavar="N", help="clips of the photo tier (default none)")
    a = parser.parse_args()
    others = {name: made for name, make in OTHERS.items() if (made := make()) is not None}
    for name in OTHERS.keys() - others.keys():
        print(f"{name} isn't installed or doesn't draw here: it has no column")
    heads = [f"{name}: RGB, depth, segmentation" for name in others] + [f"ours / {name}" for name in others]
    rows = ["| " + " | ".join(["px", "frames", "with truth", "with truth, as files", *heads]) + " |"]
    rows.append("|---" * (4 + len(heads)) + "|")
    for size in SIZES:
        plain, truth, files, *theirs = seconds(
            [without_truth, render, as_files, *others.values()], scenes(size, a.clips)
        )
        cells = [f"{1 / taken:.2f}" for taken in (plain, truth, files, *theirs)]
        cells += [f"{taken / truth:.1f}" for taken in theirs]
        rows.append("| " + " | ".join([str(size), *cells]) + " |")
        print(rows[-1], flush=True)
    head = f"Clips of {FRAMES} frames for each CPU second of one core; medians of {a.clips}:\n\n"
    text = head + "\n".join(rows) + "\n"
    write_below(a.out, "simulation.py", text + (photo_line(a.photo) if a.photo else ""))


if __name__ == "__main__":
    main()
