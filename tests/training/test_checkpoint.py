"""Whatever happens to a checkpoint while it is written, or afterwards, the last good one stays."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from newtonrewards.core.errors import CheckpointError
from newtonrewards.training import checkpoint
from newtonrewards.training.recipe import CheckpointConfig, TrainRecipe


def save(run: Path, recipe: TrainRecipe, step: int, *, keep: int = 1) -> Path:
    """One megabyte in each of two files, whose numbers are the step's."""
    one = recipe.model_copy(update={"checkpoint": CheckpointConfig(keep=keep)})
    files = [(name, iter([("a", torch.full((500, 500), float(step)))])) for name in ("weights", "optimiser.exp_avg")]
    return checkpoint.save(Accelerator(cpu=True), run, one, {"step": step, "stage": 0, "guard": {}}, files)


def stored(run: Path, recipe: TrainRecipe) -> list[float]:
    """The number in each whole checkpoint."""
    states = [checkpoint.read_state(path, recipe) for path in checkpoint.checkpoints(run)]
    return [state.tensors("weights")["a"][0, 0].item() for state in states]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As a disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_write_that_fails_keeps_the_last_good_one(tmp_path: Path, recipe: TrainRecipe) -> None:
    save(tmp_path, recipe, 1)
    with largest_file(100_000), pytest.raises(CheckpointError, match=r"can't write the checkpoint \(.*last good one"):
        save(tmp_path, recipe, 2)
    assert stored(tmp_path, recipe) == [1.0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"], "rubbish fills the disk"
    save(tmp_path, recipe, 2)
    assert stored(tmp_path, recipe) == [2.0]


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, recipe: TrainRecipe) -> None:
    with small_disk(tmp_path / "disk", megabytes=3):
        save(tmp_path / "disk", recipe, 1)
        with pytest.raises(CheckpointError, match="can't write the checkpoint"):
            save(tmp_path / "disk", recipe, 2)
        assert stored(tmp_path / "disk", recipe) == [1.0]


def test_a_folder_that_cant_be_written_is_named(tmp_path: Path, recipe: TrainRecipe) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"step_000001: can't write the checkpoint \(Not a directory"):
        save(tmp_path, recipe, 1)


@pytest.mark.parametrize("harm", ["cut", "lost", "no state", "half written"])
def test_a_damaged_one_is_passed_over(harm: str, tmp_path: Path, recipe: TrainRecipe) -> None:
    save(tmp_path, recipe, 1, keep=2)
    newest = save(tmp_path, recipe, 2, keep=2)
    file = newest / "weights.safetensors"
    match harm:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "lost":
            file.unlink()
        case "no state":
            (newest / "state.json").write_text("{")
        case "half written":  # killed before the rename
            newest.rename(newest.with_name(f".{newest.name}.part"))
    assert stored(tmp_path, recipe) == [1.0]
    save(tmp_path, recipe, 2, keep=2)
    assert stored(tmp_path, recipe) == [1.0, 2.0]
    shutil.rmtree(tmp_path / "checkpoints" / "step_000001")
    assert stored(tmp_path, recipe) == [2.0]


def test_weights_of_other_parameters_are_refused(tmp_path: Path, recipe: TrainRecipe) -> None:
    state = checkpoint.read_state(save(tmp_path, recipe, 1), recipe)
    module = nn.Module()
    module.a = nn.Parameter(torch.zeros(500, 500))
    state.load_weights(module)
    assert (module.a == 1).all()
    module.a = nn.Parameter(torch.zeros(500, 1))
    with pytest.raises(CheckpointError, match=r"1 of its parameters are not those that train here \(a is the first\)"):
        state.load_weights(module)
