"""Processes under torchrun: how a launcher ends, and who stops when one of its processes is asked to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from newtonrewards.core.errors import NewtonError
from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.launch.preflight import preflight
from newtonrewards.models import generate
from newtonrewards.training.checkpoint import checkpoints

RANKS = [sys.executable, "-m", "newtonrewards.launch.ranks", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(("rank_0", "rank_1", "code"), [("exit(0)", "exit(0)", 0), ("sleep(99)", "exit(2)", 2)])
def test_a_launcher_ends_with_the_code_of_the_rank_that_ended_first(
    tmp_path: Path, rank_0: str, rank_1: str, code: int
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(f"import os\nfrom time import sleep\n{rank_1} if os.environ['RANK'] == '1' else {rank_0}\n")
    assert subprocess.run([*RANKS, script], env=ENVIRONMENT, capture_output=True).returncode == code


def processes_of(launcher: int) -> list[int]:
    """The launcher's own children, by rank."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(child)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_one_process_that_is_asked_to_stop_stops_all_after_the_same_step(
    tmp_path: Path, world: Mapping[str, Path]
) -> None:
    run = tmp_path / "run"
    training = ["-m", "newtonrewards.training.train", "--recipe", str(world["recipe.yaml"]), "--out", str(run)]
    more = ["--set", "stages.0.steps=100000", "--set", "checkpoint.every=100000"]
    process = subprocess.Popen([*RANKS, *training, *more], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = processes_of(process.pid)[1]
    for _ in range(3):  # schedulers repeat themselves
        os.kill(second, signal.SIGUSR1)
        time.sleep(0.01)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    stopped = re.findall(r"stopped after step (\d+)\.", said)
    assert len(stopped) == 2 and len(set(stopped)) == 1
    assert [path.name for path in checkpoints(run)] == [f"step_{int(stopped[0]):06d}"]
    assert len(read_jsonl(run / "metrics.jsonl")) == int(stopped[0])


def test_two_processes_share_the_clips_that_one_makes(tmp_path: Path, world: Mapping[str, Path]) -> None:
    options = ["--model", str(world["model"]), "--clips", str(world["clips"]), "--limit", "4", "--batch-size", "2"]
    options += ["--num-inference-steps", "2", "--device", "cpu", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "newtonrewards.launch.generate", *options, str(tmp_path / "two")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert generate.main([*options, str(tmp_path / "one")]) == 0
    two, one = (tmp_path / name for name in ("two", "one"))
    assert (two / "index.jsonl").read_text() == (one / "index.jsonl").read_text()
    for path in one.glob("*.mp4"):
        assert read_clip(path).frames.equal(read_clip(two / path.name).frames)


def test_a_node_says_what_it_has() -> None:
    line = preflight({"SLURMD_NODENAME": "gpu7", "SLURM_NODEID": "2", "SLURM_NNODES": "4"})
    assert line.startswith("gpu7 (3 of 4): no GPUs, ") and "torch " in line and "newtonrewards " in line
    with pytest.raises(NewtonError, match=r"gpu7: SLURM gives this node 99 GPUs and torch sees \d.*--exclude=gpu7"):
        preflight({"SLURMD_NODENAME": "gpu7", "SLURM_GPUS_ON_NODE": "99"})
