"""Further objects: the one that the clip is about stays as it was, and each has a truth of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from newtonrewards.core.clip import BystanderTruth, Clip
from newtonrewards.core.errors import InputError
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.film import Film, film
from newtonrewards.simulation.inspection import _opened, inspect
from newtonrewards.simulation.motions import Phase, Trajectory, slide
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder

SIZE = 96


def crowded(count: int, **changes: object) -> Ranges:
    ranges = default_ranges()
    world = {"bystanders": count, "size_px": SIZE, **changes}
    return ranges.model_copy(update={"world": ranges.world.model_copy(update=world)})


def beside(scene: Scene, place: tuple[float, float, float], **changes: object) -> Scene:
    """The scene with one bystander that stands still there, half the size of the object."""
    half = tuple(size / 2 for size in scene.half_size)
    rest = Trajectory((Phase(0.0, (0.0, 0.0), (0.0, 0.0)),), {})
    one = Bystander("still", {}, rest, place, "sphere", (half[0],) * 3, 0.0, scene.object_surface)
    return replace(scene, bystanders=(replace(one, **changes),))  # type: ignore[arg-type]


def centroids(masks: Tensor) -> Tensor:
    grid = (torch.arange(masks.shape[-1]) + 0.5) / masks.shape[-1]
    weight = masks / masks.sum((1, 2), keepdim=True)
    return torch.stack([(weight * grid).sum((1, 2)), (weight * grid[:, None]).sum((1, 2))], 1)


def parts(clip: Clip) -> tuple[Tensor, tuple[BystanderTruth, ...]]:
    """(B, T, H, W) masks of the object and of the bystanders, and the bystanders."""
    assert clip.masks is not None and clip.truth is not None
    others = clip.truth.bystanders
    return torch.stack([clip.masks, *(one.masks for one in others if one.masks is not None)]), others


def test_the_object_and_its_world_are_the_same_with_and_without_them() -> None:
    reasons: Counter[str] = Counter()
    for index in range(40):
        alone, scene = sample_scene(2, index, ranges=crowded(0)), sample_scene(2, index, ranges=crowded(3))
        assert len(scene.bystanders) == 3
        assert replace(scene, bystanders=(), rejections=alone.rejections) == alone
        assert scene.rejections[: len(alone.rejections)] == alone.rejections
        reasons.update(scene.rejections[len(alone.rejections) :])
        few = sample_scene(2, index, ranges=crowded(1))
        assert few.bystanders == scene.bystanders[:1], "nor does the first depend on the second"
    assert reasons["bystander could collide"] > reasons["bystander leaves the view"] > 0
    assert set(reasons) <= {f"bystander {what}" for what in ("could collide", "leaves the view", "hides the object",
                                                             "is hidden")}  # fmt: skip


def test_nothing_ever_touches() -> None:
    for index in range(25):
        scene = sample_scene(3, index, split=("train", "test")[index % 2], ranges=crowded(4))
        times = np.linspace(0, scene.times[-1], 1000)
        tracks = [np.pad(scene.centres(times), ((0, 0), (0, 1))), *(one.centres(times) for one in scene.bystanders)]
        radii = [float(np.linalg.norm(scene.half_size)), *(one.radius for one in scene.bystanders)]
        for (a, ra), (b, rb) in itertools.combinations(zip(tracks, radii, strict=True), 2):
            assert np.linalg.norm(a - b, axis=1).min() > ra + rb


def test_masks_tracks_flow_and_depth_of_each_agree() -> None:
    seen: Counter[str] = Counter()
    for index in range(6):
        scene = sample_scene(4, index, ranges=crowded(3, camera_yaw_deg=(-12.0, 12.0)))
        clip = render(scene)
        masks, others = parts(clip)
        truth = clip.truth
        assert truth is not None and truth.flow is not None and truth.depth is not None and truth.visible is not None
        assert float(masks.sum(0).max()) <= 1, "a sample shows one object"
        assert (truth.flow[:, :, (masks[:, :-1].sum(0) == 0).all(0)] == 0).all(), "the background rests"
        assert truth.intrinsics is not None and truth.extrinsics is not None
        for mask, one, drawn in zip(masks[1:], others, scene.bystanders, strict=True):
            point = truth.extrinsics @ torch.nn.functional.pad(one.world_position, (0, 1), value=1.0)[..., None]
            x, y, depth = (truth.intrinsics @ point)[..., 0].unbind(1)
            assert torch.allclose(torch.stack([x / depth, y / depth], 1), one.position, atol=1e-5)
            step = (one.position[1:] - one.position[:-1]) * SIZE
            dt = 1 / scene.capture_fps
            moved = one.world_velocity[0] * dt + one.world_acceleration[0] * dt**2 / 2
            assert torch.allclose(one.world_position[0] + moved, one.world_position[1], atol=1e-5)
            assert one.visible is not None
            inside = (one.position - 0.5).abs().amax(1) < 0.42
            for t in (inside & (one.visible > 0.99)).nonzero().flatten().tolist():
                radius = drawn.radius / truth.metres_per_height
                assert (centroids(mask[t : t + 1])[0] - one.position[t]).abs().max() < 0.3 * radius + 0.5 / SIZE
                whole = mask[t] > 0.99
                if not whole.any() or t == clip.num_frames - 1:
                    continue
                seen[one.motion] += 1
                assert (truth.depth[t][whole] - depth[t]).abs().max() < 1.05 * drawn.radius
                error = (truth.flow[t][:, whole].mean(1) - step[t]).norm()
                assert error < 0.12 * step[t].norm() + 0.03
    assert len(seen) == 4 and min(seen.values()) > 5, seen


def test_what_is_nearer_hides_what_is_behind_and_nothing_else_changes() -> None:
    scene = sample_scene(3, 1, ranges=crowded(0))
    alone = render(scene)
    assert alone.masks is not None and alone.truth is not None and alone.truth.flow is not None
    x, y = scene.centres()[5]
    behind, before = render(beside(scene, (x, y, 1.0))), render(beside(scene, (x, y, -1.0)))
    (mine, other), (truth,) = parts(behind)
    assert torch.equal(mine, alone.masks) and behind.truth is not None and before.truth is not None
    assert behind.truth.visible is not None and (behind.truth.visible == 1).all()
    assert truth.visible is not None and truth.visible[5] < 0.1 and truth.visible[-1] == 1, "the object flies past it"
    hidden = mine[5] > 0.99
    assert torch.equal(behind.frames[5][:, hidden], alone.frames[5][:, hidden])
    assert torch.equal(behind.truth.flow[5][:, hidden], alone.truth.flow[5][:, hidden])  # type: ignore[index]

    (mine, other), _ = parts(before)
    assert before.truth.visible is not None
    assert float(before.truth.visible[5]) == pytest.approx(float(mine[5].sum() / alone.masks[5].sum()))
    assert 0.3 < before.truth.visible[5] < 0.95 and before.truth.visible[-1] == 1
    assert ((mine[5] + other[5])[alone.masks[5] > 0.99] > 0.99).all() and not (mine[5] * (other[5] > 0.99)).any()
    covered = other[5] > 0.99
    assert (before.truth.flow[5][:, covered] == 0).all(), "what stands before it rests"  # type: ignore[index]
    assert torch.equal(before.truth.position, alone.truth.position)


def test_a_bystander_casts_a_shadow_on_the_floor() -> None:
    scene = sample_scene(3, 0, ranges=crowded(0))
    other = render(beside(scene, (-1.2 * np.sign(scene.origin[0]), 0.9, 0.0)))
    alone, (masks, _) = render(scene), parts(other)
    changed = (other.frames - alone.frames).sum(1)[0] * (masks[1, 0] == 0)
    assert changed.max() <= 0 and changed.min() < -0.2
    rows = changed.min(1).values < -0.1
    assert rows.nonzero().min() > SIZE * 0.7, "on the floor only"


def test_a_sliding_bystander_stops_by_friction() -> None:
    motion = slide(1.5, 0.3)
    stop = motion.events["stop"]
    position, velocity, acceleration = motion.at(np.array([0.0, stop, stop + 1]))
    assert velocity[0].tolist() == [1.5, 0] and acceleration[0] == pytest.approx([-0.3 * 9.81, 0])
    assert position[1, 0] == pytest.approx(1.5**2 / 2 / (0.3 * 9.81)) and position[2] == pytest.approx(position[1])


def test_no_place_left_is_an_error_that_says_why() -> None:
    ranges = crowded(2)
    assert ranges.bystanders is not None
    large = ranges.bystanders.model_copy(update={"half_size_m": (1.5, 1.5)})
    with pytest.raises(InputError, match="no bystander 1 fits in 200 draws.*could collide"):
        sample_scene(0, 0, primitive="free_fall", ranges=ranges.model_copy(update={"bystanders": large}))


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_they_are_stored_and_read_again(form: str, tmp_path: Path) -> None:
    recipe = SimulateRecipe.model_validate(
        {"num_clips": 3, "seed": 3, "world": {"bystanders": 2}, "format": form, "film": {"shake": 0.01, "shutter": 0.5}}
    )
    counts = simulate(recipe, tmp_path, workers=1)
    assert any(reason.startswith("bystander") for reason in counts["drawn_again"])
    _opened.cache_clear()
    assert not inspect(tmp_path).problems
    scene = sample_scene(3, 1, ranges=crowded(2, size_px=64))
    drawn, read = film(scene, recipe.film), ClipFolder(tmp_path, with_flow=True)[1]
    (wanted, others), (masks, found) = parts(drawn), parts(read)
    assert (wanted - masks).abs().max() <= 0.5 / 255 + 1e-6
    for one, other in zip(others, found, strict=True):
        assert (one.motion, one.events, one.parameters, one.assets) == (
            other.motion, other.events, other.parameters, other.assets)  # fmt: skip
        for name in ("position", "velocity", "world_position", "world_acceleration", "visible"):
            assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-5, equal_nan=True), name
    assert drawn.truth is not None and read.truth is not None and read.truth.visible is not None
    assert torch.allclose(drawn.truth.visible, read.truth.visible)  # type: ignore[arg-type]


def test_a_shaking_camera_shakes_them_too() -> None:
    scene = sample_scene(4, 0, ranges=crowded(1))
    clip = film(scene, Film(shake=0.02, roll=2))
    masks, (one,) = parts(clip)
    assert clip.truth is not None and clip.truth.shake is not None and one.visible is not None
    seen = torch.einsum("tij,tj->ti", clip.truth.shake[..., :2], one.position) + clip.truth.shake[..., 2]
    whole = (seen - 0.5).abs().amax(1) < 0.4
    offset = (centroids(masks[1]) - seen)[whole & (one.visible > 0.99)]
    assert len(offset) > 3 and offset.abs().max() < 1.5 / SIZE
