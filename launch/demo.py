"""`newtonrewards demo`: the whole path in minutes on a CPU, from simulated clips to an HTML report.

Simulates clips of the five motions; trains the shipped fine-tuned model on with the reward and, beside it, with more of
the same fine-tuning for the same compute; lets base, fine-tuned and both trained models continue the same test clips
from the same noise; measures them against the truth and writes the report. Each stage is one of the other commands, and
files are all that passes between them. Stop it at any time: the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field
from rich.console import Console
from tqdm import tqdm

from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.recipe import Config, load
from newtonrewards.core.run import append_jsonl, output_folder, read_jsonl
from newtonrewards.launch.cli import COMMANDS

RECIPES = Path(__file__).with_name("recipes") / "demo"
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"
DONE = "stages.jsonl"
TrainedArm = Literal["more_fine_tuning", "post_trained"]
TRAINED: tuple[TrainedArm, ...] = ("more_fine_tuning", "post_trained")


class DemoRecipe(Config):
    """What the demo does.

    Attributes:
        train_clips: simulated clips to train on.
        test_clips: simulated clips to judge by; motions take turns, and for each motion its shifts.
        test_shifts: `id`, `ood` (all shifts that a motion has), or single ones.
        more_fine_tuning, post_trained: recipes of the two trained arms, beside this file.
        overrides: changes to the recipe of an arm, by its name, as for `newtonrewards train --set`.
        num_inference_steps: of the test clips of every arm.
        shares: about how long each command takes, for the bar.
    """

    train_clips: int = Field(ge=1)
    test_clips: int = Field(ge=1)
    test_shifts: tuple[str, ...] = ("id", "ood")
    more_fine_tuning: str = "more_fine_tuning.yaml"
    post_trained: str = "post_trained.yaml"
    overrides: dict[TrainedArm, tuple[str, ...]] = {}
    num_inference_steps: int = Field(8, ge=1)
    shares: dict[str, float] = {}


@dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes:
        title: for people.
        command: name in the table of commands.
        argv: its arguments.
        inputs: hash of the files that it reads and that come from outside the demo's folder.
        result: a path that exists once it is done.
    """

    title: str
    command: str
    argv: tuple[str, ...]
    inputs: str
    result: Path

    @property
    def row(self) -> dict[str, Any]:
        return {"title": self.title, "command": self.command, "argv": list(self.argv), "inputs": self.inputs}


def plan(recipe: DemoRecipe, folder: Path, out: Path, seed: int) -> list[Stage]:
    """The stages in order.

    Args:
        recipe: what to do. folder: where its training recipes lie.
        out: folder for everything that is made.
        seed: of clips, training and noise.
    """
    train_clips, test_clips = out / "data" / "train", out / "data" / "test"
    models: dict[str, Path] = {"base": WEIGHTS / "base", "fine_tuned": WEIGHTS / "fine_tuned"}
    stages = [
        _simulate("simulate clips to train on", train_clips, recipe.train_clips, "train", ("id",), seed),
        _simulate("simulate clips to judge by", test_clips, recipe.test_clips, "test", recipe.test_shifts, seed),
    ]
    titles = ("fine-tune on", "post-train with the reward")
    for arm, title in zip(TRAINED, titles, strict=True):
        path = folder / str(getattr(recipe, arm))
        changes = [f"seed={seed}", f"model.path={_quoted(models['fine_tuned'])}", f"data.clips={_quoted(train_clips)}"]
        changes += recipe.overrides.get(arm, ())
        options = [word for change in changes for word in ("--set", change)]
        argv = ("--recipe", str(path), "--out", str(out / arm), *options)
        stages.append(Stage(title, "train", argv, _hash(path, models["fine_tuned"]), out / arm / "model"))
    for name in (*models, *TRAINED):
        lora = name in TRAINED and _trains_lora(folder / str(getattr(recipe, name)))
        stages.append(_generate(name, models, out, test_clips, recipe.num_inference_steps, seed, lora))
    results = out / "results"
    compared = [word for arm in (*models, *TRAINED) for word in ("--arm", f"{arm}={out / 'generated' / arm}")]
    baselines = ("--baseline", "fine_tuned", "--baseline", "more_fine_tuning")
    argv = ("--truth", str(test_clips), *compared, *baselines, "--out", str(results), "--seed", str(seed))
    stages.append(Stage("measure against the truth", "evaluate", argv, "", results / "summary.json"))
    report = out / "report.html"
    runs = [f"{arm}={out / arm}" for arm in TRAINED]
    argv = ("--summary", str(results), "--out", str(report), "--training", *runs)
    stages.append(Stage("write the report", "report", argv, "", report))
    return stages


def _simulate(title: str, out: Path, clips: int, split: str, shifts: Sequence[str], seed: int) -> Stage:
    argv = ("--out", str(out), "--num-clips", str(clips), "--split", split, "--seed", str(seed), "--arrays", "masks")
    return Stage(title, "simulate", (*argv, "--shifts", *shifts), "", out / "index.jsonl")


def _generate(arm: str, models: dict[str, Path], out: Path, clips: Path, steps: int, seed: int, lora: bool) -> Stage:
    """A trained arm is a whole model, or LoRA layers on the fine-tuned one."""
    target, trained = out / "generated" / arm, out / arm / "model"
    argv = ["--model", str(models["fine_tuned"] if lora else models.get(arm, trained))]
    argv += ["--lora", str(trained)] if lora else []
    argv += ["--clips", str(clips), "--out", str(target), "--seed", str(seed), "--num-inference-steps", str(steps)]
    inputs = _hash(models[arm]) if arm in models else ""
    return Stage(f"generate with {arm}", "generate", tuple(argv), inputs, target / "index.jsonl")


def _trains_lora(path: Path) -> bool:
    """Whether a training recipe makes LoRA layers; `newtonrewards train` validates the rest of it."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return bool(content["model"].get("lora_rank"))


def _quoted(path: Path) -> str:
    """A path as a YAML string, whatever characters it has."""
    return json.dumps(str(path))


def _hash(*paths: Path) -> str:
    """Hash of files and of all files in folders.

    Raises:
        InputError: one of them is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        if not path.exists():
            raise InputError("this file of the demo is missing", where=path, fix="Get the repository anew.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def demo(recipe: DemoRecipe, folder: Path, out: Path, seed: int) -> int:
    """Run the stages that are not done yet.

    Returns:
        0, or 1 if a stage could not use some of its files.
    Raises:
        InputError: `out` can't be written, or holds a demo with other settings.
        NewtonError: from a stage.
    """
    output_folder(out)
    stages = plan(recipe, folder, out, seed)
    done = _done(out, stages)
    share = {stage.title: recipe.shares.get(stage.command, 1.0) for stage in stages}
    shape = "{desc} |{bar:24}| {percentage:3.0f} % {elapsed}"
    with tqdm(total=sum(share.values()), bar_format=shape) as bar:
        for number, stage in enumerate(stages, 1):
            bar.set_description_str(f"stage {number}/{len(stages)}: {stage.title}")
            if stage.title not in done:
                row = _run(stage, out / "log.txt")
                append_jsonl(out / DONE, row)
                done[stage.title] = row
                bar.write(f"{number}/{len(stages)} {stage.title}: {row['seconds']:.0f} s", file=sys.stderr)
            bar.update(share[stage.title])
        bar.set_description_str("all stages done")
    _show(out, done)
    return max(row["code"] for row in done.values())


def _done(out: Path, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Rows of finished stages whose results are still there.

    Raises:
        InputError: a finished stage was another one than that of this plan.
    """
    wanted = {stage.title: stage for stage in stages}
    done = {}
    for row in read_jsonl(out / DONE) if (out / DONE).exists() else []:
        stage = wanted.get(row["title"])
        if stage is None or any(row[key] != value for key, value in stage.row.items()):
            fix = "Choose another --out, or delete this folder."
            raise InputError("already holds a demo with other settings, recipes or weights", where=out, fix=fix)
        if stage.result.exists():
            done[stage.title] = row
    return done


def _run(stage: Stage, log: Path) -> dict[str, Any]:
    """One command in this process; what it prints goes to a log, its bar and its errors to the terminal."""
    said, started = io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(said):
            code = importlib.import_module(COMMANDS[stage.command].module).main(list(stage.argv))
    finally:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"newtonrewards {stage.command} {' '.join(stage.argv)}\n{said.getvalue()}\n")
    return {**stage.row, "code": code, "seconds": time.perf_counter() - started}


def _show(out: Path, done: dict[str, dict[str, Any]]) -> None:
    """The summary table, the compute of the trained arms, and where the report is."""
    from newtonrewards.eval.results import read_summary
    from newtonrewards.eval.table import table

    Console().print(table(read_summary(out / "results")))
    for arm in TRAINED:
        rows = read_jsonl(out / arm / "metrics.jsonl")
        print(f"{arm}: {len(rows)} steps in {sum(row['seconds'] for row in rows):.0f} s on top of fine_tuned")
    total = sum(row["seconds"] for row in done.values()) / 60
    print(f"{total:.1f} minutes in all. Open {out / 'report.html'} in any browser.")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="newtonrewards demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of clips, training and noise (default 0)")
    size = p.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="a few clips and steps: shows that it runs, not that it helps"
    )
    size.add_argument("--recipe", type=Path, default=RECIPES / "demo.yaml", help="another recipe than %(default)s")
    p.add_argument("--dry-run", action="store_true", help="print the commands that it would run, and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    path = RECIPES / "quick.yaml" if arguments.quick else arguments.recipe
    recipe = load(DemoRecipe, path)
    if arguments.dry_run:
        for stage in plan(recipe, path.parent, arguments.out, arguments.seed):
            print(f"# {stage.title}\nnewtonrewards {stage.command} {shlex.join(stage.argv)}")
        return 0
    return demo(recipe, path.parent, arguments.out, arguments.seed)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
