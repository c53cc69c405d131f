"""What is off in the default world, each drawn from a stream of its own: nothing else of a scene depends on it."""

from __future__ import annotations

import math

import numpy as np

from newtonrewards.core.run import stream_seed
from newtonrewards.simulation import looks
from newtonrewards.simulation.looks import Material
from newtonrewards.simulation.ranges import Range, Ranges, default_ranges, materials_of

Key = tuple[int, int]  # seed of the data set, number of the clip


def quantity(limits: Range, key: Key, split: str, name: str) -> float:
    return float(np.random.default_rng(stream_seed(key[0], 0, key[1], f"{name}/{split}")).uniform(*limits))


def environment(ranges: Ranges, key: Key, split: str) -> tuple[str, float]:
    """A light of the split's own, turned to any side."""
    part = "test" if split == "test" else "train"
    names = ranges.assets[part].environments or default_ranges().assets[part].environments
    rng = np.random.default_rng(stream_seed(key[0], 0, key[1], f"environment/{split}"))
    return str(rng.choice(names)), float(rng.uniform(0, 2 * math.pi))


def material(ranges: Ranges, key: Key, split: str) -> Material | None:
    return looks.material(materials_of(ranges), stream_seed(key[0], 0, key[1], f"material/{split}"))


def spin(limits: Range, key: Key, split: str) -> float:
    """Turning speed, rad/s, either way."""
    rng = np.random.default_rng(stream_seed(key[0], 0, key[1], f"spin/{split}"))
    return float(rng.uniform(*limits) * rng.choice([-1.0, 1.0]))
