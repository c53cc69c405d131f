"""One of two processes that train one run after another: `python pair.py JOBS`, with a launcher's variables set.

JOBS is a JSON list of {"port", "arguments", "report"}. Each run is a fork, so that torch, diffusers and DeepSpeed are
imported once for all of them. The first process writes to `report` how the strategy really holds the trained modules.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401 - before the forks
import torch

from newtonrewards.core.errors import run_command
from newtonrewards.training import train
from newtonrewards.training.trainer import Trainer


def held(trainer: Trainer) -> dict[str, Any]:
    """The wrapper's class, and the shares of the weights and of the optimiser's state that this process holds."""
    weights = list(trainer.plain.trained.parameters())
    here = [getattr(p, "ds_tensor", p.to_local() if hasattr(p, "to_local") else p).numel() for p in weights]
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in weights)
    optimiser = trainer.optimisers[0]
    while hasattr(optimiser, "optimizer"):
        optimiser = optimiser.optimizer
    moments = [state["exp_avg"] for state in optimiser.state.values()]
    local = sum((m.to_local() if hasattr(m, "to_local") else m).numel() for m in moments)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.trained.values())
    return {"wrapper": type(trainer.objective).__name__, "weights": sum(here) / whole, "optimiser": local / trained}


def run(job: dict[str, Any]) -> int:
    os.environ["MASTER_PORT"] = str(job["port"])
    fit = Trainer.fit

    def fit_and_report(self: Trainer) -> None:
        fit(self)
        if self.accelerator.is_main_process:
            Path(job["report"]).write_text(json.dumps(held(self)))

    Trainer.fit = fit_and_report  # type: ignore[method-assign]
    return run_command(train.main, job["arguments"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, each in enumerate(json.loads(sys.argv[1])):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(each)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise SystemExit(f"job {number} failed: {' '.join(each['arguments'])}")
