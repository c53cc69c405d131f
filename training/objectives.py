"""What a step minimises. An objective is the one module that a launcher wraps; it returns one loss for each clip.

The model and the reward are plain attributes, not sub-modules: only what trains is registered, so no wrapper, cast or
optimiser can reach a frozen network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.run import stream
from newtonrewards.models.base import VideoModel, draw_noise, draw_sigma
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.sampling import sample
from newtonrewards.rewards.reward import Reward
from newtonrewards.training.recipe import RewardStage, SftStage


@dataclass(frozen=True)
class ObjectiveOutput:
    """`loss` (B,) is back-propagated; each log is one value for each clip it was measured on, NaN where it can't be."""

    loss: Float[Tensor, "B"]
    logs: dict[str, Tensor]


class Objective(nn.Module):
    """Holds the model's trainable modules; `forward(batch, step) -> ObjectiveOutput`, the step counted in its stage."""

    def __init__(self, model: VideoModel, seed: int) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(model.trainable)
        self._plain = (model,)  # a tuple hides the model from nn.Module's registration
        self.seed = seed

    @property
    def model(self) -> VideoModel:
        return self._plain[0]

    def flow_matching(self, batch: ClipBatch, caption_dropout: float = 0.0) -> Float[Tensor, "B"]:
        """Flow-matching loss of each clip; noise and noise level come from the sample's own streams."""
        with torch.no_grad():
            clean = self.model.encode(batch.frames)
        # a sample's index counts over the whole run, so it alone tells its streams apart: the step stays 0
        noise = draw_noise(self.model.spec, self.seed, 0, batch.index, "flow_matching/noise").to(clean)
        sigma = draw_sigma(self.model, self.seed, 0, batch.index, "flow_matching/sigma").to(clean)
        captions = [
            ""
            if caption_dropout and torch.rand((), generator=stream(self.seed, 0, i, "caption")) < caption_dropout
            else text
            for i, text in zip(batch.index, batch.captions, strict=True)
        ]
        condition = self.model.condition(captions, batch.frames[:, 0])
        return flow_matching_loss(self.model, clean, noise, sigma, condition)


class FlowMatchingObjective(Objective):
    """Supervised fine-tuning."""

    def __init__(self, model: VideoModel, stage: SftStage, seed: int) -> None:
        super().__init__(model, seed)
        self.caption_dropout = stage.caption_dropout

    def forward(self, batch: ClipBatch, step: int = 0) -> ObjectiveOutput:
        loss = self.flow_matching(batch, self.caption_dropout)
        return ObjectiveOutput(loss, {"flow_matching": loss.detach()})


class RewardObjective(Objective):
    """Minus the reward of clips generated with gradient through the last sampling steps, plus the flow-matching
    anchor.

    Args:
        floor: what perfect clips get, by term (`rewards.floor`); logged beside the penalties.
    """

    def __init__(
        self,
        model: VideoModel,
        stage: RewardStage,
        reward: Reward,
        seed: int,
        floor: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, seed)
        self.stage, self.floor = stage, dict(floor or {})
        self._reward = (reward,)

    def forward(self, batch: ClipBatch, step: int = 0) -> ObjectiveOutput:
        anchor = self.flow_matching(batch)
        rewarded = batch.part(0, len(batch), self.stage.reward_every)
        condition = self.model.condition(rewarded.captions, rewarded.frames[:, 0])
        noise = draw_noise(self.model.spec, self.seed, 0, rewarded.index, "sampling/noise").to(batch.frames)
        latents = sample(self.model, condition, noise, **self.stage.sampling.model_dump())
        frames = self.model.decode(latents, condition)
        output = self._reward[0](rewarded.with_frames(frames), reference=rewarded, step=step)
        # the rewarded clips are 1 of `reward_every`: scaled up, the mean over the batch is the mean over them
        loss = self.stage.anchor_weight * anchor
        loss = loss + torch.zeros_like(loss).index_put(
            (torch.arange(0, len(batch), self.stage.reward_every, device=loss.device),),
            -output.total * self.stage.reward_every,
        )
        logs = {"flow_matching": anchor.detach(), "reward": output.total.detach()}
        for group in ("raw", "normalised", "weighted", "unmeasured", "sentinels"):
            prefix = "sentinel" if group == "sentinels" else group
            logs |= {f"{prefix}/{name}": value.detach().float() for name, value in getattr(output, group).items()}
        logs |= {f"floor/{name}": torch.full_like(anchor.detach(), value) for name, value in self.floor.items()}
        return ObjectiveOutput(loss, logs)
