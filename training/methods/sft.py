"""Supervised fine-tuning (PISA's PSFT): the flow-matching loss on the clips of the data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from newtonrewards.core.clip import ClipBatch
from newtonrewards.models.base import VideoModel
from newtonrewards.training.methods.base import Objective, ObjectiveOutput, StageConfig


class SftStage(StageConfig):
    """Supervised fine-tuning.

    Attributes:
        caption_dropout: share of captions replaced by the empty one, so that guidance works at generation.
    """

    objective: Literal["sft"]
    caption_dropout: float = Field(0.0, ge=0, le=1)


class SftObjective(Objective):
    """The flow-matching loss, and the distance to the reference where `kl_weight` asks for it."""

    def __init__(self, model: VideoModel, stage: SftStage, seed: int) -> None:
        super().__init__(model, stage, seed)
        self.caption_dropout = stage.caption_dropout

    def loss(self, work: ClipBatch, step: int) -> ObjectiveOutput:
        at = self.noised(work, self.caption_dropout)
        loss = self.flow_matching(at)
        logs = {"flow_matching": loss.detach()}
        if self.kl_weight:
            kl = self.kl(at)
            loss, logs["kl"] = loss + self.kl_weight * kl, kl.detach()
        return ObjectiveOutput(loss, logs)
