"""Files of weights: any safetensors reader opens them, and equal content is equal to the byte."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from newtonrewards.models.files import save_weights


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1.5], dtype=torch.float16)}
    metadata = {f"key {n}": f'{{"é": {n}}}' for n in range(8)}
    paths = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for number, path in enumerate(paths):
        order = dict(sorted(metadata.items(), reverse=bool(number % 2)))
        save_weights(tensors, path, order)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], "pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())


def test_without_metadata(tmp_path: Path) -> None:
    save_weights({"a": torch.ones(3)}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("a"), torch.ones(3))
