"""A chain of commands that can be stopped: each stage is one of the other commands, and files are all that passes
between them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from newtonrewards.core.clock import Stopwatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.run import append_jsonl, read_jsonl
from newtonrewards.core.shard import WHOLE, Shard
from newtonrewards.launch.cli import COMMANDS

DONE, LOG = "stages", "log.txt"
# Seconds between two looks at what other shards have done.
POLL = 5.0


@dataclass(frozen=True)
class Stage:
    """One command of a chain.

    Attributes:
        title: for people; differs from all others of its chain.
        command: name in the table of commands.
        argv: its arguments.
        inputs: hash of the files that it reads and that come from outside the chain's folder.
        result: a path that exists once it is done.
        summary: it is quick and only reads what other stages made. It is done again when its arguments changed, and
            all summaries after it, so that a chain can grow; any other stage that changed is refused.
    """

    title: str
    command: str
    argv: tuple[str, ...]
    inputs: str
    result: Path
    summary: bool = False

    @property
    def row(self) -> dict[str, Any]:
        return {"title": self.title, "command": self.command, "argv": list(self.argv), "inputs": self.inputs}


def simulate_stage(title: str, out: Path, clips: int, split: str, shifts: Sequence[str], seed: int) -> Stage:
    argv = ("--out", str(out), "--num-clips", str(clips), "--split", split, "--seed", str(seed), "--arrays", "masks")
    return Stage(title, "simulate", (*argv, "--shifts", *shifts), "", out / "index.jsonl")


def train_stage(title: str, recipe: Path, out: Path, changes: Sequence[str], *inputs: Path) -> Stage:
    """Training by a recipe with changes, as for `newtonrewards train --set`."""
    options = [word for change in changes for word in ("--set", change)]
    argv = ("--recipe", str(recipe), "--out", str(out), *options)
    return Stage(title, "train", argv, content_hash(recipe, *inputs), out / "model")


def trains_lora(path: Path) -> bool:
    """Whether a training recipe makes LoRA layers; `newtonrewards train` validates the rest of it."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return bool(content["model"].get("lora_rank"))


def quoted(path: Path) -> str:
    """A path as a YAML string, whatever characters it has."""
    return json.dumps(str(path))


def content_hash(*paths: Path) -> str:
    """Hash of files and of all files in folders.

    Raises:
        InputError: one of them is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        if not path.exists():
            raise InputError("this file of the project is missing", where=path, fix="Get the repository anew.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    shares: Mapping[str, float],
    before: Callable[[Stage, Mapping[str, dict[str, Any]]], None] = lambda stage, done: None,
    chosen: Collection[str] | None = None,
    shard: Shard = WHOLE,
) -> dict[str, dict[str, Any]]:
    """Run the stages that are not done yet, by this shard or another.

    Args:
        stages: in order. out: the chain's folder, which holds their rows and what they printed.
        shares: about how long each command takes, for the bar.
        before: called with each stage that runs and the rows of those before it.
        chosen: titles of those to run, all if None. shard: whose rows they are.
    Returns:
        the row of each stage by title: what it was, its exit `code`, and the time it took (`core.clock`).
    Raises:
        InputError: `out` holds a chain with other settings.
        NewtonError: from a stage.
    """
    done = done_rows(out, stages)
    mine = [stage for stage in stages if chosen is None or stage.title in chosen]
    share = {stage.title: shares.get(stage.command, 1.0) for stage in mine}
    shape = "{desc} |{bar:24}| {percentage:3.0f} % {elapsed}"
    with tqdm(total=sum(share.values()), bar_format=shape) as bar:
        for number, stage in enumerate(mine, 1):
            bar.set_description_str(f"stage {number}/{len(mine)}: {stage.title}")
            if stage.title not in done:
                before(stage, done)
                row = run_stage(stage, out / LOG)
                append_jsonl(out / shard.part(DONE), row)
                done[stage.title] = row
                bar.write(f"{number}/{len(mine)} {stage.title}: {row['seconds']:.0f} s", file=sys.stderr)
            bar.update(share[stage.title])
        bar.set_description_str("all stages done")
    return done


def wait_for(stages: Sequence[Stage], plan: Sequence[Stage], out: Path) -> None:
    """Wait until another shard has done these stages of a plan."""
    while missing := undone(stages, done_rows(out, plan)):
        print(f"waiting until shard 0 has done: {missing[0]}", file=sys.stderr)
        time.sleep(POLL)


def undone(stages: Sequence[Stage], done: Mapping[str, dict[str, Any]]) -> list[str]:
    """Titles of the stages that have no row yet."""
    return [stage.title for stage in stages if stage.title not in done]


def done_rows(out: Path, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Rows of finished stages whose results are still there.

    Raises:
        InputError: a finished stage was another one than that of this plan.
    """
    wanted = {stage.title: stage for stage in stages}
    done = {}
    for row in (row for path in sorted(out.glob(f"{DONE}*.jsonl")) for row in read_jsonl(path)):
        stage = wanted.get(row["title"])
        same = stage is not None and all(row[key] == value for key, value in stage.row.items())
        if stage is None or not (same or stage.summary):
            fix = "Choose another --out, or delete this folder."
            raise InputError("already holds results of other settings, recipes or weights", where=out, fix=fix)
        if same and stage.result.exists():
            done[stage.title] = row
        else:
            done.pop(stage.title, None)
    return _up_to_date(done, stages)


def _up_to_date(done: dict[str, dict[str, Any]], stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Without the summaries that follow one which has to be done again."""
    summaries = [stage.title for stage in stages if stage.summary]
    first = next((i for i, title in enumerate(summaries) if title not in done), len(summaries))
    return {title: row for title, row in done.items() if title not in summaries[first:]}


def run_stage(stage: Stage, log: Path) -> dict[str, Any]:
    """One command in this process; what it prints goes to a log, its bar and its errors to the terminal."""
    said, watch = io.StringIO(), Stopwatch()
    try:
        with contextlib.redirect_stdout(said):
            code = importlib.import_module(COMMANDS[stage.command].module).main(list(stage.argv))
    finally:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"newtonrewards {stage.command} {' '.join(stage.argv)}\n{said.getvalue()}\n")
    return {**stage.row, "code": code, **watch.spent()}
