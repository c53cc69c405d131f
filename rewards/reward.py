"""The reward: frozen networks look at clips once, terms turn what they saw into penalties, the weighted sum with the
sign flipped is the reward.

Letters: B clips, T frames, N = T - 1 pairs of frames. A term's NaN on a clip means "can't be measured": it adds nothing
    to the total of that clip and is counted in `unmeasured`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config
from newtonrewards.rewards import kinematics, mass, sentinels, support, window
from newtonrewards.rewards.appearance import AppearanceConfig, AppearanceEncoder, FlowFeatures, load_appearance
from newtonrewards.rewards.flow import FlowConfig, FlowEstimator, load_flow

Support = Literal["mask", "advected", "carried", "colour", "motion", "pixel"]


@dataclass(frozen=True)
class Networks:
    """The frozen networks of one reward."""

    flow: FlowEstimator
    appearance: AppearanceEncoder


class Observation:
    """A batch of clips as the frozen networks see it. Each field is computed once, when it is first asked for.

    Args:
        clips: what is measured. Generated clips have no masks and no `valid` of their own beyond those of their
            condition.
        networks: flow and appearance.
        reference: the observation of the paired simulated clips, which carries no gradient; None without truth.
    """

    def __init__(self, clips: ClipBatch, networks: Networks, reference: Observation | None = None) -> None:
        self.clips, self.networks, self.reference = clips, networks, reference
        self._supports: dict[str, Tensor] = {}
        self._velocities: dict[str, Tensor] = {}

    @cached_property
    def flow(self) -> Float[Tensor, "B N 2 H W"]:
        """Optical flow, px/frame."""
        if isinstance(self.networks.appearance, FlowFeatures) and self.networks.appearance.flow is self.networks.flow:
            both = self.networks.appearance.flow.flow_and_features(self.clips.frames)
            self.features = both.features
            return both.flow
        return self.networks.flow(self.clips.frames)

    @cached_property
    def features(self) -> Float[Tensor, "B T C h w"]:
        """Appearance features. Where they come out of the flow network, ask for `flow` first if both are needed."""
        return self.networks.appearance(self.clips.frames)

    @cached_property
    def first_mask(self) -> Float[Tensor, "B H W"]:
        """The object in frame 0: from the clip's masks or else the reference's, since a generated clip starts from the
        same frame.

        Raises:
            InputError: neither has masks.
        """
        for clips in (self.clips, self.reference.clips if self.reference else None):
            if clips is not None and clips.masks is not None:
                return clips.masks[:, 0].to(self.clips.frames.dtype)
        fix = "Give clips with masks, or use support 'motion' and no area term."
        raise InputError("these clips have no mask of the object in their first frame", fix=fix)

    @cached_property
    def object_mask(self) -> Float[Tensor, "B T H W"]:
        """Soft mask of the object in every frame, found by colour (`support.object_mask`); differentiable."""
        return support.object_mask(self.clips.frames, self.first_mask)

    @cached_property
    def valid(self) -> Bool[Tensor, "B T"]:
        """Frames where one law holds: given with the clip, else with the reference, else the longest window that one
        law fits."""
        for clips in (self.clips, self.reference.clips if self.reference else None):
            if clips is not None and clips.valid is not None:
                return clips.valid
        velocity = self.velocity("colour" if self._has_masks else "motion")
        return window.valid_frames(velocity, self.clips.fps, self.clips.frames.shape[-2])

    @property
    def _has_masks(self) -> bool:
        return self.clips.masks is not None or (self.reference is not None and self.reference.clips.masks is not None)

    def support(self, name: Support) -> Float[Tensor, "B N H W"]:
        """Soft weights of the object in the first frame of each pair.

        Raises:
            InputError: `mask` for clips without masks of their own: the reference's masks show where *its* object is.
        """
        if name not in self._supports:
            self._supports[name] = self._support(name)
        return self._supports[name]

    def _support(self, name: Support) -> Tensor:
        match name:
            case "mask":
                if self.clips.masks is None:
                    fix = "Use 'colour', 'advected', 'carried' or 'motion' for generated clips."
                    raise InputError("support 'mask' needs masks of these very clips", fix=fix)
                return support.mask(self.clips.masks)
            case "advected":
                return support.advected(self.first_mask, self.flow)
            case "carried":
                return support.carried(self.first_mask, self.flow)
            case "colour":
                carried = support.carried(self.first_mask, self.flow)
                return self.object_mask[:, :-1] + support.CARRIED_SHARE * carried
            case "motion":
                return support.motion(self.flow)
            case "pixel":
                return support.pixel(self.flow)

    def velocity(self, name: Support) -> Float[Tensor, "B N 2"]:
        """Object velocity under a support, H/s; NaN where nothing supports it."""
        if name not in self._velocities:
            field = kinematics.to_heights_per_second(self.flow, self.clips.fps)
            self._velocities[name] = kinematics.object_velocity(field, self.support(name))
        return self._velocities[name]

    def tracks(self, name: Support) -> Float[Tensor, "B K N 2"]:
        """What residuals are taken of: the one velocity of the object, or, for `pixel`, that of every fixed pixel."""
        if name != "pixel":
            return self.velocity(name)[:, None]
        return kinematics.to_heights_per_second(self.flow, self.clips.fps).flatten(-2).permute(0, 3, 1, 2)


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


def acceleration(observation: Observation, name: Support) -> Float[Tensor, "B"]:
    """Squared error of the fitted acceleration against the reference's, (H/s^2)^2, >= 0; see
    `kinematics.acceleration_error`.

    Both are measured by the same instrument, so that its bias cancels.
    """
    valid = kinematics.valid_velocities(observation.valid)
    own, other = (
        kinematics.fit(seen.velocity(name), valid, seen.clips.fps) for seen in (observation, _paired(observation))
    )
    return kinematics.acceleration_error(own.acceleration, other.acceleration)


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


def _paired(observation: Observation) -> Observation:
    assert observation.reference is not None, "Reward.__call__ checks `needs`"
    return observation.reference


Need = Literal["flow", "features", "reference"]


@dataclass(frozen=True)
class Term:
    """A penalty: a function of what was observed, under a support, with one number per clip.

    Attributes:
        fn: (Observation, support) -> (B,), >= 0, lower is better; NaN: can't be measured on this clip.
        unit: of that number.
        source: where the formula comes from.
        needs: what it looks at.
        differentiable: whether the gradient reaches the pixels.
    """

    fn: Callable[[Observation, Support], Float[Tensor, "B"]]
    unit: str
    source: str
    needs: frozenset[Need]
    differentiable: bool = True


TERMS: dict[str, Term] = {
    "kinematic/second_difference": Term(second_difference, "(H/s)^2", "physics.md §3, ours", frozenset({"flow"})),
    "kinematic/fit": Term(line_fit, "(H/s)^2", "physics.md §3, ours", frozenset({"flow"})),
    "kinematic/acceleration": Term(acceleration, "(H/s^2)^2", "ours", frozenset({"flow", "reference"})),
    "kinematic/velocity": Term(velocity, "(H/s)^2", "ours, imitation", frozenset({"flow", "reference"})),
    "mass/paired": Term(mass_paired, "1 - cos", "physics.md §4, ours", frozenset({"features", "reference"})),
    "mass/conserved": Term(mass_conserved, "1 - cos", "physics.md §4, ours", frozenset({"flow", "features"})),
    "mass/area": Term(mass_area, "|log ratio|", "physics.md §4, ours", frozenset()),
}


class TermConfig(Config):
    """How one term counts.

    Attributes:
        weight: factor of the raw penalty in the total, per unit of the term.
        support: which pixels are the object; see `rewards.support`. `colour` measured best of those that a generated
            clip allows (rewards/weights/SOURCE.md has the table); the true masks, which it doesn't have, are no better.
    """

    weight: float = Field(default=1.0, ge=0)
    support: Support = "colour"


class RewardConfig(Config):
    """Frozen networks and terms of a reward.

    Attributes:
        flow: flow network.
        appearance: appearance encoder.
        terms: name in `TERMS` -> weight and support.
    """

    flow: FlowConfig = FlowConfig(num_flow_updates=3)
    appearance: AppearanceConfig = AppearanceConfig()
    terms: dict[str, TermConfig] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, TermConfig]) -> dict[str, TermConfig]:
        for name in terms:
            if name not in TERMS:
                near = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.0)
                raise ValueError(f"unknown term '{name}'. Did you mean '{near[0]}'?")
        return terms


@dataclass(frozen=True)
class RewardOutput:
    """What a reward says about a batch; every tensor is (B,).

    Attributes:
        total: higher is better; the sum of `weighted`. Carries the gradient.
        weighted: minus weight times penalty, by term; 0 where unmeasured.
        raw: each term's penalty in its own unit, without gradient; NaN where unmeasured.
        sentinels: see `rewards.sentinels`, without gradient.
        unmeasured: 1 where a term could not be measured, else 0, by term.
    """

    total: Float[Tensor, "B"]
    weighted: dict[str, Tensor]
    raw: dict[str, Tensor]
    sentinels: dict[str, Tensor]
    unmeasured: dict[str, Tensor]


class Reward:
    """Clips in, reward out. NOT a Module: no wrapper, autocast or cast can reach the frozen networks.

    Args:
        config: which networks, terms and weights.
        networks: to use instead of those that the config names (a second reward can share them).
    Raises:
        MissingExtra, CheckpointError: weights that aren't there or don't fit.
    """

    def __init__(self, config: RewardConfig, networks: Networks | None = None) -> None:
        self.config = config
        if networks is None:
            flow = load_flow(config.flow)
            networks = Networks(flow, load_appearance(config.appearance, flow))
        self.networks = networks

    def __call__(self, clips: ClipBatch, reference: ClipBatch | None = None) -> RewardOutput:
        """Judge a batch.

        Args:
            clips: the clips, in [0, 1]; the gradient flows to their pixels.
            reference: the paired simulated clips, same frames and size, for the terms that compare, and for masks and
                valid frames.
        Raises:
            InputError: a term needs a reference or masks, and there are none.
        """
        with torch.autocast(clips.frames.device.type, enabled=False):
            observation = self.observe(clips, reference)
            raw = {name: TERMS[name].fn(observation, term.support) for name, term in self.config.terms.items()}
            measured = {name: ~value.isnan() for name, value in raw.items()}
            weighted = {
                name: -term.weight * torch.where(measured[name], raw[name], torch.zeros_like(raw[name]))
                for name, term in self.config.terms.items()
            }
            return RewardOutput(
                total=torch.stack(list(weighted.values())).sum(0),
                weighted={name: value.detach() for name, value in weighted.items()},
                raw={name: value.detach() for name, value in raw.items()},
                sentinels=watch(observation),
                unmeasured={name: (~value).to(clips.frames.dtype) for name, value in measured.items()},
            )

    def observe(self, clips: ClipBatch, reference: ClipBatch | None = None) -> Observation:
        """The observation that the terms look at; the reference's is made without gradient."""
        needs = frozenset().union(*(TERMS[name].needs for name in self.config.terms))
        if "reference" in needs and reference is None:
            names = [name for name in self.config.terms if "reference" in TERMS[name].needs]
            fix = "Give the paired clips, or leave these terms out."
            raise InputError(
                f"{', '.join(names)} compare with a reference clip, and there is none", where="reward.terms", fix=fix
            )
        paired = None
        if reference is not None:  # frozen networks and detached pixels: whatever is asked of it carries no gradient
            paired = Observation(replace(reference, frames=reference.frames.detach()), self.networks)
            if any({"flow", "reference"} <= TERMS[name].needs for name in self.config.terms):
                _ = paired.flow  # together with the features, in one pass
        observation = Observation(clips, self.networks, paired)
        if "flow" in needs:
            _ = observation.flow
        return observation


@torch.no_grad()
def watch(observation: Observation) -> dict[str, Float[Tensor, "B"]]:
    """All sentinels that can be computed: those that compare need a reference, those about the object a first mask."""
    frames, reference = observation.clips.frames.detach(), observation.reference
    seen = {"saturation": sentinels.saturation(frames), "high_frequency": sentinels.high_frequency(frames)}
    if reference is not None:
        seen["motion_energy"] = sentinels.motion_energy(frames, reference.clips.frames)
    if observation._has_masks:
        mask = observation.object_mask.detach()
        seen["presence"], seen["area_ratio"] = sentinels.presence(mask), sentinels.area_ratio(mask)
    return seen
