"""Weights of RAFT's authors load into torchvision's network: every name finds its place, and by shape the right one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models.optical_flow import RAFT, raft_large, raft_small

from newtonrewards.core.errors import CheckpointError
from newtonrewards.rewards.flow import load_weights
from newtonrewards.rewards.raft_names import to_torchvision

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def encoder(net: str, small: bool, norm: bool) -> Iterator[str]:
    """Names of an encoder in the authors' order: `extractor.py`."""
    yield from _layer(f"{net}.norm1", norm) if norm else ()
    yield from _conv(f"{net}.conv1")
    for layer in (1, 2, 3):
        for block in (0, 1):
            place, convs = f"{net}.layer{layer}.{block}", (1, 2, 3) if small else (1, 2)
            shortcut = layer > 1 and block == 0
            for n in convs:
                yield from _conv(f"{place}.conv{n}")
            if norm:
                for n in (*convs, *((convs[-1] + 1,) if shortcut else ())):
                    yield from _layer(f"{place}.norm{n}", norm)
            if shortcut:
                yield from _conv(f"{place}.downsample.0")
                yield from _layer(f"{place}.downsample.1", norm) if norm else ()
    yield from _conv(f"{net}.conv2")


def _conv(name: str) -> Iterator[str]:
    yield from (f"{name}.weight", f"{name}.bias")


def _layer(name: str, norm: bool) -> Iterator[str]:
    yield from (f"{name}.{part}" for part in ("weight", "bias", *BUFFERS))


def original_names(small: bool) -> list[str]:
    """All names of the authors' checkpoint; the large one has batch norm in its context encoder."""
    names = [*encoder("fnet", small, False), *encoder("cnet", small, not small)]
    gates = ["z", "r", "q"] if small else ["z1", "r1", "q1", "z2", "r2", "q2"]
    motion = ["convc1", "convf1", "convf2", "conv"] if small else ["convc1", "convc2", "convf1", "convf2", "conv"]
    parts = [f"encoder.{name}" for name in motion] + [f"gru.conv{gate}" for gate in gates]
    parts += ["flow_head.conv1", "flow_head.conv2"] + ([] if small else ["mask.0", "mask.2"])
    return names + [name for part in parts for name in _conv(f"update_block.{part}")]


@pytest.fixture(params=[True, False], ids=["small", "large"])
def case(request: pytest.FixtureRequest) -> tuple[bool, RAFT]:
    return request.param, (raft_small if request.param else raft_large)(weights=None)


def test_every_name_has_its_place(case: tuple[bool, RAFT]) -> None:
    small, network = case
    state = network.state_dict()
    names = original_names(small)
    renamed = to_torchvision({f"module.{name}": torch.zeros(()) for name in names})
    assert set(renamed) == set(state)
    doubles = [name for name in names if ".norm3" in name or ".norm4" in name]
    assert len(renamed) == len(names) - (0 if small else len([name for name in doubles if ".norm3" in name]))


def test_a_file_of_the_authors_gives_the_same_flow(case: tuple[bool, RAFT], tmp_path: Path) -> None:
    """A checkpoint under their names, made by renaming backwards, fills a fresh network with the same numbers."""
    small, network = case
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    back = {new: old for old in original_names(small) for new in to_torchvision({old: torch.zeros(())})}
    torch.save({f"module.{back[name]}": value for name, value in network.state_dict().items()}, tmp_path / "raft.pth")
    other = (raft_small if small else raft_large)(weights=None)
    load_weights(other, tmp_path / "raft.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_names_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"fnet.attention.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: weights of another network"):
        load_weights(raft_small(weights=None), tmp_path / "other.pth")
