"""Checkpoints that are whole or absent, that open under any strategy, and from which a run goes on to the same bits.

A checkpoint is a folder `checkpoints/step_NNNNNN` of safetensors files, each with one tensor for each trained weight,
by its name and whole: `weights`, `ema` where the recipe averages, and `optimiser.KEY` for what the optimiser remembers.
Beside them `state.json` says step, stage, guard and recipe, and how large each file is. Random numbers need no saving:
they are functions of the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from newtonrewards.core.errors import CheckpointError
from newtonrewards.core.run import jsonable, write_json
from newtonrewards.training import shards
from newtonrewards.training.recipe import TrainRecipe

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE = {"checkpoint", "samples", "trackers"}
WEIGHTS, EMA, OPTIMISER = "weights", "ema", "optimiser."
SUFFIX = ".safetensors"

# Files of a checkpoint: a name, and pairs of a parameter's name and a whole tensor.
Files = Iterable[tuple[str, Iterator[tuple[str, Tensor]]]]


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself.

    Attributes:
        path: its folder.
        step: steps of the run so far. stage: the one that it was in.
        guard: what the guard of the sentinels had seen.
        ema_step: how often the averaged weights moved.
    """

    path: Path
    step: int
    stage: int
    guard: dict[str, Any] = field(default_factory=dict)
    ema_step: int = 0

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One file, on the CPU.

        Raises:
            CheckpointError: missing or damaged.
        """
        file = self.path / f"{name}{SUFFIX}"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"can't read this part of a checkpoint ({' '.join(str(error).split())})",
                where=file,
                fix="Delete its folder: the one before is used.",
            ) from None

    def optimiser(self) -> dict[str, dict[str, Tensor]]:
        """What the optimisers remembered, by key and parameter."""
        keys = [file.name.removeprefix(OPTIMISER).removesuffix(SUFFIX) for file in self.path.glob(f"{OPTIMISER}*")]
        return {key: self.tensors(OPTIMISER + key) for key in sorted(keys)}

    def load_weights(self, module: nn.Module, *, averaged: bool = False) -> None:
        """Put the trained weights into a module that no strategy has taken yet.

        Args:
            averaged: those that a stage hands on, which are the averaged ones where there are some.
        Raises:
            CheckpointError: damaged, or of other parameters.
        """
        values = self.tensors(EMA if averaged and (self.path / f"{EMA}{SUFFIX}").exists() else WEIGHTS)
        into = shards.trained(module)
        shapes = [{name: tuple(value.shape) for name, value in named.items()} for named in (values, into)]
        if shapes[0] != shapes[1]:
            wrong = sorted(name for name in values.keys() | into.keys() if shapes[0].get(name) != shapes[1].get(name))
            raise CheckpointError(
                f"{len(wrong)} of its parameters are not those that train here ({wrong[0]} is the first)",
                where=self.path,
                fix="Use the recipe that wrote it.",
            )
        with torch.no_grad():
            for name, parameter in into.items():
                parameter.copy_(values[name])


def decisive(recipe: TrainRecipe) -> dict[str, Any]:
    """Everything in a recipe that decides the numbers of a run."""
    content: dict[str, Any] = jsonable(recipe.model_dump(mode="json", exclude=FREE))
    return content


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; one that lost a part is as good as none."""
    found = (run / "checkpoints").glob("step_*") if (run / "checkpoints").is_dir() else ()
    return sorted(path for path in found if _is_whole(path))


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / "state.json").read_text()).get("files", {})
    except (OSError, ValueError):
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())


def save(accelerator: Accelerator, run: Path, recipe: TrainRecipe, content: dict[str, Any], files: Files) -> Path:
    """Write a checkpoint under a temporary name, rename it, then delete what `keep` no longer covers.

    Only the first process writes; the others help to gather, and end with it when it can't.

    Args:
        content: what `State` holds beside the tensors.
    Raises:
        CheckpointError: in all processes: the disk is full or the folder can't be written; older checkpoints are
            untouched.
    """
    path = run / "checkpoints" / f"step_{content['step']:06d}"
    writer = _Writer(path) if accelerator.is_main_process else None
    for name, tensors in files:
        if writer is None:
            for _ in tensors:
                pass
        else:
            writer.add(name, {key: value.to("cpu").contiguous() for key, value in tensors})
    if writer is not None:
        writer.close({**content, "recipe": decisive(recipe)})
        if writer.failure is not None:
            accelerator.set_trigger()
    if accelerator.check_trigger():
        reason = "" if writer is None else f" ({writer.failure})"
        raise CheckpointError(
            f"can't write the checkpoint{reason}",
            where=path,
            fix="The last good one is kept: free space, then resume.",
        )
    if accelerator.is_main_process:
        for old in checkpoints(run)[: -recipe.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return path


class _Writer:
    """Fills a folder that gets its name when it is whole and on the disk. After a failure it only says no more, since
    the processes that gather must come to the end together.

    Attributes:
        failure: what went wrong, or None.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.part")
        self.failure: str | None = None
        self.sizes: dict[str, int] = {}
        self._try(self._begin)

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        def write() -> None:
            file = self.temporary / f"{name}{SUFFIX}"
            save_file(tensors, file)
            file.chmod(0o644)  # safetensors keeps it to its owner
            with file.open("rb") as written:
                os.fsync(written.fileno())
            self.sizes[file.name] = file.stat().st_size

        self._try(write)

    def close(self, content: dict[str, Any]) -> None:
        def finish() -> None:
            write_json(self.temporary / "state.json", {**content, "files": self.sizes})
            _sync(self.temporary)
            if self.path.exists():  # the same step again, after a resume from one before it
                shutil.rmtree(self.path)
            self.temporary.rename(self.path)
            _sync(self.path.parent)

        self._try(finish)
        if self.failure is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _begin(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def _try(self, action: Callable[[], None]) -> None:
        if self.failure is None:
            try:
                action()
            except OSError as error:
                self.failure = error.strerror or str(error)
            except SafetensorError as error:  # in which safetensors wraps what the system said
                self.failure = " ".join(str(error).split())


def _sync(folder: Path) -> None:
    """Wait until the disk knows the names in a folder, so that a power cut doesn't take what a rename promised."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    if "files" not in state:
        raise CheckpointError(
            "a checkpoint of an earlier version, which kept accelerate's own state",
            where=path,
            fix="Finish that run with the version in its provenance.json, or choose another --out.",
        )
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
    return State(path, int(state["step"]), int(state["stage"]), state.get("guard", {}), int(state.get("ema_step", 0)))


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
