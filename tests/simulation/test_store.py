"""Folders and tars of clips: whole or not there, the same however they were made, and readable one by one."""

from __future__ import annotations

import json
import shutil
import signal
import tarfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from newtonrewards.core.errors import InputError
from newtonrewards.core.shard import Shard
from newtonrewards.simulation import simulate as command
from newtonrewards.simulation.inspection import _opened, inspect
from newtonrewards.simulation.render import truth_of
from newtonrewards.simulation.simulate import SimulateRecipe, draw, simulate
from newtonrewards.simulation.store import ClipFolder, write_index

RECIPE = SimulateRecipe(num_clips=7, seed=3)
TARS = RECIPE.model_copy(update={"format": "webdataset", "clips_per_tar": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "folder"
    simulate(RECIPE, path, workers=1)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    simulate(TARS, tmp_path / "packed", workers=1)
    return tmp_path / "packed"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tars_hold_the_same_files_as_a_folder_and_unpack_to_it(folder: Path, packed: Path, tmp_path: Path) -> None:
    for path in sorted((packed / "shards").iterdir()):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "clips", filter="data")
    assert contents(tmp_path / "clips") == contents(folder / "clips")


def test_a_clip_is_the_same_whichever_way_it_is_read(folder: Path, packed: Path) -> None:
    one, other = ClipFolder(folder, with_flow=True), ClipFolder(packed, with_flow=True)
    assert one.names == other.names
    for index in (6, 0, 3):
        a, b = one[index], other[index]
        assert torch.equal(a.frames, b.frames) and a.caption == b.caption and a.source.sha256 == b.source.sha256
        assert a.masks is not None and b.masks is not None and torch.equal(a.masks, b.masks)
        assert a.truth is not None and b.truth is not None and a.truth.flow is not None and b.truth.flow is not None
        assert torch.equal(a.truth.flow, b.truth.flow) and torch.equal(a.truth.position, b.truth.position)


def test_what_a_row_holds_is_what_was_drawn(folder: Path) -> None:
    stored = ClipFolder(folder)
    for index in (1, 3):
        truth, drawn = stored[index].truth, truth_of(draw(RECIPE, index))
        assert truth is not None and (truth.captions, truth.assets) == (drawn.captions, drawn.assets)
        for name in ("world_position", "world_velocity", "world_acceleration", "intrinsics", "extrinsics"):
            assert torch.allclose(getattr(truth, name), getattr(drawn, name), atol=1e-6), name
        seen = truth.seen()
        assert seen is not None and torch.allclose(seen[:, :2], truth.position, atol=1e-5)
        assert len(stored.rows[index]["intrinsics"]) == 1, "a camera that rests is written once"


def test_rows_of_older_versions_are_read(folder: Path, tmp_path: Path) -> None:
    added = ("world_position", "world_velocity", "world_acceleration", "intrinsics", "extrinsics", "captions", "assets")
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    for path in (old / "clips").glob("*.json"):
        row = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in row.items() if key not in added}))
    write_index(old)
    _opened.cache_clear()
    assert not inspect(old).problems and inspect(old).digest == inspect(folder).digest
    a, b = ClipFolder(old)[2], ClipFolder(folder)[2]
    assert a.truth is not None and b.truth is not None and torch.equal(a.truth.position, b.truth.position)
    assert a.truth.seen() is None and a.truth.metres_per_px(64) is None and a.truth.captions == {}


def test_inspecting_finds_a_track_that_the_cameras_do_not_see(folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    path = wrong / "clips" / "000001.json"
    row = json.loads(path.read_text())
    row["world_position"][3][0] += 0.01
    path.write_text(json.dumps(row))
    _opened.cache_clear()
    (problem,) = inspect(wrong).problems
    assert "000001" in problem and "cameras" in problem


def test_the_caption_can_be_any_phrasing(tmp_path: Path) -> None:
    simulate(RECIPE.model_copy(update={"num_clips": 2, "caption": "plain"}), tmp_path, workers=1)
    clip = ClipFolder(tmp_path)[0]
    assert clip.truth is not None and clip.caption == "an object falls" == clip.truth.captions["plain"]


def test_tars_are_the_same_bytes_in_any_shards_and_grow(packed: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    few = TARS.model_copy(update={"num_clips": 5})
    simulate(few, parts, workers=1)
    assert sorted(path.name for path in (parts / "shards").iterdir()) == ["000000-000002.tar", "000003-000004.tar"]
    for index in (2, 0, 1):
        simulate(TARS, parts, 1, Shard(index, 3))
    assert contents(parts) == contents(packed)


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_killed_writer_leaves_no_half_clip_and_a_second_run_fills_the_rest(form: str, tmp_path: Path) -> None:
    recipe = SimulateRecipe.model_validate({"num_clips": 400, "seed": 3, "format": form, "clips_per_tar": 8})
    out = tmp_path / "clips"
    writer = get_context("fork").Process(target=simulate, args=(recipe, out, 1))
    writer.start()
    while writer.is_alive() and sum(1 for path in out.glob("*/[!.]*") if path.suffix in (".json", ".tar")) < 3:
        time.sleep(0.01)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    _opened.cache_clear()
    left = inspect(out)
    assert left.rows and not left.problems, "what a reader accepts is whole"
    with pytest.raises(InputError, match=r"no index\.jsonl"):
        ClipFolder(out)
    count = len(left.rows) + 5
    (out / "recipe.json").unlink()  # the clips depend on their numbers alone: a shorter list does for the test
    assert simulate(recipe.model_copy(update={"num_clips": count}), out, workers=1)["made"] >= 5
    assert len(ClipFolder(out)) == count


def test_inspecting_names_what_is_broken_and_reads_the_rest(
    folder: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["inspect", str(folder), "--sheet", str(tmp_path / "sheet.png"), "--workers", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "7 whole clips" in said and "free_fall" in said and "height_m" in said
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    _opened.cache_clear()
    first = inspect(folder)
    _opened.cache_clear()
    assert first.digest == inspect(packed).digest, "the same clips, otherwise packed"

    broken = tmp_path / "broken"
    simulate(RECIPE, broken, workers=1)
    clips = broken / "clips"
    (clips / "000001.mp4").write_bytes((clips / "000001.mp4").read_bytes()[:900])
    np.savez(clips / "000002.npz", masks=np.zeros((3, 64, 64), np.uint8))
    (clips / "000003.npz").unlink()
    (clips / "000004.json").write_text("{")
    assert command.main(["inspect", str(broken), "--workers", "1"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "3 whole clips" in said
    for words in ("000001", "masks of shape (3, 64, 64)", "000003.npz", "000004: its row can't be read"):
        assert words in said

    tar = packed / "shards" / "000003-000005.tar"
    tar.write_bytes(tar.read_bytes()[:-40_000])
    assert command.main(["inspect", str(packed), "--workers", "1"]) == 1
    assert "000003-000005.tar" in capsys.readouterr().out
    dataset = ClipFolder(packed)
    assert dataset[0].num_frames == 17
    with pytest.raises(InputError, match="cut short"):
        [dataset[index] for index in range(3, 6)]


def test_a_folder_belongs_to_one_recipe(folder: Path) -> None:
    with pytest.raises(InputError, match="seed"):
        simulate(RECIPE.model_copy(update={"seed": 4}), folder, workers=1)
    with pytest.raises(InputError, match="format"):
        simulate(TARS, folder, workers=1)
    # a folder that an older version wrote knows fewer options
    known = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({key: known[key] for key in ("num_clips", "seed", "split")}))
    assert simulate(RECIPE, folder, workers=1)["made"] == 0


def test_a_scene_depends_on_its_number_and_the_recipe_alone() -> None:
    many = RECIPE.model_copy(update={"num_clips": 1000})
    assert draw(many, 5) == draw(RECIPE, 5)


def test_the_table_holds_a_row_for_each_clip(packed: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow isn't installed")
    table = parquet.read_table(packed / "index.parquet").to_pylist()
    rows = ClipFolder(packed).rows
    assert [row["name"] for row in table] == [row["name"] for row in rows]
    assert [row["parameters.view_m"] for row in table] == [row["parameters"]["view_m"] for row in rows]
    assert table[0]["num_frames"] == 17 and table[0]["shard"] == "000000-000002.tar"
