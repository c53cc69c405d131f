"""Planned memory beside what a GPU really hands out: reward steps of public models' sizes, with random weights.

    .venv/bin/python benchmarks/large.py --out docs/memory.md [--rows wan-1.3B:480p:tiles ltx-2B:480p:LoRA ...]

A row is MODEL:SIZE:SETTING, as benchmarks/planning.py has them (`LoRA`, `all`, `tiles`); plans that the page has are
taken from there. The step is the one that is planned, with all of its sampling steps; the numbers that come out mean
nothing, but bytes and seconds don't depend on weights. Needs one GPU; a row that doesn't fit says so, and the next one
is run.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pages import page_parser, write_below
from planning import SETTINGS, changes, recipe, write_folder

from newtonrewards.models.load import load_video_model
from newtonrewards.models.outline import outline
from newtonrewards.training.methods.base import Objective
from newtonrewards.training.methods.registry import METHODS, Stage
from newtonrewards.training.plan import fake_clips, plan_stage, step
from newtonrewards.training.recipe import TrainRecipe

ONE_PROCESS = 6  # which cell of a planned row that is
ROWS = ("wan-1.3B:480p:tiles", "ltx-2B:480p:LoRA", "wan-1.3B:480p:LoRA")
HEAD = (
    "| model | clip | trains | planned, GB of tensors | handed out, GB | of planned | kept by the allocator, GB | "
    "seconds a step |"
)


class Peak:
    """Stands where a plan counts tensors: looks at torch's allocator, and times the step."""

    def __enter__(self) -> Peak:
        return self

    def forget_peaks(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began
        self.allocated, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def random_pipeline(path: str, *, dtype: dict[str, torch.dtype], **_: Any) -> Any:
    """On the GPU from the start; what its classes leave without content is drawn."""
    with torch.device("cuda"):
        pipeline = outline(path, dtype=dtype)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and "encoder" in name:
            for parameter in part.parameters():
                parameter.data.normal_(std=0.02)
    torch.cuda.empty_cache()
    return pipeline


def real(made: TrainRecipe) -> tuple[Objective, Stage]:
    """The recipe's only stage, with weights."""
    stage = made.stages[0]
    model = load_video_model(made.model, read=random_pipeline).to("cuda")
    return METHODS[stage.objective].build(model, stage, made.seed), stage


def row(key: str, size: str, setting: str, model: dict[str, Any], before: Sequence[str]) -> str:
    """Of the table; `before` are the page's lines, whose plans aren't made again."""
    name = next(name for name in SETTINGS if name.endswith(setting) or name.startswith(setting))
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder))
        made = recipe(model["name"], Path(folder), model["sizes"][size], changes(model, name))
        place = f"| {key} | {' x '.join(map(str, model['sizes'][size]))} | {name} |"
        known = next((line for line in before if line.startswith(place)), None)
        planned = plan_stage(made, 0).bytes / 1e9 if known is None else float(known.split("|")[ONE_PROCESS])
        head = f"{place} {planned:.1f} |"
        peak = Peak()
        try:
            objective, stage = real(made)
            step(objective, made, stage, fake_clips(objective.model, 1).to("cuda"), peak, foreach=True)
        except torch.cuda.OutOfMemoryError:
            return f"{head} more than the card has | | | |"
    handed, kept = peak.allocated / 1e9, peak.reserved / 1e9
    return f"{head} {handed:.1f} | {handed / planned:.2f} | {kept:.1f} | {peak.seconds:.0f} |"


def main() -> None:
    parser: argparse.ArgumentParser = page_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="MODEL:SIZE:SETTING")
    a = parser.parse_args()
    models = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text())["models"]
    card = torch.cuda.get_device_properties(0)
    lines = [f"{card.name}, {card.total_memory / 1e9:.0f} GB, torch {torch.__version__}.", "", HEAD, "|---" * 8 + "|"]
    page = a.out.read_text() if a.out.is_file() else ""
    before = page.partition("<!-- tables: benchmarks/planning.py -->")[2].partition("\n## ")[0].splitlines()
    for each in a.rows:
        key, size, setting = each.split(":")
        lines.append(row(key, size, setting, models[key], before))
        print(lines[-1], flush=True)
        write_below(a.out, "large.py", "\n".join(lines))
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
