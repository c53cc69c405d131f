"""The reward: frozen networks look at clips once, terms turn what they saw into penalties, the weighted sum with the
sign flipped is the reward.

Letters: B clips. A term's NaN on a clip means "can't be measured": it adds nothing to the total of that clip and is
    counted in `unmeasured`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config
from newtonrewards.rewards import kinematics, sentinels
from newtonrewards.rewards.appearance import AppearanceConfig, load_appearance
from newtonrewards.rewards.classical import DisFlow
from newtonrewards.rewards.depth import DepthConfig, load_depth
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.normalise import Normalisation, normalise
from newtonrewards.rewards.observation import Networks, Observation, Support
from newtonrewards.rewards.terms import find_term


class TermConfig(Config):
    """How one term counts.

    Attributes:
        weight: factor of the raw penalty in the total, per unit of the term.
        support: which pixels are the object; see `rewards.support`. `colour` measured best of those that a generated
            clip allows (rewards/weights/SOURCE.md has the table); the true masks, which it doesn't have, are no better.
        floor: penalty that perfect clips get (`rewards.floor`); only what is above it counts, so that nobody optimises
            below the noise of the instrument.
        scale: penalty above the floor that counts as 1, so that weights of different units can be compared.
        normalisation: `scale`: in units of `scale`. `batch_rms`: of what the batch has in root mean square.
            `batch_standard`: mean 0 and spread 1 over the batch. See `rewards.normalise`.
        pixel_range: `right`, or for imitation terms `published`: the generated clip is shown to the networks as PISA's
            released code does it (`rewards.imitation.published_range`).
        ramp_steps: over so many steps the weight grows from 0.
    """

    weight: float = Field(default=1.0, ge=0)
    support: Support = "colour"
    floor: float = Field(default=0.0, ge=0)
    scale: float = Field(default=1.0, gt=0)
    normalisation: Normalisation = "scale"
    pixel_range: Literal["right", "published"] = "right"
    ramp_steps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _scaled_once(self) -> TermConfig:
        """An option that would do nothing is an error."""
        if self.normalisation != "scale" and self.scale != 1.0:
            raise ValueError(f"'normalisation: {self.normalisation}' takes no 'scale'")
        return self

    def scaled(self, raw: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """What is above the floor, in units of the scale."""
        return (raw - self.floor).clamp(min=0) / self.scale if self.floor else raw / self.scale

    def weight_at(self, step: int) -> float:
        """The weight in a step of its stage, counted from 0."""
        return self.weight if step >= self.ramp_steps else self.weight * step / self.ramp_steps


class RewardConfig(Config):
    """Frozen networks and terms of a reward.

    Attributes:
        flow: flow network.
        appearance: appearance encoder.
        depth: depth network, for imitation/depth.
        second_opinion: watch whether OpenCV's DIS flow, which learns nothing, sees the same motion (a sentinel).
        consistency: what is done with the agreement of flow there and flow back, which takes a second pass of the flow
            network without gradient. `watch`: a sentinel, its mean over the object. `weigh`: also a weight of every
            support. The support `pixel` stays as it is.
        terms: name in `TERMS` -> weight and support.
    """

    flow: FlowConfig = FlowConfig(num_flow_updates=3)
    appearance: AppearanceConfig = AppearanceConfig()
    depth: DepthConfig | None = None
    second_opinion: bool = False
    consistency: Literal["ignore", "watch", "weigh"] = "ignore"
    terms: dict[str, TermConfig] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, TermConfig]) -> dict[str, TermConfig]:
        for name, config in terms.items():
            if config.pixel_range == "published" and not find_term(name).imitates:
                raise ValueError(f"'{name}' takes no 'pixel_range': only imitation terms have a published one")
            find_term(name)
        return terms

    @model_validator(mode="after")
    def _used(self) -> RewardConfig:
        """An option that would do nothing is an error."""
        if self.depth is not None and not any("depth" in find_term(name).needs for name in self.terms):
            raise ValueError("'depth' names a network that no term looks through")
        return self


@dataclass(frozen=True)
class RewardOutput:
    """What a reward says about a batch; every tensor is (B,).

    Attributes:
        total: higher is better; the sum of `weighted`. Carries the gradient.
        weighted: minus weight times penalty, by term; 0 where unmeasured.
        raw: each term's penalty in its own unit, without gradient; NaN where unmeasured.
        normalised: the same above its floor and in units of its scale or of the batch.
        sentinels: see `rewards.sentinels`, without gradient.
        unmeasured: 1 where a term could not be measured, else 0, by term.
    """

    total: Float[Tensor, "B"]
    weighted: dict[str, Tensor]
    raw: dict[str, Tensor]
    normalised: dict[str, Tensor]
    sentinels: dict[str, Tensor]
    unmeasured: dict[str, Tensor]


def rank_in_groups(output: RewardOutput, group_size: int) -> Float[Tensor, "B"]:
    """Totals for comparing the clips of a group: an unmeasured term counts as the worst that the group got.

    In `total` it counts nothing, which would make a clip without an object the best of its group.

    Args:
        output: of B clips, group after group.
    """
    total = torch.zeros_like(output.total)
    for name, weighted in output.weighted.items():
        values, missing = (part.unflatten(0, (-1, group_size)) for part in (weighted, output.unmeasured[name] > 0))
        worst = torch.where(missing, torch.inf, values).amin(1, keepdim=True)
        worst = torch.where(worst.isinf(), torch.zeros_like(worst), worst)  # nobody could be measured
        total = total + torch.where(missing, worst, values).flatten()
    return total


class Reward:
    """Clips in, reward out. NOT a Module: no wrapper, autocast or cast can reach the frozen networks.

    Args:
        config: which networks, terms and weights.
        networks: to use instead of those that the config names (a second reward can share them).
    Raises:
        MissingExtra, CheckpointError: weights that aren't there or don't fit.
        InputError: a term needs depth, and no depth network is named.
    """

    def __init__(self, config: RewardConfig, networks: Networks | None = None) -> None:
        self.config = config
        self.terms = {name: find_term(name) for name in config.terms}
        deep = [name for name, term in self.terms.items() if "depth" in term.needs]
        if deep and (config.depth if networks is None else networks.depth) is None:
            fix = "Name one, as in `depth: {name: FOLDER}`, or leave the term out."
            raise InputError(f"{', '.join(deep)} needs a depth network", where="reward.depth", fix=fix)
        self.networks = _load(config) if networks is None else networks

    def __call__(
        self, clips: ClipBatch, reference: ClipBatch | None = None, *, step: int | None = None
    ) -> RewardOutput:
        """Judge a batch.

        Args:
            clips: the clips, in [0, 1]; the gradient flows to their pixels.
            reference: the paired simulated clips, same frames and size, for the terms that compare, and for masks and
                valid frames.
            step: of the training stage, from 0, for weights that grow; None: they have grown.
        Raises:
            InputError: a term needs a reference or masks, and there are none.
        """
        with torch.autocast(clips.frames.device.type, enabled=False):
            observation = self.observe(clips, reference)
            configs = self.config.terms
            raw = {
                name: term.fn(_view(observation, configs[name]), configs[name].support)
                for name, term in self.terms.items()
            }
            measured = {name: ~value.isnan() for name, value in raw.items()}
            scaled = {name: configs[name].scaled(value) for name, value in raw.items()}
            normalised = normalise(scaled, {name: c.normalisation for name, c in configs.items()})
            weights = {name: c.weight if step is None else c.weight_at(step) for name, c in configs.items()}
            weighted = {
                name: -weights[name] * torch.where(measured[name], value, torch.zeros_like(value))
                for name, value in normalised.items()
            }
            return RewardOutput(
                total=torch.stack(list(weighted.values())).sum(0),
                weighted={name: value.detach() for name, value in weighted.items()},
                raw={name: value.detach() for name, value in raw.items()},
                normalised={name: value.detach() for name, value in normalised.items()},
                sentinels=watch(observation, consistency=self.config.consistency != "ignore"),
                unmeasured={name: (~value).to(clips.frames.dtype) for name, value in measured.items()},
            )

    def observe(self, clips: ClipBatch, reference: ClipBatch | None = None) -> Observation:
        """The observation that the terms look at; the reference's is made without gradient."""
        needs = frozenset().union(*(term.needs for term in self.terms.values()))
        if "reference" in needs and reference is None:
            names = [name for name, term in self.terms.items() if "reference" in term.needs]
            fix = "Give the paired clips, or leave these terms out."
            raise InputError(
                f"{', '.join(names)} compare with a reference clip, and there is none", where="reward.terms", fix=fix
            )
        paired = None
        if reference is not None:  # frozen networks and detached pixels: whatever is asked of it carries no gradient
            paired = Observation(replace(reference, frames=reference.frames.detach()), self.networks)
            if any({"flow", "reference"} <= term.needs for term in self.terms.values()):
                _ = paired.flow  # together with the features, in one pass
        observation = Observation(clips, self.networks, paired, weigh=self.config.consistency == "weigh")
        plain = (term for name, term in self.terms.items() if self.config.terms[name].pixel_range == "right")
        if any("flow" in term.needs for term in plain):
            _ = observation.flow
        return observation


def _load(config: RewardConfig) -> Networks:
    flow = load_flow(config.flow)
    return Networks(
        flow,
        load_appearance(config.appearance, flow),
        DisFlow() if config.second_opinion else None,
        None if config.depth is None else load_depth(config.depth),
    )


def _view(observation: Observation, config: TermConfig) -> Observation:
    return observation.published if config.pixel_range == "published" else observation


@torch.no_grad()
def watch(observation: Observation, *, consistency: bool = False) -> dict[str, Float[Tensor, "B"]]:
    """All sentinels that can be computed: those that compare need a reference, those about the object a first mask.

    Args:
        observation: of the clips.
        consistency: also that of the flow, which takes another pass of its network.
    """
    frames, reference = observation.clips.frames.detach(), observation.reference
    seen = {"saturation": sentinels.saturation(frames), "high_frequency": sentinels.high_frequency(frames)}
    if reference is not None:
        seen["motion_energy"] = sentinels.motion_energy(frames, reference.clips.frames)
    if observation._has_masks:
        mask = observation.object_mask.detach()
        seen["presence"], seen["area_ratio"] = sentinels.presence(mask), sentinels.area_ratio(mask)
    second = observation.networks.second
    name: Support = "colour" if observation._has_masks else "motion"
    if consistency:
        valid = kinematics.valid_velocities(observation.valid)
        seen["consistency"] = sentinels.consistency(observation.flow_confidence, observation.plain_support(name), valid)
    if second is not None:
        field = kinematics.to_heights_per_second(second(frames), observation.clips.fps)
        other = kinematics.object_velocity(field, observation.support(name))
        valid = kinematics.valid_velocities(observation.valid)
        seen["second_opinion"] = sentinels.second_opinion(observation.velocity(name), other, valid)
    return seen
