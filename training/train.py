"""`newtonrewards train`: fine-tune and post-train a video model from one recipe; run again to go on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from newtonrewards.core.errors import NewtonError
from newtonrewards.core.recipe import load
from newtonrewards.core.run import output_folder, provenance, write_atomic, write_json
from newtonrewards.models.base import VideoModel
from newtonrewards.models.load import load_video_model, save_trained
from newtonrewards.rewards.reward import Reward
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training import checkpoint
from newtonrewards.training.batches import Batches
from newtonrewards.training.objectives import FlowMatchingObjective, Objective, RewardObjective
from newtonrewards.training.recipe import RewardStage, Stage, TrainRecipe
from newtonrewards.training.trainer import Trainer


def train(recipe: TrainRecipe, run: Path) -> Path:
    """Run all stages of a recipe, from the last checkpoint if there is one.

    Returns:
        the folder of the trained model (`run/model`): a pipeline, or LoRA weights.
    Raises:
        NewtonError: anything wrong with recipe, data, model or checkpoint; Interrupted after a signal.
    """
    output_folder(run)
    accelerator = Accelerator(
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        log_with=list(recipe.trackers),
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run)),
    )
    state, path = _last_state(recipe, run)
    dataset = ClipFolder(recipe.data.clips, cache=recipe.data.cache)
    model = load_video_model(recipe.model, device=accelerator.device)
    batches = Batches(dataset, recipe.seed, accelerator.process_index, accelerator.num_processes)
    if accelerator.is_main_process:
        write_json(run / "provenance.json", provenance())
        write_atomic(run / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    accelerator.init_trackers("train")
    first = 0
    for number, stage in enumerate(recipe.stages):
        if state is not None and state["stage"] > number:
            first += stage.steps
            continue
        trainer = Trainer(recipe, number, objective(model, stage, recipe.seed), batches, accelerator, run, first)
        if state is not None and path is not None and state["stage"] == number:
            trainer.restore(path, state["step"])
        trainer.fit()
        first += stage.steps
        _close_stage(accelerator, trainer)
    accelerator.end_training()
    if accelerator.is_main_process:
        save_trained(model, recipe.model, run / "model")
    accelerator.wait_for_everyone()
    return run / "model"


def objective(model: VideoModel, stage: Stage, seed: int) -> Objective:
    if isinstance(stage, RewardStage):
        return RewardObjective(model, stage, Reward(stage.reward), seed)
    return FlowMatchingObjective(model, stage, seed)


def _close_stage(accelerator: Accelerator, trainer: Trainer) -> None:
    """The averaged weights are what a stage hands on; wrappers and their state go."""
    if trainer.ema is not None:
        trainer.ema.copy_to(trainer.parameters)
    accelerator.free_memory()
    accelerator._custom_objects.clear()


def _last_state(recipe: TrainRecipe, run: Path) -> tuple[dict[str, int] | None, Path | None]:
    found = checkpoint.checkpoints(run)
    return (checkpoint.read_state(found[-1], recipe), found[-1]) if found else (None, None)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards train", description=__doc__)
    p.add_argument("--recipe", type=Path, required=True, help="YAML file; see launch/recipes/")
    p.add_argument("--out", type=Path, required=True, help="run folder; a run that was stopped goes on from its last checkpoint")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe, as stages.0.steps=10")
    p.add_argument("--dry-run", action="store_true", help="check the recipe, print it in full, and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    recipe = load(TrainRecipe, arguments.recipe, arguments.set)
    if arguments.dry_run:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    path = train(recipe, arguments.out)
    print(f"{path}: trained {sum(stage.steps for stage in recipe.stages)} steps. Metrics in {arguments.out / 'metrics.jsonl'}.")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except NewtonError as error:
        raise SystemExit(f"error: {error}") from None
