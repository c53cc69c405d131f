"""Tumbling: the engine against the closed forms, what it does to energy, and the truth of what is drawn."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from newtonrewards.core.errors import InputError, MissingExtra
from newtonrewards.simulation.engine import STEP, State, Tumbling, mass, world
from newtonrewards.simulation.looks import half_size
from newtonrewards.simulation.motions import GRAVITY, flight, roll_down, slide_down, slide_up
from newtonrewards.simulation.poses import angles_of, beyond, rotations
from newtonrewards.simulation.ranges import Ranges, default_ranges
from newtonrewards.simulation.render import render, truth_of
from newtonrewards.simulation.scene import Wedge, sample_scene
from newtonrewards.simulation.shapes import SHAPES, sdf
from newtonrewards.simulation.tumble import FLOOR, gains_energy

Array = NDArray[np.float64]
FLIGHTS = ("free_fall", "horizontal_throw", "parabolic_throw")
STONES = tuple(shape for shape in SHAPES if shape.startswith("stone"))
with_engine = pytest.mark.skipif(
    importlib.util.find_spec("pybullet") is None, reason="PyBullet isn't installed: pip install 'newtonrewards[tumble]'"
)


def half(shape: str) -> tuple[float, float, float]:
    return half_size(np.random.default_rng(0), shape, 0.36)


def tumbling(stones: bool = False, **changes: object) -> Ranges:
    ranges = default_ranges()
    changed = ranges.world.model_copy(update={"after_contact": "tumble", **changes})
    assets = {name: part.model_copy(update={"shapes": STONES}) for name, part in ranges.assets.items()}
    return ranges.model_copy(update={"world": changed, "assets": assets if stones else ranges.assets})


def left_alone(shape: str, state: State, seconds: float, friction: float, wedge: Wedge | None = None) -> Tumbling:
    with world(wedge) as engine:
        body = engine.add(shape, half(shape), state, friction, 0.0)
        return engine.run([body], 0.0, round(seconds / STEP)).bodies[0]


# ---- the engine against the closed forms ----------------------------------------------------------------------------


@with_engine
@pytest.mark.parametrize("shape", ["box", "puck", "stone_3"])
@pytest.mark.parametrize("velocity", [(0.0, 0.0), (3.0, 4.0)])
def test_until_contact_a_fall_or_throw_is_within_ten_millimetres(shape: str, velocity: tuple[float, float]) -> None:
    spin, seconds = 5.0, 1.94
    begin = State(np.array([0.0, 20.0, 0.0]), np.array([*velocity, 0.0]), np.eye(3), np.array([0.0, 0.0, spin]))
    made = left_alone(shape, begin, seconds, 0.3)
    times = STEP * np.arange(len(made.positions))
    closed = flight(20.0, velocity, 0.3).at(times)[0]
    off = made.positions[:, :2] - closed
    assert 0.001 < np.abs(off).max() < 0.010
    lag = np.outer(times, [0.0, -GRAVITY * STEP / 2])  # the steps' own: speed is that of a step's end
    assert np.abs(off - lag).max() < 1e-9 and not made.positions[:, 2].any()
    angle = np.unwrap(np.arctan2(made.turns.as_matrix()[:, 1, 0], made.turns.as_matrix()[:, 0, 0]))
    assert np.abs(angle - spin * times).max() < 1e-6


@with_engine
@pytest.mark.parametrize("shape", ["box", "puck", "rounded_box", "hex_prism"])
@pytest.mark.parametrize(
    ("incline", "friction", "speed"), [(25, 0.2, 0.0), (35, 0.5, 0.0), (20, 0.4, 0.0), (25, 0.2, 3.0), (20, 0.5, 3.0)]
)
def test_on_a_ramp_it_is_within_four_millimetres_and_does_not_rock(
    shape: str, incline: float, friction: float, speed: float
) -> None:
    """Sliding down, holding, sliding up and back, and up to stay."""
    th, uphill = math.radians(incline), -1.0
    wedge = Wedge(2.0, uphill, th, 5.0)
    motion = slide_up(th, friction, speed, uphill) if speed else slide_down(th, friction, -uphill)
    normal = np.array([-uphill * math.sin(th), math.cos(th)])
    place = np.array(wedge.contact(2.5)) + half(shape)[1] * normal
    turned = rotations(np.array([[uphill * th, 0.0, 0.0]]))[0]
    begin = State(np.array([*place, 0.0]), np.array([*motion.phases[0].velocity, 0.0]), turned, np.zeros(3))
    made = left_alone(shape, begin, 1.0, friction, wedge)
    closed = motion.at(STEP * np.arange(len(made.positions)))[0] + place
    assert np.linalg.norm(made.positions[:, :2] - closed, axis=1).max() < 0.004
    assert (Rotation.from_matrix(turned).inv() * made.turns).magnitude().max() < math.radians(0.2)


@with_engine
def test_a_ball_rolls_down_a_ramp_within_three_millimetres() -> None:
    th, wedge = math.radians(25), Wedge(-2.0, 1.0, math.radians(25), 5.0)
    place = np.array(wedge.contact(4.0)) + 0.36 * np.array([-math.sin(th), math.cos(th)])
    begin = State(np.array([*place, 0.0]), np.zeros(3), np.eye(3), np.zeros(3))
    made = left_alone("sphere", begin, 1.0, 0.5, wedge)
    closed = roll_down(th, -1.0).at(STEP * np.arange(len(made.positions)))[0] + place
    assert np.linalg.norm(made.positions[:, :2] - closed, axis=1).max() < 0.003


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bodys_own_axes_are_its_principal_ones_and_its_middle_is_its_centre_of_mass(shape: str) -> None:
    """By points drawn at random in it: what the engine is told of how a body turns."""
    h = np.array(half(shape))
    inside = np.random.default_rng(3).uniform(-h, h, (20_000, 3))
    volume = 8 * h.prod() * np.mean([sdf(SHAPES[shape], *point, *h) < 0 for point in inside])
    assert mass(shape, half(shape)).volume == pytest.approx(volume, rel=0.03)
    inside = inside[[sdf(SHAPES[shape], *point, *h) < 0 for point in inside]]
    assert np.abs(inside.mean(0)).max() < 0.02 * h.max()
    second = inside.T @ inside / len(inside)
    moments = second.trace() - np.diag(second)
    assert np.allclose(mass(shape, half(shape)).moments, moments, rtol=0.03)
    assert np.abs(second - np.diag(np.diag(second))).max() < 0.03 * moments.max()


# ---- after the contact ----------------------------------------------------------------------------------------------


@with_engine
@given(
    index=st.integers(0, 10_000), primitive=st.sampled_from(FLIGHTS), split=st.sampled_from(["train", "test"]),
    stones=st.booleans(), restitution=st.sampled_from([0.0, 0.4, 0.8]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_energy_never_grows_and_nothing_sinks_into_the_floor(
    index: int, primitive: str, split: str, stones: bool, restitution: float
) -> None:
    ranges = tumbling(stones, restitution=(restitution, restitution))
    scene = sample_scene(6, index, split=split, primitive=primitive, ranges=ranges)
    assume("land" in scene.events)
    made = scene.tumbling
    assert made is not None
    moving = 0.5 * (made.velocities**2).sum(1) + GRAVITY * made.positions[:, 1]
    spins = np.einsum("tji,tj->ti", made.turns.as_matrix(), made.spins)
    energy = moving + 0.5 * (spins**2) @ mass(scene.shape, scene.half_size).moments
    assert (energy - np.minimum.accumulate(energy)).max() < 0.01 * energy[0], "a hundredth within an impact"
    assert energy[-1] < energy[0]
    sunk = beyond(scene.shape, scene.half_size, FLOOR, made.positions, made.turns.as_matrix())
    assert abs(sunk[0]) < 1e-9, "handed over where it touches"
    assert sunk.max() < 0.012, "a step's way of a fast edge"


@with_engine
@given(
    index=st.integers(0, 10_000), primitive=st.sampled_from(FLIGHTS), stones=st.booleans(),
    yaw=st.sampled_from([-15.0, 0.0, 15.0]), restitution=st.sampled_from([0.0, 0.6]),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_flow_mask_depth_and_trajectory_agree_while_it_tumbles(
    index: int, primitive: str, stones: bool, yaw: float, restitution: float
) -> None:
    ranges = tumbling(stones, size_px=96, camera_yaw_deg=(yaw, yaw), restitution=(restitution, restitution))
    scene = sample_scene(8, index, primitive=primitive, ranges=ranges)
    assume("land" in scene.events)
    clip, places, turned = render(scene), scene.places(), rotations(scene.angles())
    truth, masks = clip.truth, clip.masks
    assert truth is not None and masks is not None and truth.flow is not None and truth.depth is not None
    land = truth.events["land"]
    assert clip.valid is not None and clip.valid.tolist() == [t <= land + 1e-6 for t in range(clip.num_frames)]
    seen, centre = truth.seen(), scene.camera.to_image(places)
    assert seen is not None and np.abs(seen[:, :2].numpy() - centre).max() < 1e-5
    assert np.abs(truth.position.numpy() - centre).max() < 1e-6

    focal, axes = scene.camera.focal_px(96), scene.camera.axes()
    for t in range(max(0, math.floor(land) - 1), clip.num_frames):
        rows, columns = np.nonzero(masks[t].numpy() > 0.99)
        assert len(rows) > 20
        # each pixel of it, brought back into the world by its depth, lies on the body as it is turned there
        x, y = columns + 0.5 - 48, 48 - rows - 0.5
        rays = np.stack([x / focal, y / focal, np.ones(len(x))], 1) @ axes
        points = scene.camera.place() + truth.depth[t].numpy()[rows, columns, None] * rays
        own = (points - places[t]) @ turned[t]
        off = np.array([abs(sdf(SHAPES[scene.shape], *point, *scene.half_size)) for point in own])
        assert np.median(off) < 2e-3 and np.quantile(off, 0.9) < 0.01, "but for pixels on its edges"
        # and is carried by the body to where the flow says
        if t < clip.num_frames - 1:
            moved = scene.camera.to_image(own @ turned[t + 1].T + places[t + 1]) * 96
            flow = moved - np.stack([columns + 0.5, rows + 0.5], 1)
            error = np.linalg.norm(flow - truth.flow[t].numpy()[:, rows, columns].T, axis=1)
            assert np.median(error) < 0.02 and np.quantile(error, 0.9) < 0.25


@with_engine
def test_the_track_goes_on_where_the_closed_form_ends_and_velocity_is_its_slope() -> None:
    turned = 0.0
    for index in range(12):
        scene = sample_scene(4, index, primitive=FLIGHTS[index % 3], ranges=tumbling(capture_fps=60.0, num_frames=60))
        made, land = scene.tumbling, scene.events["land"]
        assert made is not None
        around = scene.places(np.array([land - 1e-6, land, land + 1e-6]))
        assert np.abs(np.diff(around, axis=0)).max() < 1e-4
        assert np.abs(np.diff(rotations(scene.angles(np.array([land, land + 1e-6]))), axis=0)).max() < 1e-4
        truth = truth_of(scene)
        assert truth.world_position is not None and truth.world_velocity is not None
        slope = np.gradient(scene.places(), scene.times, axis=0) * [1, 1, -1]
        quiet = np.linalg.norm(np.diff(slope, axis=0, prepend=slope[:1]), axis=1) < 0.3  # no impact near
        assert np.median(np.linalg.norm(truth.world_velocity.numpy() - slope, axis=1)[quiet]) < 0.05
        before = made.turns[0].inv()
        turned = max(turned, float((before * made.turns).magnitude().max()))
    assert turned > 1.0, "some of them do tumble"


@with_engine
def test_the_same_seed_gives_the_same_clip_and_only_the_fall_is_another() -> None:
    for index in range(3):
        scene, plain = (sample_scene(5, index, ranges=ranges) for ranges in (tumbling(), default_ranges()))
        again = render(sample_scene(5, index, ranges=tumbling()))
        clip = render(scene)
        assert torch.equal(clip.frames, again.frames) and torch.equal(clip.truth.position, again.truth.position)  # type: ignore[union-attr]
        if scene.rejections == plain.rejections:
            assert (scene.shape, scene.half_size, scene.origin[0]) == (plain.shape, plain.half_size, plain.origin[0])
            assert scene.object_surface == plain.object_surface and scene.caption == plain.caption


@with_engine
@pytest.mark.parametrize("primitive", ["ramp_down", "roll_down"])
def test_at_the_foot_of_a_ramp_it_comes_to_the_floor_and_goes_on(primitive: str) -> None:
    ranges, landed = tumbling(num_frames=33, may_leave=True), 0
    for index in range(8):
        scene = sample_scene(3, index, primitive=primitive, ranges=ranges)
        if "land" in scene.events:
            landed += 1
            assert scene.wedge is not None
            beyond_foot = (scene.centres()[-1, 0] - scene.wedge.foot_x) * scene.wedge.uphill
            assert beyond_foot < scene.half_size[0]
            assert scene.tumbling is not None and not gains_energy(scene)
    assert landed > 3


def test_angles_and_rotations_are_the_same_thing() -> None:
    turned = Rotation.random(200, random_state=4).as_matrix()
    assert np.allclose(rotations(angles_of(turned)), turned, atol=1e-9)


def test_what_is_not_offered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Stones need world.after_contact=tumble"):
        sample_scene(0, 0, ranges=tumbling(stones=True, after_contact="slide"))
    with pytest.raises(InputError, match="imperfect"):
        sample_scene(0, 0, imperfect=0.5, ranges=tumbling())
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(MissingExtra, match=r"newtonrewards\[tumble\]"):
        sample_scene(0, 0, primitive="free_fall", ranges=tumbling())
