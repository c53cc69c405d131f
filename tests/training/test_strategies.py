"""Strategies give the same run, cut what they say, and open each other's checkpoints. Two processes over gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from newtonrewards.core.run import read_jsonl

pytestmark = pytest.mark.slow

PAIR = Path(__file__).with_name("pair.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
# Options, and the recipe: ZeRO-3 refuses stages of the reward's gradient, and others needn't show them again.
WAYS = {
    "ddp": (["--strategy", "ddp"], "reward"),
    "fsdp2": (["--strategy", "fsdp2"], "reward"),
    "zero1": (["--strategy", "zero1"], "grpo"),
    "zero2": (["--strategy", "zero2"], "reward"),
    "offload": (["--strategy", "zero2", "--offload"], "grpo"),
    "zero3": (["--strategy", "zero3"], "grpo"),
}
CUT = {
    "ddp": ("DistributedDataParallel", 1.0, 1.0),
    "fsdp2": ("FSDP", 0.5, 0.5),
    "zero1": ("DeepSpeedEngine", 1.0, 0.5),
    "zero2": ("DeepSpeedEngine", 1.0, 0.5),
    "offload": ("DeepSpeedEngine", 1.0, 0.5),
    "zero3": ("DeepSpeedEngine", 0.5, 0.5),
}
# One of each kind of code: cut by FSDP, flat pieces of ZeRO-1 and -2, pieces of ZeRO-3.
RESUMED = ("fsdp2", "offload", "zero3")
# Who goes on from whose checkpoint. What is in one is compared as well, so these stand for all pairs.
CROSSED = {"fsdp2": "zero2", "offload": "zero3", "zero3": "zero1"}
MIDDLE = 2  # the step from which runs go on


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def train_in_pairs(jobs: list[tuple[Path, Path, list[str]]]) -> None:
    """Train (recipe, run, options) one after another."""
    content = [
        {
            "port": free_port(),
            "report": str(run.with_suffix(".json")),
            "arguments": ["--recipe", str(recipe), "--out", str(run), *options],
        }
        for recipe, run, options in jobs
    ]
    command = [sys.executable, str(PAIR), json.dumps(content)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [subprocess.Popen(command, env=ENVIRONMENT | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    said = [process.communicate(timeout=3000)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-3000:] for text in said)


def begun(run: Path, whole: Path) -> Path:
    """A run that was killed after `MIDDLE` steps of another one."""
    name = f"checkpoints/step_{MIDDLE:06d}"
    shutil.copytree(whole / name, run / name)
    return run


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    sft, reward, grpo = content["stages"]
    first = sft | {"accumulate": 2, "optimiser": {"lr": 1e-3, "weight_decay": 0.01}}
    stages = {"reward": [first, reward | {"steps": 2}], "grpo": [first, grpo]}
    more = {"checkpoint": {"every": 2, "keep": 9}, "samples": {"every": 4, "clips": 1, "num_inference_steps": 2}}
    for name, of_run in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | more | {"stages": of_run}))
    return {name: folder / f"{name}.yaml" for name in stages}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, recipes: dict[str, Path]) -> Callable[[str], Path]:
    """Runs of two processes: each way whole, resumed from itself, and from another's checkpoint; and of one process."""
    root = tmp_path_factory.mktemp("runs")
    train_in_pairs([(recipes[recipe], root / name, options) for name, (options, recipe) in WAYS.items()])
    more = [(name, f"{name}-resumed", name) for name in RESUMED]
    more += [(name, f"{name}-crossed", other) for name, other in CROSSED.items()]
    train_in_pairs([(recipes[WAYS[way][1]], begun(root / run, root / other), WAYS[way][0]) for way, run, other in more])
    command = [sys.executable, "-m", "newtonrewards.training.train", "--recipe"]
    alone = [subprocess.Popen([*command, recipes[name], "--out", root / f"one-{name}"]) for name in recipes]
    assert [process.wait() for process in alone] == [0, 0]
    return lambda name: root / name


@pytest.mark.parametrize("name", WAYS)
def test_a_strategy_gives_the_losses_of_one_process(name: str, runs: Callable[[str], Path]) -> None:
    ours, alone = losses(runs(name)), losses(runs(f"one-{WAYS[name][1]}"))
    assert len(alone) == 5
    assert ours == pytest.approx(alone, rel=1e-5, abs=1e-6)  # a policy gradient's loss is near 0 by construction


@pytest.mark.parametrize("name", WAYS)
def test_a_strategy_cuts_what_it_says(name: str, runs: Callable[[str], Path]) -> None:
    found = json.loads(runs(name).with_suffix(".json").read_text())
    wrapper, of_weights, of_state = CUT[name]
    assert found["wrapper"].startswith(wrapper)
    assert found["weights"] == pytest.approx(of_weights, abs=0.02)
    assert found["optimiser"] == pytest.approx(of_state, abs=0.02)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_in_the_same_bits(name: str, runs: Callable[[str], Path]) -> None:
    ours, theirs = weights(runs(f"{name}-resumed")), weights(runs(name))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(runs(f"{name}-resumed")) == losses(runs(name))[MIDDLE:]


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_holds_the_same_under_every_strategy(name: str, runs: Callable[[str], Path]) -> None:
    folders = [runs(one) / "checkpoints" / f"step_{MIDDLE:06d}" for one in (name, f"one-{WAYS[name][1]}")]
    ours, alone = ({file.name: load_file(file) for file in folder.glob("*.safetensors")} for folder in folders)
    assert ours.keys() == alone.keys() and len(ours) == 5
    for file in ours:
        assert ours[file].keys() == alone[file].keys()
        for key, value in ours[file].items():  # Adam divides by the gradient's size: see test_train.py
            torch.testing.assert_close(value, alone[file][key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CROSSED)
def test_a_checkpoint_opens_under_another_strategy(name: str, runs: Callable[[str], Path]) -> None:
    alone = losses(runs(f"one-{WAYS[name][1]}"))
    assert losses(runs(f"{name}-crossed")) == pytest.approx(alone[MIDDLE:], rel=1e-5, abs=1e-6)


def test_samples_of_cut_weights_are_those_of_whole_ones(runs: Callable[[str], Path]) -> None:
    films = [next((runs(name) / "samples" / "step_000004").glob("*.mp4")).read_bytes() for name in ("ddp", "fsdp2")]
    assert films[0] == films[1]
