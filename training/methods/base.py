"""What every training method shares: the config of its stage, and the one module that a launcher wraps.

The model and the reward are plain attributes, not sub-modules: only what trains is registered, so no wrapper, cast or
optimiser can reach a frozen network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, RecipeError
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream
from newtonrewards.models import lora
from newtonrewards.models.base import Condition, Latents, PerSample, VideoModel, draw_noise, draw_sigma
from newtonrewards.models.flow_matching import flow_matching_loss, reference_distance
from newtonrewards.rewards.reward import Reward
from newtonrewards.training.guard import SentinelRule
from newtonrewards.training.optimisers import OptimiserConfig


class StageConfig(Config):
    """What the config of every method has.

    Attributes:
        objective: name of the method in `methods.registry.METHODS`.
        steps: of this stage.
        batch_size: clips of a step over all processes.
        accumulate: parts into which each process cuts its share of a batch, one after the other.
        kl_weight: weight of the distance to the reference, which is the model without its LoRA layers; needs them.
        optimiser: see its class.
    """

    objective: str
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    kl_weight: float = Field(0.0, ge=0)
    optimiser: OptimiserConfig = OptimiserConfig()

    @model_validator(mode="after")
    def _parts(self) -> StageConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self


@dataclass(frozen=True)
class ObjectiveOutput:
    """`loss` (B,) is back-propagated; each log is one value for each clip it was measured on, NaN where it can't be."""

    loss: Float[Tensor, "B"]
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class NoisedBatch:
    """Data at noise levels of its own, the input of both anchors."""

    clean: Latents
    noise: Latents
    sigma: PerSample
    condition: Condition


class Objective(nn.Module):
    """Holds the model's trainable modules. A method overrides `loss`, and `prepare` if it has work of its own to do
    before the gradient.

    One step of the trainer is: `updates = objective(batch, step, prepare=True)`, then for each update the mean of
    `objective(work, step).loss` over its works goes backwards and the optimiser moves once. Both go through `forward`,
    since launchers hook it.

    Attributes:
        trained: the modules with trainable weights.
        rules: which sentinels are watched during training.
        reward_scale: factor of the reward, which the guard of the sentinels lowers.
        units: unit of a log, by its name.
        bf16: whether what the networks compute is cast to bfloat16 (torch's autocast). Weights keep their type.
    """

    def __init__(self, model: VideoModel, stage: StageConfig, seed: int) -> None:
        super().__init__()
        if stage.kl_weight and not lora.is_attached(model):
            raise RecipeError(
                "kl_weight compares with the model without its LoRA layers, and it has none",
                where="stages",
                fix="Set model.lora_rank, or kl_weight to 0.",
            )
        self.trained = nn.ModuleDict(model.trainable)
        self._plain = (model,)  # a tuple hides the model from nn.Module's registration
        self.seed, self.accumulate, self.kl_weight = seed, stage.accumulate, stage.kl_weight
        self.rules: Mapping[str, SentinelRule] = {}
        self.reward_scale = 1.0
        self.units: Mapping[str, str] = {}
        self.bf16 = False
        # FSDP cuts block by block; under this name it looks for which classes are blocks.
        self._no_split_modules = sorted({name for module in model.trainable.values() for name in block_classes(module)})

    @classmethod
    def build(
        cls,
        model: VideoModel,
        stage: Any,
        seed: int,
        perfect: Callable[[], ClipBatch] | None = None,
        reward: Reward | None = None,
    ) -> Objective:
        """The objective of a stage.

        Args:
            stage: of the method's own config class.
            perfect: gives some clips of the data set, for methods that measure what perfect clips get; None: no clip
                is looked at.
            reward: for methods with one, if its networks are in memory already; None loads the stage's.
        """
        return cls(model, stage, seed)

    @property
    def model(self) -> VideoModel:
        return self._plain[0]

    def forward(
        self, work: Any = None, step: int = 0, prepare: bool = False, function: Callable[[], Any] | None = None
    ) -> Any:
        """`prepare` or `loss`; the step is counted in its stage. Or any function that uses the trained modules, which a
        launcher may have cut into pieces that are whole in here only.

        The cast is made in here since each launcher has its own idea of mixed precision, and the numbers must not
        depend on it.
        """
        device = next(self.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            if function is not None:
                return function()
            if prepare:
                with torch.no_grad():
                    return self.prepare(work, step)
            return self.loss(work, step)

    def prepare(self, batch: ClipBatch, step: int) -> Sequence[Sequence[Any]]:
        """The works of each optimiser update of a step: here one update over the batch in `accumulate` parts.

        Raises:
            InputError: it can't be cut so.
        """
        if len(batch) % self.accumulate:
            raise InputError(
                f"a process has {len(batch)} clips of a step, which can't be cut into {self.accumulate} parts",
                where="stages",
                fix="Make batch_size a multiple of accumulate times the number of processes.",
            )
        size = len(batch) // self.accumulate
        return [[batch.part(start, start + size) for start in range(0, len(batch), size)]]

    def loss(self, work: Any, step: int) -> ObjectiveOutput:
        """Loss of each clip of one work."""
        raise NotImplementedError

    def noised(self, batch: ClipBatch, caption_dropout: float = 0.0) -> NoisedBatch:
        """Noise and noise level come from the sample's own streams."""
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
        return NoisedBatch(clean, noise, sigma, self.model.condition(captions, batch.frames[:, 0]))

    def flow_matching(self, at: NoisedBatch) -> Float[Tensor, "B"]:
        """Flow-matching loss of each clip: the supervised loss, or the anchor to the data."""
        return flow_matching_loss(self.model, at.clean, at.noise, at.sigma, at.condition)

    def kl(self, at: NoisedBatch) -> Float[Tensor, "B"]:
        """Distance of each prediction to the reference's: the anchor to where training began."""
        return reference_distance(self.model, at.clean, at.noise, at.sigma, at.condition)


def block_classes(module: nn.Module) -> Sequence[str]:
    """Names of the classes of a network's repeated blocks, as diffusers and transformers tell them, each in its way."""
    for told in ("_no_split_modules", "_repeated_blocks"):
        names: Sequence[str] = getattr(module, told, None) or ()
        if names:
            return names
    return ()
