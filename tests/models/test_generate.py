"""The command: files, pairing by noise, resumption, and inputs that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip, write_video
from newtonrewards.models import generate, lora
from newtonrewards.models.embedded import EmbeddedModel


@pytest.fixture
def folder(clips: Tensor, tmp_path: Path) -> Path:
    """A folder as `simulate` writes it, as far as generation reads it."""
    (tmp_path / "truth" / "clips").mkdir(parents=True)
    rows = [{"name": f"{i:06d}", "caption": f"an object falls, {i}"} for i in range(5)]
    for i, row in enumerate(rows):
        write_video(tmp_path / "truth" / "clips" / f"{row['name']}.mp4", clips[i], 10.0)
    (tmp_path / "truth" / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "truth"


@pytest.fixture
def model_folder(embedded: EmbeddedModel, tmp_path: Path) -> Path:
    embedded.save(tmp_path / "model")
    return tmp_path / "model"


def run(model: Path, source: Path, out: Path, *more: str) -> int:
    arguments = ["--model", str(model), "--clips", str(source), "--out", str(out), "--num-inference-steps", "2"]
    return run_command(generate.main, [*arguments, "--batch-size", "2", *more])


def pixels(path: Path) -> Tensor:
    return read_clip(path).frames


def test_each_clip_gets_a_lossless_file_and_a_row(
    model_folder: Path, folder: Path, clips: Tensor, tmp_path: Path
) -> None:
    assert run(model_folder, folder, tmp_path / "out") == 0
    rows = read_jsonl(tmp_path / "out" / "index.jsonl")
    assert [row["name"] for row in rows] == [f"{i:06d}" for i in range(5)]
    assert rows[3]["caption"] == "an object falls, 3"
    assert rows[3]["source"] == str(folder / "clips" / "000003.mp4")
    assert (rows[3]["seed"], rows[3]["num_inference_steps"], rows[3]["fps"]) == (0, 2, 20.0)
    clip = read_clip(tmp_path / "out" / "000003.mp4")
    assert clip.frames.shape == (9, 3, 32, 32)
    assert clip.source.playback_fps == pytest.approx(10.0)
    assert torch.equal(clip.frames[0], (clips[3, 0] * 255).round() / 255)


def test_noise_belongs_to_the_clip_and_not_to_batch_or_model(
    embedded: EmbeddedModel, model_folder: Path, folder: Path, tmp_path: Path
) -> None:
    assert run(model_folder, folder, tmp_path / "a") == 0
    assert run(model_folder, folder, tmp_path / "b", "--limit", "3", "--batch-size", "3") == 0
    for name in ("000000", "000002"):
        difference = (pixels(tmp_path / "a" / f"{name}.mp4") - pixels(tmp_path / "b" / f"{name}.mp4")).abs().max()
        assert difference <= 1 / 255 + 1e-6
    lora.add(embedded, rank=2)  # changes nothing: the same clips must come out of "another" model
    lora.save(embedded, tmp_path / "adapter")
    assert run(model_folder, folder, tmp_path / "c", "--lora", str(tmp_path / "adapter")) == 0
    assert torch.equal(pixels(tmp_path / "c" / "000004.mp4"), pixels(tmp_path / "a" / "000004.mp4"))
    assert run(model_folder, folder, tmp_path / "d", "--seed", "1") == 0
    assert not torch.equal(pixels(tmp_path / "d" / "000004.mp4"), pixels(tmp_path / "a" / "000004.mp4"))


def test_a_stopped_run_goes_on_and_ends_with_the_same_clips(
    model_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(model_folder, folder, tmp_path / "whole") == 0
    written: list[str] = []

    def stop_at_the_fourth(path: Path, *arguments: object, **named: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write_video(path, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generate, "write_video", stop_at_the_fourth)
        assert run(model_folder, folder, tmp_path / "out") == 130
    first = (tmp_path / "out" / "000000.mp4").stat().st_mtime_ns
    assert run(model_folder, folder, tmp_path / "out") == 0
    assert (tmp_path / "out" / "000000.mp4").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "index.jsonl").read_text() == (tmp_path / "whole" / "index.jsonl").read_text()
    for i in range(5):
        assert torch.equal(pixels(tmp_path / "out" / f"{i:06d}.mp4"), pixels(tmp_path / "whole" / f"{i:06d}.mp4"))


def test_shards_make_the_same_clips_to_the_bit_and_the_last_one_writes_the_index(
    model_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(model_folder, folder, tmp_path / "whole") == 0
    out = tmp_path / "parts"
    assert run(model_folder, folder, out, "--shard", "2/3") == 0
    assert [path.name for path in out.glob("*.mp4")] == ["000004.mp4"] and not (out / "index.jsonl").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher says it to its two processes
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert run(model_folder, folder, out) == 0
    assert (out / "index.jsonl").read_text() == (tmp_path / "whole" / "index.jsonl").read_text()
    assert [path.name for path in out.glob("index*")] == ["index.jsonl"]
    for i in range(5):
        assert torch.equal(pixels(out / f"{i:06d}.mp4"), pixels(tmp_path / "whole" / f"{i:06d}.mp4"))
    assert run(model_folder, folder, out, "--overwrite") == 2


def test_a_finished_folder_is_left_alone(
    model_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(model_folder, folder, tmp_path / "out") == 0

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("nothing is missing, so nothing may be sampled")

    monkeypatch.setattr(generate, "sample", not_again)
    assert run(model_folder, folder, tmp_path / "out") == 0


def test_other_settings_are_an_error_until_overwritten(
    model_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model_folder, folder, tmp_path / "out") == 0
    before = pixels(tmp_path / "out" / "000001.mp4")
    assert run(model_folder, folder, tmp_path / "out", "--seed", "7") == 2
    message = capsys.readouterr().err
    assert "other settings (seed 0, not 7)" in message
    assert "--overwrite" in message
    assert run(model_folder, folder, tmp_path / "out", "--seed", "7", "--overwrite") == 0
    assert not torch.equal(pixels(tmp_path / "out" / "000001.mp4"), before)
    assert {row["seed"] for row in read_jsonl(tmp_path / "out" / "index.jsonl")} == {7}


def test_retrained_weights_at_the_same_path_are_other_settings(
    model_folder: Path, folder: Path, tmp_path: Path, codec: object, embedded: EmbeddedModel
) -> None:
    assert run(model_folder, folder, tmp_path / "out") == 0
    EmbeddedModel.create(embedded.config, embedded.codec, seed=9).save(model_folder)
    assert run(model_folder, folder, tmp_path / "out") == 2


def test_one_broken_source_and_one_long_caption_do_not_stop_the_others(
    model_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "clips" / "000001.mp4").write_text("not a video")
    (folder / "clips" / "000002.mp4").unlink()
    rows = read_jsonl(folder / "index.jsonl")
    rows[4]["caption"] = "x" * 300
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(model_folder, folder, tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["000000.mp4", "000003.mp4"]
    message = capsys.readouterr().err
    for part in ("000001.mp4", "000002.mp4", "000004: caption of 300 bytes"):
        assert part in message


def test_a_picture_and_a_caption_make_a_clip(model_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 80, 3), dtype=np.uint8)).save(tmp_path / "ball.png")
    arguments = ["--model", str(model_folder), "--image", str(tmp_path / "ball.png"), "--out", str(tmp_path / "out")]
    assert run_command(generate.main, [*arguments, "--caption", "a ball falls"]) == 0
    assert pixels(tmp_path / "out" / "ball.mp4").shape == (9, 3, 32, 32)
    assert run_command(generate.main, arguments) == 2
    (tmp_path / "bad.png").write_text("no picture")
    arguments[3] = str(tmp_path / "bad.png")
    assert run_command(generate.main, [*arguments, "--caption", "a ball falls"]) == 1


def test_missing_things_are_named_at_once(
    model_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "no_model", folder, tmp_path / "out") == 2
    assert "no_model: no such model folder" in capsys.readouterr().err
    assert run(model_folder, tmp_path / "no_clips", tmp_path / "out") == 2
    assert "no_clips: no index.jsonl here" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(model_folder, folder, tmp_path / "file") == 2
    assert "can't write to this folder" in capsys.readouterr().err
    (folder / "index.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(InputError, match="a row has no 'caption'"):
        generate.jobs_of_folder(folder)
