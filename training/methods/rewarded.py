"""What the methods with a reward share: its config, a judge that names the clip at fault, and what is logged of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import NewtonError
from newtonrewards.models.base import VideoModel
from newtonrewards.rewards.floor import measure_floor
from newtonrewards.rewards.reward import Reward, RewardConfig, RewardOutput
from newtonrewards.training.guard import SentinelRules
from newtonrewards.training.methods.base import Objective, StageConfig


class RewardedStage(StageConfig, SentinelRules):
    """What the stages of the methods with a reward have.

    Attributes:
        anchor_weight: weight of the flow-matching loss on the batch, the anchor to the data.
        reward: frozen networks, terms and their weights.
    """

    anchor_weight: float = Field(1.0, ge=0)
    reward: RewardConfig


class RewardFailure(NewtonError):
    """A reward that raised or wasn't finite, with the sample at fault.

    Attributes:
        sample: index of the sample over the whole run (`ClipBatch.index`); the trainer knows the clip's name.
    """

    def __init__(self, what: str, sample: int, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where=where or f"sample {sample}", fix=fix)
        self.sample = sample


class RewardedObjective(Objective):
    """Judges generated clips.

    Args:
        floor: what perfect clips get, by term (`rewards.floor`); logged beside the penalties.
    """

    def __init__(
        self,
        model: VideoModel,
        stage: RewardedStage,
        seed: int,
        reward: Reward,
        floor: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, stage, seed)
        self.anchor_weight, self.floor, self.rules = stage.anchor_weight, dict(floor or {}), stage.sentinels
        self._reward = (reward,)
        terms = {name: term.unit for name, term in reward.terms.items()}
        self.units = {f"{group}/{name}": unit for name, unit in terms.items() for group in ("raw", "floor")}

    @classmethod
    def build(
        cls,
        model: VideoModel,
        stage: Any,
        seed: int,
        perfect: Callable[[], ClipBatch] | None = None,
        reward: Reward | None = None,
    ) -> RewardedObjective:
        """With the networks of the stage's reward and the floor that they measure on perfect clips."""
        reward = Reward(stage.reward) if reward is None else reward
        floors = {} if perfect is None else measure_floor(reward, [perfect()])
        return cls(model, stage, seed, reward, {name: floor.mean for name, floor in floors.items()})

    def judge(self, clips: ClipBatch, reference: ClipBatch, step: int) -> RewardOutput:
        """The reward of generated clips.

        Raises:
            RewardFailure: it raised, or pixels or reward of a clip aren't finite.
        """
        finite = clips.frames.detach().isfinite().flatten(1).all(1)
        if not finite.all():
            raise _failure(clips, int(finite.logical_not().nonzero()[0]), "the generated clip has pixels that are NaN")
        reward = self._reward[0]
        try:
            output = reward(clips, reference=reference, step=step)
        except NewtonError:
            raise  # about the recipe or the data as a whole, and says so itself
        except Exception as error:
            raise self._blame(clips, reference, step, error) from error
        finite = output.total.detach().isfinite()
        if not finite.all():
            place = int(finite.logical_not().nonzero()[0])
            terms = [name for name, value in output.weighted.items() if not value[place].isfinite()]
            raise _failure(clips, place, f"the reward is {output.total[place].item()} ({', '.join(terms)})")
        return output

    def _blame(self, clips: ClipBatch, reference: ClipBatch, step: int, error: Exception) -> RewardFailure:
        """The first clip that fails on its own, or all of the batch."""
        said = f"the reward failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        for place in range(len(clips)):
            try:
                with torch.no_grad():
                    self._reward[0](clips.part(place, place + 1), reference.part(place, place + 1), step=step)
            except Exception as again:  # noqa: BLE001 - whatever a network or a term of one's own raises
                return _failure(clips, place, f"{said} ({type(again).__name__} on this clip alone)")
        return _failure(clips, 0, f"{said} (on the batch that begins with this clip, on no clip alone)")

    def logs_of(self, output: RewardOutput) -> dict[str, Tensor]:
        """What is logged of a reward, one value for each clip."""
        logs = {"reward": output.total.detach()}
        for group in ("raw", "normalised", "weighted", "unmeasured", "sentinels"):
            prefix = "sentinel" if group == "sentinels" else group
            logs |= {f"{prefix}/{name}": value.detach().float() for name, value in getattr(output, group).items()}
        return logs | {f"floor/{name}": torch.full_like(logs["reward"], value) for name, value in self.floor.items()}


def _failure(clips: ClipBatch, place: int, what: str) -> RewardFailure:
    caption = clips.captions[place]
    return RewardFailure(
        f"{what}; its caption is '{caption}'",
        clips.index[place] if clips.index else place,
        fix="The last checkpoint is good; lower the learning rate, or leave out the term or the clip.",
    )
