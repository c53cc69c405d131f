"""How processes share the work: DDP, FSDP2 or DeepSpeed's ZeRO, all of them accelerate's own.

`accelerate launch` tells a strategy to its processes by environment variables, which accelerate's plugins read.
`--strategy` sets the same ones, so that torchrun and SLURM jobs need no second way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration
from transformers.integrations import unset_hf_deepspeed_config

from newtonrewards.core.errors import InputError, MissingExtra, RecipeError
from newtonrewards.training.methods.registry import Stage
from newtonrewards.training.recipe import TrainRecipe

Strategy = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

_ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
}
# What `accelerate launch` sets for launch/accelerate/NAME.yaml.
ENVIRONMENT: dict[Strategy, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    },
    "zero1": {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
OFFLOAD = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
# What accelerate could do beside, and nobody has run here: the values that mean "no", and what to use instead.
REFUSED = {
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ("none", "launch/accelerate/zero2.yaml"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("none", "fsdp2"),
    "FSDP_OFFLOAD_PARAMS": ("false", "zero2 with --offload"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "the recipe's model.gradient_checkpointing"),
}


def on_cpu() -> bool:
    """Said outright, since accelerate otherwise takes N processes under torchrun on a CPU for N lonely ones."""
    return not torch.accelerator.is_available()


def launched() -> Strategy:
    """The strategy that the environment tells.

    Raises:
        InputError: one that isn't offered.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        for name in STRATEGIES:
            if name == f"zero{stage}":
                return name
        raise _not_offered(f"ZeRO stage {stage}", "zero1, zero2 or zero3")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise _not_offered("FSDP version 1", "fsdp_version: 2")
        return "fsdp2"
    return "ddp"


def choose(given: Strategy | None, recipe: TrainRecipe, *, offload: bool = False) -> Strategy:
    """Decide the strategy before any process group exists, and tell accelerate.

    Args:
        given: by `--strategy`; None: the launcher's.
        offload: keep the optimiser's state in the host's memory (ZeRO).
    Raises:
        InputError: the launcher says another one, or there is no launcher.
        RecipeError: the recipe asks for what the strategy can't do.
        MissingExtra: DeepSpeed isn't installed.
    """
    told = launched()
    for name, (usual, instead) in REFUSED.items():
        if os.environ.get(name, usual).lower() != usual:
            raise _not_offered(f"{name}={os.environ[name]}", f"{instead}")
    if os.environ.get(OFFLOAD, "none").lower() not in ("none", "cpu"):
        raise _not_offered(f"{OFFLOAD}={os.environ[OFFLOAD]}", "cpu or none")
    if given is not None and told not in ("ddp", given):
        raise InputError(
            f"the launcher was set up for {told}", where=f"--strategy {given}", fix="Leave one of them out."
        )
    strategy = given or told
    if offload and not strategy.startswith("zero"):
        raise InputError(f"{strategy} keeps its optimiser on the device", where="--offload", fix="Use zero1, 2 or 3.")
    if strategy == "ddp":
        return strategy
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"{strategy} needs a launcher, also for one process",
            where="--strategy",
            fix="Start it as `torchrun --nproc_per_node N -m newtonrewards.training.train`; see docs/launching.md.",
        )
    check(recipe, strategy)
    if strategy != "fsdp2":
        _prepare_deepspeed(offload)
    os.environ.update(ENVIRONMENT[strategy])
    return strategy


def unfit(stage: Stage, strategy: Strategy) -> str | None:
    """Why a stage can't run under a strategy, or None."""
    if stage.optimiser.name != "adamw" and strategy != "ddp":
        return f"{stage.optimiser.name} looks at whole matrices, which {strategy} cuts into pieces"
    if stage.objective == "reward" and strategy == "zero3":
        return "the reward's gradient recomputes whole sampling steps, in which ZeRO-3 drops frozen weights too early"
    return None


def check(recipe: TrainRecipe, strategy: Strategy) -> None:
    """Refuse a recipe that asks for what a strategy can't do.

    Raises:
        RecipeError: with the strategies that can.
    """
    for number, stage in enumerate(recipe.stages):
        reason = unfit(stage, strategy)
        if reason is not None:
            able = [name for name in STRATEGIES if unfit(stage, name) is None]
            raise RecipeError(reason, where=f"stages[{number}]", fix=f"Use --strategy {' or '.join(able)}.")


def _prepare_deepspeed(offload: bool) -> None:
    import importlib.util

    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtra("ZeRO needs DeepSpeed", fix="pip install 'newtonrewards[deepspeed]', or use fsdp2.")
    if offload:
        os.environ[OFFLOAD] = "cpu"
    if on_cpu():
        os.environ["DS_ACCELERATOR"] = "cpu"


def accelerator_for(recipe: TrainRecipe, stage: Stage, run: Path) -> Accelerator:
    """The accelerator of one stage, under the strategy that was chosen."""
    PartialState(cpu=on_cpu())
    made = Accelerator(
        # The objective casts itself: each strategy has its own idea of mixed precision, and a recipe must give the same
        # numbers under all of them.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the trainer cuts batches itself
        log_with=list(recipe.trackers),
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run)),
    )
    match launched():
        case "fsdp2":
            _fsdp_on_cpu()
        case "zero1" | "zero2" | "zero3":
            settings = made.state.deepspeed_plugin.deepspeed_config
            # DeepSpeed only wants numbers that agree with each other.
            settings.update(
                train_micro_batch_size_per_gpu=1,
                train_batch_size=made.num_processes,
                gradient_accumulation_steps=1,
                gradient_clipping=stage.optimiser.grad_clip,
                # For an offloaded state accelerate would take DeepSpeed's own Adam, which multiplies its powers of beta
                # up from step to step: after a resume their last bits differ.
                zero_force_ds_cpu_optimizer=False,
            )
            # Told of ZeRO-3, transformers would cut every network that it loads from now on, the frozen ones too.
            unset_hf_deepspeed_config()
    return made


def _fsdp_on_cpu() -> None:
    """Accelerate turns FSDP on for accelerators only; without this it would silently train with DDP on a CPU."""
    from accelerate import FullyShardedDataParallelPlugin

    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _not_offered(what: str, instead: str) -> InputError:
    return InputError(f"{what} is not offered", where="accelerate's configuration", fix=f"Use {instead}.")
