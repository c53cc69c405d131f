"""`newtonrewards train`: fine-tune and post-train a video model from one recipe; run again to go on."""

from __future__ import annotations

import argparse
import faulthandler
from collections.abc import Sequence
from pathlib import Path

import yaml
from accelerate import PartialState
from torch import nn
from tqdm import tqdm

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.recipe import load
from newtonrewards.core.run import output_folder, provenance, write_atomic, write_json
from newtonrewards.models.base import VideoModel
from newtonrewards.models.load import load_video_model, save_trained
from newtonrewards.models.pipelines import PipelineModel
from newtonrewards.simulation.layouts import open_clips
from newtonrewards.training import checkpoint
from newtonrewards.training.batches import Batches, ClipDataset
from newtonrewards.training.methods.base import Objective, block_classes
from newtonrewards.training.methods.registry import METHODS, Stage
from newtonrewards.training.plan import show_plan
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.strategies import STRATEGIES, Strategy, accelerator_for, choose, launched, on_cpu
from newtonrewards.training.trainer import Trainer

# Clips of the training data whose penalties are the floor.
FLOOR_CLIPS = 16


def train(recipe: TrainRecipe, run: Path, strategy: Strategy | None = None, *, offload: bool = False) -> Path:
    """Run all stages of a recipe, from the last checkpoint if there is one, whatever the strategy that wrote it.

    Args:
        strategy: how processes share the work; None: as the launcher says.
        offload: keep the optimiser's state in the host's memory (ZeRO).
    Returns:
        the folder of the trained model (`run/model`): a pipeline, or LoRA weights.
    Raises:
        NewtonError: anything wrong with recipe, data, model or checkpoint; Interrupted after a signal.
    """
    output_folder(run)
    strategy = choose(strategy, recipe, offload=offload)
    process = PartialState(cpu=on_cpu())
    last = _last_state(recipe, run)
    dataset = open_clips(recipe.data.clips, recipe.data.layout, cache=recipe.data.cache)
    model = _model(recipe, dataset, process)
    batches = Batches(dataset, recipe.seed, process.process_index, process.num_processes)
    if process.is_main_process:
        write_json(run / "provenance.json", provenance())
        write_atomic(run / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    first = 0
    for number, stage in enumerate(recipe.stages):
        if last is None or last.stage <= number:
            resume = last if last is not None and last.stage == number else None
            _run_stage(recipe, number, objective(model, stage, recipe.seed, dataset), batches, run, first, resume)
            if strategy != "ddp":  # which left the model in pieces: go on with a new one and what was saved
                model = _model(recipe, dataset, process)
                _last(recipe, run).load_weights(nn.ModuleDict(model.trainable), averaged=True)
        first += stage.steps
    if process.is_main_process:
        save_trained(model, recipe.model, run / "model")
    process.wait_for_everyone()
    process.destroy_process_group()
    return run / "model"


def _run_stage(
    recipe: TrainRecipe,
    number: int,
    stage_objective: Objective,
    batches: Batches,
    run: Path,
    first_step: int,
    resume: checkpoint.State | None,
) -> None:
    """One stage with an accelerator of its own, so that no wrapper or optimiser of the stage before is left."""
    accelerator = accelerator_for(recipe, recipe.stages[number], run)
    accelerator.init_trackers("tensorboard")
    if resume is not None:
        resume.load_weights(stage_objective.trained)
    trainer = Trainer(recipe, number, stage_objective, batches, accelerator, run, first_step)
    if resume is not None:
        trainer.restore(resume)
    trainer.fit()
    if trainer.ema is not None and launched() == "ddp":  # the averaged weights are what a stage hands on
        trainer.ema.copy_to(trainer.trained.values())
    for tracker in accelerator.trackers:  # `end_training` would take the process group from the stages to come
        tracker.finish()
    accelerator.free_memory()


def _model(recipe: TrainRecipe, dataset: ClipDataset, process: PartialState) -> VideoModel:
    """The recipe's model as training begins, without its encoders where their work is stored."""
    model = load_video_model(recipe.model).to(process.device)
    if isinstance(model, PipelineModel) and model.embeddings is not None:
        _encode_once(model, dataset, process)
    if recipe.compile:
        _compile_blocks(model)
    return model


def _compile_blocks(model: VideoModel) -> None:
    """In place, so that names stay and the hooks of a strategy run; block by block, since blocks share what was
    compiled."""
    for module in model.trainable.values():
        blocks = block_classes(module)
        for block in module.modules():
            if type(block).__name__ in blocks:
                block.compile()


def _encode_once(model: PipelineModel, dataset: ClipDataset, process: PartialState) -> None:
    """Store every clip's caption and first frame, each process its share, and free the encoders."""
    clips = range(process.process_index, len(dataset), process.num_processes)
    for index in tqdm(clips, desc="encode captions and first frames", disable=not process.is_main_process):
        clip = dataset[index]
        for caption in (clip.caption, ""):  # the empty one stands in where captions are dropped
            model.condition([caption], clip.frames[:1].to(process.device))
    process.wait_for_everyone()
    model.free_encoders()


def objective(model: VideoModel, stage: Stage, seed: int, dataset: ClipDataset) -> Objective:
    """What a stage minimises."""

    def perfect() -> ClipBatch:
        clips = ClipBatch.stack([dataset[index] for index in range(min(FLOOR_CLIPS, len(dataset)))])
        return clips.to(PartialState().device)

    return METHODS[stage.objective].build(model, stage, seed, perfect)


def _last_state(recipe: TrainRecipe, run: Path) -> checkpoint.State | None:
    found = checkpoint.checkpoints(run)
    return checkpoint.read_state(found[-1], recipe) if found else None


def _last(recipe: TrainRecipe, run: Path) -> checkpoint.State:
    """The last checkpoint of a stage that came to its end, which always leaves one."""
    state = _last_state(recipe, run)
    assert state is not None
    return state


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards train", description=__doc__)
    p.add_argument("--recipe", type=Path, required=True, help="YAML file; see launch/recipes/")
    p.add_argument(
        "--out",
        type=Path,
        help="run folder (always needed to train); a run that was stopped goes on from its last checkpoint",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, as stages.0.steps=10",
    )
    p.add_argument("--dry-run", action="store_true", help="check the recipe, print it in full, and stop")
    p.add_argument("--plan", action="store_true", help="say what a step needs in memory, without any weight, and stop")
    p.add_argument(
        "--strategy", choices=STRATEGIES, help="how processes share the work (default: as the launcher says, else ddp)"
    )
    p.add_argument("--offload", action="store_true", help="with ZeRO: keep the optimiser's state in the host's memory")
    plan = p.add_argument_group("with --plan (docs/memory.md)")
    plan.add_argument("--processes", type=int, default=1, help="how many there will be (default 1)")
    plan.add_argument("--memory", help="of one GPU, as 80GB: says whether it fits, and what to change if not")
    plan.add_argument(
        "--on-cpu", action="store_true", help="the run will be on CPUs, where AdamW needs less for a moment"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    recipe = load(TrainRecipe, arguments.recipe, arguments.set)
    if arguments.dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    if arguments.plan:
        return show_plan(
            recipe,
            strategy=arguments.strategy or "ddp",
            processes=arguments.processes,
            memory=arguments.memory,
            foreach=not arguments.on_cpu,
        )
    if arguments.out is None:
        raise InputError("no run folder given", where="--out", fix="Name the folder to write to.")
    if not faulthandler.is_enabled():  # of a rank that a native library takes down, the log says where it was
        faulthandler.enable()
    path = train(recipe, arguments.out, arguments.strategy, offload=arguments.offload)
    steps = sum(stage.steps for stage in recipe.stages)
    print(f"{path}: trained {steps} steps. Metrics in {arguments.out / 'metrics.jsonl'}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
