"""Bodies that touch each other: what stands in the way of an object that falls or is thrown."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from newtonrewards.core.errors import InputError
from newtonrewards.simulation import simulate as command
from newtonrewards.simulation.bystanders import Bystander
from newtonrewards.simulation.engine import STEP, State, mass, world
from newtonrewards.simulation.meshes import mesh
from newtonrewards.simulation.motions import GRAVITY
from newtonrewards.simulation.poses import rotations
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render, truth_of
from newtonrewards.simulation.scene import Scene, sample_scene
from newtonrewards.simulation.shapes import SHAPES, sdf
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.simulation.tumble import gains_energy

Array = NDArray[np.float64]
FLIGHTS = ("free_fall", "horizontal_throw", "parabolic_throw")
with_engine = pytest.mark.skipif(
    importlib.util.find_spec("pybullet") is None, reason="PyBullet isn't installed: pip install 'newtonrewards[tumble]'"
)


def crowded(targets: int = 2, **changes: object) -> Ranges:
    ranges = default_ranges()
    world = {"after_contact": "tumble", "targets": targets, "restitution": (0.3, 0.3), **changes}
    return ranges.model_copy(update={"world": ranges.world.model_copy(update=world)})


def drawn(count: int, **changes: object) -> list[Scene]:
    return [sample_scene(3, i, primitive=FLIGHTS[i % 3], ranges=crowded(**changes)) for i in range(count)]  # type: ignore[arg-type]


def pose(thing: Scene | Bystander, time: float) -> tuple[Array, Array]:
    when = np.array([time])
    centre = thing.places(when) if isinstance(thing, Scene) else thing.centres(when)
    return centre[0], rotations(thing.angles(when))[0]


def gap(one: Scene | Bystander, other: Scene | Bystander, time: float) -> float:
    """How near any point of one body's mesh comes to the other at a time, metres; negative: inside it."""
    shape = mesh(one.shape, one.half_size)
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 40)
    corners = np.einsum("kc,fci->fki", weights, shape.vertices[shape.faces]).reshape(-1, 3)
    points = np.concatenate([shape.vertices, corners])
    points = points[:: max(1, len(points) // 4000)]
    (centre, turned), (place, theirs) = pose(one, time), pose(other, time)
    own = (points @ turned.T + centre - place) @ theirs
    return min(sdf(SHAPES[other.shape], *point, *other.half_size) for point in own)


@with_engine
def test_bodies_that_collide_in_mid_air_keep_momentum_and_lose_energy() -> None:
    shapes = (("box", (0.3, 0.2, 0.3)), ("hex_prism", (0.2, 0.25, 0.2)))
    with world() as engine:
        bodies = [
            engine.add(
                shape, half,
                State(np.array([-0.6 * side, 30.0, 0.1 * side]), np.array([2.0 * side, 0, 0]), np.eye(3), np.zeros(3)),
                0.6, 0.7,
            )
            for (shape, half), side in zip(shapes, (1, -1), strict=True)
        ]  # fmt: skip
        run = engine.run(bodies, 0.0, 800)
    assert list(run.touched) == [frozenset(bodies)] and 0.1 < run.touched[frozenset(bodies)] < 0.2
    masses = [mass(*shape) for shape in shapes]
    assert masses[0].volume == pytest.approx(8 * 0.3 * 0.2 * 0.3)
    momentum = sum(m.volume * made.velocities for m, made in zip(masses, run.bodies, strict=True))
    fallen = -GRAVITY * STEP * np.arange(801) * sum(m.volume for m in masses)
    assert np.abs(momentum - momentum[0] - np.stack([0 * fallen, fallen, 0 * fallen], 1)).max() < 1e-6
    energy = sum(m.energies(made) for m, made in zip(masses, run.bodies, strict=True))
    assert (energy - np.minimum.accumulate(energy)).max() < 1e-6 and energy[-1] < energy[0] - 0.02
    assert np.abs(run.bodies[0].spins[-1]).max() > 0.1, "and they turn"


@pytest.mark.slow
@with_engine
def test_until_they_touch_each_is_where_its_closed_form_says_and_then_they_do_touch() -> None:
    hits = 0
    for scene in drawn(9):
        made, first = scene.tumbling, min(scene.events.values())
        assert made is not None and first - STEP <= made.start <= first
        known = made.begin + STEP * np.arange(len(made.positions))
        before = known <= made.start
        closed = replace(scene, tumbling=None).places(known[before])
        assert np.abs(made.positions[before] - closed).max() < 1e-9, "the engine and the closed form agree till then"
        for one in scene.bystanders:
            hit = one.trajectory.events.get("hit")
            if hit is None:
                assert np.abs(np.diff(one.centres(scene.times), axis=0)).max() == 0, "what nothing touches rests"
                continue
            assert one.centres(np.array([hit]))[0] == pytest.approx(one.origin, abs=1e-12)
            touching = [scene, *(other for other in scene.bystanders if other is not one)]
            nearest = min(min(gap(one, other, hit), gap(other, one, hit)) for other in touching)
            assert -0.012 < nearest < 0.012, "a step's way"
            hits += 1
        assert ("hit" in scene.events) == any(
            one.trajectory.events.get("hit") == scene.events.get("hit", math.nan) for one in scene.bystanders
        )
        assert not gains_energy(scene)
    assert hits > 5


@with_engine
def test_flow_masks_depth_and_tracks_of_each_agree_while_they_touch() -> None:
    seen = 0
    for index in (0, 1, 2, 7):
        ranges = crowded(size_px=96, num_frames=21, camera_yaw_deg=(10.0, 10.0))
        scene = sample_scene(3, index, primitive=FLIGHTS[index % 3], ranges=ranges)
        clip = render(scene)
        truth = clip.truth
        assert truth is not None and truth.flow is not None and truth.depth is not None and clip.masks is not None
        assert clip.valid is not None and clip.valid.sum() == math.floor(min(truth.events.values()) + 1e-6) + 1
        focal, axes = scene.camera.focal_px(96), scene.camera.axes()
        things: list[tuple[Scene | Bystander, torch.Tensor]] = [(scene, clip.masks)]
        for one, theirs in zip(scene.bystanders, truth.bystanders, strict=True):
            assert theirs.masks is not None
            things.append((one, theirs.masks))
            centres = one.centres(scene.times)
            assert np.abs(theirs.position.numpy() - scene.camera.to_image(centres)).max() < 1e-5
            assert np.abs(theirs.world_position.numpy() - centres * [1, 1, -1]).max() < 1e-5
        assert float(sum(mask for _, mask in things).max()) <= 1  # type: ignore[union-attr]
        for thing, mask in things:
            for t in range(math.floor(min(truth.events.values())), clip.num_frames - 1, 2):
                rows, columns = np.nonzero(mask[t].numpy() > 0.99)
                if len(rows) < 12:
                    continue
                seen += 1
                x, y = columns + 0.5 - 48, 48 - rows - 0.5
                rays = np.stack([x / focal, y / focal, np.ones(len(x))], 1) @ axes
                points = scene.camera.place() + truth.depth[t].numpy()[rows, columns, None] * rays
                (place, turned), (after, then) = (pose(thing, time) for time in scene.times[t : t + 2])
                own = (points - place) @ turned
                off = np.array([abs(sdf(SHAPES[thing.shape], *point, *thing.half_size)) for point in own])
                assert np.median(off) < 3e-3
                moved = scene.camera.to_image(own @ then.T + after) * 96 - np.stack([columns + 0.5, rows + 0.5], 1)
                error = np.linalg.norm(moved - truth.flow[t].numpy()[:, rows, columns].T, axis=1)
                assert np.median(error) < 0.03
    assert seen > 40


@with_engine
def test_what_flies_is_the_same_with_and_without_them_up_to_the_hit() -> None:
    for alone, scene in zip(drawn(6, targets=0), drawn(6), strict=True):
        if alone.rejections or scene.rejections:
            continue
        assert (scene.shape, scene.parameters, scene.origin) == (alone.shape, alone.parameters, alone.origin)
        before = scene.times <= min(scene.events.values())
        assert before.sum() > 3 and np.array_equal(scene.places()[before], alone.places()[before])
        assert len(scene.bystanders) == 2 and not alone.bystanders


@with_engine
def test_they_are_stored_with_bystanders_beside_them_and_a_hit_is_an_event(tmp_path: Path) -> None:
    options = ["--num-clips", "6", "--seed", "3", "--primitives", *FLIGHTS, "--workers", "1"]
    for change in ("after_contact=tumble", "targets=1", "bystanders=1", "materials=[glossy]"):
        options += ["--set", f"world.{change}"]
    assert command.main(["--out", str(tmp_path), *options]) == 0
    events = set()
    for index, clip in enumerate(ClipFolder(tmp_path, with_flow=True)):
        scene = sample_scene(3, index, primitive=FLIGHTS[index % 3],
                             ranges=crowded(1, bystanders=1, restitution=(0, 0), materials=("glossy",)))  # fmt: skip
        assert clip.truth is not None and len(clip.truth.bystanders) == 2
        assert clip.truth.events == pytest.approx(truth_of(scene).events)
        events |= clip.truth.events.keys()
        for one, theirs in zip(scene.bystanders, clip.truth.bystanders, strict=True):
            assert np.abs(theirs.world_position.numpy() - one.centres(scene.times) * [1, 1, -1]).max() < 2e-6
            assert theirs.parameters["material"] == "glossy" and theirs.masks is not None
    assert {"land", "hit"} <= events


@with_engine
def test_a_clip_without_room_for_one_is_drawn_again() -> None:
    ranges = crowded(3)
    assert ranges.bystanders is not None
    large = ranges.bystanders.model_copy(update={"half_size_m": (0.25, 0.29)})
    ranges = ranges.model_copy(update={"bystanders": large})
    scenes = [sample_scene(3, i, primitive="horizontal_throw", ranges=ranges) for i in range(5)]
    assert all(len(scene.bystanders) == 3 for scene in scenes)
    assert "no room for a target" in {reason for scene in scenes for reason in scene.rejections}


def test_where_they_are_not_offered_it_is_said() -> None:
    with pytest.raises(InputError, match="nothing stands in the way of ramp_down"):
        sample_scene(0, 0, primitive="ramp_down", ranges=crowded())
    with pytest.raises(InputError, match="after_contact"):
        sample_scene(0, 0, primitive="free_fall", ranges=crowded(after_contact="slide"))
