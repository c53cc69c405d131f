"""What `newtonrewards generate` makes, and the index of what is there: one row for each whole clip."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import read_jsonl, write_jsonl
from newtonrewards.core.shard import Shard
from newtonrewards.core.video import read_clip, sha256
from newtonrewards.models.base import VideoSpec

INDEX = "index.jsonl"
# What makes two clips of one name different things; the rest of a row says where it came from.
SETTINGS = (
    "weights",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "num_frames",
    "height",
    "width",
    "negative_caption",
    "best_of",
    "judge",
)
IDENTITY = ("caption", "index", "source_sha256")


@dataclass(frozen=True)
class Job:
    """One clip to make.

    Attributes:
        name: of the file, without suffix.
        caption: what happens.
        index: its place in the folder it comes from; decides its noise.
        source: video or picture whose first frame it starts from; None: from the caption alone.
    """

    name: str
    caption: str
    index: int
    source: Path | None


def jobs_of_folder(folder: Path, limit: int | None = None) -> list[Job]:
    """One job for each clip of a folder that `newtonrewards simulate` wrote.

    Raises:
        InputError: no index there, or a row without name or caption.
    """
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"no {INDEX} here", where=folder, fix="Make a folder of clips with `newtonrewards simulate`.")
    rows = read_jsonl(index)[:limit]
    try:
        return [
            Job(str(row["name"]), str(row["caption"]), number, folder / "clips" / f"{row['name']}.mp4")
            for number, row in enumerate(rows)
        ]
    except KeyError as error:
        raise InputError(f"a row has no {error}", where=index) from None


def read_first_frame(path: Path, spec: VideoSpec) -> Float[Tensor, "3 H W"]:
    """First frame of a video, or a picture, scaled to cover the model's size and cut at the centre.

    Raises:
        InputError: not a readable video or picture.
    """
    size = (spec.height, spec.width)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
        return read_clip(path, num_frames=2, size=size).frames[0]
    try:
        with Image.open(path) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (spec.width, spec.height), Image.Resampling.LANCZOS)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"can't read this picture ({error})", where=path) from None
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 255


def first_frame(job: Job, spec: VideoSpec) -> Float[Tensor, "3 H W"]:
    """The one that the clip starts from; black for a model that doesn't look at it.

    Raises:
        InputError: not a readable video or picture, or none for a model that starts from one.
    """
    if job.source is not None:
        return read_first_frame(job.source, spec)
    if spec.from_image:
        raise InputError(f"this {spec.name} model starts from a first frame", fix="Give one with --image.")
    return torch.zeros(3, spec.height, spec.width)


# ---- the index ----------------------------------------------------------------------------------------------------


def rows_of(batch: Sequence[Job], common: dict[str, Any], failures: list[str]) -> dict[str, dict[str, Any]]:
    """The index row of each clip whose source can be read."""
    rows = {}
    for job in batch:
        try:
            digest = sha256(job.source) if job.source is not None else None
        except OSError as error:
            failures.append(f"{job.source}: can't read this file ({error.strerror}).")
            continue
        identity = {"caption": job.caption, "index": job.index, "source_sha256": digest}
        rows[job.name] = {"name": job.name, **identity, "source": job.source and str(job.source), **common}
    return rows


def rows_on_disk(out: Path, common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of whole clips by name, all of them made with these settings.

    Raises:
        InputError: naming the settings that differ.
    """
    rows: list[dict[str, Any]] = []
    for part in parts_of(out):
        with contextlib.suppress(FileNotFoundError):  # another shard has joined them meanwhile
            rows += read_jsonl(part)
    for row in rows:
        other = [f"{key} {row.get(key)}, not {common.get(key)}" for key in SETTINGS if row.get(key) != common.get(key)]
        if other:
            raise InputError(
                f"this folder holds clips made with other settings ({'; '.join(other)})",
                where=out,
                fix="Choose another --out, or replace them with --overwrite.",
            )
    return {row["name"]: row for row in rows if (out / f"{row['name']}.mp4").is_file()}


def parts_of(out: Path) -> list[Path]:
    """The index and those of shards, which are newer and so come last."""
    return sorted(out.glob("index*.jsonl"), key=lambda path: (path.name != INDEX, path.name))


def same(row: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return row is not None and all(row.get(key) == wanted[key] for key in IDENTITY)


def join(out: Path, jobs: Sequence[Job], common: dict[str, Any], shard: Shard) -> None:
    """One index of all clips in the order of the jobs; a shard leaves that to the one that finds them all there."""
    done = rows_on_disk(out, common)
    order = {job.name: job.index for job in jobs}
    if shard.count > 1 and order.keys() - done.keys():
        return
    write_jsonl(out / INDEX, sorted(done.values(), key=lambda row: (order.get(row["name"], len(jobs)), row["name"])))
    for part in parts_of(out):
        if part.name != INDEX:
            part.unlink(missing_ok=True)
