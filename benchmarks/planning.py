"""The table of planned memory in docs/memory.md: public models by size, from their settings alone.

    .venv/bin/python benchmarks/planning.py --out docs/memory.md [--only wan-1.3B]

Minutes per model on one core; every strategy and number of processes comes out of one run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pages import page_parser, write_below

from newtonrewards.core.recipe import validate
from newtonrewards.training.plan import StagePlan, plan_stage
from newtonrewards.training.recipe import TrainRecipe

SIZES = {"480p": (81, 480, 832), "720p": (81, 720, 1280)}
TRAINS: dict[str, dict[str, Any]] = {"LoRA 32": {"lora_rank": 32, "dtype": "bfloat16"}, "all weights": {}}
PROCESSES = (8, 64)
# Without first frame's processor and tokenizer: a plan makes its own where a folder has none.
EXTRA = {
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
IMAGE_PROCESSOR = ["transformers", "CLIPImageProcessor"]


def write_folder(model: dict[str, Any], folder: Path) -> None:
    """A pipeline folder that has nothing but its JSON files."""
    index = {**model["index"], **EXTRA, **{name: part["class"] for name, part in model["parts"].items()}}
    index["image_processor"] = IMAGE_PROCESSOR if "image_encoder" in model["parts"] else [None, None]
    index.setdefault("image_encoder", [None, None])
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, part in [*model["parts"].items(), ("scheduler", {"config": {"shift": 3.0}})]:
        (folder / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(part["config"]))


def recipe(name: str, folder: Path, size: tuple[int, int, int], trains: dict[str, Any]) -> TrainRecipe:
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
            **trains,
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


def plans(only: str | None) -> Iterator[tuple[str, str, str, StagePlan]]:
    models = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text())["models"]
    for key, model in models.items():
        for size_name, size in SIZES.items():
            for trains_name, trains in TRAINS.items():
                if only not in (None, key):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    write_folder(model, Path(folder))
                    made = recipe(model["name"], Path(folder), size, trains)
                    plan = plan_stage(made, 0, compare=PROCESSES)
                yield key, size_name, trains_name, plan


def row(key: str, size: str, trains: str, plan: StagePlan) -> str:
    cells = [plan.bytes, *(plan.others[way, count] for count in PROCESSES for way in ("ddp", "zero2", "fsdp2"))]
    transformer = plan.fixed["transformer"] / 1e9
    return f"| {key} | {size} | {trains} | {transformer:.1f} | " + " | ".join(f"{c / 1e9:.0f}" for c in cells) + " |"


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--only", help="one model of benchmarks/models.yaml")
    a = parser.parse_args()
    ways = " | ".join(f"{count} x {way}" for count in PROCESSES for way in ("ddp", "zero2", "fsdp2"))
    rows = [
        "**Planned, not measured**: GB of tensors in one process, one clip each.",
        "",
        f"| model | 81 frames of | trains | transformer | 1 process | {ways} |",
        "|---" * 11 + "|",
    ]
    for found in plans(a.only):
        rows.append(row(*found))
        print(rows[-1], flush=True)
        write_below(a.out, "planning.py", "\n".join(rows))


if __name__ == "__main__":
    main()
