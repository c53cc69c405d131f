"""The run folder: atomic files, JSON Lines, provenance, and every random number of the project."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from newtonrewards.core.errors import InputError


def stream(seed: int, step: int, index: int, purpose: str) -> torch.Generator:
    """A generator that depends on nothing but its four arguments.

    So 1 or 2 processes, killed or not, draw the same numbers for the same sample.

    Args:
        seed: the run's seed.
        step: optimiser step (0 for what doesn't depend on it).
        index: global sample index.
        purpose: a word such as `noise` or `sigma`; different words give independent streams.
    """
    return torch.Generator().manual_seed(stream_seed(seed, step, index, purpose))


def stream_seed(seed: int, step: int, index: int, purpose: str) -> int:
    """The 63-bit number behind `stream`, for generators that aren't torch's."""
    digest = hashlib.sha256(f"{seed}/{step}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def output_folder(path: Path) -> Path:
    """Make a folder and prove that it can be written to, before any work is done.

    Raises:
        InputError: it can't be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"can't write to this folder ({error.strerror})",
            where=path,
            fix="Choose another one with --out or change its rights.",
        ) from None
    return path


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing: to a temporary name beside it, then renamed.

    Args:
        path: its folder must exist.
        content: text is written as UTF-8.
        durable: wait until the disk has it, so that it survives a power cut and not only a killed process.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, content: Any) -> None:
    """JSON that every parser accepts: NaN and infinity become null."""
    write_atomic(path, json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row; a line that a killed writer left half written is cut off first."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) and not _ends_a_line(file):
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(json.dumps(jsonable(row), allow_nan=False).encode() + b"\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole file of rows or nothing."""
    write_atomic(path, "".join(json.dumps(jsonable(row), allow_nan=False) + "\n" for row in rows))


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line cut short by a killed writer is dropped."""
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise InputError(f"line {number} is not JSON ({error.msg})", where=path) from None
    return rows


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, torch.Tensor):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "numpy", "newtonrewards")


def provenance(argv: list[str] | None = None) -> dict[str, Any]:
    """What a sceptic needs to run it again: commit, versions, platform, command."""
    root = Path(__file__).resolve().parent.parent
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "dirty": bool(_git(root, "status", "--porcelain")),
        "python": sys.version.split()[0],
        "versions": versions,
        "threads": torch.get_num_threads(),
        "command": " ".join(argv if argv is not None else sys.argv[1:]),
    }


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists():  # installed: a repository further up would be somebody else's
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is whole; an older one of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        replaced = None
        if path.exists():
            replaced = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".old-{path.name}."))
            os.replace(path, replaced / path.name)
        os.replace(temporary, path)
        if replaced is not None:
            _remove(replaced)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
