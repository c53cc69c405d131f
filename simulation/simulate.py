"""`newtonrewards simulate`: a folder of clips with their truth."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from tqdm import tqdm

from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.recipe import Config, load, validate
from newtonrewards.core.run import output_folder, write_json
from newtonrewards.core.shard import WHOLE, Shard, add_shard_option, of_this_process
from newtonrewards.core.workers import each
from newtonrewards.simulation.motions import PRIMITIVES
from newtonrewards.simulation.ranges import SHIFTS, SPLITS, shifts_of
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene
from newtonrewards.simulation.store import ARRAYS, write_clip, write_index


class SimulateRecipe(Config):
    """What `simulate` makes.

    Attributes:
        num_clips: clips; the five motions take turns.
        split: `train`, `val` or `test`; the test split has its own shapes and textures.
        shifts: `id`, one of the OOD shifts, or `ood` for all that a motion has; they take turns.
        primitives: motions to draw.
        seed: the same seed gives the same clips.
        imperfect: share of clips with wrong physics (for pre-training a base model only).
        arrays: channels to store beside frames and track.
    """

    num_clips: int = Field(100, ge=1)
    split: str = "train"
    shifts: tuple[str, ...] = ("id",)
    primitives: tuple[str, ...] = PRIMITIVES
    seed: int = 0
    imperfect: float = Field(0.0, ge=0.0, le=1.0)
    arrays: tuple[str, ...] = ARRAYS


def shift_of(recipe: SimulateRecipe, index: int) -> tuple[str, str]:
    """Motion and shift of clip `index`: motions take turns, and for each motion its shifts do."""
    primitive = recipe.primitives[index % len(recipe.primitives)]
    known = shifts_of(primitive)
    wanted = [name for name in known if name in recipe.shifts or (name != "id" and "ood" in recipe.shifts)]
    if not wanted:
        raise InputError(
            f"{primitive} has none of the shifts {list(recipe.shifts)}",
            fix=f"It has {', '.join(known)}; `ood` takes all.",
        )
    return primitive, wanted[(index // len(recipe.primitives)) % len(wanted)]


def simulate(recipe: SimulateRecipe, out: Path, workers: int, shard: Shard = WHOLE) -> dict[str, Any]:
    """Make the clips of a shard that aren't there yet; whoever finds all clips of the recipe there writes the index.

    Returns:
        counts: made, found, missing in other shards, by motion and shift, and why scenes were drawn again.
    Raises:
        InputError: the folder can't be written, or holds clips of another recipe.
    """
    output_folder(out / "clips")
    _claim(out, recipe)
    mine = shard.of(range(recipe.num_clips))
    kinds = [shift_of(recipe, index) for index in mine]
    missing = _missing(out, mine)
    rejections: Counter[str] = Counter()
    with tqdm(total=len(missing), desc=f"simulate {recipe.split}", unit="clip", disable=not missing) as bar:
        for reasons in each(partial(_make, recipe, out), missing, workers):
            rejections.update(reasons)
            bar.update()
    elsewhere = _missing(out, range(recipe.num_clips))
    if not elsewhere:
        write_index(out, [_name(index) for index in range(recipe.num_clips)])
    return {
        "made": len(missing),
        "found": len(mine) - len(missing),
        "elsewhere": len(elsewhere),
        "by_kind": dict(Counter(f"{primitive}/{shift}" for primitive, shift in kinds)),
        "drawn_again": dict(rejections),
    }


def _name(index: int) -> str:
    return f"{index:06d}"


def _missing(out: Path, indices: Sequence[int]) -> list[int]:
    return [index for index in indices if not (out / "clips" / f"{_name(index)}.json").exists()]


def _make(recipe: SimulateRecipe, out: Path, index: int) -> tuple[str, ...]:
    primitive, shift = shift_of(recipe, index)
    scene = sample_scene(
        recipe.seed, index, split=recipe.split, shift=shift, primitive=primitive, imperfect=recipe.imperfect
    )
    write_clip(out, _name(index), render(scene), recipe.arrays)
    return scene.rejections


def _claim(out: Path, recipe: SimulateRecipe) -> None:
    """A folder belongs to one recipe; only the number of clips may grow."""
    path, mine = out / "recipe.json", recipe.model_dump(mode="json")
    if path.exists():
        other = json.loads(path.read_text())
        changed = sorted(key for key in mine if key != "num_clips" and mine[key] != other.get(key))
        if changed or mine["num_clips"] < other["num_clips"]:
            raise InputError(
                f"already holds clips of another recipe ({', '.join(changed or ['num_clips'])} differ)",
                where=out,
                fix="Choose another --out or delete it.",
            )
    write_json(path, mine)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards simulate", description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="folder to write; run again to fill what is missing")
    p.add_argument("--recipe", type=Path, help="YAML file with the options below; options given here win")
    p.add_argument("--num-clips", type=int, help="number of clips (default 100); the five motions take turns")
    p.add_argument("--split", choices=SPLITS, help="default train; test has its own families of shapes and textures")
    p.add_argument(
        "--shifts", nargs="+", choices=(*SHIFTS, "ood"), help="default id; `ood` takes every shift that a motion has"
    )
    p.add_argument("--primitives", nargs="+", choices=PRIMITIVES, help="default: all five")
    p.add_argument("--seed", type=int, help="default 0; the same seed gives the same clips")
    p.add_argument(
        "--imperfect", type=float, help="share of clips with wrong physics, to pre-train a base model (default 0)"
    )
    p.add_argument(
        "--arrays", nargs="*", choices=ARRAYS, help="ground truth to store beside frames and track (default: all)"
    )
    add_shard_option(p, "clip")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(parser().parse_args(argv))
    out, path, workers, shard = (arguments.pop(key) for key in ("out", "recipe", "workers", "shard"))
    given = {key: value for key, value in arguments.items() if value is not None}
    base = load(SimulateRecipe, path).model_dump() if path else {}
    recipe = validate(SimulateRecipe, base | given, where=str(path or "command line"))
    counts = simulate(recipe, out, workers, of_this_process(shard))
    print(f"{out}: {counts['made']} clips made, {counts['found']} were there. {_listing(counts['by_kind'])}")
    if counts["elsewhere"]:
        print(f"{counts['elsewhere']} clips of other shards are still to come; the last one writes the index.")
    if counts["drawn_again"]:
        print(f"drawn again: {_listing(counts['drawn_again'])}")
    return 0


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
