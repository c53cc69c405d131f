"""kill -9 of any rank at random moments, resumed until the run ends: are the final weights those of a run left alone?

    .venv/bin/python benchmarks/kill.py --out docs/launching.md --strategies ddp fsdp2 zero2 --kills 20

Without --recipe a tiny embedded model is made and trained with LoRA, first supervised and then with the reward. A start
is killed at a time drawn from the steps that are left, and each fifth while it is still loading; one rank, drawn by
chance, gets the signal, and the others SIGTERM as from torchrun. Nobody waits for anything to be written. A start that
ended by itself before its moment doesn't count, its weights are compared, and the run begins anew. Exit code 1 if any
bit differs. Processes are forks of this one, which saves them the imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401 - before the forks
import torch
import yaml
from pages import page_parser, write_below
from safetensors.torch import load_file

from newtonrewards.core.errors import run_command
from newtonrewards.core.run import read_jsonl
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training import train
from newtonrewards.training.checkpoint import checkpoints
from newtonrewards.training.strategies import STRATEGIES

PATIENCE = 30  # seconds after which torchrun kills a process that SIGTERM didn't end
LOADING = 0.2  # share of the kills before the first step of a start
SMALL = EmbeddedConfig(
    num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
)


def small_recipe(folder: Path, steps: int) -> Path:
    """A tiny model, four clips and a recipe of two stages with averaged weights; a checkpoint after each step."""
    if not (folder / "model").exists():
        world = SimulateRecipe(num_clips=4, seed=4, arrays=("masks",), world={"num_frames": 9})
        simulate(world, folder / "clips", workers=1)
        dataset = ClipFolder(folder / "clips")
        codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
        EmbeddedModel.create(SMALL, codec, seed=3).save(folder / "model")
    shared: dict[str, Any] = {"batch_size": 4, "accumulate": 2, "optimiser": {"lr": 1e-3}}
    reward: dict[str, Any] = {
        "objective": "reward",
        "sampling": {"num_inference_steps": 3, "grad_steps": 1},
        "reward": {
            "flow": {"num_flow_updates": 1, "upsample": 1},
            "terms": {"kinematic/second_difference": {}, "mass/paired": {}},
        },
    }
    last = max(1, steps // 4)
    content = {
        "seed": 5,
        "model": {"name": "embedded", "path": str(folder / "model"), "lora_rank": 2},
        "data": {"clips": str(folder / "clips")},
        "stages": [{"objective": "sft", "steps": steps - last, **shared}, {"steps": last, **reward, **shared}],
        "ema": 0.9,
        "checkpoint": {"every": 1, "keep": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@dataclass
class Start:
    """Processes of one start.

    Attributes:
        pids: by rank. codes: exit codes of those that have ended.
    """

    pids: dict[int, int]
    codes: dict[int, int] = field(default_factory=dict)

    def running(self) -> list[int]:
        """Ranks that haven't ended."""
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in self.pids if rank not in self.codes]

    def wait(self) -> bool:
        """Until all have ended, those who lost another one with torchrun's help; whether all ended well."""
        while len(self.running()) == len(self.pids) or (self.running() and not any(self.codes.values())):
            time.sleep(0.01)
        deadline = time.monotonic() + PATIENCE
        for rank in self.running():
            os.kill(self.pids[rank], signal.SIGTERM)
        while self.running():
            if time.monotonic() > deadline:
                for rank in self.running():
                    os.kill(self.pids[rank], signal.SIGKILL)
            time.sleep(0.01)
        return not any(self.codes.values())


@dataclass
class Run:
    """One run of several processes."""

    recipe: Path
    folder: Path
    strategy: str
    processes: int

    def start(self) -> Start:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.processes)}
        pids = {}
        for rank in range(self.processes):
            pids[rank] = os.fork()
            if pids[rank] == 0:
                self._train(launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        return Start(pids)

    def _train(self, environment: dict[str, str]) -> None:
        """In a fork, which ends here."""
        code = 1
        try:
            os.environ.update(environment)
            with self.log.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            arguments = ["--recipe", str(self.recipe), "--out", str(self.folder), "--strategy", self.strategy]
            code = run_command(train.main, arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def steps(self) -> int:
        """How many steps are on record."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(next((self.folder / "model").rglob("*.safetensors")))


@dataclass
class Killer:
    """Kills starts of a run.

    Attributes:
        steps: of the whole run. loading, pace: seconds until the first step, and of a step.
        reach: a start is killed within so many steps.
        ranks: which were killed. moments: step after which, None while it was loading.
    """

    draw: random.Random
    steps: int
    loading: float
    pace: float
    reach: int
    ranks: list[int] = field(default_factory=list)
    moments: list[int | None] = field(default_factory=list)

    def kill(self, run: Run) -> bool:
        """Start it and kill a rank; a start that ends by itself before isn't noted. Whether all ended well."""
        start, before = run.start(), run.steps()
        if self.draw.random() < LOADING:
            wanted, seconds = before, self.draw.uniform(0, self.loading)
        else:
            wanted, seconds = before + self.draw.randint(1, self.reach), self.draw.uniform(0, self.pace)
        while run.steps() < wanted and start.running():
            time.sleep(0.002)
        time.sleep(seconds)
        rank = self.draw.randrange(run.processes)
        if rank in start.running():
            os.kill(start.pids[rank], signal.SIGKILL)
        well = start.wait()
        if start.codes[rank] == -signal.SIGKILL:
            self.ranks.append(rank)
            self.moments.append(None if wanted == before else run.steps())
        return well


def left_alone(run: Run) -> tuple[float, float]:
    """Train without a kill; returns seconds until the first step and of a step."""
    shutil.rmtree(run.folder, ignore_errors=True)
    began, start, first = time.monotonic(), run.start(), 0.0
    while start.running():
        if not first and run.steps():
            first = time.monotonic() - began
        time.sleep(0.01)
    if not start.wait():
        raise SystemExit(f"the run that nobody kills failed: see {run.log}")
    return first, (time.monotonic() - began - first) / run.steps()


def same(one: Run, other: Run) -> bool:
    """Weights and losses, to the bit."""
    ours, theirs = one.weights(), other.weights()
    bits = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    losses = [[(row["step"], row["loss"]) for row in read_jsonl(run.folder / "metrics.jsonl")] for run in (one, other)]
    return bits and losses[0] == losses[1]


def proved(recipe: Path, work: Path, strategy: str, processes: int, kills: int, seed: int) -> tuple[str, bool]:
    """A row of the table, and whether all bits are the same."""
    whole, run = (Run(recipe, work / f"{strategy}-{name}", strategy, processes) for name in ("whole", "killed"))
    loading, pace = left_alone(whole)
    shutil.rmtree(run.folder, ignore_errors=True)
    killer = Killer(random.Random(seed), whole.steps(), loading, pace, max(1, 3 * whole.steps() // (2 * kills)))
    equal, ended = True, 0
    while True:
        done = len(killer.ranks)
        well = killer.kill(run) if done < kills else run.start().wait()
        if len(killer.ranks) > done:
            left = [path.name for path in checkpoints(run.folder)]
            print(json.dumps({"kill": done + 1, "rank": killer.ranks[-1], "checkpoints": left}), flush=True)
            continue
        if not well:
            raise SystemExit(f"a resume failed: see {run.log}")
        equal, ended = equal and same(whole, run), ended + 1
        if done >= kills:
            break
        shutil.rmtree(run.folder)
    by_rank = ", ".join(f"{killer.ranks.count(rank)} x {rank}" for rank in sorted(set(killer.ranks)))
    steps = [moment for moment in killer.moments if moment is not None]
    row = f"| `{strategy}` | {len(killer.ranks)} | {by_rank} | {killer.moments.count(None)} | "
    row += f"{len(set(steps))} | {ended} | {'yes' if equal else '**no**'} |"
    return row, equal


HEAD = (
    "| `--strategy` | kills | ranks | while loading | others after so many different steps | runs ended | same bits |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> int:
    p = page_parser(__doc__)
    p.add_argument("--recipe", type=Path)
    p.add_argument("--steps", type=int, default=40, help="of the run, without --recipe; the last quarter has a reward")
    p.add_argument("--work", type=Path, default=Path("runs/kill"))
    p.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["ddp", "fsdp2", "zero2"])
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--kills", type=int, default=20, help="of each strategy")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    recipe = a.recipe or small_recipe(a.work, a.steps)
    torch.set_num_threads(1)
    rows: list[str] = []
    equal = True
    for strategy in a.strategies:
        row, good = proved(recipe, a.work, strategy, a.processes, a.kills, a.seed)
        print(row, flush=True)
        rows, equal = [*rows, row], equal and good
    write_below(a.out, "kill.py", "\n".join([HEAD, *rows]))
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
