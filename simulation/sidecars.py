"""What lies beside videos: tables of captions and rates, arrays of masks. Read whatever they are called."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from newtonrewards.core.errors import InputError, MissingExtra

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
TABLES = (".csv", ".jsonl", ".json", ".parquet")
# Names that a column may have, tried in this order where a recipe doesn't name it.
COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video", "file_name", "video_path", "video_file", "path", "file", "mp4"),
    "caption": ("caption", "text", "prompt", "description"),
    "capture_fps": ("capture_fps", "fps", "frame_rate"),
    "masks": ("masks", "mask", "mask_path", "masks_path"),
}


def found_in(folder: Path) -> str:
    """What a folder holds, for people who wonder why it can't be used."""
    if not folder.is_dir():
        return "no such folder"
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    kinds = Counter(path.suffix.lower() or path.name for path in files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "nothing"
    names = ", ".join(str(path.relative_to(folder)) for path in sorted(files)[:4])
    return f"{listed}" + (f"; such as {names}" if names else "")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, JSON Lines, JSON (a list, or a mapping from names to rows) or Parquet file.

    Videos inside a Parquet file are left there: their value is `{"bytes": None, "path": ...}`; see `packed_video`.

    Raises:
        InputError: not such a table. MissingExtra: Parquet without pyarrow.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                with path.open(newline="", encoding="utf-8") as file:
                    return list(csv.DictReader(file))
            case ".parquet":
                return _parquet_rows(path)
            case ".jsonl":
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            case _:
                content = json.loads(path.read_text(encoding="utf-8"))
                named = isinstance(content, dict) and all(isinstance(row, dict) for row in content.values())
                rows = [{"video": key, **row} for key, row in content.items()] if named else content
    except (OSError, ValueError) as error:
        raise InputError(f"not a table that can be read ({error})", where=path) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("not a table: want one mapping for each video", where=path)
    return rows


def column(rows: Sequence[Mapping[str, Any]], wanted: str, names: Mapping[str, str], where: Path) -> str | None:
    """The name of a column: the recipe's, or the first of the usual ones that is there.

    Raises:
        InputError: the recipe names one that isn't there.
    """
    there = dict.fromkeys(key for row in rows for key in row)
    if wanted in names:
        if names[wanted] not in there:
            raise InputError(f"no column '{names[wanted]}' for {wanted}; there are {', '.join(there)}", where=where)
        return names[wanted]
    return next((name for name in COLUMNS.get(wanted, ()) if name in there), None)


def read_masks(path: Path, objects: int = -1) -> UInt8[np.ndarray, "T h w"]:
    """Masks of one object from an npz (`masks`, `mask`, or its only array) or npy file, in 8 bits.

    Args:
        path: (T, h, w), or (T, N, h, w) for N objects; 0 to 1, or 0 to 255 in 8 bits.
        objects: which object, of N.
    Raises:
        InputError: no such file or array.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            array = content
        else:
            name = next((name for name in ("masks", "mask") if name in content.files), content.files[0])
            array = np.asarray(content[name])
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"can't read the masks ({error})", where=path, fix="Give NAME.npz with `masks`.") from None
    if array.ndim == 4:
        array = array[:, objects]
    if array.ndim != 3:
        raise InputError(f"masks of shape {array.shape}, want (T, H, W) or (T, N, H, W)", where=path)
    if array.dtype == np.uint8 and array.max(initial=0) > 1:
        return array
    return np.rint(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def packed_video(path: Path, column_name: str, row: int) -> bytes:
    """The bytes of a video inside a Parquet file.

    Raises:
        InputError: that row holds none.
    """
    file = _parquet(path)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < count:
            value = file.read_row_group(group, columns=[column_name]).column(column_name)[row].as_py()
            if isinstance(value, dict):
                value = value.get("bytes")
            if isinstance(value, bytes):
                return value
            break
        row -= count
    raise InputError(f"no video bytes in column '{column_name}'", where=path)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    file = _parquet(path)
    import pyarrow as pa

    light, packed = [], []
    for field in file.schema_arrow:
        binary = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        packed += [field.name] if binary or pa.types.is_struct(field.type) else []
        light += [] if field.name in packed else [field.name]
    rows: list[dict[str, Any]] = file.read(columns=light).to_pylist()
    if not light:
        rows = [{} for _ in range(file.metadata.num_rows)]
    return [{**row, **{name: {"bytes": None, "path": str(path)} for name in packed}} for row in rows]


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        fix = "pip install 'newtonrewards[parquet]'."
        raise MissingExtra("reading Parquet needs pyarrow", where=path, fix=fix) from None
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"not a Parquet file ({error})", where=path) from None
