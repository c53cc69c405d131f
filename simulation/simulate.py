"""`newtonrewards simulate`: a folder of clips with their truth."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.recipe import Config, changed, load, validate
from newtonrewards.core.run import output_folder, write_json
from newtonrewards.core.shard import WHOLE, Shard, add_shard_option, of_this_process
from newtonrewards.core.workers import each
from newtonrewards.simulation import engine, inspection, photo, photo_setup, tars
from newtonrewards.simulation.film import Film, film
from newtonrewards.simulation.motions import KNOWN, PRIMITIVES, RAMPS, ROLLING
from newtonrewards.simulation.photo import NotTaken, Photo
from newtonrewards.simulation.ranges import SHIFTS, SPLITS, Ranges, World, default_ranges, materials_of, shifts_of
from newtonrewards.simulation.scene import Scene, sample_scene
from newtonrewards.simulation.store import ARRAYS, clip_files, write_files, write_index

PICTURES = "pictures"


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
        ranges: file of one's own in the form of `simulation/ranges.yaml`.
        world: values of `world` in the ranges that differ: `size_px`, `num_frames`, `spin_rad_s`, `camera_yaw_deg`,
            `restitution`, `materials`, `after_contact`, ...
        caption: the phrasing that stands as the clip's caption; every phrasing stands in its `captions`.
        film: what is imperfect about the camera; the default is the perfect one.
        tier: `fast`, or `photo`: the same clips as Blender's Cycles sees them (`simulation.photo`).
        photo: how the photo tier draws.
        format: `folder`, three files for each clip, or `webdataset`, tars of `clips_per_tar` clips.
    """

    num_clips: int = Field(100, ge=1)
    split: str = "train"
    shifts: tuple[str, ...] = ("id",)
    primitives: tuple[str, ...] = PRIMITIVES
    seed: int = 0
    imperfect: float = Field(0.0, ge=0.0, le=1.0)
    arrays: tuple[str, ...] = ARRAYS
    ranges: Path | None = None
    world: dict[str, Any] = {}
    caption: Literal["quantities", "plain", "pisa"] = "quantities"
    film: Film = Film()
    tier: Literal["fast", "photo"] = "fast"
    photo: Photo = Photo()
    format: Literal["folder", "webdataset"] = "folder"
    clips_per_tar: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _drawable(self) -> SimulateRecipe:
        known = ranges_of(self).primitives
        unknown = [name for name in self.primitives if name not in known]
        if unknown or not self.primitives:
            raise ValueError(f"primitives {unknown} are unknown, choose from {', '.join(known)}")
        materials_of(ranges_of(self))
        ramps = [name for name in self.primitives if name in (*RAMPS, *ROLLING)]
        if ranges_of(self).world.targets and ramps:
            raise ValueError(f"world.targets: nothing stands in the way of {', '.join(ramps)}, leave those out")
        if self.tier == "fast" and self.photo != Photo():
            raise ValueError("`photo` is how the photo tier draws, set tier: photo with it")
        return self


def ranges_of(recipe: SimulateRecipe) -> Ranges:
    """The ranges that a recipe's clips are drawn from.

    Raises:
        RecipeError: no such file, or a key or value that `World` doesn't take.
    """
    return _ranges(recipe.ranges, json.dumps(recipe.world, sort_keys=True))


@cache
def _ranges(path: Path | None, world: str) -> Ranges:
    base = default_ranges() if path is None else load(Ranges, path)
    mine = base.world.model_dump() | json.loads(world)
    return base.model_copy(update={"world": validate(World, mine, where="world")})


def shift_of(recipe: SimulateRecipe, index: int) -> tuple[str, str]:
    """Motion and shift of clip `index`: motions take turns, and for each motion its shifts do."""
    primitive = recipe.primitives[index % len(recipe.primitives)]
    known = shifts_of(primitive, ranges_of(recipe))
    wanted = [name for name in known if name in recipe.shifts or (name != "id" and "ood" in recipe.shifts)]
    if not wanted:
        raise InputError(
            f"{primitive} has none of the shifts {list(recipe.shifts)}",
            fix=f"It has {', '.join(known)}; `ood` takes all.",
        )
    return primitive, wanted[(index // len(recipe.primitives)) % len(wanted)]


@dataclass(frozen=True)
class Made:
    """What came of a unit: why its scenes were drawn again, and what kept it from being written, for each such clip."""

    reasons: list[str]
    problems: list[str]


def simulate(
    recipe: SimulateRecipe, out: Path, workers: int, shard: Shard = WHOLE, time_limit: float | None = None
) -> dict[str, Any]:
    """Make the clips of a shard that aren't there yet; whoever finds all clips of the recipe there writes the index.

    Args:
        time_limit: seconds after which the photo tier gives up a clip; None: never.
    Returns:
        counts: made, found, missing in other shards, by motion and shift, and why scenes were drawn again; whether
        a Parquet table was written; and `problems`, a line for each clip that Blender gave no pictures of.
    Raises:
        InputError: the folder can't be written, or holds clips of another recipe.
        MissingExtra: the photo tier isn't set up, or objects shall tumble without PyBullet.
    """
    if recipe.tier == "photo":
        photo_setup.python()
    if ranges_of(recipe).world.after_contact == "tumble":
        engine.bullet()
    output_folder(_folder(recipe, out))
    _claim(out, recipe)
    everything = _units(recipe)
    mine = shard.of(everything)
    missing = _missing(recipe, out, mine)
    rejections: Counter[str] = Counter()
    problems: list[str] = []
    total, failed = sum(map(len, missing)), 0
    small = recipe.format == "folder" and recipe.tier == "fast"
    least = {} if small else {"least": 2, "chunk": 1}
    make = partial(_make, recipe, out, time_limit)
    with tqdm(total=total, desc=f"simulate {recipe.split}", unit="clip", disable=not missing) as bar:
        for unit, made in zip(missing, each(make, missing, workers, **least), strict=True):
            rejections.update(made.reasons)
            problems += made.problems
            failed += len(unit) if made.problems else 0
            bar.update(len(unit))
    left = sum(map(len, _missing(recipe, out, everything)))
    table = not left and _finish(recipe, out, everything)
    kinds = [shift_of(recipe, index) for unit in mine for index in unit]
    return {
        "made": total - failed,
        "found": len(kinds) - total,
        "elsewhere": left - failed,
        "by_kind": dict(Counter(f"{primitive}/{shift}" for primitive, shift in kinds)),
        "drawn_again": dict(rejections),
        "table": table,
        "problems": problems,
    }


def draw(recipe: SimulateRecipe, index: int) -> Scene:
    """The scene of a clip: a function of the recipe and its number alone."""
    primitive, shift = shift_of(recipe, index)
    return sample_scene(
        recipe.seed,
        index,
        split=recipe.split,
        shift=shift,
        primitive=primitive,
        imperfect=recipe.imperfect,
        ranges=ranges_of(recipe),
    )


def _folder(recipe: SimulateRecipe, out: Path) -> Path:
    return out / ("clips" if recipe.format == "folder" else tars.FOLDER)


def _units(recipe: SimulateRecipe) -> list[range]:
    """What is written at a time, whole or not at all: single clips, or the clips of a tar."""
    step = 1 if recipe.format == "folder" else recipe.clips_per_tar
    return [range(first, min(first + step, recipe.num_clips)) for first in range(0, recipe.num_clips, step)]


def _file(recipe: SimulateRecipe, unit: range) -> str:
    """The file whose presence says that a unit is whole."""
    return f"{_name(unit[0])}.json" if recipe.format == "folder" else tars.tar_name(unit)


def _name(index: int) -> str:
    return f"{index:06d}"


def _missing(recipe: SimulateRecipe, out: Path, units: Sequence[range]) -> list[range]:
    there = set(os.listdir(_folder(recipe, out)))
    return [unit for unit in units if _file(recipe, unit) not in there]


def _make(recipe: SimulateRecipe, out: Path, time_limit: float | None, unit: range) -> Made:
    """Write a unit, unless there are no pictures of one of its clips."""
    scenes = [draw(recipe, index) for index in unit]
    files: list[tuple[str, dict[str, bytes]]] = []
    problems = []
    for scene in scenes:
        name = _name(scene.index)
        try:
            files.append((name, clip_files(name, _filmed(recipe, scene, out, time_limit), recipe.arrays)))
        except NotTaken as error:
            problems.append(f"{name}: {error}")
    if not problems and recipe.format == "folder":
        write_files(out, *files[0])
    elif not problems:
        tars.write_tar(_folder(recipe, out) / _file(recipe, unit), files)
        for name, _ in files:
            _pictures(out, name).unlink(missing_ok=True)
    return Made([reason for scene in scenes for reason in scene.rejections], problems)


def _filmed(recipe: SimulateRecipe, scene: Scene, out: Path, time_limit: float | None) -> Clip:
    if recipe.tier == "fast":
        clip = film(scene, recipe.film)
    else:
        keep = _pictures(out, _name(scene.index)) if recipe.format == "webdataset" else None
        clip = film(scene, recipe.film, partial(photo.photograph, settings=recipe.photo, seconds=time_limit, keep=keep))
        assert clip.truth is not None, "the renderer gives it"
        assets = clip.truth.assets | {"environment": scene.environment[0]}
        clip = replace(clip, truth=replace(clip.truth, assets=assets))
    return replace(clip, caption=scene.captions[recipe.caption])


def _pictures(out: Path, name: str) -> Path:
    """Where the photo tier keeps a clip's pictures until its tar is whole: a stop must not lose hours of work."""
    return out / PICTURES / f"{name}.npz"


def _finish(recipe: SimulateRecipe, out: Path, units: Sequence[range]) -> bool:
    """Write the index; a last tar that has grown since makes its shorter version superfluous."""
    if recipe.format == "webdataset":
        wanted = {_file(recipe, unit) for unit in units}
        for path in _folder(recipe, out).iterdir():
            if tars.NAMES.fullmatch(path.name) and path.name not in wanted:
                path.unlink()
    with contextlib.suppress(OSError):  # none there, or those of clips that are still missing
        (out / PICTURES).rmdir()
    return write_index(out)


def _claim(out: Path, recipe: SimulateRecipe) -> None:
    """A folder belongs to one recipe; only the number of clips may grow."""
    path, mine = out / "recipe.json", recipe.model_dump(mode="json")
    if path.exists():
        other = SimulateRecipe().model_dump(mode="json") | json.loads(path.read_text())
        differ = sorted(key for key in other if key != "num_clips" and mine.get(key) != other[key])
        if differ or mine["num_clips"] < other["num_clips"]:
            raise InputError(
                f"already holds clips of another recipe ({', '.join(differ or ['num_clips'])} differ)",
                where=out,
                fix="Choose another --out or delete it.",
            )
    write_json(path, mine)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards simulate", description=__doc__)
    actions = p.add_subparsers(dest="action", metavar="inspect | set-up-photo")
    look = actions.add_parser("inspect", help="read all clips of a folder: counts, ranges, checksum, contact sheet")
    look.add_argument("folder", type=Path, help="what `simulate --out` wrote, whole or not")
    look.add_argument("--sheet", type=Path, help="PNG file (default: contact_sheet.png in the folder)")
    look.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    actions.add_parser("set-up-photo", help="install Blender for the photo tier, apart from everything else (1 GB)")
    p.add_argument("--out", type=Path, help="folder to write; run again to fill what is missing")
    p.add_argument("--recipe", type=Path, help="YAML file with the options below; options given here win")
    p.add_argument("--num-clips", type=int, help="number of clips (default 100); the five motions take turns")
    p.add_argument("--split", choices=SPLITS, help="default train; test has its own families of shapes and textures")
    p.add_argument(
        "--shifts", nargs="+", choices=(*SHIFTS, "ood"), help="default id; `ood` takes every shift that a motion has"
    )
    p.add_argument("--primitives", nargs="+", choices=KNOWN, help="default: the five, without rolling")
    p.add_argument("--seed", type=int, help="default 0; the same seed gives the same clips")
    p.add_argument(
        "--imperfect", type=float, help="share of clips with wrong physics, to pre-train a base model (default 0)"
    )
    p.add_argument(
        "--arrays", nargs="*", choices=ARRAYS, help="ground truth to store beside frames and track (default: all)"
    )
    p.add_argument(
        "--format",
        choices=("folder", "webdataset"),
        help="three files for each clip (default), or tars of 500 clips, for clusters whose disks dislike many files",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any value of the recipe, as world.size_px=256, world.camera_yaw_deg=[-15,15], film.shake=0.01",
    )
    p.add_argument("--tier", choices=("fast", "photo"), help="photo: as Blender's Cycles sees it, after set-up-photo")
    p.add_argument("--time-limit", type=float, metavar="SECONDS", help="after which the photo tier gives up a clip")
    add_shard_option(p, "clip or tar")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    arguments = vars(command.parse_args(argv))
    action = arguments.pop("action")
    if action == "inspect":
        return inspection.run(arguments["folder"], arguments["sheet"], arguments["workers"])
    if action == "set-up-photo":
        print(f"{photo_setup.set_up()}: Blender is there. newtonrewards simulate --tier photo ... uses it.")
        return 0
    out, path, workers, shard, changes, limit = (
        arguments.pop(key) for key in ("out", "recipe", "workers", "shard", "set", "time_limit")
    )
    if out is None:
        command.error("the following arguments are required: --out")
    given = {key: value for key, value in arguments.items() if value is not None}
    base = load(SimulateRecipe, path).model_dump() if path else {}
    recipe = validate(SimulateRecipe, changed(base | given, changes), where=str(path or "command line"))
    if limit is not None and recipe.tier == "fast":
        command.error("--time-limit is for --tier photo")
    counts = simulate(recipe, out, workers, of_this_process(shard), limit)
    print(f"{out}: {counts['made']} clips made, {counts['found']} were there. {_listing(counts['by_kind'])}")
    if counts["elsewhere"]:
        print(f"{counts['elsewhere']} clips of other shards are still to come; the last one writes the index.")
    if counts["drawn_again"]:
        print(f"drawn again: {_listing(counts['drawn_again'])}")
    if recipe.format == "webdataset" and not counts["elsewhere"] and not counts["table"]:
        print("no index.parquet without pyarrow: pip install 'newtonrewards[parquet]', then run this again")
    for problem in counts["problems"]:
        print(f"no pictures of {problem}", file=sys.stderr)
    return 1 if counts["problems"] else 0


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
