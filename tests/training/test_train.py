"""Runs: exact resume after a kill, one process or two, checkpoints of something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from newtonrewards.core.errors import CheckpointError, InputError, RecipeError
from newtonrewards.core.run import read_jsonl
from newtonrewards.launch.cli import main as newtonrewards
from newtonrewards.training.checkpoint import checkpoints, differences
from newtonrewards.training.export import export
from newtonrewards.training.optimisers import OptimiserConfig, learning_rate
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.train import main, train

TRAIN = ["-m", "newtonrewards.training.train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").rglob("*.safetensors")))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, written: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run([sys.executable, *TRAIN, "--recipe", str(written), "--out", str(run)], check=True, env=ENVIRONMENT)
    return run


def test_killed_at_any_step_a_run_ends_in_the_same_bits(tmp_path: Path, written: Path, uninterrupted: Path) -> None:
    command = [sys.executable, *TRAIN, "--recipe", str(written), "--out", str(tmp_path / "run")]
    for steps_before in (2, 4, 7):  # in each of the stages
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = tmp_path / "run" / "checkpoints" / f"step_{steps_before:06d}" / "state.json"
        deadline = time.monotonic() + 600
        while not wanted.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert wanted.exists()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, env=ENVIRONMENT)
    assert same(weights(tmp_path / "run"), weights(uninterrupted))
    ours, theirs = (read_jsonl(run / "metrics.jsonl") for run in (tmp_path / "run", uninterrupted))
    assert [row["step"] for row in ours] == list(range(1, 9))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_two_processes_give_what_one_gives(tmp_path: Path, written: Path, uninterrupted: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = tmp_path / "two"
    subprocess.run([*torchrun, *TRAIN, "--recipe", str(written), "--out", str(run)], check=True, env=ENVIRONMENT)
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam divides by the gradient's own size, so where that is mere rounding a step of 1e-3 may differ in part
        assert torch.allclose(ours[name], theirs[name], atol=1e-4), name
    assert len(read_jsonl(run / "metrics.jsonl")) == 8, "each process ran on its own"
    losses = [[row["loss"] for row in read_jsonl(path / "metrics.jsonl")] for path in (run, uninterrupted)]
    # the loss of a policy gradient is near 0 by construction: its advantages sum to 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path, written: Path, uninterrupted: Path) -> None:
    run = tmp_path / "stopped"
    command = [sys.executable, *TRAIN, "--recipe", str(written), "--out", str(run), "--set", "checkpoint.every=1000"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on" in message
    assert len(checkpoints(run)) == 1
    subprocess.run(command, check=True, env=ENVIRONMENT)
    assert same(weights(run), weights(uninterrupted))


def test_the_tracker_and_the_run_folder_tell_the_story(uninterrupted: Path) -> None:
    rows = read_jsonl(uninterrupted / "metrics.jsonl")
    assert [row["stage"] for row in rows] == ["sft"] * 3 + ["reward"] * 3 + ["grpo"] * 2
    assert all(row["grad_norm"] > 0 and row["seconds"] > 0 for row in rows)
    for name in (
        "raw/kinematic/second_difference",
        "floor/kinematic/second_difference",
        "normalised/kinematic/second_difference",
        "weighted/mass/paired",
        "unmeasured/mass/paired",
        "sentinel/motion_energy",
    ):
        assert name in rows[5], name
    assert [row["seconds_left"] for row in rows][-1] == 0 < rows[0]["seconds_left"]
    assert list(uninterrupted.rglob("events.out.tfevents*"))
    assert (
        json.loads((uninterrupted / "provenance.json").read_text())["versions"]["torch"]
        == torch.__version__.split("+")[0]
    )
    assert len(checkpoints(uninterrupted)) == 3


def test_a_checkpoint_is_exported_as_what_a_finished_run_has(tmp_path: Path, uninterrupted: Path) -> None:
    assert newtonrewards(["export", str(uninterrupted), "--out", str(tmp_path / "last")]) == 0
    files = [next(path.rglob("*.safetensors")).read_bytes() for path in (tmp_path / "last", uninterrupted / "model")]
    assert files[0] == files[1]
    export(uninterrupted, tmp_path / "before", step=7)
    assert not same(load_file(next((tmp_path / "before").rglob("*.safetensors"))), weights(uninterrupted))
    with pytest.raises(InputError, match=r"no whole checkpoint of step 3\. There are 6, 7, 8"):
        export(uninterrupted, tmp_path / "none", step=3)
    with pytest.raises(InputError, match="there already"):
        export(uninterrupted, tmp_path / "last")


def test_a_checkpoint_of_another_model_or_recipe_is_refused(
    tmp_path: Path, recipe: TrainRecipe, uninterrupted: Path
) -> None:
    other_model = recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora_rank": 3})})
    with pytest.raises(CheckpointError, match=r"another model.*lora_rank: there 2, here 3"):
        train(other_model, uninterrupted)
    with pytest.raises(CheckpointError, match="seed: there 5, here 6"):
        train(recipe.model_copy(update={"seed": 6}), uninterrupted)


def test_differences_name_the_key() -> None:
    assert differences({"a": [{"b": 1}], "c": 2}, {"a": [{"b": 3}], "c": 2, "new": 0}) == ["a[0].b: there 1, here 3"]


def test_a_misspelt_key_is_named_before_anything_is_read(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump(content).replace("num_inference_steps", "num_inference_step"))
    with pytest.raises(RecipeError, match="num_inference_step'. Did you mean 'num_inference_steps'"):
        main(["--recipe", str(path), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"can't read the recipe.*Did you mean.*typo\.yaml"):
        main(["--recipe", str(tmp_path / "tpyo.yaml"), "--out", str(tmp_path / "run")])


def test_learning_rate_rises_then_falls_to_nearly_zero() -> None:
    config = OptimiserConfig(lr=1.0, warmup_steps=4, decay="linear")
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] == pytest.approx(1 / 16)
    assert {learning_rate(OptimiserConfig(lr=0.3), step, 5) for step in range(5)} == {0.3}
