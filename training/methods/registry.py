"""The training methods by name: the one place that knows them all. A new one is a file and a line in each table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from newtonrewards.training.methods.base import Objective
from newtonrewards.training.methods.grpo import GrpoObjective, GrpoStage
from newtonrewards.training.methods.reward import RewardObjective, RewardStage
from newtonrewards.training.methods.sft import SftObjective, SftStage

# The config of a stage: its `objective` says of which method.
Stage = Annotated[SftStage | RewardStage | GrpoStage, Field(discriminator="objective")]

METHODS: dict[str, type[Objective]] = {"sft": SftObjective, "reward": RewardObjective, "grpo": GrpoObjective}
