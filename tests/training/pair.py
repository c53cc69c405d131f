"""One of two processes that train one run after another: `python pair.py JOBS`, with a launcher's variables set.

JOBS is a JSON list of {"run", "options", "port"}, and with some of
    "alone": the rank that trains this run by itself, as a single process without a launcher; the other one goes on.
    "begin": a folder of a run whose first checkpoint this one begins with.
    "backend": of torch.compile, in the place of the usual one, whose C++ compiler takes minutes.
    "kill": [rank, checkpoint, seconds]: so long after this checkpoint is there, the rank is killed with -9.
Each run is a fork, so that torch, diffusers and DeepSpeed are imported once for all of them. The first process writes
to `RUN.json` how the strategy really holds the modules.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401 - before the forks; it brings torch's compiler
from torch import nn

from newtonrewards.core.errors import run_command
from newtonrewards.training import train
from newtonrewards.training.methods.rewarded import RewardedObjective
from newtonrewards.training.trainer import Trainer

RANK = int(os.environ["RANK"])
PATIENCE = 600  # seconds until a run that was to be killed must have got so far


def held(trainer: Trainer) -> dict[str, Any]:
    """The wrapper's class, the shares of the weights and of the optimiser's state that this process holds, and what
    became of the frozen networks."""
    weights = list(trainer.plain.trained.parameters())
    here = [getattr(p, "ds_tensor", p.to_local() if hasattr(p, "to_local") else p).numel() for p in weights]
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in weights)
    optimiser = trainer.optimisers[0]
    while hasattr(optimiser, "optimizer"):
        optimiser = optimiser.optimizer
    moments = [state["exp_avg"] for state in optimiser.state.values()]
    local = sum((m.to_local() if hasattr(m, "to_local") else m).numel() for m in moments)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.trained.values())
    return {
        "wrapper": type(trainer.objective).__name__,
        "weights": sum(here) / whole,
        "optimiser": local / trained,
        "trained_types": sorted({str(p.dtype) for p in trainer.trained.values()}),
        "compiled": sum(m._compiled_call_impl is not None for m in trainer.plain.modules()),
        "frozen": {name: of_frozen(network, trainer) for name, network in frozen(trainer).items()},
    }


def frozen(trainer: Trainer) -> dict[str, nn.Module]:
    """Networks that no stage trains: the model's and the reward's."""
    found = {name: getattr(trainer.plain.model, name, None) for name in ("vae", "text_encoder")}
    if isinstance(trainer.plain, RewardedObjective):
        found["flow"] = trainer.plain._reward[0].networks.flow.network  # type: ignore[attr-defined]
    return {name: network for name, network in found.items() if isinstance(network, nn.Module)}


def of_frozen(network: nn.Module, trainer: Trainer) -> dict[str, Any]:
    """Types of a network's weights, and how many the wrapper holds, a strategy has cut, or still train."""
    wrapped = {id(p) for p in trainer.objective.parameters()}
    weights = list(network.parameters())
    return {
        "types": sorted({str(p.dtype) for p in weights}),
        "wrapped": sum(id(p) in wrapped for p in weights),
        "cut": sum(hasattr(p, "ds_id") or hasattr(p, "to_local") for p in weights),
        "training": sum(p.requires_grad for p in weights),
    }


def run(job: dict[str, Any]) -> int:
    if "alone" in job:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            del os.environ[name]
    else:
        os.environ["MASTER_PORT"] = str(job["port"])
    if "begin" in job and RANK == 0:  # before the other process can come further than the rendezvous
        first = sorted((Path(job["begin"]) / "checkpoints").iterdir())[0]
        shutil.copytree(first, Path(job["run"]) / "checkpoints" / first.name)
    if "backend" in job:
        nn.Module.compile = partialmethod(nn.Module.compile, backend=job["backend"])  # type: ignore[assignment]
    fit = Trainer.fit

    def fit_and_report(self: Trainer) -> None:
        fit(self)
        if self.accelerator.is_main_process:
            Path(f"{job['run']}.json").write_text(json.dumps(held(self)))

    Trainer.fit = fit_and_report  # type: ignore[method-assign]
    return run_command(train.main, ["--out", job["run"], *job["options"]])


def kill(child: int, run: str, checkpoint: str, seconds: float) -> None:
    """Wait for a checkpoint and some time, and kill the child; one that has ended meanwhile is found out by the exit
    code."""
    deadline = time.monotonic() + PATIENCE
    while not (Path(run) / "checkpoints" / checkpoint / "state.json").exists():
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def ended(job: dict[str, Any]) -> int:
    """Exit code of a job in a fork."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(job)
        except BaseException:  # noqa: BLE001 - the fork ends below, and nobody else would say why
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if "kill" in job and job["kill"][0] == RANK:
        kill(child, job["run"], *job["kill"][1:])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, each in enumerate(json.loads(sys.argv[1])):
        if each.get("alone", RANK) != RANK:
            continue
        code = ended(each)
        if "kill" in each:  # who loses the other process ends with an error of its own
            good = code == -signal.SIGKILL if each["kill"][0] == RANK else code not in (0, -signal.SIGKILL)
        else:
            good = code == 0
        if not good:
            raise SystemExit(f"job {number} of rank {RANK} ended with {code}: {each}")
