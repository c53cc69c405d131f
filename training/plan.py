"""What a training step will need in memory, found by running it on tensors that have a shape and no content.

The recipe's own model, reward, objective and optimiser run one step under torch's `FakeTensorMode` while
`core.memory.MemoryTracker` counts. The model is built from its folder's JSON files; no weight of it is read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.fake import empty, fake_tensors
from newtonrewards.core.memory import MemoryTracker, Moment, Split, size_of
from newtonrewards.models.base import VideoModel
from newtonrewards.models.causal import Tiles
from newtonrewards.models.load import load_video_model
from newtonrewards.models.outline import outline
from newtonrewards.rewards.reward import Reward
from newtonrewards.training.methods.base import Objective
from newtonrewards.training.methods.registry import METHODS, Stage
from newtonrewards.training.methods.reward import RewardStage
from newtonrewards.training.methods.rewarded import RewardedStage
from newtonrewards.training.optimisers import optimisers
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.strategies import STRATEGIES, Strategy, check, unfit

CAPTION = "an object falls"


# Of what a GPU has, the rest goes to its driver, to kernels' workspace and to holes between tensors.
USABLE = 0.9
# Tiles that a family's autoencoder takes, with margins that change nothing.
TILES = {"wan": Tiles(side=30, margin=13), "hunyuan": Tiles(side=15, margin=8)}
# Numbers of processes that are looked at where the planned one doesn't fit.
LARGER = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class StagePlan:
    """The highest moment of a stage's step in one process.

    Attributes:
        stage: its number in the recipe.
        objective: its name.
        bytes: what the process holds at that moment.
        moment: the same by kind, before it is split over the processes.
        fixed: parameters by the network they belong to, bytes.
        others: what the same step would need under (strategy, number of processes).
    """

    stage: int
    objective: str
    bytes: int
    moment: Moment
    fixed: dict[str, int]
    others: dict[tuple[Strategy, int], int]


def plan_stage(
    recipe: TrainRecipe,
    number: int,
    *,
    strategy: Strategy = "ddp",
    processes: int = 1,
    compare: tuple[int, ...] = (),
    foreach: bool = True,
) -> StagePlan:
    """One step of a stage on fake tensors.

    Args:
        strategy, processes: how the run will be launched; the recipe's batch is shared by the processes.
        compare: other numbers of processes; `others` then has them under each strategy, with the same clips in each.
        foreach: whether the optimiser works on all parameters at once, as torch does on GPUs and not on CPUs.
    Raises:
        InputError, CheckpointError: a recipe that couldn't be run either.
    """
    if recipe.model.embeddings is not None:
        raise InputError(
            "a plan can't count a model without its encoders",
            where="model.embeddings",
            fix="Add --set model.embeddings=null; the run then needs less than planned, by the size of the encoders.",
        )
    stage = shortened(recipe.stages[number])
    reward = Reward(stage.reward) if isinstance(stage, RewardedStage) else None
    small = load_video_model(recipe.model) if recipe.model.name == "embedded" else None  # it ships with the package
    if small is not None:  # its codec keeps matrices for later: let them be real ones
        small.encode(torch.zeros(1, small.spec.num_frames, 3, small.spec.height, small.spec.width))
    with fake_tensors() as fake:
        model = load_video_model(recipe.model, read=outline) if small is None else small
        for module in networks(model, reward).values():
            empty(module, fake)
        objective = METHODS[stage.objective].build(model, stage, recipe.seed, reward=reward)
        fixed = networks(model, reward)
        ways = [(strategy, processes), *((way, count) for count in compare for way in STRATEGIES)]
        splits = {f"{way} {count}": split(objective.trained, way, count) for way, count in ways}
        tracker = MemoryTracker(*fixed.values(), splits=splits)
        share = max(stage.accumulate, stage.batch_size // processes)
        step(objective, recipe, stage, fake_clips(model, share), tracker, foreach=foreach)
    chosen = f"{strategy} {processes}"
    others = {(way, count): tracker.peak_bytes(f"{way} {count}") for way, count in ways}
    sizes = {name: size_of(module) for name, module in fixed.items()}
    return StagePlan(number, stage.objective, tracker.peak_bytes(chosen), tracker.peak(chosen), sizes, others)


@runtime_checkable
class Watch(Protocol):
    """What looks at memory while it is entered: a `MemoryTracker`, or something that asks a GPU's allocator."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *args: Any) -> Any: ...

    def forget_peaks(self) -> None:
        """Start looking for the highest moment anew."""


def step(
    objective: Objective, recipe: TrainRecipe, stage: Stage, clips: ClipBatch, tracker: Watch, *, foreach: bool
) -> None:
    """What `Trainer.train_step` does, with the optimiser's state already there, as in every step but the first."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    objective.bf16 = recipe.precision == "bf16"
    with tracker:
        ema = None if recipe.ema is None else EMAModel(trained, decay=recipe.ema)
        updates = optimisers(objective, stage.optimiser)
        for optimiser in updates:
            for group in optimiser.param_groups:
                if "foreach" in group:
                    group["foreach"] = foreach
        _first_state(trained, updates)
        tracker.forget_peaks()
        works = objective(clips, 0, prepare=True)[0]
        # the first work has the most to do, and from the second on the gradients of those before are held
        for work in [works[0]] * min(2, len(works)):
            output = objective(work, 0)
            output.loss.float().mean().backward()
            del output
        nn.utils.clip_grad_norm_(trained, stage.optimiser.grad_clip)
        for optimiser in updates:
            optimiser.step()
            optimiser.zero_grad()
        if ema is not None:
            ema.step(trained)


def _first_state(trained: list[nn.Parameter], updates: list[torch.optim.Optimizer]) -> None:
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for optimiser in updates:
        optimiser.step()
        optimiser.zero_grad()


def shortened(stage: Stage) -> Stage:
    """The same stage with one sampling step without gradient: of those each frees what it took, so one shows it all.

    A number of steps with gradient that is drawn anew is planned at its largest.
    """
    if not isinstance(stage, RewardStage):
        return stage
    steps, modes = stage.sampling.num_inference_steps, {"full": stage.sampling.num_inference_steps, "x0": 1}
    modes["random"] = modes["full"]
    with_gradient = modes.get(str(stage.sampling.grad_steps), stage.sampling.grad_steps)
    assert isinstance(with_gradient, int)
    update = {"num_inference_steps": min(steps, with_gradient + 1), "grad_steps": with_gradient}
    return stage.model_copy(update={"sampling": stage.sampling.model_copy(update=update)})


def networks(model: VideoModel, reward: Reward | None) -> dict[str, nn.Module]:
    """Every network that a step holds, by name: of the model, of its pipeline, and of the reward."""
    found: dict[str, nn.Module] = dict(model.trainable)
    for owner in (model, getattr(model, "pipeline", None)):
        parts = getattr(owner, "components", None) or getattr(owner, "__dict__", {})
        found |= {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    if reward is not None:
        for name in ("flow", "appearance", "second", "depth"):
            network = getattr(getattr(reward.networks, name), "network", None)
            found |= {name: network} if isinstance(network, nn.Module) else {}
    once: dict[int, str] = {}
    return {name: module for name, module in found.items() if once.setdefault(id(module), name) == name}


def split(trained: nn.Module, strategy: Strategy, processes: int) -> Split:
    """What a strategy divides by the number of processes, and what it needs beside that.

    DDP keeps a second copy of the gradients in its buckets; FSDP2 and ZeRO-3 gather one block while another is used.
    """
    if processes == 1:
        return Split()
    whole, share = size_of(trained), 1 / processes
    gradients = sum(p.numel() * p.element_size() for p in trained.parameters() if p.requires_grad)
    blocks = [size_of(part) for module in trained.modules() if isinstance(module, nn.ModuleList) for part in module]
    match strategy:
        case "ddp":
            return Split(extra_bytes=gradients)
        case "zero1":
            return Split(optimiser=share)
        case "zero2":
            return Split(gradients=share, optimiser=share)
        case "zero3" | "fsdp2":
            return Split(share, share, share, split_bytes=whole, extra_bytes=2 * max(blocks, default=whole))


def fake_clips(model: VideoModel, count: int) -> ClipBatch:
    """Clips of the model's size with everything that a simulated clip knows."""
    spec = model.spec
    return ClipBatch(
        frames=torch.full((count, spec.num_frames, 3, spec.height, spec.width), 0.5),
        fps=torch.full((count,), float(spec.fps)),
        captions=(CAPTION,) * count,
        masks=torch.zeros(count, spec.num_frames, spec.height, spec.width),
        valid=torch.ones(count, spec.num_frames, dtype=torch.bool),
        index=tuple(range(count)),
        law=torch.zeros(count, 2),
    )


def show_plan(
    recipe: TrainRecipe,
    *,
    strategy: Strategy,
    processes: int,
    memory: str | None,
    foreach: bool,
) -> int:
    """Print the plan of every stage.

    Args:
        memory: of one GPU, as `80GB`; None: nothing to compare with.
    Returns:
        exit code: 0, or 1 where a stage doesn't fit.
    Raises:
        InputError: a memory that can't be read, or a batch that the processes can't share.
        RecipeError: a stage that the strategy can't run.
    """
    limit = None if memory is None else parse_bytes(memory)
    check(recipe, strategy)
    code = 0
    print(f"planned, not measured: tensor memory of one process, {strategy}, {processes} process(es)")
    for number, stage in enumerate(recipe.stages):
        if stage.batch_size % (processes * stage.accumulate):
            raise InputError(
                f"batch_size {stage.batch_size} can't be shared by {processes} processes in {stage.accumulate} parts",
                where=f"stages[{number}]",
                fix="Make it a multiple.",
            )
        plan = plan_stage(recipe, number, strategy=strategy, processes=processes, compare=LARGER, foreach=foreach)
        print("\n".join(describe(plan)))
        if limit is not None and plan.bytes > USABLE * limit:
            code = 1
            print(f"  does not fit {memory} (of which tensors can have {USABLE:.0%}). What helps:")
            print("\n".join(f"  - {line}" for line in advice(plan, recipe, limit, processes)))
        elif limit is not None:
            print(f"  fits {memory}: {plan.bytes / limit:.0%} of it")
    return code


def describe(plan: StagePlan) -> list[str]:
    """The peak of a stage in a few lines."""
    m = plan.moment
    kinds = {
        "parameters": m.parameters,
        "gradients": m.gradients,
        "optimiser": m.optimiser,
        "activations": m.activations,
        "temporary": m.temporary,
    }
    networks_line = ", ".join(f"{name} {_size(size)}" for name, size in plan.fixed.items())
    kinds_line = ", ".join(f"{name} {_size(size)}" for name, size in kinds.items())
    return [
        f"stages[{plan.stage}] {plan.objective}: {_size(plan.bytes)}",
        f"  at that moment, before it is divided: {kinds_line}",
        f"  networks: {networks_line}",
    ]


def advice(plan: StagePlan, recipe: TrainRecipe, limit: int, processes: int) -> list[str]:
    """What to change so that a stage fits, the cheapest first."""
    model, stage = recipe.model, recipe.stages[plan.stage]
    lines = []
    clips = stage.batch_size // processes // stage.accumulate
    if clips > 1:
        lines.append(
            f"stages.{plan.stage}.accumulate: {stage.accumulate * clips} (one clip at a time instead of {clips})"
        )
    if not model.gradient_checkpointing and model.name != "embedded":
        lines.append("model.gradient_checkpointing: true (activations of one block at a time)")
    if model.dtype == "float32" and model.name != "embedded":
        lines.append("model.dtype: bfloat16 (half the parameters)")
    if model.lora_rank is None and model.lora is None:
        lines.append("model.lora_rank: 16 (no gradients and no optimiser state of the base)")
    if isinstance(stage, RewardStage):
        if stage.sampling.grad_steps not in (1, "x0"):
            lines.append(f"stages.{plan.stage}.sampling.grad_steps: 1")
        if model.tiles is None and model.name in TILES:
            tiles = TILES[model.name]
            sizes = f"{{side: {tiles.side}, margin: {tiles.margin}}}"
            lines.append(f"model.tiles: {sizes} (the autoencoder decodes a part of a frame at a time)")
        if stage.decoded_latents is None and model.name != "ltx":
            lines.append(f"stages.{plan.stage}.decoded_latents: 4 (gradient through a part of the clip in each step)")
    if isinstance(stage, RewardedStage) and not stage.reward.flow.checkpoint:
        lines.append(f"stages.{plan.stage}.reward.flow.checkpoint: true, with a smaller pairs_at_once")
    fitting = [
        (count, way)
        for (way, count), size in plan.others.items()
        if size <= USABLE * limit and unfit(stage, way) is None
    ]
    if fitting:
        count, way = min(fitting, key=lambda found: (found[0], STRATEGIES.index(found[1])))
        lines.append(
            f"--strategy {way} on {count} processes, each with {clips} clip(s): {_size(plan.others[way, count])}"
        )
    else:
        lines.append(f"more processes alone won't do: with {LARGER[-1]} it is {_size(min(plan.others.values()))}")
    return lines


def parse_bytes(text: str) -> int:
    """`80GB`, `79.6 GiB` or a plain number, in bytes.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kMGT]?)(i?)B?\s*", text)
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not number > 0:
        raise InputError(f"'{text}' is no size of memory", where="--memory", fix="Write it as 80GB.")
    return round(number * (1024 if found[3] else 1000) ** "\0kMGT".index(found[2] or "\0"))


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
