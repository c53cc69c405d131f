"""Weights on disk: safetensors whose bytes depend on nothing but their content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from newtonrewards.core.video import sha256

LENGTH = 8  # bytes of the little-endian header length, by the safetensors format


def save_weights(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file; the same content gives the same bytes, so that hashes of files can be compared.

    The library keeps metadata in a hash map, whose order differs from write to write; here it is sorted.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
    size = int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH : LENGTH + size])
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)  # the data begins at a multiple of 8
    path.write_bytes(len(text).to_bytes(LENGTH, "little") + text + content[LENGTH + size :])


def fingerprint(*folders: Path) -> str:
    """Hash of all weights in the folders (or files): clips of one name made by others are not the same clips."""
    total = hashlib.sha256()
    for folder in folders:
        files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]
        for file in files:
            total.update(f"{file.relative_to(folder)} {sha256(file)}\n".encode())
    return total.hexdigest()[:16]
