"""An object that leaves the view: when, and what is true of the frames after it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from newtonrewards.simulation import simulate as command
from newtonrewards.simulation.meshes import mesh
from newtonrewards.simulation.poses import beyond, reach, rotations
from newtonrewards.simulation.ranges import Quantities, Ranges, default_ranges
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import SEEN, Scene, sample_scene
from newtonrewards.simulation.shapes import SHAPES
from newtonrewards.simulation.store import ClipFolder

SIZE = 96
FAST = {
    "horizontal_throw": Quantities(height_m=(0.8, 1.6), speed_mps=(3.0, 6.0), friction=(0.2, 0.5)),
    "parabolic_throw": Quantities(height_m=(0.2, 1.2), speed_mps=(4.0, 7.0), angle_deg=(30, 75), friction=(0.2, 0.5)),
}


def fast(**changes: object) -> Ranges:
    """Throws so fast that most leave the view, sideways or upwards."""
    ranges = default_ranges()
    primitives = ranges.primitives | {name: {"id": limits} for name, limits in FAST.items()}
    world = ranges.world.model_copy(update={"size_px": SIZE, "may_leave": True, **changes})
    return ranges.model_copy(update={"world": world, "primitives": primitives})


def overshoot(scene: Scene, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the outermost point of the object is seen beyond the frame's edge, H; negative: inside."""
    vertices = mesh(scene.shape, scene.half_size).vertices
    turned = np.einsum("tij,vj->tvi", rotations(scene.angles(times)), vertices)
    points = turned + np.pad(scene.centres(times), ((0, 0), (0, 1)))[:, None]
    seen = scene.camera.to_image(points.reshape(-1, 3)).reshape(len(times), -1)
    return np.asarray(np.abs(seen - 0.5).max(1) - 0.5)


@given(
    index=st.integers(0, 10_000), primitive=st.sampled_from(sorted(FAST)), split=st.sampled_from(["train", "test"]),
    yaw=st.sampled_from([-20.0, 0.0, 20.0]), spin=st.sampled_from([0.0, 5.0]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_it_leaves_when_its_outline_touches_the_edge_and_no_frame_after_that_is_valid(
    index: int, primitive: str, split: str, yaw: float, spin: float
) -> None:
    ranges = fast(camera_yaw_deg=(yaw, yaw), spin_rad_s=(spin, spin))
    scene = sample_scene(6, index, split=split, primitive=primitive, ranges=ranges)
    clip = render(scene)
    assert clip.truth is not None and clip.masks is not None and clip.valid is not None
    left = clip.truth.events.get("leave_view", math.inf)
    over = overshoot(scene, scene.times)
    assert left >= SEEN - 1 and (over[np.arange(len(over)) <= left] < 1e-6).all()
    assert (left < math.inf) == bool((over > 2e-4).any()) or over.max() < 2e-4, "what lies outside has left"
    if left < math.inf:
        (touching,) = overshoot(scene, np.array([left / scene.capture_fps]))
        assert -2e-4 < touching < 1e-6, "half a millimetre is what the mesh lacks"
    first = min(clip.truth.events.values(), default=math.inf)
    assert clip.valid.tolist() == [frame <= first + 1e-6 for frame in range(clip.num_frames)]

    rim = torch.ones(SIZE, SIZE, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    at_rim = clip.masks[:, rim].amax(1)
    assert not at_rim[torch.from_numpy(over < -1 / SIZE)].any(), "nothing of it at the edge before"
    cut = torch.from_numpy((over > 1 / SIZE) & (over < 0.5 * max(scene.half_size) / scene.view_m))
    assert (at_rim[cut] > 0).all(), "and some of it while it is on its way out"
    gone = torch.from_numpy(np.abs(scene.camera.to_image(scene.centres()) - 0.5).max(1) > 0.8)
    assert not clip.masks[gone].any() and not clip.truth.flow[gone[:-1]].any()  # type: ignore[index]


def test_fast_throws_leave_and_are_drawn_again_where_they_may_not() -> None:
    scenes = [sample_scene(6, i, primitive=sorted(FAST)[i % 2], ranges=fast()) for i in range(40)]
    assert sum("leave_view" in scene.events for scene in scenes) > 15
    assert "leaves the view" not in {reason for scene in scenes for reason in scene.rejections}
    strict = [sample_scene(6, i, primitive=sorted(FAST)[i % 2], ranges=fast(may_leave=False)) for i in range(40)]
    assert not any("leave_view" in scene.events for scene in strict)
    assert "leaves the view" in {reason for scene in strict for reason in scene.rejections}


@pytest.mark.slow
def test_the_default_world_keeps_nearly_every_silhouette_whole() -> None:
    """Its rule is coarser than the event, half a size around the centre; and it must stay as it is."""
    over = []
    for index in range(1000):
        for scene in (sample_scene(7, index, split=split) for split in ("train", "test")):
            centres, turned = np.pad(scene.centres(), ((0, 0), (0, 1))), rotations(scene.angles())
            metres = beyond(scene.shape, scene.half_size, scene.camera.edges(), centres, turned).max()
            over.append(metres / scene.view_m * scene.size_px)
            assert "leave_view" not in scene.events
    assert sum(pixels > 0 for pixels in over) == 4 and max(over) < 0.5, "as docs/simulation.md says"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reach_of_a_shape_is_that_of_its_mesh(shape: str) -> None:
    half = {"sphere": (0.4, 0.4, 0.4), "capsule": (0.45, 0.28, 0.28)}.get(shape, (0.37, 0.25, 0.37))
    directions = np.random.default_rng(1).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    short = reach(shape, half, directions) - (directions @ mesh(shape, half).vertices.T).max(1)
    assert short.min() > -1e-9 and short.max() < 5e-4


def test_the_event_is_stored_and_an_option_of_the_command_allows_it(tmp_path: Path) -> None:
    mine = tmp_path / "ranges.yaml"
    mine.write_text(yaml.safe_dump(fast(may_leave=False).model_dump(mode="json", exclude_none=True)))
    options = ["--num-clips", "6", "--seed", "3", "--primitives", *sorted(FAST), "--workers", "1"]
    options += ["--set", f"ranges={mine}", "--set", "world.may_leave=true"]
    assert command.main(["--out", str(tmp_path / "a"), *options]) == 0
    left = 0
    for clip in ClipFolder(tmp_path / "a"):
        assert clip.truth is not None and clip.valid is not None
        time = clip.truth.events.get("leave_view")
        left += time is not None
        assert time is None or not clip.valid[math.floor(time) + 1 :].any()
    assert left > 0
