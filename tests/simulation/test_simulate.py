"""The command: parts of the work, and what is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from newtonrewards.core.errors import InputError, NewtonError
from newtonrewards.core.recipe import validate
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


def test_options_of_world_and_camera_reach_the_clips(tmp_path: Path) -> None:
    changes = (
        "world.size_px=48",
        "world.num_frames=9",
        "world.camera_yaw_deg=[10, 20]",
        "world.restitution=[0.5, 0.6]",
    )
    sets = [word for change in (*changes, "film.shake=0.02", "film.shutter=0.5") for word in ("--set", change)]
    assert command.main(["--out", str(tmp_path / "a"), "--num-clips", "5", "--workers", "1", *sets]) == 0
    for clip in (ClipFolder(tmp_path / "a", with_flow=True)[index] for index in range(5)):
        assert clip.frames.shape == (9, 3, 48, 48) and clip.truth is not None and clip.masks is not None
        assert clip.truth.shake is not None and clip.truth.shake.shape == (9, 2, 3)
        assert clip.truth.flow is not None and clip.truth.flow.shape == (8, 2, 48, 48)
        assert 10 <= clip.truth.parameters["camera_yaw_deg"] <= 20
        assert (clip.truth.acceleration_spread > 0) == (clip.truth.primitive != "free_fall")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "num_clips: 2\nprimitives: [roll_down]\nworld: {size_px: 32}\nfilm: {noise: 0.1}\nformat: webdataset"
    )
    assert command.main(["--out", str(tmp_path / "b"), "--recipe", str(recipe), "--workers", "1"]) == 0
    assert ClipFolder(tmp_path / "b")[1].frames.shape == (17, 3, 32, 32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"world": {"size": 48}}, "size_px"),
        ({"world": {"camera_yaw_deg": "wide"}}, "camera_yaw_deg"),
        ({"film": {"shaking": 0.1}}, "shake"),
        ({"world": {"materials": ["velvet"]}}, "glossy"),
        ({"world": {"after_contact": "bounce"}}, "tumble"),
        ({"world": {"targets": 1, "after_contact": "tumble"}}, "ramp_down, ramp_up"),
        ({"primitives": ["fall"]}, "roll_down"),
        ({"photo": {"samples": 4}}, "tier: photo"),
        ({"tier": "photographic"}, "fast"),
        ({"ranges": "/nowhere/ranges.yaml"}, "ranges.yaml"),
    ],
)
def test_an_option_that_does_not_exist_is_named(content: dict[str, object], words: str) -> None:
    with pytest.raises(NewtonError, match=words):
        validate(SimulateRecipe, content, where="recipe")
