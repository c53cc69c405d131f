"""All channels of truth tell the same story, whatever the camera, the motion and the object; and the default world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.simulation.camera import Camera
from newtonrewards.simulation.film import Film, film
from newtonrewards.simulation.motions import KNOWN
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render, truth_of
from newtonrewards.simulation.scene import sample_scene

SIZE = 96


def world(**changes: Any) -> Ranges:
    ranges = default_ranges()
    return ranges.model_copy(update={"world": ranges.world.model_copy(update=changes)})


def centroids(masks: Tensor) -> Tensor:
    grid = (torch.arange(masks.shape[-1]) + 0.5) / masks.shape[-1]
    weight = masks / masks.sum((1, 2), keepdim=True)
    return torch.stack([(weight * grid).sum((1, 2)), (weight * grid[:, None]).sum((1, 2))], 1)


def fetched(frame: Tensor, flow: Tensor) -> Tensor:
    """The frame read where the flow leads from each pixel."""
    size = frame.shape[-1]
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = (torch.stack([xs, ys], -1) + flow.permute(1, 2, 0) + 0.5) / size * 2 - 1
    return torch.nn.functional.grid_sample(frame[None], grid[None].float(), align_corners=False)[0]


def in_frame(clip: Clip) -> Tensor:
    """(T, 2) where the object's centre is seen in each frame, H."""
    truth = clip.truth
    assert truth is not None
    if truth.shake is None:
        return truth.position
    return torch.einsum("tij,tj->ti", truth.shake[..., :2], truth.position) + truth.shake[..., 2]


angles = st.sampled_from([-25.0, -8.0, 0.0, 8.0, 25.0])


@given(
    index=st.integers(0, 10_000), primitive=st.sampled_from(KNOWN), split=st.sampled_from(["train", "test"]),
    yaw=angles, pitch=st.sampled_from([0.0, 6.0]), spin=st.sampled_from([0.0, 5.0]),
    restitution=st.sampled_from([0.0, 0.7]), shake=st.sampled_from([0.0, 0.01]),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_mask_flow_depth_and_track_agree_on_random_scenes(
    index: int, primitive: str, split: str, yaw: float, pitch: float, spin: float, restitution: float, shake: float
) -> None:
    ranges = world(
        size_px=SIZE, camera_yaw_deg=(yaw, yaw), camera_pitch_deg=(pitch, pitch), spin_rad_s=(spin, spin),
        restitution=(restitution, restitution),
    )  # fmt: skip
    scene = sample_scene(5, index, split=split, primitive=primitive, ranges=ranges)
    clip = film(scene, Film(shake=shake, roll=100 * shake))
    truth, masks = clip.truth, clip.masks
    assert truth is not None and masks is not None and truth.flow is not None and truth.depth is not None

    # the silhouette stays around the centre
    seen = in_frame(clip)
    radius = max(scene.half_size) / truth.metres_per_height
    offset = centroids(masks) - seen
    assert offset.abs().max() < 0.2 * radius + 0.5 / SIZE
    assert (offset[1:] - offset[:-1]).abs().max() < 1.2 / SIZE

    # the track in the world, seen by each frame's camera, is the track in the image
    projected = truth.seen()
    assert projected is not None and truth.extrinsics is not None
    assert (projected[:, :2] - seen).abs().max() * SIZE < 0.01
    assert torch.allclose(torch.linalg.det(truth.extrinsics[..., :3]), torch.ones(clip.num_frames), atol=1e-5)
    metres = truth.metres_per_px(SIZE)
    assert metres is not None and float(metres[0]) * SIZE == pytest.approx(truth.metres_per_height, rel=1e-5)

    # the object's flow is the motion of its centre, but for its turning and the nearness of its front
    step = (seen[1:] - seen[:-1]) * SIZE
    turn = float(np.abs(np.diff(scene.tilts())).max()) * radius * SIZE
    moved, still = [], []
    for t in range(clip.num_frames - 1):
        inside = masks[t] > 0.99
        mean = truth.flow[t][:, inside].mean(1)
        assert (mean - step[t]).norm() < 0.15 * step[t].norm() + 0.35 * turn + 0.05
        moved.append((fetched(masks[t + 1][None], truth.flow[t])[0] - masks[t])[inside].abs().mean())
        still.append((masks[t + 1] - masks[t])[inside].abs().mean())
    assert torch.stack(moved).mean() < 0.3 * torch.stack(still).mean() + 0.02

    # its depth is that of its centre within its own size, mostly before it
    depth = torch.from_numpy(scene.camera.depth(scene.centres()))
    assert torch.allclose(projected[:, 2].double(), depth, rtol=1e-5)
    bound = float(np.linalg.norm(scene.half_size))
    for t in range(clip.num_frames):
        front = truth.depth[t][masks[t] > 0.99].double()
        assert (front < depth[t] + bound).all() and (front > depth[t] - 1.05 * bound).all()
        assert front.mean() < depth[t]


@pytest.mark.parametrize("yaw", [20.0, -20.0])
def test_flow_from_the_side_carries_the_picture_along(yaw: float) -> None:
    for primitive in ("horizontal_throw", "ramp_down", "roll_down"):
        ranges = world(size_px=SIZE, camera_yaw_deg=(yaw, yaw), camera_pitch_deg=(5.0, 5.0))
        clip = render(sample_scene(8, 1, primitive=primitive, ranges=ranges))
        assert clip.masks is not None and clip.truth is not None and clip.truth.flow is not None
        moved, still = [], []
        for t in range(clip.num_frames - 1):
            inside = clip.masks[t] > 0.99
            moved.append((fetched(clip.frames[t + 1], clip.truth.flow[t]) - clip.frames[t])[:, inside].abs().mean())
            still.append((clip.frames[t + 1] - clip.frames[t])[:, inside].abs().mean())
        assert torch.stack(moved).mean() < 0.5 * torch.stack(still).mean() + 0.01


def test_flow_of_a_shaking_camera_carries_the_whole_picture() -> None:
    scene = sample_scene(3, 1, ranges=world(size_px=SIZE))
    clip = film(scene, Film(shake=0.03, roll=3))
    assert clip.truth is not None and clip.truth.flow is not None
    assert clip.truth.flow[:, :, :20].abs().mean() > 0.2, "the background moves too"
    still, moved = [], []
    for t in range(clip.num_frames - 1):
        middle = (..., slice(8, -8), slice(8, -8))
        moved.append((fetched(clip.frames[t + 1], clip.truth.flow[t]) - clip.frames[t])[middle].abs().mean())
        still.append((clip.frames[t + 1] - clip.frames[t])[middle].abs().mean())
    assert torch.stack(moved).mean() < 0.5 * torch.stack(still).mean()


def test_a_blurred_object_covers_all_that_its_light_reached() -> None:
    scene = sample_scene(3, 1, ranges=world(size_px=SIZE))
    sharp, blurred = render(scene), film(scene, Film(shutter=1.0))
    assert sharp.masks is not None and blurred.masks is not None and sharp.truth is not None
    assert ((blurred.masks[0] > 0).sum() > (sharp.masks[0] > 0).sum()) and torch.equal(
        blurred.truth.position,
        sharp.truth.position,  # type: ignore[union-attr]
    )
    ahead = (centroids(blurred.masks) - centroids(sharp.masks))[0]
    step = (sharp.truth.position[1] - sharp.truth.position[0]) * 3 / 8  # four moments: 0, 1/4, 1/2 and 3/4
    assert torch.allclose(ahead, step, atol=0.3 / SIZE)


@given(st.floats(-0.7, 0.7), st.floats(-0.2, 0.4), st.integers(0, 2**31))
def test_derivatives_in_the_image_are_those_of_the_image_positions(yaw: float, pitch: float, seed: int) -> None:
    camera = Camera(4.0, 1.7, 9.0, yaw, pitch)
    rng = np.random.default_rng(seed)
    p, v, a = rng.uniform(-1.5, 1.5, (3, 1, 2))
    h = 1e-3

    def at(t: float) -> np.ndarray:
        return camera.to_image(p + v * t + a * t * t / 2)

    velocity, acceleration = camera.derivatives(p, v, a)
    assert np.allclose(velocity, (at(h) - at(-h)) / (2 * h), atol=1e-6)
    assert np.allclose(acceleration, (at(h) - 2 * at(0) + at(-h)) / h**2, atol=1e-5)


@pytest.mark.parametrize("primitive", KNOWN)
def test_the_track_in_the_world_obeys_its_law_between_events(primitive: str) -> None:
    scene = sample_scene(7, 3, primitive=primitive, ranges=world(camera_yaw_deg=(20.0, 20.0), restitution=(0.6, 0.6)))
    truth = truth_of(scene)
    p, v, a = truth.world_position, truth.world_velocity, truth.world_acceleration
    assert p is not None and v is not None and a is not None
    assert not p[:, 2].any() and float(p[:, 1].min()) > 0, "in the plane of motion, above the floor"
    same = truth.pieces()[1:] == truth.pieces()[:-1]
    dt = 1 / scene.capture_fps
    moved = p[:-1] + v[:-1] * dt + a[:-1] * dt * dt / 2
    assert torch.allclose(moved[same], p[1:][same], atol=1e-5)
    assert torch.allclose((v[:-1] + a[:-1] * dt)[same], v[1:][same], atol=1e-4)
    if "throw" in primitive or primitive == "free_fall":
        assert torch.allclose(a[0], torch.tensor([0.0, -9.81, 0.0]))


def test_every_phrasing_of_a_caption_is_true_and_names_tell_assets_apart() -> None:
    scenes = [sample_scene(3, i, primitive=KNOWN[i % len(KNOWN)], split=("train", "test")[i % 2]) for i in range(60)]
    for scene in scenes:
        side = "right" if scene.parameters["direction"] > 0 else "left"
        quantities, plain, pisa = scene.captions.values()
        assert quantities == scene.caption and pisa == "a video of an object dropping"
        assert not any(letter.isdigit() for letter in plain)
        assert scene.primitive == "free_fall" or (side in plain and side in quantities)
    names = {
        split: {(part, name) for s in scenes if s.split == split for part, name in s.assets.items() if part != "shape"}
        for split in ("train", "test")
    }
    assert not names["train"] & names["test"] and len(names["train"]) > 60
    assert all(("ramp" in s.assets) == (s.wedge is not None) for s in scenes)


def test_a_clip_says_how_far_its_image_acceleration_is_from_constant() -> None:
    spreads = [
        np.mean([truth_of(sample_scene(2, i, primitive="ramp_down", ranges=world(camera_yaw_deg=(yaw, yaw)))
                          ).acceleration_spread for i in range(8)])
        for yaw in (0.0, 8.0, 25.0)
    ]  # fmt: skip
    assert spreads[0] == 0 and 0.005 < spreads[1] < 0.04 < spreads[2] < 0.3


def test_what_is_off_by_default_changes_nothing_else_of_a_scene() -> None:
    still = sample_scene(4, 1)
    turned = sample_scene(4, 1, ranges=world(camera_yaw_deg=(5.0, 5.0)))
    parameters = turned.parameters.copy()
    assert parameters.pop("camera_yaw_deg") == 5.0
    assert replace(turned, camera_yaw=0.0, parameters=parameters) == still


# Seed 3: caption, mean of all pixels, end of the track, sum of the masks: the world of the shipped weights.
DEFAULT_WORLD = {
    ("train", 0): ("an object falls, view 4.05 m", 0.478470, (0.67863, 0.86832), 1310),
    ("train", 1): (
        "an object is thrown left at 1.25 m/s, floor friction 0.48, view 3.97 m", 0.494668, (0.65284, 0.84212), 2857),
    ("train", 2): (
        "an object is thrown right and up 62 degrees at 2.62 m/s, floor friction 0.49, view 3.90 m",
        0.378584, (0.37679, 0.85457), 2196.75),
    ("train", 3): (
        "an object slides down a ramp of 31 degrees to the left, friction 0.13, view 3.94 m",
        0.475455, (0.38621, 0.68724), 1146),
    ("test", 4): (
        "an object slides up a ramp of 19 degrees to the right at 2.97 m/s, friction 0.08, view 3.83 m",
        0.480076, (0.45153, 0.74288), 1107.75),
}  # fmt: skip


@pytest.mark.parametrize(("split", "index"), DEFAULT_WORLD)
def test_the_default_world_stays_what_the_shipped_weights_were_trained_on(split: str, index: int) -> None:
    caption, brightness, end, area = DEFAULT_WORLD[split, index]
    clip = render(sample_scene(3, index, split=split))
    assert clip.caption == caption and clip.truth is not None and clip.masks is not None
    assert float(clip.frames.double().mean()) == pytest.approx(brightness, abs=1e-5)
    assert clip.truth.position[-1].tolist() == pytest.approx(end, abs=1e-4)
    assert float(clip.masks.sum()) == pytest.approx(area, abs=2)
