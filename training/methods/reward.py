"""Post-training with the gradient of the reward: frozen networks, decoder and sampling steps are differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream
from newtonrewards.models.base import Condition, Latents, VideoModel, draw_noise
from newtonrewards.models.sampling import clean_estimate, sample
from newtonrewards.rewards.reward import Reward
from newtonrewards.rewards.terms import find_term
from newtonrewards.training.methods.base import ObjectiveOutput
from newtonrewards.training.methods.rewarded import RewardedObjective, RewardedStage


class SamplingConfig(Config):
    """How clips are generated inside a reward stage; the names are diffusers'.

    Attributes:
        num_inference_steps: N Euler steps.
        guidance_scale: classifier-free guidance, also inside the gradient.
        grad_steps: where the gradient passes. A number K: the last K steps. `full`: all N. `random`: the last K, K
            drawn from 1 to N in each step (AlignProp's and VADER's random cut-off). `x0`: the sampler stops at a step
            drawn from the later half, and the clean clip that the model predicts from there is judged (ReFL): one
            prediction carries the gradient.
    """

    num_inference_steps: int = Field(8, ge=1)
    guidance_scale: float = Field(1.0, ge=1.0)
    grad_steps: int | Literal["full", "random", "x0"] = 2

    @model_validator(mode="after")
    def _last_steps(self) -> SamplingConfig:
        if isinstance(self.grad_steps, int) and not 1 <= self.grad_steps <= self.num_inference_steps:
            raise ValueError(
                f"grad_steps {self.grad_steps} must lie in 1 to num_inference_steps ({self.num_inference_steps})"
            )
        return self

    def generate(self, model: VideoModel, condition: Condition, noise: Latents, seed: int, step: int) -> Latents:
        """Latents with gradient. What is drawn is a function of seed and step, alike for all processes and parts."""
        steps, scale = self.num_inference_steps, self.guidance_scale
        if self.grad_steps == "x0":
            first = steps // 2
            stop = first + _draw(steps - first, seed, step)
            return clean_estimate(model, condition, noise, num_inference_steps=steps, guidance_scale=scale, stop=stop)
        match self.grad_steps:
            case "full":
                last = steps
            case "random":
                last = 1 + _draw(steps, seed, step)
            case int(last):
                pass
        return sample(model, condition, noise, num_inference_steps=steps, guidance_scale=scale, grad_steps=last)


def _draw(count: int, seed: int, step: int) -> int:
    return int(torch.randint(count, (), generator=stream(seed, step, 0, "grad_steps")))


class RewardStage(RewardedStage):
    """Minus the reward of generated clips, plus the flow-matching loss as an anchor to the data.

    Attributes:
        batch_size: clips of a step over all processes; all of them anchor.
        reward_every: each how-manieth clip of the batch is also generated and rewarded.
        sampling: how clips are generated, and where the gradient passes.
        decoded_latents: let the gradient through so many latent frames in a row, at a place drawn anew in each step,
            and keep nothing of decoding the others (Wan, embedded); null: through all. Less memory, and a noisier
            gradient.
    """

    objective: Literal["reward"]
    batch_size: int = Field(12, ge=1)
    reward_every: int = Field(1, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    decoded_latents: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> RewardStage:
        if self.batch_size % (self.reward_every * self.accumulate):
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of reward_every times accumulate")
        return self

    @model_validator(mode="after")
    def _differentiable(self) -> RewardStage:
        blind = [name for name in self.reward.terms if not find_term(name).differentiable]
        if blind:
            raise ValueError(f"{', '.join(blind)} has no gradient; use it with objective grpo or --best-of")
        return self


class RewardObjective(RewardedObjective):
    """See `RewardStage`."""

    def __init__(
        self,
        model: VideoModel,
        stage: RewardStage,
        seed: int,
        reward: Reward,
        floor: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, stage, seed, reward, floor)
        self.sampling, self.reward_every = stage.sampling, stage.reward_every
        self.decoded_latents = stage.decoded_latents

    def loss(self, work: ClipBatch, step: int) -> ObjectiveOutput:
        at = self.noised(work)
        anchor = self.flow_matching(at)
        rewarded = work.part(0, len(work), self.reward_every)
        condition = self.model.condition(rewarded.captions, rewarded.frames[:, 0])
        noise = draw_noise(self.model.spec, self.seed, 0, rewarded.index, "sampling/noise").to(work.frames)
        latents = self.sampling.generate(self.model, condition, noise, self.seed, step)
        frames = self.model.decode(latents, condition, self._with_gradient(step))
        output = self.judge(rewarded.with_frames(frames), rewarded, step)
        # the rewarded clips are 1 of `reward_every`: scaled up, the mean over the batch is the mean over them
        places = (torch.arange(0, len(work), self.reward_every, device=anchor.device),)
        loss: Tensor = self.anchor_weight * anchor
        loss = loss + torch.zeros_like(loss).index_put(places, -self.reward_scale * self.reward_every * output.total)
        logs = {"flow_matching": anchor.detach(), **self.logs_of(output)}
        if self.kl_weight:
            kl = self.kl(at)
            loss, logs["kl"] = loss + self.kl_weight * kl, kl.detach()
        return ObjectiveOutput(loss, logs)

    def _with_gradient(self, step: int) -> range | None:
        """The latent frames of a step that carry gradient, None: all."""
        count, wanted = self.model.spec.latent_shape[1], self.decoded_latents
        if wanted is None or wanted >= count:
            return None
        first = int(torch.randint(count - wanted + 1, (), generator=stream(self.seed, step, 0, "decoded_latents")))
        return range(first, first + wanted)
