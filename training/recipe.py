"""What a training run is: model, data, stages, optimiser. One YAML file, validated before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from newtonrewards.core.recipe import Config
from newtonrewards.models.load import ModelConfig
from newtonrewards.simulation.layouts import LayoutConfig
from newtonrewards.training.methods.registry import Stage
from newtonrewards.training.view import SamplesConfig


class DataConfig(Config):
    """Clips to train on.

    Attributes:
        clips: folder written by `newtonrewards simulate`, or another one whose `layout` is named.
        cache: keep decoded clips in memory (0.2 MB each at 64 px and 17 frames).
    """

    clips: Path
    cache: bool = True
    layout: LayoutConfig = LayoutConfig()


class CheckpointConfig(Config):
    """Checkpoints: every so many steps, the last `keep` of them stay."""

    every: int = Field(100, ge=1)
    keep: int = Field(2, ge=1)


class TrainRecipe(Config):
    """One training run.

    Attributes:
        seed: all random numbers are functions of it, the step and the sample.
        precision: `fp32`, or `bf16` autocast of the trained model (frozen networks stay in float32).
        compile: torch.compile of the trained network's blocks. The first step of a stage takes a minute more; numbers
            change in their last digits.
        ema: decay of the averaged weights that the run exports; null exports the last weights.
        samples: clips to look at while it trains.
        trackers: accelerate's trackers; the same numbers are always in metrics.jsonl.
    """

    seed: int = 0
    model: ModelConfig
    data: DataConfig
    stages: tuple[Stage, ...] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    trackers: tuple[str, ...] = ("tensorboard",)
