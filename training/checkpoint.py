"""Checkpoints that are whole or absent, and a resume that goes on to the same bits.

A checkpoint is a folder `checkpoints/step_NNNNNN` with accelerate's state (weights, optimisers, averaged weights) and
`state.json`: the step, the stage, and the recipe. Random numbers need no saving: they are functions of the step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from newtonrewards.core.errors import CheckpointError
from newtonrewards.core.run import jsonable, write_json
from newtonrewards.training.recipe import TrainRecipe

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE = {"checkpoint", "samples", "trackers"}


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself.

    Attributes:
        path: its folder.
        step: steps of the run so far. stage: the one that it was in.
        guard: what the guard of the sentinels had seen.
    """

    path: Path
    step: int
    stage: int
    guard: dict[str, Any] = field(default_factory=dict)


def decisive(recipe: TrainRecipe) -> dict[str, Any]:
    """Everything in a recipe that decides the numbers of a run."""
    content: dict[str, Any] = jsonable(recipe.model_dump(mode="json", exclude=FREE))
    return content


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step_*") if (run / "checkpoints").is_dir() else ()
    return sorted(path for path in found if (path / "state.json").is_file())


def save(
    accelerator: Accelerator, run: Path, recipe: TrainRecipe, step: int, stage: int, guard: dict[str, Any]
) -> Path:
    """Write a checkpoint under a temporary name, rename it, then delete what `keep` no longer covers.

    Raises:
        CheckpointError: the disk is full or the folder can't be written; older checkpoints are untouched.
    """
    path = run / "checkpoints" / f"step_{step:06d}"
    state = {"step": step, "stage": stage, "guard": guard, "recipe": decisive(recipe)}
    try:
        _write(accelerator, path, state)
    except OSError as error:
        raise CheckpointError(
            f"can't write the checkpoint ({error.strerror})",
            where=path,
            fix="The last good one is kept: free space, then resume.",
        ) from None
    if accelerator.is_main_process:
        for old in checkpoints(run)[: -recipe.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return path


def _write(accelerator: Accelerator, path: Path, state: dict[str, Any]) -> None:
    """All processes write into one folder, whose name the first one knows: it makes and renames it, the others wait."""
    temporary = path.with_name(f".{path.name}.part")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_json(temporary / "state.json", state)
            shutil.rmtree(path, ignore_errors=True)  # the same step again, after a resume
            temporary.rename(path)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()


def read_state(path: Path, recipe: TrainRecipe) -> State:
    """`state.json` of a checkpoint, checked against the recipe that wants to go on from it.

    Raises:
        CheckpointError: unreadable, of another model, or of another recipe.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"can't read this checkpoint ({error})", where=path, fix="Delete it: the one before is used."
        ) from None
    changed = differences(state["recipe"], decisive(recipe))
    if any(key.startswith("model.") for key in changed):
        raise CheckpointError(
            f"a checkpoint of another model ({'; '.join(changed)})",
            where=path,
            fix="Choose another --out, or the recipe that wrote it.",
        )
    if changed:
        raise CheckpointError(
            f"the run in this folder has another recipe ({'; '.join(changed)})",
            where=path,
            fix="Choose another --out, or delete the folder to start over.",
        )
    return State(path, int(state["step"]), int(state["stage"]), state.get("guard", {}))


def differences(theirs: Any, mine: Any, key: str = "") -> list[str]:
    """`key: theirs, here mine` for each value that differs; options that only one of two versions has don't count."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        inner = [(f"{key}.{name}" if key else name, theirs[name], mine[name]) for name in theirs if name in mine]
        return [line for name, one, other in inner for line in differences(one, other, name)]
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        return [
            line for i, pair in enumerate(zip(theirs, mine, strict=True)) for line in differences(*pair, f"{key}[{i}]")
        ]
    return [] if theirs == mine else [f"{key}: there {theirs}, here {mine}"]
