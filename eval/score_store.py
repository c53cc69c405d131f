"""The folder that `newtonrewards score` fills: records as they come, and at the end one file of each kind.

scores.jsonl, or scores.I-of-N.jsonl for each shard: one record a line, written when it is done
settings.json: what the records were made with; another run with the same settings goes on
scores.csv: the same as a table, once every video has its record; then scores.jsonl holds those of all shards
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import append_jsonl, output_folder, read_jsonl, write_atomic, write_json, write_jsonl
from newtonrewards.core.shard import Shard
from newtonrewards.core.video import sha256
from newtonrewards.eval.video_score import VideoFailure, VideoScore, columns, csv_row, parse_record

Record = VideoScore | VideoFailure


class ScoreStore:
    """Records of one set of videos.

    Args:
        folder: where they are kept.
        settings: everything that decides a record beside the video.
        shard: this process's part.
    Raises:
        InputError: the folder can't be written, or holds records that were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], shard: Shard) -> None:
        self.folder, self.shard = output_folder(folder), shard
        path = folder / "settings.json"
        mine = json.loads(json.dumps(settings, default=str))
        if path.is_file() and (theirs := json.loads(path.read_text())) != mine:
            keys = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
            what = f"holds scores made with other settings ({', '.join(keys)})"
            raise InputError(what, where=folder, fix="Choose another --out or delete it.")
        write_json(path, mine)

    @property
    def part(self) -> Path:
        """The file that this process appends to."""
        return self.folder / self.shard.part("scores")

    def add(self, record: Record) -> None:
        """Keep a record, at once."""
        append_jsonl(self.part, record.model_dump(mode="json"))

    def records(self) -> dict[str, Record]:
        """All records of all shards by file; of two of the same file the later one."""
        parts = sorted(self.folder.glob("scores*.jsonl"), key=lambda path: (path.name != "scores.jsonl", path.name))
        rows = [row for path in parts for row in read_jsonl(path)]
        return {record.file: record for record in map(parse_record, rows)}

    def finish(self, files: Sequence[Path]) -> list[Record] | None:
        """Write `scores.jsonl` and `scores.csv` of all videos in their order, if every one has a record.

        Returns:
            the records, or None while other shards are at work.
        """
        known = self.records()
        names = [record_name(file) for file in files]
        if any(name not in known for name in names):
            return None
        records = [known[name] for name in names]
        write_jsonl(self.folder / "scores.jsonl", (record.model_dump(mode="json") for record in records))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns())
        writer.writeheader()
        writer.writerows(csv_row(record) for record in records)
        write_atomic(self.folder / "scores.csv", table.getvalue())
        return records


def unchanged(files: Sequence[Path], records: Mapping[str, Record]) -> set[Path]:
    """Videos that have a record and haven't changed since; those that failed are tried again."""
    return {
        file
        for file in files
        if isinstance(record := records.get(record_name(file)), VideoScore) and digest(file) == record.sha256
    }


def record_name(file: Path) -> str:
    """How a file is called in its record: as given; bytes that are no text are written out, as \\xff."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def digest(file: Path) -> str | None:
    """`sha256` of a file; None if it can't be read, or is a pipe, which might never end."""
    try:
        return sha256(file) if file.is_file() else None
    except OSError:
        return None


def read_scores(folder: Path) -> list[Record]:
    """The records of a finished folder.

    Raises:
        InputError: no `scores.jsonl` there, or one of another version.
    """
    path = folder / "scores.jsonl"
    if not path.is_file():
        raise InputError("no scores here", where=path, fix="Run `newtonrewards score ... --out` first.")
    try:
        return [parse_record(row) for row in read_jsonl(path)]
    except ValueError as error:
        raise InputError(f"not scores of this version ({error})", where=path, fix="Score the videos again.") from None
