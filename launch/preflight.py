"""What a node of a SLURM job has, in one line, before anything is loaded; refuses one whose GPUs can't be used."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence

from newtonrewards.core.errors import NewtonError, run_command

PACKAGES = ("newtonrewards", "torch", "diffusers", "accelerate")


def preflight(environment: Mapping[str, str]) -> str:
    """Node, its number, GPUs, cores and versions.

    Args:
        environment: with SLURM's variables for a step.
    Raises:
        NewtonError: SLURM gave the node GPUs and torch sees another number of them. Training would take the CPU.
    """
    node = environment.get("SLURMD_NODENAME", platform.node())
    gpus, names = int(environment.get("SLURM_GPUS_ON_NODE") or 0), "no GPUs"
    if gpus:
        import torch  # takes seconds, and only GPUs need it

        seen = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        if seen != gpus:
            raise NewtonError(
                f"SLURM gives this node {gpus} GPUs and torch sees {seen}",
                where=node,
                fix=f"Look at its driver (nvidia-smi), or leave it out: sbatch --exclude={node}.",
            )
        names = f"{gpus} x {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else f"{gpus} GPUs"
    number, nodes = int(environment.get("SLURM_NODEID", "0")), environment.get("SLURM_NNODES", "1")
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{node} ({number + 1} of {nodes}): {names}, {cores} cores, python {platform.python_version()}, {versions}"


def main(argv: Sequence[str] | None = None) -> int:
    """Takes no arguments: all it looks at is the environment."""
    print(preflight(os.environ), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
