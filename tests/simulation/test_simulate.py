"""The command: parts of the work, and what is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from newtonrewards.core.errors import InputError
from newtonrewards.core.shard import Shard
from newtonrewards.simulation import simulate as command
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder

RECIPE = SimulateRecipe(num_clips=7, seed=3, arrays=("masks",))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_make_the_same_files_and_the_last_one_writes_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(RECIPE, tmp_path / "whole", workers=1)
    parts = tmp_path / "parts"
    assert simulate(RECIPE, parts, 1, Shard(2, 3))["made"] == 2
    assert simulate(RECIPE, parts, 1, Shard(0, 3))["elsewhere"] == 2
    with pytest.raises(InputError, match=r"no index\.jsonl"):
        ClipFolder(parts)
    options = ["--num-clips", "7", "--seed", "3", "--arrays", "masks", "--workers", "1"]
    assert command.main(["--out", str(parts), *options, "--shard", "1/3"]) == 0
    assert "still to come" not in capsys.readouterr().out
    assert contents(parts) == contents(tmp_path / "whole")


def test_all_of_it_fills_in_what_a_lost_shard_left_out(tmp_path: Path) -> None:
    simulate(RECIPE, tmp_path, 1, Shard(0, 2))
    counts = simulate(RECIPE, tmp_path, workers=1)
    assert (counts["found"], counts["made"], counts["elsewhere"]) == (4, 3, 0)
    assert len(ClipFolder(tmp_path)) == 7
