"""Strategies give the same run, cut what they say, open each other's checkpoints, and lose nothing to kill -9.

Two processes over gloo.
"""

from __future__ import annotations

import json
import os
import random
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
from newtonrewards.models import tiny_ltx
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.models.tiny_wan import tiny_pipeline
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder

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
# Which rank dies. One of each kind of code: whole, cut by FSDP, flat pieces of ZeRO-1 and -2, pieces of ZeRO-3.
KILLED = {"ddp": 0, "fsdp2": 1, "offload": 0, "zero3": 1}
# Who goes on from whose checkpoint. What is in one is compared as well, so these stand for all pairs.
CROSSED = {"fsdp2": "zero2", "offload": "zero3", "zero3": "zero1"}
# A tiny Wan in bf16 whose blocks are recomputed.
SAVING = ("ddp", "fsdp2", "zero2")
COMPILED = ("fsdp2", "zero2")
MIDDLE = 2  # the step from which runs go on


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def train_in_pairs(jobs: list[dict[str, Any]]) -> None:
    """Train one after another; what a job is, see pair.py."""
    command = [sys.executable, str(PAIR), json.dumps([{"port": free_port(), **job} for job in jobs])]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [subprocess.Popen(command, env=ENVIRONMENT | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    said = [process.communicate(timeout=3000)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-3000:] for text in said)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def held(run: Path) -> dict[str, Any]:
    """What pair.py found out about a run."""
    found: dict[str, Any] = json.loads(run.with_suffix(".json").read_text())
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "pytorch_lora_weights.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> dict[str, Path]:
    """Recipes of a world still smaller than the other tests': four clips of nine frames, and models of that size."""
    folder = tmp_path_factory.mktemp("recipes")
    world = SimulateRecipe(num_clips=4, seed=4, arrays=("masks",), world={"num_frames": 9})
    simulate(world, folder / "clips", workers=1)
    dataset = ClipFolder(folder / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(
        num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
    )
    EmbeddedModel.create(small, codec, seed=3).save(folder / "embedded")
    tiny_pipeline("2.1-no-image-encoder").save_pretrained(folder / "wan")
    tiny_ltx.tiny_pipeline("0.9").save_pretrained(folder / "ltx")

    sft, reward, grpo = content["stages"]
    sft = sft | {"accumulate": 2, "optimiser": {"lr": 1e-3, "weight_decay": 0.01}}
    reward = reward | {"steps": 2, "reward": reward["reward"] | {"flow": {"num_flow_updates": 1, "upsample": 1}}}
    whole = content | {
        "data": {"clips": str(folder / "clips")},
        "model": content["model"] | {"path": str(folder / "embedded")},
        "checkpoint": {"every": MIDDLE, "keep": 9},
        "samples": {"every": 4, "clips": 1, "num_inference_steps": 2},
    }
    wan = {"name": "wan", "path": str(folder / "wan"), "lora_rank": 2, "num_frames": 9, "height": 64, "width": 64}
    ltx = wan | {"name": "ltx", "path": str(folder / "ltx")}
    few = reward | {"batch_size": 2, "reward_every": 1}
    made = {
        "reward": whole | {"stages": [sft, reward]},
        "grpo": whole | {"stages": [sft, grpo]},
        "sft": whole | {"stages": [sft], "samples": {}, "ema": None},
        "wan": whole | {"model": wan, "stages": [few], "samples": {}},
        "ltx": whole | {"model": ltx, "stages": [few], "samples": {}},
    }
    for name, recipe in made.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return {name: folder / f"{name}.yaml" for name in made}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, recipes: dict[str, Path]) -> Callable[[str], Path]:
    """Runs of two processes: each way whole, from another's checkpoint, and killed and resumed; and of one process."""
    root, draw = tmp_path_factory.mktemp("runs"), random.Random(0)

    def job(run: str, way: str | None, recipe: str, *sets: str, **more: Any) -> dict[str, Any]:
        options = ["--recipe", str(recipes[recipe]), *(WAYS[way][0] if way else ()), *(f"--set={one}" for one in sets)]
        return {"run": str(root / run), "options": options, **more}

    saving = ("precision=bf16", "model.dtype=bfloat16", "model.gradient_checkpointing=true")
    jobs = [job(f"one-{name}", None, name, alone=rank) for rank, name in enumerate(("reward", "grpo"))]
    jobs += [job("one-wan", None, "wan", *saving, alone=0), job("one-plain-wan", None, "wan", alone=1)]
    jobs += [job(way, way, recipe) for way, (_, recipe) in WAYS.items()]
    jobs += [job(f"{way}-crossed", way, WAYS[way][1], begin=str(root / other)) for way, other in CROSSED.items()]
    for way, rank in KILLED.items():
        moment = [rank, f"step_{MIDDLE:06d}", draw.uniform(0, 0.3)]
        jobs += [job(f"{way}-killed", way, WAYS[way][1], kill=moment), job(f"{way}-killed", way, WAYS[way][1])]
    jobs += [job(f"{way}-wan", way, "wan", *saving) for way in SAVING]
    jobs += [job("ddp-kept-wan", "ddp", "wan", *saving[:-1])]
    jobs += [job("one-ltx", None, "ltx", alone=0), job("fsdp2-ltx", "fsdp2", "ltx")]
    compiled = ("sft", "compile=true", "stages.0.steps=1")
    jobs += [job(f"{way}-compiled", way, *compiled, backend="aot_eager") for way in COMPILED]
    train_in_pairs(jobs)
    return lambda name: root / name


@pytest.mark.parametrize("name", WAYS)
def test_a_strategy_gives_the_losses_of_one_process(name: str, runs: Callable[[str], Path]) -> None:
    ours, alone = losses(runs(name)), losses(runs(f"one-{WAYS[name][1]}"))
    assert len(alone) == 5
    assert ours == pytest.approx(alone, rel=1e-5, abs=1e-6)  # a policy gradient's loss is near 0 by construction


@pytest.mark.parametrize("name", WAYS)
def test_a_strategy_cuts_what_it_says(name: str, runs: Callable[[str], Path]) -> None:
    found = held(runs(name))
    wrapper, of_weights, of_state = CUT[name]
    assert found["wrapper"].startswith(wrapper)
    assert found["weights"] == pytest.approx(of_weights, abs=0.02)
    assert found["optimiser"] == pytest.approx(of_state, abs=0.02)


@pytest.mark.parametrize("name", KILLED)
def test_a_run_whose_process_was_killed_ends_in_the_same_bits(name: str, runs: Callable[[str], Path]) -> None:
    assert same(runs(f"{name}-killed"), runs(name))
    assert losses(runs(f"{name}-killed")) == losses(runs(name))


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


@pytest.mark.parametrize("name", SAVING)
def test_bf16_with_recomputed_blocks_gives_one_run_under_every_strategy(name: str, runs: Callable[[str], Path]) -> None:
    ours, alone, plain = (losses(runs(f"{one}-wan")) for one in (name, "one", "one-plain"))
    assert len(ours) == 2
    assert ours == pytest.approx(losses(runs("ddp-wan")), rel=1e-5)
    assert ours == pytest.approx(alone, rel=0.02)  # one clip at a time or two round differently, in 8 bits
    assert abs(ours[0] - plain[0]) > 1e-4 * abs(plain[0]), "nothing was cast"
    assert ours[0] == pytest.approx(plain[0], rel=0.05)
    assert held(runs(f"{name}-wan"))["trained_types"] == ["torch.float32"]


def test_recomputing_changes_no_bit(runs: Callable[[str], Path]) -> None:
    assert same(runs("ddp-wan"), runs("ddp-kept-wan"))
    assert losses(runs("ddp-wan")) == losses(runs("ddp-kept-wan"))


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_blocks_give_the_same_loss_and_gradient(name: str, runs: Callable[[str], Path]) -> None:
    assert held(runs(f"{name}-compiled"))["compiled"] == 2  # blocks, with the strategy's hooks
    ours, alone = (read_jsonl(runs(run) / "metrics.jsonl")[0] for run in (f"{name}-compiled", "one-grpo"))
    for number in ("loss", "grad_norm"):
        assert ours[number] == pytest.approx(alone[number], rel=1e-5)


def test_ltx_cut_block_by_block_has_the_losses_of_one_process(runs: Callable[[str], Path]) -> None:
    assert held(runs("fsdp2-ltx"))["weights"] == pytest.approx(0.5, abs=0.02)
    assert losses(runs("fsdp2-ltx")) == pytest.approx(losses(runs("one-ltx")), rel=1e-3)


@pytest.mark.parametrize("name", [*WAYS, *(f"{name}-wan" for name in SAVING)])
def test_frozen_networks_stay_whole_in_float32_and_outside_the_wrapper(name: str, runs: Callable[[str], Path]) -> None:
    networks = held(runs(name))["frozen"]
    assert set(networks) == {"flow", "vae" if name.endswith("wan") else "text_encoder"}
    for network, found in networks.items():
        assert found == {"types": ["torch.float32"], "wrapped": 0, "cut": 0, "training": 0}, network
