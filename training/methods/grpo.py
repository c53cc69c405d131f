"""Flow-GRPO: a policy gradient from groups of clips of one prompt; the reward needs no gradient.

Each step draws `group_size` clips for each prompt by a stochastic sampler, judges them, and takes as advantage of a
clip how far its reward lies above its group's, in standard deviations. Then `updates` times: clipped ratio of new and
old probability of each stochastic step, times the advantage.
Source: Liu et al. 2025 (Flow-GRPO), Shao et al. 2024 (GRPO); a window of stochastic steps as in Flow-GRPO-Fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream
from newtonrewards.models import lora
from newtonrewards.models.base import Condition, VideoModel, draw_noise
from newtonrewards.models.sde import SdeSampling, Transition, kl_divergence, log_prob, mean_and_std, sample_sde
from newtonrewards.rewards.reward import Reward, rank_in_groups
from newtonrewards.training.methods.base import ObjectiveOutput
from newtonrewards.training.methods.rewarded import RewardedObjective, RewardedStage

# Groups whose rewards differ by less have nothing to teach; their advantages stay near 0.
SPREAD_FLOOR = 1e-6


class RolloutConfig(Config):
    """How the clips of a group are drawn.

    Attributes:
        num_inference_steps: steps N; fewer than at generation is Flow-GRPO's denoising reduction.
        guidance_scale: classifier-free guidance, part of the policy.
        noise_level: a of `models.sde`.
        window: how many consecutive steps are stochastic and trained, placed anew in each step; null: all but the last.
    """

    num_inference_steps: int = Field(8, ge=2)
    guidance_scale: float = Field(1.0, ge=1.0)
    noise_level: float = Field(0.7, gt=0)
    window: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> RolloutConfig:
        if self.window is not None and self.window > self.num_inference_steps - 1:
            raise ValueError(f"window {self.window} is more than the {self.num_inference_steps - 1} stochastic steps")
        return self

    def at(self, seed: int, step: int) -> SdeSampling:
        """The sampler of a step; the window's place is a function of seed and step."""
        every = self.num_inference_steps - 1
        size = every if self.window is None else self.window
        first = int(torch.randint(every - size + 1, (), generator=stream(seed, step, 0, "grpo/window")))
        return SdeSampling(
            self.num_inference_steps, self.guidance_scale, self.noise_level, tuple(range(first, first + size))
        )


class GrpoStage(RewardedStage):
    """Policy gradient.

    Attributes:
        batch_size: prompts of a step over all processes; each is drawn `group_size` times.
        anchor_weight: weight of the flow-matching loss on the prompts' clips; 0 leaves it out. The policy's loss is an
            average over the numbers of a clip and small, so weights are, too.
        kl_weight: weight of the KL of each stochastic step to the reference's.
        group_size: clips of a prompt.
        updates: optimiser updates on one rollout.
        clip_range: the ratio counts within 1 +- so much.
        advantage_clip: largest advantage, in standard deviations.
        rollout: how clips are drawn.
    """

    objective: Literal["grpo"]
    batch_size: int = Field(2, ge=1)
    anchor_weight: float = Field(0.0, ge=0)
    group_size: int = Field(8, ge=2)
    updates: int = Field(1, ge=1)
    clip_range: float = Field(1e-3, gt=0)
    advantage_clip: float = Field(5.0, gt=0)
    rollout: RolloutConfig = RolloutConfig()


@dataclass(frozen=True)
class Work:
    """One stochastic step of the groups of some prompts.

    Attributes:
        prompts: B prompts, each with its clip; None for all works but the first of a group, since one anchors.
        share: how many works share the anchor and the logs of the rollout.
        condition: of the B G clips, group after group.
        sampling: of the rollout.
        transition: of B G clips. advantages: (B G,). logs: of the rollout, in the first work only.
    """

    prompts: ClipBatch | None
    share: int
    condition: Condition
    sampling: SdeSampling
    transition: Transition
    advantages: Float[Tensor, "BG"]
    logs: dict[str, Tensor]


class GrpoObjective(RewardedObjective):
    """See `GrpoStage`."""

    def __init__(
        self,
        model: VideoModel,
        stage: GrpoStage,
        seed: int,
        reward: Reward,
        floor: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, stage, seed, reward, floor)
        self.stage = stage

    def prepare(self, batch: ClipBatch, step: int) -> Sequence[Sequence[Work]]:
        """Roll out; each update goes through the same works. A part is drawn in the batches in which it is trained, so
        that the ratio of the first update is 1 to the bit."""
        parts = super().prepare(batch, step)[0]
        works = [work for part in parts for work in self._rollout(part, step)]
        silent = [Work(w.prompts, w.share, w.condition, w.sampling, w.transition, w.advantages, {}) for w in works]
        return [works] + [silent] * (self.stage.updates - 1)

    def _rollout(self, prompts: ClipBatch, step: int) -> list[Work]:
        size, sampling = self.stage.group_size, self.stage.rollout.at(self.seed, step)
        condition = self.model.condition(prompts.captions, prompts.frames[:, 0]).repeated(size)
        # one stream for each member of a group: its number makes the sample's index unique over the run
        members = [index * size + member for index in prompts.index for member in range(size)]
        noise = draw_noise(self.model.spec, self.seed, 0, members, "grpo/noise").to(prompts.frames)
        latents, transitions = sample_sde(
            self.model, condition, noise, sampling, seed=self.seed, indices=members, purpose="grpo/step"
        )
        reference = prompts.repeated(size)
        output = self.judge(reference.with_frames(self.model.decode(latents, condition)), reference, step)
        rewards, limit = rank_in_groups(output, size), self.stage.advantage_clip
        advantages = group_advantages(rewards, size).clamp(-limit, limit)
        spread = rewards.unflatten(0, (-1, size)).std(1)
        logs = {**self.logs_of(output), "group_spread": spread}
        count = len(transitions)
        return [
            Work(prompts if first else None, count, condition, sampling, one, advantages, logs if first else {})
            for one, first in zip(transitions, [True] + [False] * (count - 1), strict=True)
        ]

    def loss(self, work: Work, step: int) -> ObjectiveOutput:
        one = work.transition
        inputs = (one.latents, one.sigma, one.next_sigma, one.cap, work.condition, work.sampling)
        mean, std = mean_and_std(self.model, *inputs)
        ratio = (log_prob(one.next_latents, mean, std) - one.log_prob).exp()
        clipped = ratio.clamp(1 - self.stage.clip_range, 1 + self.stage.clip_range)
        loss = -self.reward_scale * torch.minimum(ratio * work.advantages, clipped * work.advantages)
        away = (ratio.detach() - 1).abs()
        logs = {**work.logs, "ratio_distance": away, "clipped": (away > self.stage.clip_range).float()}
        if self.kl_weight:
            with torch.no_grad(), lora.disabled(self.model):
                reference, _ = mean_and_std(self.model, *inputs)
            kl = kl_divergence(mean, reference, std)
            loss, logs["kl"] = loss + self.kl_weight * kl, kl.detach()
        if self.anchor_weight and work.prompts is not None:
            anchor = self.flow_matching(self.noised(work.prompts))
            # in one work of `share`: scaled up, the mean over the works is the mean over the prompts
            each = anchor.repeat_interleave(self.stage.group_size)
            loss, logs["flow_matching"] = loss + work.share * self.anchor_weight * each, anchor.detach()
        return ObjectiveOutput(loss, logs)


def group_advantages(rewards: Float[Tensor, "BG"], group_size: int) -> Float[Tensor, "BG"]:
    """Each reward minus its group's mean, over its group's standard deviation; near 0 where a group agrees.

    Args:
        rewards: group after group.
    Source: Shao et al. 2024 (GRPO), §4.1.2.
    """
    groups = rewards.unflatten(0, (-1, group_size))
    away = groups - groups.mean(1, keepdim=True)
    return (away / (groups.std(1, keepdim=True) + SPREAD_FLOOR)).flatten()
