"""`newtonrewards demo`: the whole path in minutes on a CPU, from simulated clips to an HTML report.

Simulates clips of the five motions; trains the shipped fine-tuned model on with the reward and, beside it, with more of
the same fine-tuning for the same compute; lets base, fine-tuned and both trained models continue the same test clips
from the same noise; measures them against the truth and writes the report. Each stage is one of the other commands, and
files are all that passes between them. Stop it at any time: the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from newtonrewards.core.errors import run_command
from newtonrewards.core.recipe import Config, load
from newtonrewards.core.run import output_folder, read_jsonl
from newtonrewards.launch.stages import (
    Stage,
    content_hash,
    quoted,
    run_stages,
    simulate_stage,
    train_stage,
    trains_lora,
)

RECIPES = Path(__file__).with_name("recipes") / "demo"
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"
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
        simulate_stage("simulate clips to train on", train_clips, recipe.train_clips, "train", ("id",), seed),
        simulate_stage("simulate clips to judge by", test_clips, recipe.test_clips, "test", recipe.test_shifts, seed),
    ]
    titles = ("fine-tune on", "post-train with the reward")
    for arm, title in zip(TRAINED, titles, strict=True):
        path = folder / str(getattr(recipe, arm))
        changes = [f"seed={seed}", f"model.path={quoted(models['fine_tuned'])}", f"data.clips={quoted(train_clips)}"]
        changes += recipe.overrides.get(arm, ())
        stages.append(train_stage(title, path, out / arm, changes, models["fine_tuned"]))
    for name in (*models, *TRAINED):
        lora = name in TRAINED and trains_lora(folder / str(getattr(recipe, name)))
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


def _generate(arm: str, models: dict[str, Path], out: Path, clips: Path, steps: int, seed: int, lora: bool) -> Stage:
    """A trained arm is a whole model, or LoRA layers on the fine-tuned one."""
    target, trained = out / "generated" / arm, out / arm / "model"
    argv = ["--model", str(models["fine_tuned"] if lora else models.get(arm, trained))]
    argv += ["--lora", str(trained)] if lora else []
    argv += ["--clips", str(clips), "--out", str(target), "--seed", str(seed), "--num-inference-steps", str(steps)]
    inputs = content_hash(models[arm]) if arm in models else ""
    return Stage(f"generate with {arm}", "generate", tuple(argv), inputs, target / "index.jsonl")


def demo(recipe: DemoRecipe, folder: Path, out: Path, seed: int) -> int:
    """Run the stages that are not done yet.

    Returns:
        0, or 1 if a stage could not use some of its files.
    Raises:
        InputError: `out` can't be written, or holds a demo with other settings.
        NewtonError: from a stage.
    """
    output_folder(out)
    done = run_stages(plan(recipe, folder, out, seed), out, recipe.shares)
    _show(out, done)
    return max(row["code"] for row in done.values())


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
