"""Clips in tar files of some hundred each, in WebDataset's naming: `NAME.mp4`, `NAME.npz` and `NAME.json` side by side.

Few large files are what a cluster's file system likes. A tar is written whole or not at all, holds the same bytes
whoever writes it, and its members can be read one by one.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from newtonrewards.core.errors import InputError
from newtonrewards.core.run import write_atomic

FOLDER = "shards"
AGAIN = "Delete it and simulate again: only what is missing is made."
NAMES = re.compile(r"\d{6}-\d{6}\.tar")


def tar_name(clips: range) -> str:
    """`FIRST-LAST.tar`: the name says which clips a tar holds, so that an incomplete last one is never taken for whole.

    Args:
        clips: numbers of consecutive clips.
    """
    return f"{clips[0]:06d}-{clips[-1]:06d}.tar"


def write_tar(path: Path, files: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a whole tar or nothing.

    Args:
        path: its folder must exist.
        files: for each clip its name and its files by suffix, `mp4`, `npz`, `json`.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, contents in files:
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")  # dated 1970 and owned by nobody: the same bytes always
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_atomic(path, buffer.getvalue())


def tar_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the clips in a tar, each with `shard`, the tar's name, and `members`: where its files lie in it.

    Raises:
        InputError: not a whole tar of clips.
    """
    rows: list[dict[str, Any]] = []
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                suffix = member.name.partition(".")[2]
                members[suffix] = (member.offset_data, member.size)
                if suffix == "json":  # the last file of a clip
                    row = json.loads(read_part(path, *members.pop("json")))
                    rows.append({**row, "shard": path.name, "members": members})
                    members = {}
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"not a whole tar of clips ({error})", where=path, fix=AGAIN) from None
    if members or not rows:
        raise InputError("the tar ends within a clip", where=path, fix=AGAIN)
    return rows


def read_part(path: Path, offset: int, size: int) -> bytes:
    """One member's bytes.

    Raises:
        InputError: the file is missing or shorter than that.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise InputError(f"can't read this shard ({error.strerror})", where=path, fix=AGAIN) from None
    if len(content) < size:
        raise InputError("the shard is cut short", where=path, fix=AGAIN)
    return content
