"""What an object and its surroundings look like: sizes, colours and light, drawn at random."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from newtonrewards.core.errors import InputError
from newtonrewards.simulation.motions import RAMPS, ROLLING
from newtonrewards.simulation.ranges import MaterialRanges
from newtonrewards.simulation.shapes import SHAPES, STONE
from newtonrewards.simulation.solids import STONES

# Ramp bodies must slide: a round one rolls with 5/7 g sin th (docs/physics.md §8).
ROLLING_SHAPES = ("sphere",)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface shines: `roughness` from 0, a mirror, to 1; `metallic` 0 or 1, or between. As Blender has them."""

    name: str
    roughness: float
    metallic: float

    @property
    def sharpness(self) -> float:
        """Exponent of a Blinn-Phong highlight as wide as a microfacet one: 2 / roughness^4 - 2 (B. Karis, Specular BRDF
        Reference, 2013), at least 1.
        """
        return max(1.0, 2 / max(self.roughness, 0.1) ** 4 - 2)


@dataclass(frozen=True)
class Surface:
    """A texture family with its two colours; `frequency` in periods per metre (background) or per half size
    (object). Without a material it is paint: no highlight in the fast tier, the same for all in the photo tier.
    """

    texture: str
    colours: tuple[Colour, Colour]
    frequency: float
    seed: int
    material: Material | None = None

    @property
    def name(self) -> str:
        return f"{self.texture}-{self.seed:05x}"


def material(limits: Mapping[str, MaterialRanges], seed: int) -> Material | None:
    """One of several materials, or None where there are none."""
    if not limits:
        return None
    rng = np.random.default_rng(seed)
    name = str(rng.choice(sorted(limits)))
    return Material(name, float(rng.uniform(*limits[name].roughness)), float(rng.uniform(*limits[name].metallic)))


def fit_shapes(known: Sequence[str], primitive: str, after_contact: str) -> list[str]:
    """Those that a motion is fit for: what slides on a ramp has a flat side, and no stone lies as it fell."""
    if primitive in ROLLING:
        return list(ROLLING_SHAPES)
    unfit = {*ROLLING_SHAPES} if primitive in RAMPS else set()
    if primitive in RAMPS or after_contact != "tumble":
        unfit |= {shape for shape in SHAPES if SHAPES[shape] >= STONE}
    fit = [shape for shape in known if shape not in unfit]
    if not fit:
        raise InputError(
            f"no shape of {list(known)} is fit for {primitive}",
            where="assets",
            fix="Stones need world.after_contact=tumble, and neither they nor balls slide down a ramp.",
        )
    return fit


def half_size(rng: np.random.Generator, shape: str, size: float) -> tuple[float, float, float]:
    """Half extents (m) along the object's own axes; y is the one that points away from the surface it rests on."""
    if shape == "sphere":
        return size, size, size
    if shape.startswith("stone"):
        x, y, z = np.abs(STONES[SHAPES[shape] - STONE]).max(0) * size
        return float(x), float(y), float(z)
    if shape == "capsule":  # lies along x, so that it slides and doesn't roll
        return size * 1.15, size * 0.72, size * 0.72
    flatness = rng.uniform(0.65, 0.95)
    return size * 0.92, size * flatness * 0.92, size * 0.92


def colours(
    rng: np.random.Generator,
) -> tuple[tuple[Colour, Colour], tuple[Colour, Colour], tuple[Colour, Colour], tuple[Colour, Colour]]:
    """Wall, floor, ramp and object; the object is saturated and stands off from the muted background in hue or
    lightness.
    """
    hue = rng.random()
    wall = _pair(rng, hue, (0.08, 0.35), (0.65, 0.95), 0.14)
    floor = _pair(rng, (hue + rng.uniform(-0.15, 0.15)) % 1, (0.08, 0.35), (0.45, 0.7), 0.12)
    ramp = _pair(rng, rng.random(), (0.1, 0.4), (0.5, 0.85), 0.10)
    away = (hue + rng.uniform(0.25, 0.75)) % 1
    first = colorsys.hsv_to_rgb(away, rng.uniform(0.65, 0.95), rng.uniform(0.8, 1.0))
    second = colorsys.hsv_to_rgb((away + rng.uniform(-0.12, 0.12)) % 1, rng.uniform(0.5, 0.95), rng.uniform(0.45, 0.65))
    return wall, floor, ramp, (first, second)


def _pair(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float], spread: float
) -> tuple[Colour, Colour]:
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    return colorsys.hsv_to_rgb(hue, s, v), colorsys.hsv_to_rgb(hue, s, max(0.0, v - rng.uniform(0.5, 1.0) * spread))


def light(rng: np.random.Generator) -> tuple[float, float, float]:
    """Unit vector to the light: from above, a little from the side and the front, so that shadows stay on floor
    and ramp.
    """
    x, z = rng.uniform(-0.3, 0.3), rng.uniform(-0.4, -0.2)
    norm = math.sqrt(x * x + 1 + z * z)
    return x / norm, 1 / norm, z / norm
