"""The world as the reward sees it: perfect motion of all five kinds costs next to nothing, and each way of being wrong
costs, through the term that must catch it.

Clips are rendered by the simulator from a scene whose object is moved, so that the flow of the wrong motion is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from newtonrewards.core.clip import Clip, ClipBatch
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.observation import Networks, Observation, Support
from newtonrewards.rewards.reward import Reward, RewardConfig, RewardOutput
from newtonrewards.rewards.terms import STANDARD, TERMS
from newtonrewards.simulation.motions import PRIMITIVES
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene

Array = NDArray[np.float64]
PX = 64.0  # frame height
RATE = 20.0  # frames per second
# One px/frame in H/s, squared: what residuals are measured in.
PX2 = (RATE / PX) ** 2


@dataclass(frozen=True)
class MovedScene(Scene):
    """A scene whose object is somewhere else: `offset` (T, 2) metres is added to its centres."""

    offset: Array | None = None

    def centres(self) -> Array:
        return super().centres() + (0.0 if self.offset is None else self.offset)


def moved(scene: Scene, offset: Array) -> Clip:
    return render(MovedScene(**{field.name: getattr(scene, field.name) for field in fields(scene)}, offset=offset))


def scenes() -> list[Scene]:
    """One of each motion, in order of `PRIMITIVES`."""
    return [sample_scene(11, index, split="val", primitive=name) for index, name in enumerate(PRIMITIVES)]


def px(scene: Scene) -> float:
    """Metres in one pixel of the plane of motion."""
    return scene.view_m / PX


def jitter(scene: Scene) -> Clip:
    noise = np.random.default_rng(scene.index).normal(size=(scene.num_frames, 2)) * px(scene)
    noise[0] = 0
    return moved(scene, noise)


def wobble(scene: Scene) -> Clip:
    wave = 2 * px(scene) * np.sin(2 * np.pi * 1.7 * scene.times)
    return moved(scene, np.stack([wave, np.zeros_like(wave)], 1))


def teleport(scene: Scene) -> Clip:
    jump = np.zeros((scene.num_frames, 2))
    jump[4:, 0] = 5 * px(scene)
    return moved(scene, jump)


def far_teleport(scene: Scene) -> Clip:
    """Too far for the flow."""
    jump = np.zeros((scene.num_frames, 2))
    way = np.sign(0.5 - scene.camera.to_image(scene.centres()[4:5])[0, 0])  # where there is room
    jump[4:, 0] = way * 20 * px(scene)
    return moved(scene, jump)


def freeze(scene: Scene) -> Clip:
    return moved(scene, scene.centres()[:1] - scene.centres())


def wrong_gravity(scene: Scene) -> Clip:
    """Half the acceleration from the same start."""
    _, _, acceleration = scene.trajectory.at(np.zeros(1))
    return moved(scene, -0.5 * acceleration * scene.times[:, None] ** 2 / 2)


def without_object(scene: Scene) -> Tensor:
    """(3, H, W) the empty scene."""
    return moved(scene, np.full((scene.num_frames, 2), 1e3)).frames[0]


def fade(scene: Scene) -> Clip:
    clip = render(scene)
    alpha = torch.linspace(1, 0.2, clip.num_frames)[:, None, None, None]
    return replace(clip, frames=alpha * clip.frames + (1 - alpha) * without_object(scene))


def vanish(scene: Scene) -> Clip:
    clip = render(scene)
    gone = torch.arange(clip.num_frames)[:, None, None, None] >= 4
    return replace(clip, frames=torch.where(gone, without_object(scene), clip.frames))


def growth(scene: Scene) -> Clip:
    """The object's sides grow by 5 % per frame in the first eight frames."""
    clip = render(scene)
    sizes = [1 + 0.05 * min(time, 8) for time in range(clip.num_frames)]
    large = [render(replace(scene, half_size=tuple(side * size for side in scene.half_size))) for size in sizes]
    return replace(clip, frames=torch.stack([big.frames[time] for time, big in enumerate(large)]))


def perfect(scene: Scene) -> Clip:
    return render(scene)


def batch(damage: Callable[[Scene], Clip]) -> ClipBatch:
    return ClipBatch.stack([damage(scene) for scene in scenes()])


@pytest.fixture(scope="module")
def reference() -> ClipBatch:
    return batch(perfect)


@pytest.fixture(scope="module")
def reward() -> Reward:
    """All terms at the default support, with the shipped networks."""
    flow = load_flow(FlowConfig(num_flow_updates=3))
    config = RewardConfig.model_validate({"terms": {name: {} for name in STANDARD}})
    return Reward(config, Networks(flow, FlowFeatures(flow)))


@pytest.fixture(scope="module")
def best(reward: Reward, reference: ClipBatch) -> RewardOutput:
    with torch.no_grad():
        return reward(reference.with_frames(reference.frames), reference)


def exact(damage: Callable[[Scene], Clip], name: str, support: Support, reference: ClipBatch) -> Tensor:
    """A term of the damaged clips with their exact flow instead of a network's; valid frames as in the reference."""
    made = [damage(scene) for scene in scenes()]
    paired = []
    for clips in (made, [render(scene) for scene in scenes()]):
        seen = Observation(replace(ClipBatch.stack(clips), valid=reference.valid), Networks(_unused, _unused), None)
        seen.flow = torch.stack([clip.truth.flow for clip in clips if clip.truth and clip.truth.flow is not None])
        paired.append(seen)
    paired[0].reference = paired[1]
    return TERMS[name].fn(paired[0], support)


def _unused(frames: Tensor) -> Tensor:
    raise AssertionError("the flow is given")


@pytest.mark.parametrize(
    ("support", "noise_px"), [("mask", 0.05), ("advected", 0.05), ("carried", 0.15), ("colour", 0.05)]
)
def test_perfect_motion_has_almost_no_residual_in_its_exact_flow(
    support: Support, noise_px: float, reference: ClipBatch
) -> None:
    """Free fall, two throws, and both ramps up to their turn. `carried` lags: its edge reads the background."""
    for name in ("kinematic/second_difference", "kinematic/fit"):
        assert (exact(perfect, name, support, reference) < noise_px**2 * PX2).all()
    assert (exact(perfect, "kinematic/acceleration", support, reference) == 0).all()


def test_on_the_fixed_grid_of_pixels_perfect_motion_is_punished(reference: ClipBatch) -> None:
    """Why the `pixel` support is an ablation only."""
    eulerian = exact(perfect, "kinematic/second_difference", "pixel", reference)
    assert (eulerian > 30 * exact(perfect, "kinematic/second_difference", "mask", reference)).all()


@pytest.mark.parametrize(("damage", "name"), [
    (jitter, "kinematic/second_difference"),
    (teleport, "kinematic/second_difference"),
    (wobble, "kinematic/fit"),
])  # fmt: skip
def test_wrong_motion_has_a_residual_in_its_exact_flow(
    damage: Callable[[Scene], Clip], name: str, reference: ClipBatch
) -> None:
    assert (exact(damage, name, "mask", reference) > 20 * exact(perfect, name, "mask", reference)).all()


@pytest.mark.parametrize("damage", [freeze, wrong_gravity])
def test_no_residual_sees_a_frozen_object_or_a_wrong_gravity_but_the_acceleration_does(
    damage: Callable[[Scene], Clip], reference: ClipBatch
) -> None:
    assert (exact(damage, "kinematic/second_difference", "mask", reference) < 0.05**2 * PX2).all()
    assert (exact(damage, "kinematic/acceleration", "mask", reference) > 0.02).all()


CAUGHT = [
    (jitter, "kinematic/second_difference", 3.0),
    (teleport, "kinematic/second_difference", 3.0),
    (wobble, "kinematic/fit", 3.0),
    (jitter, "kinematic/centroid", 3.0),
    (far_teleport, "kinematic/centroid", 100.0),
    (freeze, "kinematic/acceleration", 3.0),
    (wrong_gravity, "kinematic/acceleration", 3.0),
    (wrong_gravity, "kinematic/gravity", 3.0),
    (freeze, "kinematic/gravity", 3.0),
    (freeze, "imitation/flow", 3.0),
    (teleport, "imitation/mask", 3.0),
    (freeze, "mass/paired", 3.0),
    (fade, "mass/conserved", 2.0),
    (fade, "mass/area", 2.0),
    (growth, "mass/area", 2.0),
    (vanish, "mass/area", 4.0),
    (vanish, "mass/paired", 3.0),
]


@pytest.mark.weights
@pytest.mark.parametrize(("damage", "name", "factor"), CAUGHT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_trick_is_caught_by_its_term_through_the_networks(
    damage: Callable[[Scene], Clip], name: str, factor: float, reward: Reward, best: RewardOutput, reference: ClipBatch
) -> None:
    with torch.no_grad():
        out = reward(reference.with_frames(batch(damage).frames), reference)
    floor = FLOOR[name]
    assert (out.raw[name] > best.raw[name]).all()
    assert out.raw[name].mean() > factor * best.raw[name].mean() + floor


# What each term must exceed at least on a trick, besides a multiple of what perfect clips score.
FLOOR = {
    "kinematic/second_difference": 0.1 * PX2,
    "kinematic/fit": 0.02 * PX2,
    "kinematic/centroid": 0.1 * PX2,
    "kinematic/acceleration": 0.1,
    "kinematic/gravity": 0.1,
    "imitation/flow": 0.001,
    "imitation/mask": 0.1,
    "mass/paired": 0.002,
    "mass/conserved": 0.005,
    "mass/area": 0.05,
}


@pytest.mark.weights
def test_perfect_clips_cost_next_to_nothing_through_the_networks(best: RewardOutput) -> None:
    assert best.raw["kinematic/second_difference"].mean() < 0.15 * PX2
    assert best.raw["kinematic/fit"].mean() < 0.05 * PX2
    assert best.raw["mass/paired"].max() < 1e-6
    assert best.raw["mass/area"].mean() < 0.08
    assert all(value.sum() == 0 for value in best.unmeasured.values())


@pytest.mark.weights
def test_the_sentinels_ring(reward: Reward, best: RewardOutput, reference: ClipBatch) -> None:
    with torch.no_grad():
        rung = {
            damage.__name__: reward(reference.with_frames(batch(damage).frames), reference).sentinels
            for damage in (freeze, vanish, growth)
        }
    assert best.sentinels["motion_energy"].tolist() == pytest.approx([1] * 5)
    assert (best.sentinels["presence"] == 1).all()
    assert (rung["freeze"]["motion_energy"] < 0.1).all()
    assert (rung["vanish"]["presence"] < 0.4).all()
    assert (rung["growth"]["area_ratio"] > 1.3).all()
