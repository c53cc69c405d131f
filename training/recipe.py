"""What a training run is: model, data, stages, optimiser. One YAML file, validated before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from newtonrewards.core.recipe import Config
from newtonrewards.models.load import ModelConfig
from newtonrewards.rewards.reward import RewardConfig
from newtonrewards.simulation.layouts import LayoutConfig


class DataConfig(Config):
    """Clips to train on.

    Attributes:
        clips: folder written by `newtonrewards simulate`, or another one whose `layout` is named.
        cache: keep decoded clips in memory (0.2 MB each at 64 px and 17 frames).
    """

    clips: Path
    cache: bool = True
    layout: LayoutConfig = LayoutConfig()


class OptimiserConfig(Config):
    """Optimiser of a stage.

    Attributes:
        name: `adamw`, or `muon`: Muon for the matrices of the blocks and AdamW for the rest.
        lr: peak learning rate; it is a function of the step alone.
        warmup_steps: linear rise from zero.
        decay: `linear` to zero at the stage's last step, or `constant`.
        grad_clip: largest gradient norm.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear"] = "constant"
    grad_clip: float = Field(1.0, gt=0)


class SamplingConfig(Config):
    """How clips are generated inside a reward stage; the names are diffusers'."""

    num_inference_steps: int = Field(8, ge=1)
    guidance_scale: float = Field(1.0, ge=1.0)
    grad_steps: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _last_steps(self) -> SamplingConfig:
        if self.grad_steps > self.num_inference_steps:
            raise ValueError(
                f"grad_steps {self.grad_steps} is more than num_inference_steps {self.num_inference_steps}"
            )
        return self


class SftStage(Config):
    """Supervised fine-tuning: the flow-matching loss on the clips of the data set.

    Attributes:
        batch_size: clips of a step over all processes.
        caption_dropout: share of captions replaced by the empty one, so that guidance works at generation.
    """

    objective: Literal["sft"]
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    caption_dropout: float = Field(0.0, ge=0, le=1)
    optimiser: OptimiserConfig = OptimiserConfig()


class RewardStage(Config):
    """Post-training: minus the reward of generated clips, plus the flow-matching loss as an anchor to the data.

    Attributes:
        batch_size: clips of a step over all processes; all of them anchor.
        reward_every: each how-manieth clip of the batch is also generated and rewarded.
        anchor_weight: weight of the flow-matching loss.
        reward: frozen networks, terms and their weights.
        stop_if: limits `[low, high]` of sentinels; a mean over 20 steps outside stops the run with the sentinel's name.
    """

    objective: Literal["reward"]
    steps: int = Field(ge=1)
    batch_size: int = Field(12, ge=1)
    accumulate: int = Field(1, ge=1)
    reward_every: int = Field(1, ge=1)
    anchor_weight: float = Field(1.0, ge=0)
    sampling: SamplingConfig = SamplingConfig()
    reward: RewardConfig
    stop_if: dict[str, tuple[float, float]] = {}
    optimiser: OptimiserConfig = OptimiserConfig()

    @model_validator(mode="after")
    def _divides(self) -> RewardStage:
        if self.batch_size % (self.reward_every * self.accumulate):
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of reward_every times accumulate")
        return self


Stage = Annotated[SftStage | RewardStage, Field(discriminator="objective")]


class CheckpointConfig(Config):
    """Checkpoints: every so many steps, the last `keep` of them stay."""

    every: int = Field(100, ge=1)
    keep: int = Field(2, ge=1)


class TrainRecipe(Config):
    """One training run.

    Attributes:
        seed: all random numbers are functions of it, the step and the sample.
        precision: `fp32`, or `bf16` autocast of the trained model (frozen networks stay in float32).
        ema: decay of the averaged weights that the run exports; null exports the last weights.
        trackers: accelerate's trackers; the same numbers are always in metrics.jsonl.
    """

    seed: int = 0
    model: ModelConfig
    data: DataConfig
    stages: tuple[Stage, ...] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = Field(None, gt=0, lt=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    trackers: tuple[str, ...] = ("tensorboard",)
