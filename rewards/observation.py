"""What the frozen networks see in a batch of clips, computed once and shared by all terms.

Letters: B clips, T frames, N = T - 1 pairs of frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.rewards import consistency, imitation, kinematics, support, window
from newtonrewards.rewards.appearance import AppearanceEncoder, FlowFeatures
from newtonrewards.rewards.depth import DepthEstimator
from newtonrewards.rewards.flow import FlowEstimator

Support = Literal["mask", "advected", "carried", "colour", "motion", "pixel"]


@dataclass(frozen=True)
class Networks:
    """The frozen networks of one reward, another method for the flow that nothing is trained on, if any, and a depth
    network, if any."""

    flow: FlowEstimator
    appearance: AppearanceEncoder
    second: FlowEstimator | None = None
    depth: DepthEstimator | None = None


class Observation:
    """A batch of clips as the frozen networks see it. Each field is computed once, when it is first asked for.

    Args:
        clips: what is measured. Generated clips have no masks and no `valid` of their own beyond those of their
            condition.
        networks: flow and appearance.
        reference: the observation of the paired simulated clips, which carries no gradient; None without truth.
        weigh: every support is weighted by `flow_confidence`.
    """

    def __init__(
        self, clips: ClipBatch, networks: Networks, reference: Observation | None = None, *, weigh: bool = False
    ) -> None:
        self.clips, self.networks, self.reference, self.weigh = clips, networks, reference, weigh
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
    def flow_confidence(self) -> Float[Tensor, "B N H W"]:
        """How well flow there and flow back agree, in [0, 1], without gradient; see `consistency.confidence`. It takes
        a second pass of the flow network."""
        with torch.no_grad():
            back = self.networks.flow(self.clips.frames.detach().flip(1)).flip(1)
        return consistency.confidence(self.flow.detach(), back)

    @cached_property
    def depth(self) -> Float[Tensor, "B T H W"]:
        """Depth of each frame, in the unit of the depth network.

        Raises:
            InputError: there is no depth network.
        """
        if self.networks.depth is None:
            fix = "Name one, as in `depth: {name: FOLDER}`, or leave imitation/depth out."
            raise InputError("this reward has no depth network", where="reward.depth", fix=fix)
        return self.networks.depth(self.clips.frames)

    @cached_property
    def published(self) -> Observation:
        """The same clips as PISA's released code shows them to its networks; see `imitation.published_range`. The
        reference stays as it is."""
        clips = replace(self.clips, frames=imitation.published_range(self.clips.frames))
        return Observation(clips, self.networks, self.reference, weigh=self.weigh)

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
    def law(self) -> Float[Tensor, "B 2"]:
        """The acceleration that the law demands, H/s^2: the clip's, or else the reference's.

        Raises:
            InputError: neither knows it.
        """
        for clips in (self.clips, self.reference.clips if self.reference else None):
            if clips is not None and clips.law is not None:
                return clips.law.to(self.clips.frames.dtype)
        fix = "Give clips with `law`, such as simulated ones, or leave kinematic/gravity out."
        raise InputError("nobody knows which acceleration is right for these clips", fix=fix)

    @property
    def _has_masks(self) -> bool:
        return self.clips.masks is not None or (self.reference is not None and self.reference.clips.masks is not None)

    def support(self, name: Support) -> Float[Tensor, "B N H W"]:
        """Soft weights of the object in the first frame of each pair; times `flow_confidence` where that was asked for.

        Raises:
            InputError: `mask` for clips without masks of their own: the reference's masks show where *its* object is.
        """
        plain = self.plain_support(name)
        return plain * self.flow_confidence.to(plain.dtype) if self.weigh else plain

    def plain_support(self, name: Support) -> Float[Tensor, "B N H W"]:
        """The support without the confidence."""
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
