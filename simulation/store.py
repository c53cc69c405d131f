"""A folder of clips on disk and the data set that reads it.

Layout: `recipe.json` (what was asked for), `index.jsonl` (one row for each clip: caption, rates, track, parameters),
and
`clips/NAME.mp4` (lossless), `clips/NAME.npz` (arrays), `clips/NAME.json` (the clip's row; written last, so a clip whose
row is there is whole).
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from newtonrewards.core.clip import Clip, Truth
from newtonrewards.core.errors import InputError
from newtonrewards.core.run import jsonable, read_jsonl, write_atomic, write_json, write_jsonl
from newtonrewards.core.video import read_clip, write_video

ARRAYS = ("masks", "flow", "depth")


def write_clip(folder: Path, name: str, clip: Clip, arrays: tuple[str, ...] = ARRAYS) -> None:
    """Write one simulated clip; whole, or not visible to a reader."""
    truth = clip.truth
    assert truth is not None and clip.masks is not None and clip.valid is not None
    write_video(folder / "clips" / f"{name}.mp4", clip.frames, clip.source.playback_fps or clip.fps, lossless=True)
    content: dict[str, NDArray[Any]] = {}
    if "masks" in arrays:
        content["masks"] = (clip.masks * 255).round().to(torch.uint8).numpy()
    if "flow" in arrays and truth.flow is not None:
        content["flow"] = truth.flow.to(torch.float16).numpy()
    if "depth" in arrays and truth.depth is not None:
        content["depth"] = truth.depth.to(torch.float16).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
    write_atomic(folder / "clips" / f"{name}.npz", buffer.getvalue(), durable=False)
    write_json(folder / "clips" / f"{name}.json", clip_row(name, clip))


def clip_row(name: str, clip: Clip) -> dict[str, Any]:
    truth = clip.truth
    assert truth is not None and clip.valid is not None
    row = {field: getattr(truth, field) for field in Truth.__dataclass_fields__ if field not in ("flow", "depth")}
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


def write_index(folder: Path, names: list[str]) -> None:
    """Gather the rows of whole clips into `index.jsonl`."""
    rows = [json.loads((folder / "clips" / f"{name}.json").read_text()) for name in names]
    write_jsonl(folder / "index.jsonl", rows)


class ClipFolder:
    """Map-style data set over a folder that `newtonrewards simulate` wrote.

    Args:
        path: the folder.
        with_flow: also read exact flow and depth where they were stored.
        cache: keep decoded frames in memory as 8-bit numbers (0.2 MB for a 64 px clip of 17 frames).
    Raises:
        InputError: no index there, or a row of the index without its files.
    """

    def __init__(self, path: Path, *, with_flow: bool = False, cache: bool = False) -> None:
        if not (path / "index.jsonl").is_file():
            raise InputError(
                "not a folder of simulated clips (no index.jsonl)",
                where=path,
                fix="Make one with `newtonrewards simulate --out`.",
            )
        self.path, self.with_flow = path, with_flow
        self.rows = read_jsonl(path / "index.jsonl")
        if not self.rows:
            raise InputError(
                "the index holds no clip", where=path / "index.jsonl", fix="Simulate again with --num-clips above 0."
            )
        self.names = [str(row["name"]) for row in self.rows]
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor | None]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def video_path(self, index: int) -> Path:
        return self.path / "clips" / f"{self.names[index]}.mp4"

    def __getitem__(self, index: int) -> Clip:
        row = self.rows[index]
        if self._cache is not None and index in self._cache:
            frames, masks = self._cache[index]
            return _clip(row, frames.float() / 255, None if masks is None else masks.float() / 255)
        clip = read_clip(self.video_path(index))
        arrays = self._arrays(index)
        masks = torch.from_numpy(arrays["masks"]) if "masks" in arrays else None
        if self._cache is not None:
            self._cache[index] = ((clip.frames * 255).round().to(torch.uint8), masks)
        made = _clip(row, clip.frames, None if masks is None else masks.float() / 255)
        truth = made.truth
        assert truth is not None
        if self.with_flow:
            flow, depth = (torch.from_numpy(arrays[k]).float() if k in arrays else None for k in ("flow", "depth"))
            truth = replace(truth, flow=flow, depth=depth)
        return replace(made, truth=truth, source=clip.source)

    def _arrays(self, index: int) -> dict[str, NDArray[Any]]:
        path = self.path / "clips" / f"{self.names[index]}.npz"
        wanted = ARRAYS if self.with_flow else ("masks",)
        try:
            with np.load(path, allow_pickle=False) as content:
                return {key: content[key] for key in wanted if key in content.files}
        except (OSError, ValueError) as error:
            raise InputError(
                f"can't read the arrays of this clip ({error})", where=path, fix="Run the same `simulate` again."
            ) from None


def _clip(row: dict[str, Any], frames: torch.Tensor, masks: torch.Tensor | None) -> Clip:
    def track(key: str) -> torch.Tensor:
        return torch.tensor(row[key], dtype=torch.float32)

    plain = ("metres_per_height", "primitive", "split", "shift", "events", "parameters", "seed")
    truth = Truth(
        position=track("position"),
        velocity=track("velocity"),
        acceleration=track("acceleration"),
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
