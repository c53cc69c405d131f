"""What goes less far than it is wide is followed by its looks: to .05 px, and wherever it jumps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from newtonrewards.eval.look import Seen
from newtonrewards.eval.match import matched
from newtonrewards.eval.measure import Flow, measure_clip
from newtonrewards.eval.tracks import centroid
from newtonrewards.rewards.classical import DisFlow
from newtonrewards.simulation.corrupt import corrupt
from newtonrewards.simulation.ranges import default_ranges
from newtonrewards.simulation.scene import sample_scene

FRAMES, HEIGHT, WIDTH, DIAMETER = 16, 96, 192, 36


def texture(rng: np.random.Generator) -> np.ndarray:
    return 0.5 + 2.5 * ndimage.gaussian_filter(rng.normal(size=(HEIGHT, WIDTH, 3)), (4, 4, 0))


def filmed(path: np.ndarray, present: np.ndarray | None = None, growth: float = 0.0) -> np.ndarray:
    """Frames (T, H, W, 3) of a disc with a texture, its centre on `path` (T, 2), px, before another texture; log of the
    size at the end over that at the start is `growth`."""
    rng = np.random.default_rng(3)
    back, own = texture(rng), texture(rng)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    frames = []
    for t, (cx, cy) in enumerate(path):
        size = np.exp(growth * t / (len(path) - 1))
        away = np.hypot(x - cx, y - cy)
        alpha = np.clip(size * DIAMETER / 2 - away + 0.5, 0, 1)[..., None]
        if present is not None and not present[t]:
            alpha = 0 * alpha
        here = [(y - cy) / size + HEIGHT / 2, (x - cx) / size + WIDTH / 2]
        moved = np.stack([ndimage.map_coordinates(own[..., c], here, order=3, mode="reflect") for c in range(3)], -1)
        frames.append(alpha * moved + (1 - alpha) * back)
    return np.clip(np.array(frames), 0, 1).astype(np.float32)


def seen(frames: np.ndarray) -> Seen:
    flow = DisFlow()(torch.from_numpy(frames).permute(0, 3, 1, 2)[None])
    box = (slice(0, HEIGHT), slice(0, WIDTH))
    return Seen(frames.shape[:3], slice(0, len(frames)), box, {"DIS flow": flow}, torch.zeros(1, 1, 1, 1, 1), None)


def slide(way: float) -> np.ndarray:
    """From rest with constant acceleration, `way` px in all, down to the right."""
    time = np.arange(FRAMES) / (FRAMES - 1)
    return np.array([45.0, 40.0]) + way * time[:, None] ** 2 * np.array([0.9, 0.436])


def places(path: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    frames = filmed(path, present)
    masks = matched(frames, seen(frames))
    assert masks is not None and masks.shape == frames.shape[:3]
    return centroid(masks)[0] * HEIGHT


def test_a_slide_shorter_than_the_object_is_measured() -> None:
    path = slide(0.7 * DIAMETER)
    off = np.diff(places(path), axis=0) - np.diff(path, axis=0)
    assert np.sqrt((off**2).sum(axis=1).mean()) < 0.05


def test_a_jump_is_seen_as_it_is() -> None:
    path = slide(0.5 * DIAMETER)
    path[9:] += np.array([-7.0, 9.0])
    off = np.diff(places(path), axis=0) - np.diff(path, axis=0)
    assert np.linalg.norm(off, axis=1).max() < 0.08 * np.linalg.norm([7.0, 9.0])


@pytest.mark.parametrize("growth", [-0.5, -0.15, 0.5])
def test_growth_is_measured_and_moves_nothing(growth: float) -> None:
    path = slide(0.7 * DIAMETER)
    frames = filmed(path, growth=growth)
    masks = matched(frames, seen(frames))
    assert masks is not None
    areas = masks.sum(axis=(1, 2))
    assert np.log(areas[-1] / areas[0]) == pytest.approx(2 * growth, rel=0.1, abs=0.08)
    off = np.diff(centroid(masks)[0] * HEIGHT, axis=0) - np.diff(path, axis=0)
    assert np.sqrt((off**2).sum(axis=1).mean()) < 0.15


def test_frames_without_it_are_empty() -> None:
    path, present = slide(0.7 * DIAMETER), np.arange(FRAMES) != 5
    assert np.array_equal(np.isfinite(places(path, present)).all(axis=1), present)


@pytest.mark.parametrize("way", [0.0, 3.5 * DIAMETER])
def test_what_rests_or_goes_far_is_left_to_others(way: float) -> None:
    path = slide(way) if way == 0 else np.linspace([30.0, 40.0], [30.0 + way, 50.0], FRAMES)
    frames = filmed(path)
    assert matched(frames, seen(frames)) is None


def test_what_grows_as_it_slides_is_blamed(flow: Flow) -> None:
    """Its silhouettes are its edges and follow a law, so only its looks tell."""
    ranges = default_ranges()
    world = {"size_px": 256, "num_frames": 33, "capture_fps": 40.0}
    ranges = ranges.model_copy(update={"world": ranges.world.model_copy(update=world)})
    scene = sample_scene(31, 8, split="val", ranges=ranges)
    right, wrong = (measure_clip(corrupt(scene, "grow", s), None, flow, "ramp").score for s in (0.0, 1.0))
    assert right.verdict == "lawful"
    assert right.area_change == pytest.approx(0.0, abs=0.05)
    assert wrong.verdict == "unlawful"
    assert any("grows" in reason for reason in wrong.reasons)
