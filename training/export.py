"""`newtonrewards export`: a checkpoint of a run, whatever strategy wrote it, as a plain LoRA or model folder.

What a finished run has under `model` already, for one that isn't finished or for an earlier step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from newtonrewards.core.errors import CheckpointError, InputError, run_command
from newtonrewards.core.recipe import load
from newtonrewards.models.load import load_video_model, save_trained
from newtonrewards.training import checkpoint
from newtonrewards.training.recipe import TrainRecipe


def export(run: Path, out: Path, step: int | None = None) -> checkpoint.State:
    """Write the trained weights of a checkpoint, the averaged ones where the recipe averages.

    Args:
        run: folder of `newtonrewards train`, with its recipe.
        out: folder to write, whole or not at all: LoRA weights as diffusers reads them, or the whole model.
        step: of the checkpoint; None: the last whole one.
    Raises:
        InputError: no such step, or an `out` that is there already.
        CheckpointError: no whole checkpoint, or a damaged one.
    """
    if out.exists():
        raise InputError("this is there already", where=out, fix="Choose another --out.")
    recipe = load(TrainRecipe, run / "recipe.yaml", [])
    found = {int(path.name.removeprefix("step_")): path for path in checkpoint.checkpoints(run)}
    if not found:
        raise CheckpointError("no whole checkpoint", where=run, fix="Name the --out of a run that saved one.")
    if step is not None and step not in found:
        steps = ", ".join(map(str, found))
        raise InputError(f"no whole checkpoint of step {step}", where=run, fix=f"There are {steps}.")
    state = checkpoint.read_state(found[max(found) if step is None else step], recipe)
    model = load_video_model(recipe.model)
    state.load_weights(nn.ModuleDict(model.trainable), averaged=True)
    save_trained(model, recipe.model, out)
    return state


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards export", description=__doc__)
    p.add_argument("run", type=Path, help="folder of a training run")
    p.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    p.add_argument("--step", type=int, help="of the checkpoint (default: the last)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    state = export(arguments.run, arguments.out, arguments.step)
    print(f"{arguments.out}: the weights after step {state.step}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
