"""kill -9 of any rank at random moments, resumed until the run ends: are the final weights those of a run left alone?

    python benchmarks/kill.py --out runs/kill --strategy fsdp2 --kills 20 --seed 0

Without --recipe a tiny embedded model is made and trained with LoRA. Each start is killed after a time drawn
from what a whole run takes, one rank drawn by chance; the other ranks are then killed by the launcher. A start that
ended by itself before its moment doesn't count, and the run begins anew. Exit code 1 if any bit differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.checkpoint import checkpoints
from newtonrewards.training.strategies import STRATEGIES

SMALL = EmbeddedConfig(
    num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
)


def small_recipe(folder: Path, steps: int) -> Path:
    """A tiny model, twenty clips and a recipe of two stages with averaged weights; a checkpoint after each step."""
    if not (folder / "model").exists():
        simulate(SimulateRecipe(num_clips=20, seed=4, arrays=("masks",)), folder / "clips", workers=1)
        dataset = ClipFolder(folder / "clips")
        codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
        EmbeddedModel.create(SMALL, codec, seed=3).save(folder / "model")
    sft: dict[str, Any] = {"objective": "sft", "batch_size": 4, "accumulate": 2, "optimiser": {"lr": 1e-3}}
    content = {
        "seed": 5,
        "model": {"name": "embedded", "path": str(folder / "model"), "lora_rank": 2},
        "data": {"clips": str(folder / "clips")},
        "stages": [{**sft, "steps": steps}, {**sft, "steps": max(1, steps // 4)}],
        "ema": 0.9,
        "checkpoint": {"every": 1, "keep": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(recipe: Path, run: Path, strategy: str, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "newtonrewards.training.train", "--recipe", str(recipe), "--out", str(run)]
    log = (run.parent / f"{run.name}.log").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--strategy", strategy], stdout=log, stderr=log, env=environment)


def ranks(launcher: int) -> dict[int, int]:
    """The launcher's own processes by rank."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        except OSError:  # gone meanwhile
            continue
        if rank:
            found[int(rank[1])] = int(child)
    return found


def kill_one(process: subprocess.Popen[bytes], after: float, draw: random.Random) -> int | None:
    """Kill a rank after so many seconds; which one, or None where the run had ended by itself."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    there = ranks(process.pid) if process.poll() is None else {}
    if not there:
        process.wait()
        return None
    rank = draw.choice(sorted(there))
    os.kill(there[rank], signal.SIGKILL)
    process.wait()
    return rank


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(next((run / "model").rglob("*.safetensors"))) for run in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipe", type=Path)
    p.add_argument(
        "--steps", type=int, default=40, help="of the first stage, without --recipe; the second has a quarter"
    )
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--strategy", choices=STRATEGIES, default="ddp")
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    recipe = a.recipe or small_recipe(a.out, a.steps)
    whole, run = a.out / f"{a.strategy}-whole", a.out / f"{a.strategy}-killed"
    for folder in (whole, run):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    if start(recipe, whole, a.strategy, a.processes).wait():
        raise SystemExit(f"the run that nobody kills failed: see {a.out}/{whole.name}.log")
    takes = time.monotonic() - began
    draw, killed, equal = random.Random(a.seed), 0, True
    while True:
        process = start(recipe, run, a.strategy, a.processes)
        after = draw.uniform(0, takes) if killed < a.kills else 10 * takes
        rank = kill_one(process, after, draw)
        if rank is not None:
            killed += 1
            left = [path.name for path in checkpoints(run)]
            print(
                json.dumps({"kill": killed, "rank": rank, "after_s": round(after, 2), "checkpoints": left}), flush=True
            )
            continue
        if process.returncode:
            raise SystemExit(f"a resume failed: see {a.out}/{run.name}.log")
        equal = equal and same(whole, run)
        if killed >= a.kills:
            break
        shutil.rmtree(run)
    print(json.dumps({"strategy": a.strategy, "kills": killed, "run_s": round(takes, 1), "same_bits": equal}))
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
