"""Clips on disk and the data set that reads them.

Layout: `recipe.json` (what was asked for), `index.jsonl` (one row for each clip: caption, rates, track, parameters),
`index.parquet` (the same rows as a flat table, where pyarrow is installed), and either
`clips/NAME.mp4` (lossless), `clips/NAME.npz` (arrays), `clips/NAME.json` (the clip's row; written last, so a clip whose
row is there is whole), or `shards/FIRST-LAST.tar` with the same files (`simulation.tars`).
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from newtonrewards.core.clip import BystanderTruth, Clip, Truth
from newtonrewards.core.errors import InputError
from newtonrewards.core.run import jsonable, read_jsonl, write_atomic, write_jsonl
from newtonrewards.core.video import encode_video, read_clip
from newtonrewards.simulation import tars
from newtonrewards.simulation.table import write_table

ARRAYS = ("masks", "flow", "depth")
# Left out of a row where they have their default; rows of older versions have none of them.
OPTIONAL = ("acceleration_spread", "shake", "captions", "assets", "visible")
WORLD = ("world_position", "world_velocity", "world_acceleration")
CAMERAS = ("intrinsics", "extrinsics")
NO_ROW = ("flow", "depth", "bystanders")  # in the arrays, or written in another form
AGAIN = "Delete the clip's row or its tar and run the same `simulate` again."


def write_files(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write what `clip_files` gives: one simulated clip, whole, or not visible to a reader."""
    for suffix, content in files.items():
        write_atomic(folder / "clips" / f"{name}.{suffix}", content, durable=suffix == "json")


def clip_files(name: str, clip: Clip, arrays: tuple[str, ...] = ARRAYS) -> dict[str, bytes]:
    """What stands in a simulated clip's files, by suffix; the row last."""
    truth = clip.truth
    assert truth is not None and clip.masks is not None and clip.valid is not None
    video = encode_video(clip.frames, clip.source.playback_fps or clip.fps)
    content: dict[str, NDArray[Any]] = {}
    if "masks" in arrays:
        content["masks"] = _packed(clip.masks)
        if truth.bystanders:
            masks = [one.masks for one in truth.bystanders if one.masks is not None]
            content["bystander_masks"] = np.stack([_packed(mask) for mask in masks])
    if "flow" in arrays and truth.flow is not None:
        content["flow"] = truth.flow.to(torch.float16).numpy()
    if "depth" in arrays and truth.depth is not None:
        content["depth"] = truth.depth.to(torch.float16).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
    row = json.dumps(clip_row(name, clip), indent=1, allow_nan=False) + "\n"
    return {"mp4": video, "npz": buffer.getvalue(), "json": row.encode()}


def _packed(masks: torch.Tensor) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = (masks * 255).round().to(torch.uint8).numpy()
    return packed


def clip_row(name: str, clip: Clip) -> dict[str, Any]:
    """A clip's row; what only some clips have is left out where it has its default.

    The track in the world is rounded to micrometres, and a camera that rests is written once: rows are read as a whole.
    """
    truth = clip.truth
    assert truth is not None and clip.valid is not None
    row = {field: getattr(truth, field) for field in Truth.__dataclass_fields__ if field not in NO_ROW}
    row = {field: value for field, value in row.items() if field not in (*OPTIONAL, *WORLD, *CAMERAS) or _there(value)}
    row |= {field: _rounded(row[field], 6) for field in WORLD if field in row}
    row |= {field: _rounded(_once(row[field]), 9) for field in CAMERAS if field in row}
    row |= {"bystanders": list(map(_bystander_row, truth.bystanders))} if truth.bystanders else {}
    return jsonable(
        {
            "name": name,
            "caption": clip.caption,
            "fps": clip.fps,
            "playback_fps": clip.source.playback_fps,
            "valid": clip.valid,
            **row,
        }
    )


def _bystander_row(one: BystanderTruth) -> dict[str, Any]:
    row = {field: getattr(one, field) for field in BystanderTruth.__dataclass_fields__ if field != "masks"}
    return row | {field: _rounded(row[field], 6) for field in WORLD}


def _there(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or bool(value)


def _once(matrices: torch.Tensor) -> torch.Tensor:
    return matrices[:1] if bool((matrices == matrices[:1]).all()) else matrices


def _rounded(values: torch.Tensor, digits: int) -> list[Any]:
    rounded: list[Any] = np.round(values.double().numpy(), digits).tolist()
    return rounded


def rows_on_disk(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the clips that are whole, in order; of tars that can't be read none."""
    for path in sorted((folder / "clips").glob("[!.]*.json")):
        yield json.loads(path.read_text())
    for path in sorted((folder / tars.FOLDER).glob("[!.]*.tar")):
        yield from tars.tar_rows(path)


def write_index(folder: Path) -> bool:
    """Gather the rows of all clips into `index.jsonl`, and `index.parquet` if pyarrow is there.

    Returns:
        whether it is.
    """
    rows = list(rows_on_disk(folder))
    write_jsonl(folder / "index.jsonl", rows)
    return write_table(folder / "index.parquet", rows)


class ClipFolder:
    """Map-style data set over a folder that `newtonrewards simulate` wrote.

    Args:
        path: the folder.
        with_flow: also read exact flow, depth and the masks of bystanders where they were stored.
        cache: keep decoded frames in memory as 8-bit numbers (0.2 MB for a 64 px clip of 17 frames).
        rows: the clips to read, None: those of its index.
    Raises:
        InputError: no index there, or a row of the index without its files.
    """

    def __init__(
        self, path: Path, *, with_flow: bool = False, cache: bool = False, rows: list[dict[str, Any]] | None = None
    ) -> None:
        if rows is None and not (path / "index.jsonl").is_file():
            raise InputError(
                "not a folder of simulated clips (no index.jsonl)",
                where=path,
                fix="Make one with `newtonrewards simulate --out`.",
            )
        self.path, self.with_flow = path, with_flow
        self.rows = read_jsonl(path / "index.jsonl") if rows is None else rows
        if not self.rows:
            raise InputError(
                "the index holds no clip", where=path / "index.jsonl", fix="Simulate again with --num-clips above 0."
            )
        self.names = [str(row["name"]) for row in self.rows]
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor | None]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def video_path(self, index: int) -> Path:
        """Where a clip's video lies; in a tar the name is only that of its member."""
        return self._folder(index) / f"{self.names[index]}.mp4"

    def file(self, index: int, suffix: str) -> bytes:
        """A clip's `mp4` or `npz`, wherever it lies.

        Raises:
            InputError: it isn't there.
        """
        part = self._part(index, suffix)
        if part is not None:
            return part
        path = self._folder(index) / f"{self.names[index]}.{suffix}"
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"can't read this file ({error.strerror})", where=path, fix=AGAIN) from None

    def _video(self, index: int) -> Clip:
        path, part = self.video_path(index), self._part(index, "mp4")
        if part is None:
            return read_clip(path)
        with tempfile.TemporaryDirectory() as folder:  # decoders want a file
            copy = Path(folder) / path.name
            copy.write_bytes(part)
            try:
                clip = read_clip(copy)
            except InputError as error:
                raise InputError(error.what, where=path, fix=AGAIN) from None
        return replace(clip, source=replace(clip.source, path=str(path)))

    def _folder(self, index: int) -> Path:
        shard = self.rows[index].get("shard")
        return self.path / "clips" if shard is None else self.path / tars.FOLDER / shard

    def _part(self, index: int, suffix: str) -> bytes | None:
        """Bytes of a file that lies in a tar; None: it is a file of its own."""
        row = self.rows[index]
        if "shard" not in row:
            return None
        return tars.read_part(self._folder(index), *row["members"][suffix])

    def __getitem__(self, index: int) -> Clip:
        row = self.rows[index]
        if self._cache is not None and index in self._cache:
            frames, masks = self._cache[index]
            return _clip(row, frames.float() / 255, None if masks is None else masks.float() / 255)
        clip = self._video(index)
        arrays = self._arrays(index, clip.frames)
        masks = torch.from_numpy(arrays["masks"]) if "masks" in arrays else None
        if self._cache is not None:
            self._cache[index] = ((clip.frames * 255).round().to(torch.uint8), masks)
        made = _clip(row, clip.frames, None if masks is None else masks.float() / 255)
        truth = made.truth
        assert truth is not None
        if self.with_flow:
            flow, depth = (torch.from_numpy(arrays[k]).float() if k in arrays else None for k in ("flow", "depth"))
            others = truth.bystanders
            if "bystander_masks" in arrays:
                masks = torch.from_numpy(arrays["bystander_masks"]).float() / 255
                others = tuple(replace(one, masks=mask) for one, mask in zip(others, masks, strict=True))
            truth = replace(truth, flow=flow, depth=depth, bystanders=others)
        return replace(made, truth=truth, source=clip.source)

    def _arrays(self, index: int, frames: torch.Tensor) -> dict[str, NDArray[Any]]:
        path = self._folder(index) / f"{self.names[index]}.npz"
        part = self._part(index, "npz")
        wanted = (*ARRAYS, "bystander_masks") if self.with_flow else ("masks",)
        try:
            with np.load(path if part is None else io.BytesIO(part), allow_pickle=False) as content:
                arrays = {key: content[key] for key in wanted if key in content.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"can't read the arrays of this clip ({error})", where=path, fix=AGAIN) from None
        count, _, height, width = frames.shape
        others = len(self.rows[index].get("bystanders", ()))
        shapes = {"flow": (count - 1, 2, height, width), "bystander_masks": (others, count, height, width)}
        for key, array in arrays.items():
            if array.shape != shapes.get(key, (count, height, width)):
                what = f"{key} of shape {array.shape} for {count} frames of {height}x{width} px"
                raise InputError(what, where=path, fix=AGAIN)
        return arrays


def _numbers(values: list[Any]) -> torch.Tensor:
    """float32; JSON's null is NaN."""
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _bystander(row: dict[str, Any]) -> BystanderTruth:
    tracks = {key: _numbers(value) for key, value in row.items() if isinstance(value, list)}
    return BystanderTruth(**(row | tracks))


def _clip(row: dict[str, Any], frames: torch.Tensor, masks: torch.Tensor | None) -> Clip:
    def track(key: str) -> torch.Tensor:
        return _numbers(row[key])

    added: dict[str, Any] = {key: track(key) for key in WORLD if key in row}
    added |= {key: track(key).expand(len(frames), -1, -1) for key in CAMERAS if key in row}
    plain = ("metres_per_height", "primitive", "split", "shift", "events", "parameters", "seed")
    truth = Truth(
        position=track("position"),
        velocity=track("velocity"),
        acceleration=track("acceleration"),
        acceleration_spread=row.get("acceleration_spread", 0.0),
        shake=track("shake") if "shake" in row else None,
        visible=track("visible") if "visible" in row else None,
        bystanders=tuple(map(_bystander, row.get("bystanders", ()))),
        captions=row.get("captions", {}),
        assets=row.get("assets", {}),
        **added,
        **{key: row[key] for key in plain},
    )
    return Clip(
        frames=frames,
        fps=row["fps"],
        caption=row["caption"],
        masks=masks,
        valid=torch.tensor(row["valid"]),
        truth=truth,
    )
