"""Wrong physics on purpose, for the imperfect clips that a base model is pre-trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from newtonrewards.simulation.motions import straight_line, trajectory

if TYPE_CHECKING:
    from newtonrewards.simulation.scene import Scene

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Wobble:
    """Smooth wrong motion: sines of these amplitudes (m) and frequencies (Hz), eased in from zero."""

    amplitude: tuple[float, float]
    frequency: tuple[float, float]
    phase: tuple[float, float]

    def offset(self, times: Array) -> Array:
        ease = 1 - np.exp(-times / 0.12)
        waves = [
            a * ease * (np.sin(2 * np.pi * f * times + p) - np.sin(p))
            for a, f, p in zip(self.amplitude, self.frequency, self.phase, strict=True)
        ]
        return np.stack(waves, axis=1)


def spoilt(rng: np.random.Generator, scene: Scene) -> Scene:
    """Wrong physics on purpose: gravity scaled by .45 to 2, or constant speed, or a smooth wobble on either."""
    kind = str(rng.choice(["factor", "constant_speed", "wobble"], p=[0.6, 0.2, 0.2]))
    factor = math.exp(rng.uniform(math.log(0.45), math.log(2.0)))
    wrong = trajectory(scene.primitive, scene.parameters, factor)
    if kind == "constant_speed":
        wrong = straight_line(scene.trajectory, scene.times[-1])
    wobble = None
    if kind == "wobble":
        metres = 2.0 / 64 * scene.view_m  # up to about two pixels of the embedded world
        amplitude, frequency, phase = (
            (float(x), float(y))
            for x, y in (rng.uniform(0.3, 1.0, 2) * metres, rng.uniform(1.5, 4.0, 2), rng.uniform(0, 2 * math.pi, 2))
        )
        wobble = Wobble(amplitude, frequency, phase)
    return replace(scene, trajectory=wrong, wobble=wobble, imperfection=kind)
