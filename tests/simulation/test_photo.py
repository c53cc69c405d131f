"""The photo tier: what Blender is told is what the fast tier draws; and, where Blender is, so are its pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from newtonrewards.core.errors import InputError, MissingExtra
from newtonrewards.simulation import photo, photo_setup
from newtonrewards.simulation import simulate as command
from newtonrewards.simulation.looks import Surface
from newtonrewards.simulation.meshes import mesh, object_map, plane_map
from newtonrewards.simulation.photo import NotTaken, Photo, _run, all_poses, borders, composed, describe, photograph
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene
from newtonrewards.simulation.shapes import SHAPES, sdf
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder

HALVES = {"sphere": (0.4, 0.4, 0.4), "capsule": (0.45, 0.28, 0.28)}
WHITE, BLACK = ((1.0, 1.0, 1.0),) * 2, ((0.0, 0.0, 0.0),) * 2


def world(**changes: object) -> Ranges:
    ranges = default_ranges()
    return ranges.model_copy(update={"world": ranges.world.model_copy(update=changes)})


# ---- without Blender ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mesh_is_the_shape_that_the_fast_tier_draws(shape: str) -> None:
    half = HALVES.get(shape, (0.37, 0.25, 0.37))
    made = mesh(shape, half)
    on_it = [sdf(SHAPES[shape], *point, *half) for point in made.vertices]
    assert np.abs(on_it).max() < 1e-8
    corners = made.vertices[made.faces]
    middles = [sdf(SHAPES[shape], *point, *half) for point in corners.mean(1)]
    assert max(middles) < 1e-8 and min(middles) > -5e-4, "within half a millimetre between its points"
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((across * corners.mean(1)).sum(1) > 0).all(), "anticlockwise from outside"
    face = across / np.linalg.norm(across, axis=1, keepdims=True)
    assert ((made.normals * face[:, None]).sum(2) > 0.99).all(), "edges stay sharp"
    volume = (across * corners.mean(1)).sum() / 6
    grid = np.stack(np.meshgrid(*(h * (np.arange(-19, 20, 2) / 20) for h in half), indexing="ij"), -1).reshape(-1, 3)
    inside = np.mean([sdf(SHAPES[shape], *point, *half) < 0 for point in grid])
    assert volume == pytest.approx(inside * 8 * np.prod(half), rel=0.04)


def test_maps_have_the_colours_of_the_surface_where_it_has_them() -> None:
    look = Surface("two_tone", ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), 0.5, 7)
    colours = object_map("box", (0.3, 0.2, 0.3), look, 32)
    assert colours.shape == (32, 64, 3) and 0.2 < colours[..., 0].mean() < 0.8
    wall = Surface("bricks", ((0.9, 0.8, 0.7), (0.5, 0.4, 0.3)), 1.0, 7)
    wide = plane_map(1, wall, ((-2.0, 2.0), (0.0, 1.0)), 20.0)
    part = plane_map(1, wall, ((-1.0, 1.0), (0.5, 1.0)), 20.0)
    assert wide.shape == (20, 80, 3) and np.allclose(wide[:10, 20:60], part)


def test_what_blender_is_told_projects_to_the_track_and_lies_in_the_masks(tmp_path: Path) -> None:
    scene = sample_scene(5, 1, ranges=world(camera_yaw_deg=(12, 12), camera_pitch_deg=(5, 5), bystanders=1))
    clip = render(scene)
    boxes = describe(scene, tmp_path, None, Photo())
    content, arrays = json.loads((tmp_path / "scene.json").read_text()), np.load(tmp_path / "meshes.npz")
    camera = np.linalg.inv(np.array(content["camera"]["pose"]))
    assert clip.masks is not None and clip.truth is not None
    for f in (0, 8, 16):
        pose = arrays["body0_poses"][f]
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        points = np.concatenate([pose[None, :3, 3], arrays["body0_vertices"] @ pose[:3, :3].T + pose[:3, 3]])
        x, y, z = camera[:3, :3] @ points.T + camera[:3, 3:]
        seen = np.stack([0.5 + content["camera"]["focal"] * x / -z, 0.5 - content["camera"]["focal"] * y / -z], 1)
        assert np.allclose(seen[0], clip.truth.position[f], atol=1e-5)
        rows, columns = np.nonzero(clip.masks[f].numpy())
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
        assert (np.abs(seen[1:].min(0) * scene.size_px - low) < 1.1).all()
        assert (np.abs(seen[1:].max(0) * scene.size_px - high) < 1.1).all()
        left, right, top, bottom = boxes[f]
        assert left <= low[0] and right >= high[0] and top <= low[1] and bottom >= high[1]
    across = np.cross(*(arrays["body0_vertices"][arrays["body0_faces"]][:, i] for i in (1, 2)))
    assert (np.einsum("fi,fi->f", across, arrays["body0_normals"].mean(1)) > -1e-9).mean() > 0.9
    for look in (*content["bodies"].values(), *content["stills"].values()):
        assert cv2.imread(str(tmp_path / look["image"])) is not None
    assert content["environment"]["name"] in default_ranges().assets["train"].environments


def test_all_that_changes_in_the_fast_tier_lies_in_the_borders() -> None:
    for index in range(10):
        scene = sample_scene(5, index)
        frames = render(scene).frames
        still = render(replace(scene, origin=(50.0, 1.0))).frames[0]
        for frame, (left, right, top, bottom) in zip(frames, borders(scene), strict=True):
            outside = torch.ones(frame.shape[1:], dtype=torch.bool)
            outside[top:bottom, left:right] = False
            assert (frame - still).abs().amax(0)[outside].max() < 0.02


def test_poses_turn_a_point_as_the_fast_tier_does() -> None:
    scene = sample_scene(5, 0, ranges=world(spin_rad_s=(4, 4)))
    pose, tilt = all_poses(scene)[0][9], scene.tilts()[9]
    right = pose[:3, :3] @ [1.0, 0, 0]
    expected = [np.cos(scene.yaw) * np.cos(tilt), np.cos(scene.yaw) * np.sin(tilt), np.sin(scene.yaw)]
    assert np.allclose(right, expected) and np.allclose(pose[:2, 3], scene.centres()[9])


def test_parts_are_blended_into_the_background_without_a_seam() -> None:
    background, part = np.full((64, 64, 3), 100, np.uint8), np.full((30, 40, 3), 200, np.uint8)
    frame = composed(background, [part], [(0, 40, 20, 50)])[0, 0] * 255
    assert frame[:20].eq(100).all() and frame[:, 40:].eq(100).all()
    assert frame[23:47, :37].eq(200).all(), "whole where the picture goes on to the frame's edge"
    assert frame[20:23, 5].diff().min() > 0 and 100 < frame[20, 5] < 160
    with pytest.raises(NotTaken, match="part of"):
        composed(background, [part], [(0, 30, 20, 50)])


def test_without_blender_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEWTONREWARDS_BLENDER", str(tmp_path / "none"))
    with pytest.raises(MissingExtra, match=photo_setup.COMMAND):
        command.main(["--out", str(tmp_path / "out"), "--num-clips", "1", "--tier", "photo"])
    name, *words = photo_setup.COMMAND.split()
    assert (name, words[0]) == ("newtonrewards", "simulate")
    with pytest.raises(SystemExit):
        command.main([*words[1:], "--help"])
    assert "set-up-photo" in capsys.readouterr().out


def test_setting_up_takes_no_folder_of_others_and_says_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEWTONREWARDS_BLENDER", str(tmp_path))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        photo_setup.set_up()
    assert (tmp_path / "thesis.tex").is_file()
    with pytest.raises(MissingExtra, match=r"installing bpy failed \(no such wheel\)"):
        photo_setup._step([sys.executable, "-c", "import sys; sys.exit('no such wheel')"], "installing bpy failed")


STAND_IN = """#!{python}
import json, sys
from pathlib import Path
import cv2, numpy as np
folder = Path(sys.argv[-1])
content = json.loads((folder / "scene.json").read_text())
with open({log!r}, "a") as log:
    print(content["seed"], file=log)
if content["seed"] in {crashing}:
    sys.exit("Error: out of memory")
size = content["size_px"]
cv2.imwrite(str(folder / "background.png"), np.full((size, size, 3), 90, np.uint8))
for number, (left, right, top, bottom) in enumerate(content["borders"]):
    cv2.imwrite(str(folder / f"{{number:04d}}.png"), np.full((bottom - top, right - left, 3), 200, np.uint8))
"""


@pytest.fixture
def blender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in Blender's place that draws flat boxes, and writes down whose."""
    home = tmp_path / "blender"
    (home / "bin").mkdir(parents=True)
    (home / "whole").touch()
    monkeypatch.setenv("NEWTONREWARDS_BLENDER", str(home))
    stand_in(home)
    return home


def stand_in(home: Path, crashing: tuple[int, ...] = ()) -> None:
    program = home / "bin" / "python"
    program.write_text(STAND_IN.format(python=sys.executable, log=str(home / "log"), crashing=crashing))
    program.chmod(0o755)


def test_blender_is_given_up_when_it_takes_too_long() -> None:
    with pytest.raises(NotTaken, match="longer than 0.3 s"):
        _run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_clip_on_which_blender_fails_is_named_the_rest_goes_on_and_a_restart_makes_it(
    form: str, blender: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(blender, crashing=(1,))
    out = tmp_path / "out"
    options = ["--out", str(out), "--num-clips", "4", "--tier", "photo", "--workers", "1", "--format", form]
    options += ["--set", "clips_per_tar=3", "--time-limit", "60"]
    assert command.main(options) == 1
    said = capsys.readouterr().err
    assert "000001: Blender ended with exit code 1: Error: out of memory" in said
    assert "000000" not in said
    assert not (out / "index.jsonl").exists()
    stand_in(blender)
    (blender / "log").unlink()
    assert command.main(options) == 0
    assert (blender / "log").read_text().split() == ["1"], "the others are kept"
    assert not (out / "pictures").exists()
    clips = ClipFolder(out, with_flow=True)
    assert len(clips) == 4
    clip, drawn = clips[3], render(command.draw(SimulateRecipe(num_clips=4), 3))
    assert clip.truth is not None and clip.masks is not None and drawn.masks is not None
    assert torch.allclose(clip.masks, drawn.masks, atol=1 / 254) and clip.truth.flow is not None
    assert clip.truth.assets["environment"] in default_ranges().assets["train"].environments
    assert clip.frames.shape == drawn.frames.shape and not torch.equal(clip.frames, drawn.frames)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_masks_are_the_silhouettes_of_the_meshes(split: str) -> None:
    size = 96
    grid = (np.arange(2 * size) + 0.5) / (2 * size)
    x, y = np.meshgrid(grid, grid)
    for index in range(10):
        scene = sample_scene(9, index, split=split, ranges=world(size_px=size))
        mask, pose = render(scene).masks, all_poses(scene)[0][5]
        assert mask is not None
        outline = scene.camera.to_image(mesh(scene.shape, scene.half_size).vertices @ pose[:3, :3].T + pose[:3, 3])
        sides = ConvexHull(outline).equations
        inside = (np.tensordot(sides, np.stack([x, y, np.ones_like(x)]), 1) < 0).all(0)
        exact = torch.from_numpy(inside.reshape(size, 2, size, 2).mean((1, 3)))
        lacking, beyond = ((a - b).clamp(min=0).sum() / exact.sum() for a, b in ((exact, mask[5]), (mask[5], exact)))
        assert lacking < 0.004, "no side is lost to rays that graze it"
        assert beyond < 0.05, "a millimetre around it may cover one more row of samples"


# ---- with Blender ---------------------------------------------------------------------------------------------------

THERE = (photo_setup.home() / "whole").is_file()
with_blender = pytest.mark.skipif(not THERE, reason=f"Blender isn't set up: {photo_setup.COMMAND}")


def lone(scene: Scene) -> Scene:
    """The scene with a black object before white surroundings, so that its silhouette can be read off its picture."""
    white = {name: replace(getattr(scene, name), colours=WHITE) for name in ("wall", "floor", "wedge_surface")}
    return replace(scene, object_surface=replace(scene.object_surface, colours=BLACK), **white)


@pytest.mark.slow
@with_blender
@pytest.mark.parametrize(("index", "split"), [(1, "train"), (3, "test"), (4, "train")])
def test_silhouettes_in_the_pictures_are_the_masks(index: int, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo, "TINTED", 0.0)
    scene = lone(sample_scene(5, index, split=split, ranges=world(size_px=256)))
    frames, masks = photograph(scene, np.array([6]), settings=Photo(samples=4)), render(scene).masks
    assert masks is not None
    seen, true = frames[0].mean(0) < 0.6, masks[6] > 0.5
    iou = float((seen & true).sum() / (seen | true).sum())
    assert iou > 0.92, f"IoU {iou:.3f}: half a pixel of an edge is a question of taste, more is another place"
    middles = [torch.nonzero(part).double().mean(0) for part in (seen, true)]
    assert (middles[0] - middles[1]).abs().max() < 0.8, "the shade under it is as dark as it is"


@pytest.mark.slow
@with_blender
def test_a_clip_of_the_photo_tier_is_one_of_the_same_format_and_the_same_each_time(tmp_path: Path) -> None:
    recipe = SimulateRecipe.model_validate(
        {"num_clips": 1, "seed": 5, "tier": "photo", "primitives": ["horizontal_throw"], "photo": {"samples": 8},
         "world": {"size_px": 64, "num_frames": 5, "capture_fps": 10}}
    )  # fmt: skip
    for name in ("a", "b"):
        assert simulate(recipe, tmp_path / name, 1)["problems"] == []
    clip, again = (ClipFolder(tmp_path / name, with_flow=True)[0] for name in ("a", "b"))
    assert torch.equal(clip.frames, again.frames)
    assert clip.truth is not None and clip.truth.flow is not None and clip.masks is not None
    moved, still = [], []
    for t in range(4):
        inside = clip.masks[t] > 0.99
        moved.append((fetched(clip.frames[t + 1], clip.truth.flow[t]) - clip.frames[t])[:, inside].abs().mean())
        still.append((clip.frames[t + 1] - clip.frames[t])[:, inside].abs().mean())
    assert torch.stack(moved).mean() < 0.6 * torch.stack(still).mean(), "the flow carries the picture along"


def fetched(frame: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The frame read where the flow leads from each pixel."""
    size = frame.shape[-1]
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = (torch.stack([xs, ys], -1) + flow.permute(1, 2, 0) + 0.5) / size * 2 - 1
    return torch.nn.functional.grid_sample(frame[None], grid[None].float(), align_corners=False)[0]
