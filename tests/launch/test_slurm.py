"""The jobs of launch/slurm on a real SLURM: a cluster of five nodes on this machine, for as long as these tests run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.models import generate
from newtonrewards.simulation.simulate import SimulateRecipe, simulate

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "launch" / "slurm"
SEARCH = os.environ["PATH"] + ":/usr/sbin:/sbin"
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [name for name in NEEDED if shutil.which(name, path=SEARCH) is None]
needs_slurm = pytest.mark.skipif(
    bool(MISSING), reason=f"SLURM isn't installed ({', '.join(MISSING)} not found): apt-get install slurm-wlm munge"
)
# Small jobs: on the CPU, one core.
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=100")
# When to give up; a busy machine takes its time.
PATIENCE = 900.0
# Of the recipe.
STEPS = 90
RUNNING = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.1)


@dataclass
class Cluster:
    """folder: of the cluster's own files; environment: with which SLURM's commands find it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, **settings: str | Path) -> str:
        environment = self.environment | {name: str(value) for name, value in settings.items()}
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path, **settings: str | Path) -> str:
        """Submit with settings as a user gives them, before the command; returns the job's id."""
        return self.run("sbatch", "--parsable", "--output=" + str(self.folder / "%j.out"), *arguments, **settings)

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""  # several processes write into one line

    def facts(self, job: str) -> list[dict[str, str]]:
        """What SLURM says of a job, or of each task of an array."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def wait(self, *jobs: str) -> list[str]:
        """The states in which jobs (and all tasks of arrays) ended."""

        def states() -> list[str]:
            return [facts["JobState"] for job in jobs for facts in self.facts(job)]

        until(lambda: not set(states()) & set(RUNNING), f"jobs {jobs} ended")
        return states()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Lives until its standard input ends: also when this process is killed."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        os.chmod(folder, 0o755)  # pytest's own are closed to others, which munge doesn't bear
        yield from _started(Path(folder))


def _started(folder: Path) -> Iterator[Cluster]:
    process = subprocess.Popen(
        [SCRIPTS / "local_cluster.sh", "start", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        ready = process.stdout.readline()
        assert ready.startswith("ready"), "the cluster didn't come up, see above"
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        slurm = {"PATH": SEARCH, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
        yield Cluster(folder, os.environ | threads | slurm)
    finally:
        process.stdin.close()
        process.wait(60)


def rows(run: Path) -> list[dict[str, float]]:
    return read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").rglob("*.safetensors")))


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@dataclass
class Training:
    """Runs of one recipe: on one process; on two nodes undisturbed, preempted, and with one of its nodes lost."""

    folder: Path
    jobs: dict[str, str]


@pytest.fixture(scope="module")
def training(cluster: Cluster, world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Disturbances first, side by side: most of their time is waiting."""
    folder, recipe = tmp_path_factory.mktemp("training"), world["recipe.yaml"]
    script = SCRIPTS / "train.sh"

    def train(name: str, *options: str) -> str:
        return cluster.sbatch(*SMALL, *options, script, RECIPE=recipe, OUT=folder / name)

    jobs = {"preempted": train("preempted", "--nodes=2", "--cpus-per-task=40")}
    jobs["bereft"] = train("bereft", "--nodes=2", "--partition=spare")
    urgent = [
        "sbatch",
        "-p",
        "urgent",
        "-N2",
        "--ntasks-per-node=1",
        "--cpus-per-task=40",
        "-o/dev/null",
        "--wrap=true",
    ]
    disturbances = {
        "preempted": urgent,
        "bereft": [SCRIPTS / "local_cluster.sh", "power_off", cluster.folder, "node4"],
    }

    def disturb() -> bool:
        """Each run as soon as it is past its first checkpoint, whichever is first."""
        for name in [name for name in disturbances if len(rows(folder / name)) >= 5]:
            cluster.run(*disturbances.pop(name))
            assert len(rows(folder / name)) < STEPS, "too late"
        return not disturbances

    until(disturb, "both runs are past their first checkpoint")
    assert cluster.wait(*jobs.values()) == ["COMPLETED"] * 2
    jobs["two"] = train("two", "--nodes=2")
    jobs["one"] = train("one")
    assert cluster.wait(jobs["two"], jobs["one"]) == ["COMPLETED"] * 2
    return Training(folder, jobs)


@needs_slurm
def test_two_nodes_train_what_one_process_trains(cluster: Cluster, training: Training) -> None:
    two, one = (rows(training.folder / name) for name in ("two", "one"))
    assert [row["step"] for row in two] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    log = cluster.log(training.jobs["two"])
    for number, node in enumerate(("node1", "node2"), 1):
        assert f"{node} ({number} of 2): no GPUs, " in log
    assert f"torch {torch.__version__.split('+')[0]}" in log


@needs_slurm
def test_a_preempted_run_saves_is_requeued_and_ends_in_the_same_bits(cluster: Cluster, training: Training) -> None:
    log = cluster.log(training.jobs["preempted"])
    assert "got USR1: the step shall save and end" in log
    stopped = re.search(r"stopped after step (\d+)\.", log)
    assert stopped and f"goes on from step_{int(stopped[1]):06d}" in log
    assert "start 1 on node[1-2]" in log, "the log of the first start was cut off, or there was no second one"
    assert cluster.facts(training.jobs["preempted"])[0]["Restarts"] == "1"
    assert [row["step"] for row in rows(training.folder / "preempted")] == list(range(1, STEPS + 1))
    assert same(training.folder / "preempted", training.folder / "two")


@needs_slurm
def test_a_run_that_lost_a_node_goes_on_on_another_to_the_same_bits(cluster: Cluster, training: Training) -> None:
    facts = cluster.facts(training.jobs["bereft"])[0]
    assert (facts["Restarts"], facts["NodeList"]) == ("1", "node[3,5]")
    assert [row["step"] for row in rows(training.folder / "bereft")] == list(range(1, STEPS + 1))
    assert same(training.folder / "bereft", training.folder / "two")


@needs_slurm
def test_a_cancelled_run_stays_cancelled(cluster: Cluster, world: dict[str, Path], tmp_path: Path) -> None:
    recipe, out = world["recipe.yaml"], tmp_path / "run"
    job = cluster.sbatch(*SMALL, SCRIPTS / "train.sh", "--set", "stages.0.steps=4000", RECIPE=recipe, OUT=out)
    until(lambda: len(rows(out)) >= 1, "the run has begun")
    cluster.run("scancel", job)
    assert cluster.wait(job) == ["CANCELLED"]
    assert cluster.facts(job)[0]["Restarts"] == "0"


@pytest.fixture(scope="module")
def chain(
    cluster: Cluster, world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """All jobs from clips to report, in arrays of two; the folder, and id by name."""
    run = tmp_path_factory.mktemp("chain")
    settings = {"TASKS": "2", "TRAIN_CLIPS": "8", "TEST_CLIPS": "4", "RUN": str(run)}
    small = {name: " ".join(SMALL) for name in ("TRAIN_SBATCH", "GENERATE_SBATCH", "CPU_SBATCH")}
    said = cluster.run(
        SCRIPTS / "chain.sh", "--set", "stages.0.steps=2",
        MODEL=world["model"], RECIPE=world["recipe.yaml"], GENERATE="--num-inference-steps 2 --batch-size 2",
        SBATCH_OUTPUT=str(cluster.folder / "%j.out"), **settings, **small,
    )  # fmt: skip
    return run, {line.split()[1]: line.split()[0] for line in said.splitlines()[:-1]}


@needs_slurm
def test_the_chain_goes_from_clips_to_report(
    cluster: Cluster, world: dict[str, Path], chain: tuple[Path, dict[str, str]]
) -> None:
    run, jobs = chain
    assert set(cluster.wait(*jobs.values())) == {"COMPLETED"}, [cluster.log(job) for job in jobs.values()]
    assert len(cluster.facts(jobs["before"])) == len(cluster.facts(jobs["score"])) == 2
    assert len(rows(run / "train")) == 2
    summary = json.loads((run / "results" / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["truth", "before", "after"]
    assert (run / "results" / "report.html").stat().st_size > 10_000
    assert len(read_jsonl(run / "scores" / "scores.jsonl")) == 4
    assert (run / "scores" / "comparison.json").exists()


@needs_slurm
def test_an_array_makes_the_clips_that_one_process_makes(
    cluster: Cluster, world: dict[str, Path], chain: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    run, jobs = chain
    cluster.wait(*jobs.values())
    simulate(SimulateRecipe(num_clips=4, split="test"), tmp_path / "test", workers=1)
    ours = ["--model", str(world["model"]), "--clips", str(tmp_path / "test"), "--out", str(tmp_path / "before")]
    assert generate.main([*ours, "--num-inference-steps", "2", "--batch-size", "2", "--device", "cpu"]) == 0
    for name in ("000000", "000001", "000002", "000003"):
        for part in (f"test/clips/{name}.mp4", f"before/{name}.mp4"):
            theirs = run / "data" / part if part.startswith("test") else run / part
            assert torch.equal(read_clip(theirs).frames, read_clip(tmp_path / part).frames), part
    index = [row["name"] for row in read_jsonl(run / "before" / "index.jsonl")]
    assert index == ["000000", "000001", "000002", "000003"]


@needs_slurm
def test_what_needs_a_failed_job_is_cancelled(cluster: Cluster, world: dict[str, Path], tmp_path: Path) -> None:
    said = cluster.run(
        SCRIPTS / "chain.sh", MODEL=world["model"], RECIPE=world["recipe.yaml"], RUN=tmp_path, TASKS="2",
        PYTHON=tmp_path / "no_python", SBATCH_OUTPUT=str(cluster.folder / "%j.out"),
        **{name: " ".join(SMALL) for name in ("TRAIN_SBATCH", "GENERATE_SBATCH", "CPU_SBATCH")},
    )  # fmt: skip
    jobs = {line.split()[1]: line.split()[0] for line in said.splitlines()[:-1]}
    assert cluster.wait(jobs["simulate_train"]) == ["FAILED"] * 2
    for name in ("simulate_train_join", "train", "after", "score", "evaluate"):
        assert set(cluster.wait(jobs[name])) == {"CANCELLED"}, name


FAKE = """#!/bin/sh
case "$*" in *preflight*) exit 0 ;; esac
echo "$*"
exit {code}
"""


@needs_slurm
def test_a_run_that_brings_nothing_new_is_given_up(cluster: Cluster, world: dict[str, Path], tmp_path: Path) -> None:
    python, out = tmp_path / "python", tmp_path / "run"
    python.write_text(FAKE.format(code=139))
    python.chmod(0o755)
    recipe = world["recipe.yaml"]
    job = cluster.sbatch(*SMALL, SCRIPTS / "train.sh", RECIPE=recipe, OUT=out, PYTHON=python, RETRIES="2")
    assert cluster.wait(job) == ["FAILED"]
    facts = cluster.facts(job)[0]
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "139:0")
    assert "Given up: 2 ends in a row brought nothing new" in cluster.log(job)
    assert len((out / "restarts.log").read_text().splitlines()) == 2


@needs_slurm
@pytest.mark.parametrize(
    ("code", "partial", "state"), [("1", "1", "COMPLETED"), ("1", "0", "FAILED"), ("2", "1", "FAILED")]
)
def test_clips_that_fail_stop_a_chain_only_where_they_shall(
    cluster: Cluster, tmp_path: Path, code: str, partial: str, state: str
) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE.format(code=code))
    python.chmod(0o755)
    job = cluster.sbatch(
        *SMALL, SCRIPTS / "score.sh", VIDEOS=tmp_path, OUT=tmp_path / "scores", PYTHON=python, PARTIAL=partial
    )
    assert cluster.wait(job) == [state]
    assert "newtonrewards.eval.score" in cluster.log(job)


@needs_slurm
def test_what_is_missing_is_said_before_anything_is_loaded(
    cluster: Cluster, world: dict[str, Path], tmp_path: Path
) -> None:
    recipe, train = world["recipe.yaml"], SCRIPTS / "train.sh"
    (tmp_path / "file").write_text("")
    good = {"RECIPE": recipe, "OUT": tmp_path / "run"}
    jobs = {
        "no_python. Run ./newtonrewards": cluster.sbatch(*SMALL, train, **good | {"PYTHON": tmp_path / "no_python"}),
        "RECIPE isn't set": cluster.sbatch(*SMALL, train, **good | {"RECIPE": ""}),
        "no.yaml doesn't exist": cluster.sbatch(*SMALL, train, **good | {"RECIPE": tmp_path / "no.yaml"}),
        "can't write to OUT": cluster.sbatch(*SMALL, train, **good | {"OUT": tmp_path / "file"}),
        "Submit it from the root": cluster.sbatch(*SMALL, train, **good | {"ROOT": tmp_path}),
        "task 3 of 1 doesn't exist": cluster.sbatch(
            *SMALL, "--array=3", SCRIPTS / "simulate.sh", OUT=tmp_path / "data"
        ),
    }
    for words, job in jobs.items():
        assert cluster.wait(job) == ["FAILED"]
        assert cluster.facts(job)[0]["ExitCode"] == "2:0", words
        assert words in cluster.log(job)


@needs_slurm
@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="here torch does see two GPUs")
def test_a_node_whose_gpus_do_not_work_is_refused(cluster: Cluster, world: dict[str, Path], tmp_path: Path) -> None:
    recipe = world["recipe.yaml"]
    job = cluster.sbatch(*SMALL, "--gpus-per-node=2", SCRIPTS / "train.sh", RECIPE=recipe, OUT=tmp_path / "run")
    assert cluster.wait(job) == ["FAILED"]
    assert "SLURM gives this node 2 GPUs and torch sees" in cluster.log(job)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def scripts() -> list[Path]:
    return [*sorted(SCRIPTS.glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck isn't installed: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("name", ["train", "simulate", "generate", "score", "evaluate"])
def test_settings_stand_on_the_first_ten_lines(name: str) -> None:
    lines = (SCRIPTS / f"{name}.sh").read_text().splitlines()
    settings = [number for number, line in enumerate(lines, 1) if re.match(r"#SBATCH |[A-Z]+=\$\{", line)]
    beyond = [lines[number - 1] for number in settings if number > 10]
    assert all(line.startswith("ROOT=") for line in beyond)
    for needed in ("--requeue", "--signal=B:USR1@", "--open-mode=append", "%j.log", "--time="):
        assert needed in "\n".join(lines[:3])
