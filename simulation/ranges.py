"""Reads `ranges.yaml`: the only place that holds the ranges of the world."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config, load

SHIFTS = ("id", "ood_height", "ood_speed", "ood_friction", "ood_all")
SPLITS = ("train", "val", "test")
Range = tuple[float, float]


class World(Config):
    """What is drawn for every motion; those with a default are off in it.

    `spin_rad_s` turns objects in flight about the line of sight, either way; `camera_yaw_deg` and `camera_pitch_deg`
    move the camera to the left (right where negative) and up around the middle of the view; `restitution` lets objects
    bounce. `bystanders` is the number of further objects. `may_leave` keeps clips whose object leaves the view, which
    else are drawn again, with an event of its own. `after_contact` is how an object goes on that has landed: it slides
    as it fell, or tumbles by a rigid-body engine, which is an extra. `targets` is the number of things that stand in
    its way there. `materials` are names of `Ranges.materials`, of which each object is made of one; none: all are
    painted alike.
    """

    size_px: int
    num_frames: int
    capture_fps: float
    playback_fps: float
    view_m: Range
    floor_margin_m: float
    camera_distance_m: float
    wall_m: float
    half_size_m: Range
    spin_rad_s: Range = (0.0, 0.0)
    camera_yaw_deg: Range = (0.0, 0.0)
    camera_pitch_deg: Range = (0.0, 0.0)
    restitution: Range = (0.0, 0.0)
    bystanders: int = Field(0, ge=0, le=8)
    may_leave: bool = False
    after_contact: Literal["slide", "tumble"] = "slide"
    targets: int = Field(0, ge=0, le=3)
    materials: tuple[str, ...] = ()


class Quantities(Config):
    """Ranges of the quantities that a shift sets; None: not one of this motion."""

    height_m: Range | None = None
    speed_mps: Range | None = None
    angle_deg: Range | None = None
    incline_deg: Range | None = None
    friction: Range | None = None


class Assets(Config):
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    walls: tuple[str, ...]
    environments: tuple[str, ...] = ()  # of the photo tier; none: those of the default ranges


class Bystanders(Config):
    """What further objects are drawn from: size, distance behind the plane of motion, and motions."""

    half_size_m: Range
    depth_m: Range
    motions: dict[Literal["still", "slide", "free_fall", "horizontal_throw"], Quantities]


class MaterialRanges(Config):
    """See `looks.Material`."""

    roughness: Range
    metallic: Range = (0.0, 0.0)


class Tumble(Config):
    """What objects that tumble have beside: the angle at which they are let go; friction where a motion has none."""

    tilt_deg: Range
    friction: Range


class Ranges(Config):
    version: int
    world: World
    primitives: dict[str, dict[str, Quantities]]
    assets: dict[str, Assets]
    bystanders: Bystanders | None = None  # None: those of the default ranges
    materials: dict[str, MaterialRanges] | None = None  # the same
    tumble: Tumble | None = None  # the same


@cache
def default_ranges() -> Ranges:
    return load(Ranges, Path(__file__).with_name("ranges.yaml"))


def materials_of(ranges: Ranges) -> dict[str, MaterialRanges]:
    """The materials that the world asks for, by name.

    Raises:
        InputError: one that the ranges don't have.
    """
    known = ranges.materials or default_ranges().materials
    assert known is not None, "the shipped ranges have them"
    unknown = [name for name in ranges.world.materials if name not in known]
    if unknown:
        raise InputError(
            f"unknown materials {unknown}", where="world.materials", fix=f"Choose from {', '.join(known)}."
        )
    return {name: known[name] for name in ranges.world.materials}


def tumble_of(ranges: Ranges) -> Tumble:
    found = ranges.tumble or default_ranges().tumble
    assert found is not None, "the shipped ranges have it"
    return found


def bystanders_of(ranges: Ranges) -> Bystanders:
    found = ranges.bystanders or default_ranges().bystanders
    assert found is not None, "the shipped ranges have them"
    return found


def shifts_of(primitive: str, ranges: Ranges | None = None) -> tuple[str, ...]:
    """The shifts that exist for a motion: `id`, its own, and `ood_all` where it has more than one."""
    own = tuple((ranges or default_ranges()).primitives[primitive])
    return (*own, "ood_all") if len(own) > 2 else own


def quantities(primitive: str, shift: str, ranges: Ranges | None = None) -> dict[str, Range]:
    """Range of each quantity of a motion under a shift.

    Raises:
        InputError: unknown motion, or a shift that this motion doesn't have.
    """
    ranges = ranges or default_ranges()
    if primitive not in ranges.primitives:
        raise InputError(f"unknown motion '{primitive}'", fix=f"Use one of {', '.join(ranges.primitives)}.")
    table = ranges.primitives[primitive]
    known = shifts_of(primitive, ranges)
    if shift not in known:
        raise InputError(f"{primitive} has no shift '{shift}'", fix=f"Use one of {', '.join(known)}.")
    chosen = {name: value for name, value in table["id"] if value is not None}
    shifted = [name for name in table if name != "id"] if shift == "ood_all" else [shift]
    for name in shifted:
        chosen |= {key: value for key, value in table[name] if value is not None}
    return chosen
