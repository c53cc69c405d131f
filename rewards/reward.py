"""The reward: frozen networks look at clips once, terms turn what they saw into penalties, the weighted sum with the
sign flipped is the reward.

Letters: B clips. A term's NaN on a clip means "can't be measured": it adds nothing to the total of that clip and is
    counted in `unmeasured`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config
from newtonrewards.rewards import kinematics, sentinels
from newtonrewards.rewards.appearance import AppearanceConfig, load_appearance
from newtonrewards.rewards.classical import DisFlow
from newtonrewards.rewards.flow import FlowConfig, load_flow
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
        ramp_steps: over so many steps the weight grows from 0.
    """

    weight: float = Field(default=1.0, ge=0)
    support: Support = "colour"
    floor: float = Field(default=0.0, ge=0)
    scale: float = Field(default=1.0, gt=0)
    ramp_steps: int = Field(default=0, ge=0)

    def normalised(self, raw: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
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
        second_opinion: watch whether OpenCV's DIS flow, which learns nothing, sees the same motion (a sentinel).
        terms: name in `TERMS` -> weight and support.
    """

    flow: FlowConfig = FlowConfig(num_flow_updates=3)
    appearance: AppearanceConfig = AppearanceConfig()
    second_opinion: bool = False
    terms: dict[str, TermConfig] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, TermConfig]) -> dict[str, TermConfig]:
        for name in terms:
            find_term(name)
        return terms


@dataclass(frozen=True)
class RewardOutput:
    """What a reward says about a batch; every tensor is (B,).

    Attributes:
        total: higher is better; the sum of `weighted`. Carries the gradient.
        weighted: minus weight times penalty, by term; 0 where unmeasured.
        raw: each term's penalty in its own unit, without gradient; NaN where unmeasured.
        normalised: the same above its floor and in units of its scale.
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
    """

    def __init__(self, config: RewardConfig, networks: Networks | None = None) -> None:
        self.config = config
        self.terms = {name: find_term(name) for name in config.terms}
        if networks is None:
            flow = load_flow(config.flow)
            second = DisFlow() if config.second_opinion else None
            networks = Networks(flow, load_appearance(config.appearance, flow), second)
        self.networks = networks

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
            raw = {name: term.fn(observation, configs[name].support) for name, term in self.terms.items()}
            measured = {name: ~value.isnan() for name, value in raw.items()}
            normalised = {name: configs[name].normalised(value) for name, value in raw.items()}
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
                sentinels=watch(observation),
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
    second = observation.networks.second
    if second is not None:
        name: Support = "colour" if observation._has_masks else "motion"
        field = kinematics.to_heights_per_second(second(frames), observation.clips.fps)
        other = kinematics.object_velocity(field, observation.support(name))
        valid = kinematics.valid_velocities(observation.valid)
        seen["second_opinion"] = sentinels.second_opinion(observation.velocity(name), other, valid)
    return seen
