"""Other people's clips, laid out as they lay them out: each becomes a `Clip`, so that it can be trained on.

- `videos`: a folder of video files, with captions in NAME.txt, masks in NAME.npz, tracks in a CSV file.
- `pisa`: PISA's folders of frames, `rgba_00000.jpg` or `00000.jpg` with `mask.npz` and `clip_info.json`
  (github.com/vision-x-nyu/pisa-experiments, README and opensora/datasets/datasets.py).
- `newtonbench`: lmquan/NewtonBench-60K, whose layout isn't documented: a table with a row for each video (CSV, JSON
  Lines, JSON or Parquet, with the videos inside or beside it), or video files with NAME.json beside them.

Everything passes through `read_clip`, masks too, so both are resampled, scaled and cut alike and the clip says how.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError
from newtonrewards.core.given import track_of
from newtonrewards.core.recipe import Config
from newtonrewards.core.video import read_clip, write_video
from newtonrewards.simulation import sidecars
from newtonrewards.simulation.captions import PISA
from newtonrewards.simulation.store import ClipFolder

PISA_FPS = {"rgba_*.jpg": 16.0, "[0-9]*.jpg": 120.0}  # simulated and filmed clips, frames per second of physical time


class LayoutConfig(Config):
    """How a folder of clips is laid out, and what is done to its videos.

    Attributes:
        name: `simulated` (what `newtonrewards simulate` writes; nothing below applies), `videos`, `pisa` or
            `newtonbench`.
        num_frames: keep the first so many; a batch needs clips of one length.
        size: (height, width) in px, scaled to cover it and cut at the centre; a batch needs clips of one size.
        fps: resample to this rate of physical time.
        capture_fps: physical rate of the files' frames where nothing else says it (slow motion).
        caption: for clips that have none.
        masks: folder of NAME.npz, for `videos`.
        tracks: CSV file with `file`, `frame`, `x_px`, `y_px` (see `core.given.track_of`), for `videos`: discs as masks.
        columns: what the table's columns are called, for `newtonbench`: `video`, `caption`, `capture_fps`, `masks`.
        select: only rows whose column has this value, as `split: train`.
    """

    name: Literal["simulated", "videos", "pisa", "newtonbench"] = "simulated"
    num_frames: int | None = Field(None, ge=2)
    size: tuple[int, int] | None = None
    fps: float | None = Field(None, gt=0)
    capture_fps: float | None = Field(None, gt=0)
    caption: str = ""
    masks: Path | None = None
    tracks: Path | None = None
    columns: dict[Literal["video", "caption", "capture_fps", "masks"], str] = {}
    select: dict[str, str] = {}


@dataclass(frozen=True, eq=False)
class Entry:
    """One clip, unread.

    Attributes:
        name: of the clip. where: the file or folder that is named in errors.
        video: gives the path of a file to decode; what has to be unpacked goes into the folder that it is given.
        masks: gives (T, h, w) masks in 8 bits for all of the file's frames, or None.
    """

    name: str
    where: Path
    video: Callable[[Path], Path]
    caption: str = ""
    capture_fps: float | None = None
    masks: Callable[[], UInt8[np.ndarray, "T h w"]] | None = None


class ForeignClips:
    """Map-style data set of clips that others made; truth isn't known.

    Args:
        entries: in order.
        config: what is done to each.
        cache: keep decoded clips in memory as 8-bit numbers.
    """

    def __init__(self, entries: Sequence[Entry], config: LayoutConfig, *, cache: bool = False) -> None:
        self.entries, self.config = list(entries), config
        self.names = [entry.name for entry in entries]
        self._cache: dict[int, tuple[Clip, Tensor, Tensor | None]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Clip:
        if self._cache is None:
            return self._read(self.entries[index])
        if index not in self._cache:
            clip = self._read(self.entries[index])
            small = replace(clip, frames=clip.frames[:1], masks=None)
            self._cache[index] = (small, _8bit(clip.frames), None if clip.masks is None else _8bit(clip.masks))
        clip, frames, masks = self._cache[index]
        return replace(clip, frames=frames.float() / 255, masks=None if masks is None else masks.float() / 255)

    def _read(self, entry: Entry) -> Clip:
        config = self.config
        rate = entry.capture_fps or config.capture_fps
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = entry.video(Path(folder))
                clip = read_clip(
                    path, num_frames=config.num_frames, fps=config.fps, size=config.size, capture_fps=rate,
                    caption=entry.caption or config.caption,
                )  # fmt: skip
                masks = self._masks(entry, path, rate, Path(folder))
            except InputError as error:
                inside = Path(str(error.where)).is_relative_to(folder)
                raise InputError(error.what, where=entry.where if inside else error.where, fix=error.fix) from None
        return replace(clip, masks=masks, source=replace(clip.source, path=str(entry.where)))

    def _masks(self, entry: Entry, path: Path, rate: float | None, folder: Path) -> Float[Tensor, "T H W"] | None:
        """Masks, resampled, scaled and cut as the frames are, by the same code."""
        config = self.config
        if entry.masks is None and config.tracks is None:
            return None
        whole = read_clip(path)
        height, width = whole.frames.shape[-2:]
        if entry.masks is not None:
            masks = entry.masks()
            if len(masks) != whole.num_frames:
                raise InputError(f"{len(masks)} masks for {whole.num_frames} frames", where=entry.where)
        else:
            assert config.tracks is not None
            masks = np.rint(track_of(config.tracks, entry.where, whole, (height, width)) * 255).astype(np.uint8)
        if masks.shape[1:] != (height, width):
            masks = np.stack([cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) for mask in masks])
        film = torch.from_numpy(masks).float().div(255)[:, None].expand(-1, 3, -1, -1)
        write_video(folder / "masks.mkv", film, whole.source.playback_fps or whole.fps)
        made = read_clip(
            folder / "masks.mkv", num_frames=config.num_frames, fps=config.fps, size=config.size, capture_fps=rate
        )
        return made.frames[:, 0]


def open_clips(folder: Path, config: LayoutConfig, *, cache: bool = False) -> ClipFolder | ForeignClips:
    """The clips of a folder, in whichever layout.

    Raises:
        InputError: nothing of that layout there; the error lists what is. MissingExtra: Parquet without pyarrow.
    """
    if config.name == "simulated":
        return ClipFolder(folder, cache=cache)
    finders = {"videos": _plain, "pisa": _pisa, "newtonbench": _newtonbench}
    entries = finders[config.name](folder, config)
    if not entries:
        raise InputError(f"no clips in the layout '{config.name}'; found {sidecars.found_in(folder)}", where=folder)
    return ForeignClips(entries, config, cache=cache)


def _plain(folder: Path, config: LayoutConfig) -> list[Entry]:
    entries = []
    for path in _videos(folder):
        masks = None if config.masks is None else partial(sidecars.read_masks, config.masks / f"{path.stem}.npz")
        caption = _text(path.with_suffix(".txt"))
        entries.append(Entry(_name(folder, path), path, partial(_there, path), caption, masks=masks))
    return entries


def _pisa(folder: Path, config: LayoutConfig) -> list[Entry]:
    entries = []
    for pattern, rate in PISA_FPS.items():
        for clip in sorted({path.parent for path in folder.rglob(pattern)}):
            film = partial(_film, sorted(clip.glob(pattern)), rate)
            file = next((clip / name for name in ("mask.npz", "mask.npy") if (clip / name).is_file()), None)
            masks = None if file is None else partial(sidecars.read_masks, file, _dropped(clip / "clip_info.json"))
            entries.append(Entry(_name(folder, clip), clip, film, config.caption or PISA, masks=masks))
    return entries


def _dropped(info: Path) -> int:
    """Which object falls: the one whose annotation is highest, else the last one; as PISA's eval.py has it."""
    try:
        points = json.loads(info.read_text(encoding="utf-8"))["points"]
        return int(np.argmin([min(y for _, y in each["positive"]) for each in points]))
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # simulated clips have no points


def _newtonbench(folder: Path, config: LayoutConfig) -> list[Entry]:
    tables = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in sidecars.TABLES and not path.with_suffix(".mp4").exists()
    ]
    entries = [entry for path in tables for entry in _of_table(path, config)]
    return entries or [_beside(folder, path) for path in _videos(folder)]


def _of_table(path: Path, config: LayoutConfig) -> list[Entry]:
    """One entry for each row that names or holds a video; a table without such a column has none."""
    rows = sidecars.read_rows(path)
    names: Mapping[str, str] = {str(key): value for key, value in config.columns.items()}
    at = {wanted: sidecars.column(rows, wanted, names, path) for wanted in sidecars.COLUMNS}
    video = at["video"]
    if video is None:
        return []
    entries = []
    for number, row in enumerate(rows):
        if any(str(row.get(key)) != value for key, value in config.select.items()):
            continue
        value, caption, rate, masks = (row.get(at[wanted] or "") for wanted in sidecars.COLUMNS)
        if isinstance(value, dict):  # inside the table
            name, where, film = f"{path.stem}/{number}", path, partial(_unpacked, path, video, number)
        else:
            name, where = str(value), _beneath(path, str(value))
            film = partial(_there, where)
        read = partial(sidecars.read_masks, _beneath(path, str(masks))) if masks else None
        entries.append(Entry(name, where, film, str(caption or ""), float(rate) if rate else None, read))
    return entries


def _beside(folder: Path, path: Path) -> Entry:
    """A video with its metadata in NAME.json, or without."""
    side = path.with_suffix(".json")
    row: dict[str, Any] = {}
    if side.is_file():
        try:
            content = json.loads(side.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"not JSON ({error})", where=side) from None
        row = content if isinstance(content, dict) else {}
    caption, rate = (
        next((row[name] for name in sidecars.COLUMNS[wanted] if row.get(name)), None)
        for wanted in ("caption", "capture_fps")
    )
    return Entry(_name(folder, path), path, partial(_there, path), str(caption or ""), float(rate) if rate else None)


# ---- files ----------------------------------------------------------------------------------------------------------


def _videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in sidecars.VIDEOS)


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _beneath(table: Path, name: str) -> Path:
    """A file that a table names: beside the table, or anywhere under a folder above it, as `data/` beside `videos/`."""
    places = [folder / name for folder in (table.parent, table.parent.parent)]
    return next((path for path in places if path.is_file()), places[0])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _there(path: Path, _: Path) -> Path:
    return path


def _film(frames: Sequence[Path], fps: float, folder: Path) -> Path:
    """Pictures as a lossless video, so that they take the way of all videos."""
    pictures: list[np.ndarray] = []
    for path in frames:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None or picture.shape != (pictures or [picture])[0].shape:
            raise InputError("not a picture of the size of the first one", where=path)
        pictures.append(picture)
    stacked = torch.from_numpy(np.stack([picture[..., ::-1] for picture in pictures]))
    write_video(folder / "frames.mkv", stacked.permute(0, 3, 1, 2).float() / 255, fps)
    return folder / "frames.mkv"


def _unpacked(path: Path, column: str, row: int, folder: Path) -> Path:
    target = folder / "clip.mp4"
    target.write_bytes(sidecars.packed_video(path, column, row))
    return target


def _8bit(values: Tensor) -> Tensor:
    return (values * 255).round().to(torch.uint8)
