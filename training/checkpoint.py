"""Checkpoints that are whole or absent, and a resume that goes on to the same bits.

A checkpoint is a folder `checkpoints/step_NNNNNN` with accelerate's state (weights, optimisers, averaged weights) and
`state.json`: step, hash of the recipe, identity of the model. Random numbers need no saving: they are functions of the step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from newtonrewards.core.errors import CheckpointError
from newtonrewards.core.run import jsonable, whole_folder, write_json
from newtonrewards.training.recipe import TrainRecipe

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE = {"checkpoint", "trackers"}


def fingerprint(recipe: TrainRecipe) -> str:
    """Hash of everything in a recipe that decides the numbers of a run."""
    content = jsonable(recipe.model_dump(mode="json", exclude=FREE))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step_*") if (run / "checkpoints").is_dir() else ()
    return sorted(path for path in found if (path / "state.json").is_file())


def save(accelerator: Accelerator, run: Path, recipe: TrainRecipe, step: int, stage: int) -> Path:
    """Write a checkpoint under a temporary name, rename it, then delete what `keep` no longer covers.

    Raises:
        CheckpointError: the disk is full or the folder can't be written; older checkpoints are untouched.
    """
    path = run / "checkpoints" / f"step_{step:06d}"
    state = {"step": step, "stage": stage, "recipe": fingerprint(recipe), "model": recipe.model.model_dump(mode="json")}
    try:
        if accelerator.num_processes == 1:
            with whole_folder(path) as temporary:
                accelerator.save_state(str(temporary), safe_serialization=True)
                write_json(temporary / "state.json", state)
        else:
            _save_shared(accelerator, path, state)
    except OSError as error:
        raise CheckpointError(
            f"can't write the checkpoint ({error.strerror})", where=path, fix="The last good one is kept: free space, then resume."
        ) from None
    if accelerator.is_main_process:
        for old in checkpoints(run)[: -recipe.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return path


def _save_shared(accelerator: Accelerator, path: Path, state: dict[str, Any]) -> None:
    """Several processes write into one folder: the first makes and renames it, all wait."""
    temporary = path.with_name(f".{path.name}.part")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / "state.json", state)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    accelerator.wait_for_everyone()


def read_state(path: Path, recipe: TrainRecipe) -> dict[str, Any]:
    """`state.json` of a checkpoint, checked against the recipe that wants to go on from it.

    Raises:
        CheckpointError: unreadable, of another model, or of another recipe.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"can't read this checkpoint ({error})", where=path, fix="Delete it: the one before is used.") from None
    mine = recipe.model.model_dump(mode="json")
    other = {key: value for key, value in state["model"].items() if mine.get(key) != value}
    if other:
        raise CheckpointError(
            f"a checkpoint of another model ({_listing(other)}; the recipe wants {_listing({key: mine.get(key) for key in other})})",
            where=path,
            fix="Choose another --out, or the recipe that wrote it.",
        )
    if state["recipe"] != fingerprint(recipe):
        raise CheckpointError(
            "the run in this folder has another recipe", where=path, fix="Choose another --out, or delete the folder to start over."
        )
    return state


def _listing(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
