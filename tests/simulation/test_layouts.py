"""Clips as other people lay them out become the same `Clip`, with masks that lie where the object is."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from newtonrewards.core.clip import Clip, ClipBatch
from newtonrewards.core.errors import InputError, MissingExtra
from newtonrewards.core.video import to_8bit, write_video
from newtonrewards.simulation.layouts import LayoutConfig, open_clips
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene
from newtonrewards.training.batches import Batches
from newtonrewards.training.recipe import DataConfig

FPS = 20.0


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [render(sample_scene(6, index)) for index in range(3)]


def masks_of(clip: Clip) -> np.ndarray:
    assert clip.masks is not None
    return (clip.masks * 255).round().to(torch.uint8).numpy()


def test_a_plain_folder_of_videos_with_masks_and_captions(clips: list[Clip], tmp_path: Path) -> None:
    for index, clip in enumerate(clips):
        write_video(tmp_path / f"{index}.mp4", clip.frames, FPS)
        np.savez(tmp_path / f"{index}.npz", masks=masks_of(clip))
        (tmp_path / f"{index}.txt").write_text(f"clip {index}\n")
    read = open_clips(tmp_path, LayoutConfig(name="videos", masks=tmp_path), cache=True)
    assert len(read) == 3
    for _ in range(2):  # from the files and from memory
        for index, clip in enumerate(clips):
            got = read[index]
            assert torch.equal(got.frames, clip.frames) and got.fps == FPS and got.caption == f"clip {index}"
            assert got.masks is not None and clip.masks is not None
            assert torch.allclose(got.masks, clip.masks, atol=0.6 / 255)
            assert got.source.path.endswith(f"{index}.mp4") and got.source.sha256


def test_masks_go_through_the_same_resampling_scaling_and_cutting(clips: list[Clip], tmp_path: Path) -> None:
    wide = torch.nn.functional.pad(clips[1].frames, (40, 24))  # 64 x 128, the middle moved by 8 px
    write_video(tmp_path / "a.mp4", wide, FPS)
    assert clips[1].masks is not None
    np.savez(tmp_path / "a.npz", masks=torch.nn.functional.pad(clips[1].masks, (40, 24)).numpy())
    config = LayoutConfig(name="videos", masks=tmp_path, fps=10, num_frames=5, size=(32, 60))
    got = open_clips(tmp_path, config)[0]
    assert got.frames.shape == (5, 3, 32, 60) and got.masks is not None and got.masks.shape == (5, 32, 60)
    assert any("resampled" in line for line in got.source.preprocessing)
    assert any("cut to the middle 32x60" in line for line in got.source.preprocessing)
    middle = clips[1].masks[::2][:5]
    wanted = (middle.sum(1) @ (torch.arange(64) + 0.5) / middle.sum((1, 2)) + 40) / 2 - 2
    seen = got.masks.sum(1) @ (torch.arange(60) + 0.5) / got.masks.sum((1, 2))
    assert torch.allclose(seen, wanted, atol=0.3)


def test_tracks_in_a_csv_file_become_masks(clips: list[Clip], tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clips[0].frames, FPS)
    truth = clips[0].truth
    assert truth is not None
    lines = [f"a.mp4,{t},{x * 64:.3f},{y * 64:.3f},80" for t, (x, y) in enumerate(truth.position.tolist())]
    (tmp_path / "tracks.csv").write_text("\n".join(["file,frame,x_px,y_px,area_px", *lines]))
    got = open_clips(tmp_path, LayoutConfig(name="videos", tracks=tmp_path / "tracks.csv", num_frames=9))[0]
    assert got.masks is not None and got.masks.shape == (9, 64, 64)
    grid = (torch.arange(64) + 0.5) / 64
    rows = got.masks.sum(2) @ grid / got.masks.sum((1, 2))
    assert torch.allclose(rows, truth.position[:9, 1], atol=0.5 / 64)


def test_folders_of_frames_as_pisa_has_them(clips: list[Clip], tmp_path: Path) -> None:
    for index, clip in enumerate(clips[:2]):
        folder = tmp_path / f"{index:05d}"
        folder.mkdir()
        for t, frame in enumerate(to_8bit(clip.frames)):
            cv2.imwrite(str(folder / f"rgba_{t:05d}.jpg"), frame[..., ::-1])
        both = np.stack([np.zeros_like(masks_of(clip)), masks_of(clip) // 255], axis=1)
        np.savez(folder / "mask.npz", mask=both)
    filmed = tmp_path / "real" / "0001"
    filmed.mkdir(parents=True)
    for t, frame in enumerate(to_8bit(clips[2].frames)):
        cv2.imwrite(str(filmed / f"{t:05d}.jpg"), frame[..., ::-1])
    np.savez(filmed / "mask.npz", mask=np.stack([masks_of(clips[2]) // 255, np.zeros((17, 64, 64), np.uint8)], 1))
    points = [{"positive": [[30, 5]], "negative": []}, {"positive": [[30, 50]], "negative": []}]
    (filmed / "clip_info.json").write_text(json.dumps({"points": points}))
    read = open_clips(tmp_path, LayoutConfig(name="pisa"))
    assert read.names == ["00000", "00001", "real/0001"]
    for index, clip in enumerate(clips):
        got = read[index]
        assert (got.frames - clip.frames).abs().mean() < 0.02, "JPEG"
        assert got.fps == (16 if index < 2 else 120) and got.caption == "a video of an object dropping"
        assert got.masks is not None and clip.masks is not None
        assert ((got.masks > 0.5) & (clip.masks > 0.5)).sum() > 0.7 * (clip.masks > 0.5).sum()


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "metadata.json"])
def test_a_table_of_videos_whatever_its_columns_are_called(table: str, clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    rows = []
    for index, clip in enumerate(clips):
        write_video(tmp_path / "videos" / f"{index}.mp4", clip.frames, 10.0)
        rows.append({"clip_file": f"videos/{index}.mp4", "prompt": clip.caption, "split": "test" if index else "train"})
    match table.partition(".")[2]:
        case "csv":
            lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
            text = "\n".join(lines)
        case "jsonl":
            text = "\n".join(json.dumps(row) for row in rows)
        case _:
            text = json.dumps(rows)
    (tmp_path / table).write_text(text)
    config = LayoutConfig(
        name="newtonbench", columns={"video": "clip_file"}, select={"split": "test"}, capture_fps=20, num_frames=9
    )
    read = open_clips(tmp_path, config)
    assert [clip.caption for clip in (read[0], read[1])] == [clip.caption for clip in clips[1:]]
    assert read[0].fps == 20 and torch.equal(read[0].frames, clips[1].frames[:9])
    with pytest.raises(InputError, match="no column 'film' for video; there are clip_file, prompt, split"):
        open_clips(tmp_path, LayoutConfig(name="newtonbench", columns={"video": "film"}))


def test_videos_with_metadata_beside_them_and_none_at_all(clips: list[Clip], tmp_path: Path) -> None:
    write_video(tmp_path / "fall_0001.mp4", clips[0].frames, FPS)
    (tmp_path / "fall_0001.json").write_text(json.dumps({"description": "it falls", "fps": 40}))
    got = open_clips(tmp_path, LayoutConfig(name="newtonbench"))[0]
    assert got.caption == "it falls" and got.fps == 40
    with pytest.raises(InputError, match=r"layout 'pisa'; found .*1 \.mp4.*fall_0001"):
        open_clips(tmp_path, LayoutConfig(name="pisa"))
    with pytest.raises(InputError, match="no such folder"):
        open_clips(tmp_path / "nowhere", LayoutConfig(name="newtonbench"))


def test_videos_inside_parquet(clips: list[Clip], tmp_path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        (tmp_path / "train-00000.parquet").write_bytes(b"PAR1")
        with pytest.raises(MissingExtra, match="pyarrow"):
            open_clips(tmp_path, LayoutConfig(name="newtonbench"))
        pytest.skip("pyarrow isn't installed")
    videos = []
    for clip in clips:
        write_video(tmp_path / "a.mp4", clip.frames, FPS)
        videos.append({"bytes": (tmp_path / "a.mp4").read_bytes(), "path": "a.mp4"})
    (tmp_path / "a.mp4").unlink()
    table = pa.table({"video": videos, "caption": [clip.caption for clip in clips]})
    pq.write_table(table, tmp_path / "train-00000.parquet", row_group_size=2)
    read = open_clips(tmp_path, LayoutConfig(name="newtonbench"))
    for index, clip in enumerate(clips):
        assert torch.equal(read[index].frames, clip.frames) and read[index].caption == clip.caption
        assert read[index].source.path.endswith(".parquet")


def test_a_broken_video_is_named_and_the_rest_is_read(clips: list[Clip], tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", clips[0].frames, FPS)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    read = open_clips(tmp_path, LayoutConfig(name="videos"))
    with pytest.raises(InputError, match=r"bad\.mp4"):
        read[0]
    assert read[1].num_frames == 17


def test_they_can_be_trained_on(clips: list[Clip], tmp_path: Path) -> None:
    for index, clip in enumerate(clips):
        write_video(tmp_path / f"{index}.mp4", clip.frames[: 17 - index], FPS)
    layout = {"name": "videos", "num_frames": 13, "size": (32, 32), "caption": "something moves"}
    data = DataConfig.model_validate({"clips": tmp_path, "layout": layout})
    batch = Batches(open_clips(data.clips, data.layout, cache=data.cache), seed=0).at(0, 2)
    assert isinstance(batch, ClipBatch) and batch.frames.shape == (2, 13, 3, 32, 32)
    assert batch.captions == ("something moves",) * 2
