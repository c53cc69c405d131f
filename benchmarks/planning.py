"""The table of planned memory in docs/memory.md: public models by size, from their settings alone.

    .venv/bin/python benchmarks/planning.py --out docs/memory.md [--only wan-1.3B]

Rows that the page has already are kept, so the command goes on where it stopped; delete a row to plan it anew. A minute
for most rows; every strategy and number of processes comes out of one run.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from pages import page_parser, write_below

from newtonrewards.core.recipe import validate
from newtonrewards.models.outline import PROCESSOR_FILE
from newtonrewards.training.plan import LARGER, STRATEGIES, TILES, USABLE, StagePlan, Strategy, plan_stage
from newtonrewards.training.recipe import TrainRecipe

LORA: dict[str, Any] = {"lora_rank": 32, "dtype": "bfloat16"}
# What trains and how the autoencoder decodes.
SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA 32": LORA,
    "all weights": {},
    "LoRA 32, tiles": LORA,
}
WAYS: tuple[tuple[Strategy, int], ...] = (("ddp", 8), ("zero2", 8), ("fsdp2", 8), ("zero2", 64), ("fsdp2", 64))
CARD = 80e9


def write_folder(model: dict[str, Any], folder: Path) -> None:
    """A pipeline folder that has nothing but its JSON files."""
    index = {**model["index"], **{name: part["class"] for name, part in model["parts"].items()}}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, part in model["parts"].items():
        (folder / name).mkdir()
        file = PROCESSOR_FILE if part["class"][1].endswith("Processor") else "config.json"
        (folder / name / file).write_text(json.dumps(part["config"]))


def recipe(name: str, folder: Path, size: tuple[int, int, int], settings: dict[str, Any]) -> TrainRecipe:
    """One clip in each process, gradient through the last step, everything recomputed that can be."""
    frames, height, width = size
    content = {
        "model": {
            "name": name,
            "path": str(folder),
            "num_frames": frames,
            "height": height,
            "width": width,
            "gradient_checkpointing": True,
            **settings,
        },
        "data": {"clips": "none"},
        "precision": "bf16",
        "stages": [
            {
                "objective": "reward",
                "steps": 1,
                "batch_size": 1,
                "sampling": {"num_inference_steps": 8, "grad_steps": 1},
                "reward": {
                    "flow": {"num_flow_updates": 12, "upsample": 1, "checkpoint": True, "pairs_at_once": 8},
                    "terms": {"kinematic/second_difference": {"weight": 1.0}, "mass/paired": {"weight": 1.0}},
                },
            }
        ],
    }
    return validate(TrainRecipe, content, where="benchmarks/planning.py")


def changes(model: dict[str, Any], settings: str) -> dict[str, Any]:
    """To the recipe's model, of one of `SETTINGS`."""
    return SETTINGS[settings] | ({"tiles": TILES[model["name"]].model_dump()} if "tiles" in settings else {})


def plan(model: dict[str, Any], size: str, settings: dict[str, Any]) -> StagePlan:
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder))
        made = recipe(model["name"], Path(folder), model["sizes"][size], settings)
        return plan_stage(made, 0, compare=LARGER)


def row(name: str, found: StagePlan, seconds: float) -> str:
    """Gigabytes; ZeRO-3 and FSDP2 are planned alike."""
    encoders = sum(count for name, count in found.fixed.items() if "encoder" in name)
    everything = {("ddp", 1): found.bytes, **found.others}
    fitting = [(count, way) for (way, count), need in everything.items() if need <= USABLE * CARD]
    count, way = min(fitting, key=lambda one: (one[0], STRATEGIES.index(one[1])), default=(0, "ddp"))
    fits = "no" if not fitting else "1" if count == 1 else f"{count} x {way}"
    sizes = [found.fixed["transformer"], encoders, found.bytes, *(found.others[way] for way in WAYS)]
    cells = [*(f"{one / 1e9:.1f}" for one in sizes), fits, f"{seconds:.0f}"]
    return f"{name} {' | '.join(cells)} |"


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--only", help="one model of benchmarks/models.yaml")
    a = parser.parse_args()
    torch.set_num_threads(1)
    models = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text())["models"]
    before = a.out.read_text().splitlines() if a.out.is_file() else []
    ways = " | ".join(f"{count} x {way}" for way, count in WAYS)
    head = f"| model | clip | trains | transformer | encoders | 1 process | {ways} | fits 80 GB from | planned in s |"
    rows = ["**Planned, not measured**: GB of tensors in each process, one clip each.", "", head, "|---" * 13 + "|"]
    for settings, size in itertools.product(SETTINGS, ("480p", "720p")):
        for key, model in models.items():
            if "tiles" in settings and model["name"] not in TILES:
                continue
            name = f"| {key} | {' x '.join(map(str, model['sizes'][size]))} | {settings} |"
            made = next((line for line in before if line.startswith(name)), None)
            if made is None and a.only not in (None, key):
                continue
            if made is None:
                started = time.process_time()
                found = plan(model, size, changes(model, settings))
                made = row(name, found, time.process_time() - started)
                print(made, flush=True)
            rows.append(made)
            write_below(a.out, "planning.py", "\n".join(rows))


if __name__ == "__main__":
    main()
