"""The terms of a reward: penalties of what was observed, one number per clip, each in its own unit.

A term is a function of an `Observation` and a line in `TERMS`; docs/rewards.md adds one as an example.
Letters: B clips.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from newtonrewards.rewards import imitation, kinematics, mass
from newtonrewards.rewards.observation import Observation, Support


def _each_track(
    residual: Callable[[Tensor, Tensor, Tensor], Tensor], observation: Observation, name: Support
) -> Float[Tensor, "B"]:
    """A residual of every track, averaged over the tracks of a clip."""
    tracks = observation.tracks(name)
    count = tracks.shape[1]
    valid = kinematics.valid_velocities(observation.valid).repeat_interleave(count, 0)
    each = residual(tracks.flatten(0, 1), valid, observation.clips.fps.repeat_interleave(count))
    return each.unflatten(0, (-1, count)).mean(1)


def second_difference(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Mean square second difference of object velocity, (H/s)^2, >= 0; see `kinematics.second_difference`."""
    return _each_track(lambda velocity, valid, _: kinematics.second_difference(velocity, valid), observation, name)


def line_fit(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Mean square distance of object velocity from its least-squares line, (H/s)^2, >= 0; see `kinematics.fit`."""
    return _each_track(lambda velocity, valid, fps: kinematics.fit(velocity, valid, fps).residual, observation, name)


def centroid(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Mean square second difference of the velocity of the object's centroid, (H/s)^2, >= 0. The support plays no role:
    the object is found by colour, wherever it is. A jump that is too far for the flow can't hide from it."""
    velocity = kinematics.step_velocity(kinematics.centroid(observation.object_mask), observation.clips.fps)
    return kinematics.second_difference(velocity, kinematics.valid_velocities(observation.valid))


def acceleration(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Squared error of the fitted acceleration against the reference's, (H/s^2)^2, >= 0; see
    `kinematics.acceleration_error`.

    Both are measured by the same instrument, so that its bias cancels.
    """
    valid = kinematics.valid_velocities(observation.valid)
    own, reference = _line(observation, name), _paired(observation)
    other = kinematics.fit(reference.velocity(name), valid, reference.clips.fps)
    return kinematics.acceleration_error(own.acceleration, other.acceleration)


def gravity(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """(g_eff - 1)^2 where the law's acceleration is known (`ClipBatch.law`); see `kinematics.gravity_error`."""
    return kinematics.gravity_error(_line(observation, name).acceleration, observation.law)


def downwards(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """For falls and throws: what of the acceleration doesn't point down; see `kinematics.downwards_error`."""
    return kinematics.downwards_error(_line(observation, name).acceleration)


def along_the_way(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """For ramps: what of the acceleration doesn't lie along the way; see `kinematics.across_error`."""
    line = _line(observation, name)
    return kinematics.across_error(line.acceleration, line.mean)


def _line(observation: Observation, name: Support) -> kinematics.LineFit:
    valid = kinematics.valid_velocities(observation.valid)
    return kinematics.fit(observation.velocity(name), valid, observation.clips.fps)


def velocity(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Mean square difference of object velocity and the reference's over valid velocities, (H/s)^2, >= 0: imitation,
    not the paper's."""
    valid = kinematics.valid_velocities(observation.valid)
    return kinematics.velocity_error(observation.velocity(name), _paired(observation).velocity(name), valid)


def mass_paired(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """1 - cos of feature maps against the reference's, in [0, 2]; see `mass.paired`. The support plays no role."""
    return mass.paired(observation.features, _paired(observation).features)


def mass_conserved(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """1 - cos of object features against frame 0, in [0, 2]; see `mass.conserved`."""
    features, weights = observation.features[:, :-1], observation.support(name)
    size = (features.shape[-2], features.shape[-1])
    return mass.conserved(mass.pool(features, mass.to_grid(weights, size)), observation.valid[:, :-1])


def mass_area(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """|log| of the object's area against frame 0, >= 0; see `mass.area`. The support plays no role: the object is found
    by colour."""
    return mass.area(observation.object_mask, observation.valid)


def imitate_flow(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Flow against the paired clip's, H/s, >= 0; see `imitation.flow_error`. The support plays no role."""
    return imitation.flow_error(observation.flow, _paired(observation).flow, observation.clips.fps)


def imitate_mask(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """1 - soft IoU of the object's mask with the paired clip's, in [0, 1]; see `imitation.mask_error`. PISA's masks are
    those of SAM 2, ours are found by colour. The support plays no role."""
    return imitation.mask_error(observation.object_mask, _paired(observation).object_mask)


def imitate_depth(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Squared difference of depth and the paired clip's, shares of each frame's range, in [0, 1]; see
    `imitation.depth_error`. The support plays no role."""
    return imitation.depth_error(observation.depth, _paired(observation).depth)


def _paired(observation: Observation) -> Observation:
    assert observation.reference is not None, "Reward.__call__ checks `needs`"
    return observation.reference


Need = Literal["flow", "features", "depth", "reference", "law"]


@dataclass(frozen=True)
class Term:
    """A penalty: a function of what was observed, under a support, with one number per clip.

    Attributes:
        fn: (Observation, support) -> (B,), >= 0, lower is better; NaN: can't be measured on this clip.
        unit: of that number.
        source: where the formula comes from.
        needs: what it looks at.
        differentiable: whether the gradient reaches the pixels.
        imitates: it is one of PISA's, and can be had with their range of pixels (`TermConfig.pixel_range`).
    """

    fn: Callable[[Observation, Support], Float[Tensor, "B"]]
    unit: str
    source: str
    needs: frozenset[Need]
    differentiable: bool = True
    imitates: bool = False


def term(
    *, unit: str, needs: Iterable[Need], source: str = "one's own", differentiable: bool = True
) -> Callable[[Callable[[Observation, Support], Tensor]], Term]:
    """Decorator: makes a function of (observation, support) a term that a recipe can name as `package.module:name`."""

    def made(fn: Callable[[Observation, Support], Tensor]) -> Term:
        return Term(fn, unit, source, frozenset(needs), differentiable)

    return made


def find_term(name: str) -> Term:
    """A term by its name in `TERMS`, or by `package.module:name` where Python finds it.

    Raises:
        ValueError: no such term; a recipe's reader turns it into a RecipeError.
    """
    if name in TERMS:
        return TERMS[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.0)
        raise ValueError(f"unknown term '{name}'. Did you mean '{near[0]}'?")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"term '{name}': can't import '{module}' ({error})") from None
    if not isinstance(found, Term):
        raise ValueError(f"term '{name}': '{attribute}' in '{module}' is no term; decorate it with rewards.terms.term")
    return found


TERMS: dict[str, Term] = {
    "kinematic/second_difference": Term(second_difference, "(H/s)^2", "physics.md §3, ours", frozenset({"flow"})),
    "kinematic/fit": Term(line_fit, "(H/s)^2", "physics.md §3, ours", frozenset({"flow"})),
    "kinematic/centroid": Term(centroid, "(H/s)^2", "ours", frozenset()),
    "kinematic/acceleration": Term(acceleration, "(H/s^2)^2", "ours", frozenset({"flow", "reference"})),
    "kinematic/velocity": Term(velocity, "(H/s)^2", "ours, imitation", frozenset({"flow", "reference"})),
    "kinematic/gravity": Term(gravity, "1", "physics.md §6, ours", frozenset({"flow", "law"})),
    "kinematic/downwards": Term(downwards, "(H/s^2)^2", "physics.md §8, ours", frozenset({"flow"})),
    "kinematic/along_the_way": Term(along_the_way, "(H/s^2)^2", "physics.md §8, ours", frozenset({"flow"})),
    "mass/paired": Term(mass_paired, "1 - cos", "physics.md §4, ours", frozenset({"features", "reference"})),
    "mass/conserved": Term(mass_conserved, "1 - cos", "physics.md §4, ours", frozenset({"flow", "features"})),
    "mass/area": Term(mass_area, "|log ratio|", "physics.md §4, ours", frozenset()),
    "imitation/flow": Term(
        imitate_flow, "H/s", "PISA's ORO, unit ours", frozenset({"flow", "reference"}), imitates=True
    ),
    "imitation/mask": Term(imitate_mask, "1 - IoU", "PISA's ORO, masks ours", frozenset({"reference"}), imitates=True),
    "imitation/depth": Term(
        imitate_depth, "share^2", "PISA's ORO, scale ours", frozenset({"depth", "reference"}), imitates=True
    ),
}
# Those that the networks every reward has can measure; depth takes one more.
STANDARD = tuple(name for name, term in TERMS.items() if "depth" not in term.needs)
