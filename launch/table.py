"""`newtonrewards table`: every method from one start, on the same clips, with equal compute and several seeds.

Trains each arm of the recipe once for each seed, lets all arms continue the same test clips from the same noise,
measures them against the truth and writes one report, whose intervals are over clips and seeds. What each arm cost is
measured and stands in the report. Each stage is one of the other commands; stop it at any time, the same command goes
on and leaves finished arms alone.

    newtonrewards table --recipe launch/recipes/paper_table.yaml --out runs/table
    newtonrewards table --out runs/table --shard 0/2     # and 1/2 at the same time: every second arm with its seed
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from rich.console import Console

from newtonrewards.core.clock import SPENT
from newtonrewards.core.errors import run_command
from newtonrewards.core.recipe import Config, load
from newtonrewards.core.run import output_folder, read_jsonl, write_json
from newtonrewards.core.shard import WHOLE, Shard, add_shard_option
from newtonrewards.eval.results import read_summary
from newtonrewards.eval.table import table
from newtonrewards.launch.stages import (
    Stage,
    content_hash,
    done_rows,
    quoted,
    run_stages,
    simulate_stage,
    train_stage,
    trains_lora,
    undone,
    wait_for,
)

RECIPES = Path(__file__).with_name("recipes")
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


class ArmConfig(Config):
    """One row of the table. Without any of these it is the start itself.

    Attributes:
        recipe: training recipe, relative to the table's.
        changes: to it, as for `newtonrewards train --set`.
        best_of: clips made of each test clip, of which `reward` keeps the best.
        reward: YAML file of the reward that chooses, relative to the table's recipe.
    """

    recipe: str | None = None
    changes: tuple[str, ...] = ()
    best_of: int = Field(1, ge=1)
    reward: str | None = None

    @model_validator(mode="after")
    def _together(self) -> ArmConfig:
        if (self.best_of == 1) != (self.reward is None):
            raise ValueError("best_of and reward go together")
        if self.changes and self.recipe is None:
            raise ValueError("changes without a recipe change nothing")
        return self


class TableRecipe(Config):
    """What is compared.

    Attributes:
        start: shipped model that every arm starts from.
        arms: by name, in the order of the table; the last one is what the report is about.
        baselines: arms that the ones after them are compared with; empty: all.
        seeds: one run of each arm for each: of LoRA layers, order of clips and all noise.
        data_seed: of the clips, the same for all runs.
        train_clips, test_clips: simulated clips. test_shifts: see `newtonrewards simulate`.
        split: held-out families that judge: `val` for tuning, `test` for the table.
        num_inference_steps: of the test clips of every arm.
        shares: about how long each command takes, for the bar.
    """

    start: Literal["base", "fine_tuned"] = "fine_tuned"
    arms: dict[str, ArmConfig] = Field(min_length=2)
    baselines: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    data_seed: int = 0
    train_clips: int = Field(ge=1)
    test_clips: int = Field(ge=1)
    test_shifts: tuple[str, ...] = ("id", "ood")
    split: Literal["val", "test"] = "test"
    num_inference_steps: int = Field(8, ge=1)
    shares: dict[str, float] = {}

    @model_validator(mode="after")
    def _named(self) -> TableRecipe:
        unknown = [name for name in self.baselines if name not in self.arms]
        if unknown:
            raise ValueError(f"unknown baseline '{unknown[0]}', the arms are {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} are not all different")
        return self


class Table:
    """The plan of a table.

    Args:
        recipe: what to do. folder: where the files it names lie.
        out: folder for everything that is made.
    """

    def __init__(self, recipe: TableRecipe, folder: Path, out: Path) -> None:
        self.recipe, self.folder, self.out = recipe, folder, out
        self.start = WEIGHTS / recipe.start
        self.train_clips, self.test_clips = out / "data" / "train", out / "data" / recipe.split

    def stages(self) -> list[Stage]:
        """In order; all arms of one seed before the next seed's, so that an early stop leaves whole runs."""
        return [*self.clips(), *chain(*self.runs()), self._evaluate(), self._report()]

    def clips(self) -> list[Stage]:
        """What all runs need."""
        r = self.recipe
        return [
            simulate_stage(
                "simulate clips to train on", self.train_clips, r.train_clips, "train", ("id",), r.data_seed
            ),
            simulate_stage(
                "simulate clips to judge by", self.test_clips, r.test_clips, r.split, r.test_shifts, r.data_seed
            ),
        ]

    def runs(self) -> list[list[Stage]]:
        """The stages of each run: one arm with one seed. They don't need one another."""
        made = []
        for seed in self.recipe.seeds:
            for name, arm in self.recipe.arms.items():
                train = [] if arm.recipe is None else [self._train(name, arm, self.folder / arm.recipe, seed)]
                made.append([*train, self._generate(name, arm, seed)])
        return made

    def _report(self) -> Stage:
        """It reads the compute that is known once the others are done."""
        page, first = self.out / "report.html", self.recipe.seeds[0]
        runs = [f"{name}={self.run(name, first)}" for name, arm in self.recipe.arms.items() if arm.recipe is not None]
        argv = ["--summary", str(self.out / "results"), "--out", str(page), "--compute", str(self.out / "compute.json")]
        argv += ["--title", "Training methods from the same start", *(["--training", *runs] if runs else [])]
        return Stage("write the report", "report", tuple(argv), "", page, summary=True)

    def run(self, arm: str, seed: int) -> Path:
        return self.out / f"seed_{seed}" / arm

    def _clips(self, arm: str, seed: int) -> Path:
        return self.out / f"seed_{seed}" / "generated" / arm

    def _train(self, name: str, arm: ArmConfig, path: Path, seed: int) -> Stage:
        changes = [f"seed={seed}", f"model.lora_seed={seed}", f"model.path={quoted(self.start)}"]
        changes += [f"data.clips={quoted(self.train_clips)}", *arm.changes]
        return train_stage(f"{name}, seed {seed}: train", path, self.run(name, seed), changes, self.start)

    def _generate(self, name: str, arm: ArmConfig, seed: int) -> Stage:
        target, inputs, lora = self._clips(name, seed), [self.start], False
        model = self.start
        if arm.recipe is not None:
            lora = trains_lora(self.folder / arm.recipe)
            model = self.start if lora else self.run(name, seed) / "model"
        argv = ["--model", str(model), *(["--lora", str(self.run(name, seed) / "model")] if lora else [])]
        argv += ["--clips", str(self.test_clips), "--out", str(target), "--seed", str(seed)]
        argv += ["--num-inference-steps", str(self.recipe.num_inference_steps)]
        if arm.reward is not None:
            reward = self.folder / arm.reward
            argv += ["--best-of", str(arm.best_of), "--reward", str(reward)]
            inputs.append(reward)
        title = f"{name}, seed {seed}: generate"
        return Stage(title, "generate", tuple(argv), content_hash(*inputs), target / "index.jsonl")

    def _evaluate(self) -> Stage:
        results = self.out / "results"
        argv = ["--truth", str(self.test_clips), "--out", str(results), "--seed", str(self.recipe.data_seed)]
        for name in self.recipe.arms:
            for seed in self.recipe.seeds:
                argv += ["--arm", f"{name}={self._clips(name, seed)}"]
        argv += [word for name in self.recipe.baselines for word in ("--baseline", name)]
        return Stage("measure against the truth", "evaluate", tuple(argv), "", results / "summary.json", summary=True)

    def compute(self, done: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """What each arm cost, as `eval.report.Compute`: mean over its runs."""
        rows = []
        for name, arm in self.recipe.arms.items():
            seeds = self.recipe.seeds
            logs = [read_jsonl(self.run(name, seed) / "metrics.jsonl") for seed in seeds] if arm.recipe else []
            trained = [row for log in logs for row in log]
            generated = [done[f"{name}, seed {seed}: generate"] for seed in seeds]
            rows.append(
                {
                    "name": name,
                    "runs": len(seeds),
                    "steps": len(logs[0]) if logs else 0,
                    **{f"training_{kind}": sum(row[kind] for row in trained) / len(seeds) for kind in SPENT},
                    **{f"generation_{kind}": sum(row[kind] for row in generated) / len(seeds) for kind in SPENT},
                }
            )
        return rows


def make_table(recipe: TableRecipe, folder: Path, out: Path, shard: Shard = WHOLE) -> int:
    """Run what is not done yet, and print the table once all of it is.

    A shard makes every N-th run (an arm with a seed); the first makes the clips and the others wait for them, and the
    one that is done last measures and reports.

    Returns:
        0, or 1 if a stage could not use some of its files.
    Raises:
        InputError: `out` can't be written, or holds a table with other settings.
        NewtonError: from a stage.
    """
    output_folder(out)
    plan = Table(recipe, folder, out)
    stages = plan.stages()

    def before(stage: Stage, done: Mapping[str, dict[str, Any]]) -> None:
        if stage.command == "report":
            write_json(out / "compute.json", plan.compute(done))

    clips, runs = plan.clips(), plan.runs()
    if shard.index:
        wait_for(clips, stages, out)
    mine = [stage.title for stage in chain(clips, *shard.of(runs))]
    run_stages(stages, out, recipe.shares, before, mine, shard)
    missing = undone([*chain(*runs)], done_rows(out, stages))
    if missing:
        print(f"{len(missing)} stages of other shards are still to come; the last shard to end writes the report.")
        return 0
    done = run_stages(stages, out, recipe.shares, before, shard=shard)
    console = Console()
    console.print(table(read_summary(out / "results")))
    for row in plan.compute(done):
        console.print(
            f"{row['name']}: {row['steps']} training steps in {row['training_seconds']:.0f} s (of processors "
            f"{row['training_processor_seconds']:.0f} s), test clips in {row['generation_seconds']:.0f} s "
            f"({row['generation_processor_seconds']:.0f} s), mean of {row['runs']} runs"
        )
    total = sum(row["seconds"] for row in done.values()) / 60
    print(f"{total:.1f} minutes in all. Open {out / 'report.html'} in any browser.")
    return max(row["code"] for row in done.values())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="newtonrewards table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("runs/table"), help="folder for everything (default: %(default)s)")
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few clips and steps: shows that it runs, no more")
    size.add_argument(
        "--recipe", type=Path, default=RECIPES / "paper_table.yaml", help="another recipe than %(default)s"
    )
    add_shard_option(p, "run, an arm with a seed,")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    p.add_argument("--dry-run", action="store_true", help="print the commands that it would run, and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    path = RECIPES / "paper_table_quick.yaml" if arguments.quick else arguments.recipe
    recipe = load(TableRecipe, path, arguments.set)
    if arguments.dry_run:
        plan = Table(recipe, path.parent, arguments.out)
        for stage in plan.stages():
            print(f"# {stage.title}\nnewtonrewards {stage.command} {shlex.join(stage.argv)}")
        return 0
    return make_table(recipe, path.parent, arguments.out, arguments.shard)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
