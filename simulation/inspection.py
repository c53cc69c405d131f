"""`newtonrewards simulate inspect`: is what lies in a folder of clips whole, and what is in it?

Every file is opened and read to its end. A broken clip is named and the rest is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, NewtonError
from newtonrewards.core.run import write_atomic
from newtonrewards.core.video import to_8bit
from newtonrewards.core.workers import each
from newtonrewards.simulation import tars
from newtonrewards.simulation.store import WORLD, ClipFolder

SHEET_FRAMES, SHEET_CLIPS, SHEET_PX = 5, 3, 96


@dataclass(frozen=True)
class Checked:
    """One clip: its name, the bytes and sha256 of its files by suffix, and what is wrong with it, or empty."""

    name: str
    sizes: dict[str, int]
    hashes: dict[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        rows: of the clips that are whole, in order.
        sizes: bytes by kind of file.
        problems: one line for each clip or tar that can't be used.
        checksums: of each file by its name, whichever way it is packed.
    """

    rows: list[dict[str, Any]]
    sizes: dict[str, int]
    problems: list[str]
    checksums: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 of all names and checksums: equal for equal clips, in whatever shards and format they were made."""
        lines = (f"{value}  {name}\n" for name, value in sorted(self.checksums.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def inspect(folder: Path, workers: int = 1) -> Inspection:
    """Read everything.

    Raises:
        InputError: no clips there at all.
    """
    dataset, problems = _opened(folder)
    checked = tqdm(
        each(functools.partial(_check, folder), range(len(dataset)), workers),
        desc="inspect", unit="clip", total=len(dataset),
    )  # fmt: skip
    sizes: Counter[str] = Counter()
    whole: list[dict[str, Any]] = []
    checksums: dict[str, str] = {}
    for row, clip in zip(dataset.rows, checked, strict=True):
        if clip.problem:
            problems = [*problems, f"{clip.name}: {clip.problem}"]
            continue
        whole.append(row)
        sizes.update(clip.sizes)
        checksums |= {f"{clip.name}.{suffix}": value for suffix, value in clip.hashes.items()}
    return Inspection(whole, dict(sizes), problems, checksums)


@functools.lru_cache(maxsize=1)
def _opened(folder: Path) -> tuple[ClipFolder, list[str]]:
    """The clips that have a row on disk, indexed or not; and why others have none."""
    rows, problems = [], []
    for path in sorted((folder / "clips").glob("[!.]*.json")):
        try:
            rows.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            problems.append(f"{path.stem}: its row can't be read ({error})")
    for path in sorted((folder / tars.FOLDER).glob("[!.]*.tar")):
        try:
            rows += tars.tar_rows(path)
        except InputError as error:
            problems.append(str(error))
    if not rows:
        raise InputError("no clips here" + "".join(f"; {problem}" for problem in problems[:3]), where=folder)
    return ClipFolder(folder, with_flow=True, rows=rows), problems


def _check(folder: Path, index: int) -> Checked:
    dataset, _ = _opened(folder)
    name = dataset.names[index]
    try:
        files = {suffix: dataset.file(index, suffix) for suffix in ("mp4", "npz")}
        problem = _disagreement(dataset[index], dataset.rows[index])
    except NewtonError as error:
        return Checked(name, {}, {}, str(error))
    except (KeyError, TypeError, ValueError) as error:
        return Checked(name, {}, {}, f"its row isn't that of a simulated clip ({error!r})")
    sizes = {suffix: len(content) for suffix, content in files.items()}
    hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}
    return Checked(name, sizes, hashes, problem)


def _disagreement(clip: Clip, row: Mapping[str, Any]) -> str:
    """What doesn't fit together in a clip that could be read, or nothing."""
    truth = clip.truth
    assert truth is not None
    tracks = {"position": truth.position, "velocity": truth.velocity, "acceleration": truth.acceleration}
    for name, track in tracks.items():
        if tuple(track.shape) != (clip.num_frames, 2):
            return f"{name} of shape {tuple(track.shape)} for {clip.num_frames} frames"
    cameras = {"intrinsics": truth.intrinsics, "extrinsics": truth.extrinsics}
    world = {name: getattr(truth, name) for name in WORLD}
    numbers = {"flow": truth.flow, "depth": truth.depth, **tracks, **world, **cameras}
    for name, array in numbers.items():
        if array is not None and not bool(torch.isfinite(array).all()):
            return f"{name} holds numbers that aren't finite"
    seen = truth.seen()
    if seen is not None and truth.shake is None and float((seen[:, :2] - truth.position).abs().max()) > 1e-4:
        return "the track in the world, seen by the cameras, isn't the track in the image"
    if abs((clip.source.playback_fps or 0) - row["playback_fps"]) > 0.01:
        return f"the video plays at {clip.source.playback_fps} fps, its row says {row['playback_fps']}"
    return ""


# ---- what people see ------------------------------------------------------------------------------------------------


def kind_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["split"], row["primitive"], row["shift"]


def print_inspection(found: Inspection, console: Console) -> None:
    """Counts, ranges of the parameters, sizes, checksum and problems."""
    table = Table("split", "motion", "shift", "clips", "frames", "valid", "parameters", title=None)
    for kind, count in sorted(Counter(map(kind_of, found.rows)).items()):
        rows = [row for row in found.rows if kind_of(row) == kind]
        frames = sorted({len(row["valid"]) for row in rows})
        valid = np.median([sum(row["valid"]) for row in rows])
        table.add_row(*kind, str(count), "/".join(map(str, frames)), f"{valid:g}", _ranges(rows))
    console.print(table)
    total = sum(found.sizes.values())
    parts = ", ".join(f"{name} {size / max(1, len(found.rows)) / 1e3:.1f}" for name, size in found.sizes.items())
    console.print(f"{len(found.rows)} whole clips, {total / 1e6:.1f} MB; kB for each clip: {parts}")
    again = Counter(reason for row in found.rows for reason in row["parameters"].get("rejections", ()))
    if again:
        console.print("scenes drawn again: " + ", ".join(f"{reason} {n}" for reason, n in sorted(again.items())))
    console.print(f"sha256 of all files: {found.digest}")
    for problem in found.problems:
        console.print(f"broken: {problem}", markup=False, highlight=False, soft_wrap=True)


def _ranges(rows: Sequence[Mapping[str, Any]]) -> str:
    """Smallest and largest value of each quantity that isn't the same everywhere."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row["parameters"].items():
            if isinstance(value, float) and key != "direction":
                seen.setdefault(key, []).append(value)
    return ", ".join(f"{key} {min(values):.3g}..{max(values):.3g}" for key, values in seen.items())


def contact_sheet(folder: Path, found: Inspection, path: Path) -> None:
    """Draw the first clips of each motion and split as strips of frames, first to last, and write them as PNG."""
    dataset = ClipFolder(folder, rows=found.rows)
    by_kind: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(found.rows):
        by_kind.setdefault((row["split"], row["primitive"]), []).append(index)
    lines = []
    for (split, primitive), indices in sorted(by_kind.items()):
        strips = [_strip(dataset[index]) for index in indices[:SHEET_CLIPS]]
        blank = np.full_like(strips[0], 255)
        line = np.concatenate(strips + [blank] * (SHEET_CLIPS - len(strips)), axis=1)
        title = np.full((20, line.shape[1], 3), 255, np.uint8)
        cv2.putText(title, f"{split} {primitive}", (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        lines += [title, line]
    done, png = cv2.imencode(".png", np.concatenate(lines)[..., ::-1])
    assert done, "8-bit RGB can always be written as PNG"
    write_atomic(path, png.tobytes())


def _strip(clip: Clip) -> np.ndarray:
    chosen = np.linspace(0, clip.num_frames - 1, SHEET_FRAMES).round().astype(int)
    frames = [cv2.resize(frame, (SHEET_PX, SHEET_PX)) for frame in to_8bit(clip.frames[chosen])]
    return np.pad(np.concatenate(frames, axis=1), ((0, 0), (0, 8), (0, 0)), constant_values=255)


def run(folder: Path, sheet: Path | None, workers: int, say: Callable[[str], None] = print) -> int:
    """The command; 1 if some clips are broken."""
    _opened.cache_clear()  # the folder may have changed since
    found = inspect(folder, workers)
    print_inspection(found, Console())
    sheet = sheet or folder / "contact_sheet.png"
    if found.rows:
        contact_sheet(folder, found, sheet)
        say(f"{sheet}: the first clips of each motion")
    return 1 if found.problems else 0
