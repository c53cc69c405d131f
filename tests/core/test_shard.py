from __future__ import annotations

import argparse

import pytest

from newtonrewards.core.errors import InputError
from newtonrewards.core.shard import Shard, add_shard_option, of_this_process


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_every_item_is_in_exactly_one_part(count: int) -> None:
    parts = [Shard(index, count).of(range(13)) for index in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(13))


def test_the_processes_of_a_part_share_just_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    mine = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        mine += of_this_process(Shard(1, 2)).of(range(20))
    assert sorted(mine) == Shard(1, 2).of(range(20))


def test_parts_have_files_of_their_own() -> None:
    assert Shard().part("index") == "index.jsonl"
    assert len({Shard(index, 3).part("index") for index in range(3)}) == 3


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "0/0"])
def test_a_part_that_does_not_exist_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_shard_option(parser, "clip")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--shard={text}"])
    assert "shard" in capsys.readouterr().err
    with pytest.raises(InputError, match="0/N"):
        Shard(4, 4)
