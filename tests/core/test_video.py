from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from newtonrewards.core import video
from newtonrewards.core.decoders import CHUNK
from newtonrewards.core.errors import InputError, ShapeError
from newtonrewards.core.frame_plan import plan_frames
from newtonrewards.core.video import read_clip, read_stretches, write_video


@pytest.fixture
def only_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a platform without decord."""
    monkeypatch.setitem(sys.modules, "decord", None)


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).float() / 255


def encode(path: Path, frames: Tensor, times: list[int] | None = None, **options: Any) -> Path:
    """A file with chosen time stamps (in units of 1/30 s), through another route than `write_video`."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "yuv420p"
        for k, picture in enumerate(video.to_8bit(frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = k if times is None else times[k]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("shape", [(17, 3, 64, 64), (2, 3, 33, 47), (40, 3, 16, 24), (3, 3, 20, 100)])
def test_lossless_gives_every_8_bit_value_back(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    frames = noise(*shape)
    write_video(tmp_path / f"a{suffix}", frames, 10.0)
    clip = read_clip(tmp_path / f"a{suffix}")
    assert torch.equal(clip.frames, frames)
    assert clip.fps == 10
    assert clip.source.playback_fps == 10


def test_decord_and_pyav_read_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    frames = noise(40, 3, 36, 64)
    write_video(tmp_path / "a.mp4", frames, 12.5)
    encode(tmp_path / "lossy.mp4", frames)
    first = [read_clip(tmp_path / name) for name in ("a.mp4", "lossy.mp4")]
    assert all(clip.source.preprocessing == ("decoded with decord",) for clip in first)
    request.getfixturevalue("only_pyav")
    for name, clip in zip(("a.mp4", "lossy.mp4"), first, strict=True):
        again = read_clip(tmp_path / name)
        assert again.source.preprocessing == ("decoded with PyAV",)
        assert torch.equal(clip.frames, again.frames)
        assert clip.fps == again.fps


def test_the_source_records_file_hash_and_every_step(tmp_path: Path, square_frames: Tensor) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, square_frames, 10.0)
    clip = read_clip(path, capture_fps=20.0, fps=10.0, num_frames=4, size=(16, 16), caption="a throw")
    assert clip.caption == "a throw"
    assert clip.fps == 10
    assert clip.frames.shape == (4, 3, 16, 16)
    assert clip.source.path == str(path)
    assert clip.source.sha256 == subprocess.check_output(["sha256sum", path], text=True).split()[0]
    assert clip.source.preprocessing[1:] == (
        "played at 10 fps, taken at 20 fps of physical time",
        "resampled from 20 to 10 fps, nearest frame",
        "kept the first 4 of 5 frames",
        "scaled from 32x48 to 16x24 px, bilinear with antialiasing",
        "cut to the middle 16x16 px",
    )


def test_resampling_takes_whole_frames_and_does_not_blend(tmp_path: Path) -> None:
    frames = noise(12, 3, 16, 16)
    write_video(tmp_path / "a.mp4", frames, 30.0)
    assert torch.equal(read_clip(tmp_path / "a.mp4", fps=10.0).frames, frames[::3])
    assert torch.equal(read_clip(tmp_path / "a.mp4", fps=20.0).frames, frames[[0, 1, 3, 4, 6, 7, 9, 10]])


def test_scaling_keeps_lengths_along_x_and_y_comparable(tmp_path: Path) -> None:
    """A square stays a square, whatever frame it is fitted into."""
    frames = torch.zeros(2, 3, 64, 128)
    frames[..., 16:48, 48:80] = 1
    write_video(tmp_path / "a.mp4", frames, 10.0)
    for size in [(32, 32), (64, 32), (32, 64), 32, (16, 32)]:
        seen = read_clip(tmp_path / "a.mp4", size=size).frames[0, 0] > 0.5
        rows, columns = seen.any(1).sum().item(), seen.any(0).sum().item()
        assert rows == columns, size


def test_large_frames_are_left_to_the_reader_that_holds_few(tmp_path: Path) -> None:
    frames = noise(3, 3, 1080, 1920)
    write_video(tmp_path / "a.mp4", frames, 30.0)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.source.preprocessing == ("decoded with PyAV",)
    assert torch.equal(clip.frames, frames)


@pytest.mark.parametrize("reader", ["decord", "PyAV"])
def test_broken_files_are_named_in_one_line_and_nothing_else_is_printed(
    tmp_path: Path, reader: str, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if reader == "PyAV":
        request.getfixturevalue("only_pyav")
    whole = encode(tmp_path / "whole.mp4", noise(60, 3, 64, 64), options={"movflags": "faststart"}).read_bytes()
    write_video(tmp_path / "one.mp4", noise(2, 3, 16, 16)[:1], 10.0)
    one = (tmp_path / "one.mp4").read_bytes()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])  # type: ignore[union-attr, arg-type]
    contents = {
        "zero.mp4": (b"", "empty"),
        "text.mp4": (b"not a video\n" * 99, "not a video"),
        "headless.mp4": (whole[len(whole) // 2 :], "not a video"),
        "short.mp4": (whole[: len(whole) // 2], "damaged at frame"),
        "single.mp4": (one, "only one frame"),
        "loud.mp4": (sound.read_bytes(), "no video stream"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            read_clip(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"none\.mp4: can't open this file \(No such file"):
        read_clip(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="directory"):
        read_clip(tmp_path)
    assert capfd.readouterr().err == ""


def test_damage_inside_the_pictures_is_found(tmp_path: Path, only_pyav: None) -> None:
    """The index is whole, so only decoding can tell."""
    path = encode(tmp_path / "a.mkv", noise(60, 3, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_clip(path)  # a Matroska file cut short is a shorter film
    assert 2 <= clip.num_frames < 60


def test_impossible_wishes_are_errors_that_say_what_is_possible(tmp_path: Path, square_frames: Tensor) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, square_frames, 10.0)
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"fps": 20.0}, "would repeat frames.*at most 10 fps"),
        ({"fps": 0.2}, "only 1 frames at 0.2 fps"),
        ({"num_frames": 10}, "only 9 frames at 10 fps, 10 are needed"),
        ({"fps": -1.0}, "fps is -1"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"size": 0}, "size is 0"),
        ({"size": (16, 0)}, "size is"),
        ({"max_bytes": 9 * 3 * 32 * 48 * 4 - 1}, "9 frames of 32x48 px take"),
    ]
    for wish, words in wishes:
        with pytest.raises(InputError, match=words) as caught:
            read_clip(path, **wish)
        assert str(caught.value).startswith(str(path))
    assert read_clip(path, max_bytes=9 * 3 * 32 * 48 * 4).num_frames == 9


def test_only_the_asked_frames_of_a_long_file_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 frames in the file, 5 in the clip: the decoder hands over no more."""
    write_video(tmp_path / "a.mp4", noise(1, 3, 16, 16).expand(600, -1, -1, -1), 30.0)
    handed: list[int] = []
    resize = video._Resize.__call__

    def counted(self: video._Resize, pixels: Any) -> Tensor:
        handed.append(len(pixels))
        return resize(self, pixels)

    monkeypatch.setattr(video._Resize, "__call__", counted)
    assert read_clip(tmp_path / "a.mp4", fps=10.0, num_frames=5).num_frames == 5
    assert sum(handed) == 5
    monkeypatch.setitem(sys.modules, "decord", None)
    handed.clear()
    assert read_clip(tmp_path / "a.mp4", fps=10.0).num_frames == 200
    assert max(handed) <= CHUNK


@pytest.mark.parametrize("decoder", ["decord", "PyAV"])
@pytest.mark.parametrize(("start", "count"), [(0, 5), (1, 4), (37, 12), (48, 2)])
def test_a_stretch_is_a_slice_of_the_whole(
    tmp_path: Path, request: pytest.FixtureRequest, decoder: str, start: int, count: int
) -> None:
    if decoder == "PyAV":
        request.getfixturevalue("only_pyav")
    write_video(tmp_path / "a.mp4", noise(50, 3, 36, 64), 10.0)
    whole = read_clip(tmp_path / "a.mp4").frames
    part = read_clip(tmp_path / "a.mp4", start=start, num_frames=count)
    assert torch.equal(part.frames, whole[start : start + count])
    assert any("left out the first" in step for step in part.source.preprocessing) == (start > 0)
    with pytest.raises(InputError, match="frames at 10 fps"):
        read_clip(tmp_path / "a.mp4", start=49)


@pytest.mark.parametrize("decoder", ["decord", "PyAV"])
def test_stretches_are_slices_of_the_whole_and_each_frame_is_decoded_once(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    if decoder == "PyAV":
        request.getfixturevalue("only_pyav")
    path = tmp_path / "a.mp4"
    write_video(path, noise(50, 3, 36, 64), 10.0)
    whole = read_clip(path, size=(18, 32)).frames
    handed: list[int] = []
    resize = video._Resize.__call__
    monkeypatch.setattr(
        video._Resize, "__call__", lambda self, pixels: (handed.append(len(pixels)), resize(self, pixels))[1]
    )
    parts = list(read_stretches(path, length=20, overlap=5, max_pixels=18 * 32, num_frames=48))
    assert [(part.start, len(part.frames)) for part in parts] == [(0, 20), (15, 20), (30, 18)]
    assert all((part.height, part.width) == (36, 64) for part in parts)
    for part in parts:
        assert torch.equal(part.clip().frames, whole[part.start : part.start + len(part.frames)])
        told = any(step == f"left out the first {part.start} of 50 frames" for step in part.source.preprocessing)
        assert told == (part.start > 0)
    assert sum(handed) == 48
    assert [part.start for part in read_stretches(path, length=50, overlap=5)] == [0]
    with pytest.raises(InputError, match="num_frames is 0"):
        next(read_stretches(path, length=20, overlap=5, num_frames=0))


def test_a_variable_rate_is_made_even(tmp_path: Path) -> None:
    """30 fps for 10 frames, then 15 fps: an even 15 fps remains, and the record says so."""
    times = [*range(10), *range(10, 30, 2)]
    frames = torch.linspace(0, 1, 20)[:, None, None, None].expand(-1, 3, 32, 32)
    clip = read_clip(encode(tmp_path / "a.mp4", frames, times))
    assert clip.fps == pytest.approx(15)
    assert "variable frame rate: intervals from 0.0333 to 0.0667 s" in clip.source.preprocessing
    level = clip.frames.mean(dim=(1, 2, 3))
    expected = frames[[times.index(t) for t in range(0, 30, 2)], 0, 0, 0]
    assert torch.allclose(level, expected, atol=0.02)


def test_a_hole_in_the_time_stamps_is_not_papered_over(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", noise(20, 3, 32, 32), [*range(10), *range(100, 110)])
    with pytest.raises(InputError, match="frames are missing: the longest interval is 3.03 s"):
        read_clip(path)


def test_gif_is_read(tmp_path: Path, square_frames: Tensor) -> None:
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in video.to_8bit(square_frames)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    clip = read_clip(tmp_path / "a.gif")
    assert clip.frames.shape == square_frames.shape
    assert clip.fps == pytest.approx(10)
    assert (clip.frames - square_frames).abs().mean() < 0.05  # a palette of 256 colours


@pytest.mark.parametrize(
    ("degrees", "matrix", "corner"),
    [
        (90, (0, 65536, 0, -65536, 0, 0, 64 * 65536, 0), (2, -3)),
        (180, (-65536, 0, 0, 0, -65536, 0, 128 * 65536, 64 * 65536), (-3, -3)),
        (270, (0, -65536, 0, 65536, 0, 0, 0, 128 * 65536), (-3, 2)),
    ],
)
def test_a_film_taken_with_a_turned_telephone_comes_upright(
    tmp_path: Path, degrees: int, matrix: tuple[int, ...], corner: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """The turn (clockwise) is written into the track header; the red top left corner tells where it went."""
    frames = torch.zeros(3, 3, 64, 128)
    frames[:, 0, :20, :30] = 1
    path = tmp_path / "a.mp4"
    write_video(path, frames, 10.0)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", *matrix, 1 << 30)
    path.write_bytes(content)
    for reader in ("decord", "PyAV"):
        if reader == "PyAV":
            request.getfixturevalue("only_pyav")
        clip = read_clip(path)
        assert clip.source.preprocessing == (f"decoded with {reader}",)
        assert clip.frames.shape[-2:] == ((128, 64) if degrees != 180 else (64, 128))
        assert clip.frames[0, 0, corner[0], corner[1]] == 1
        assert clip.frames[0, 0].mean() == pytest.approx(600 / 8192)


def test_lossy_stays_near(tmp_path: Path, square_frames: Tensor) -> None:
    for frames in (square_frames, square_frames[..., :31, :47]):
        write_video(tmp_path / "a.mp4", frames, 10.0, lossless=False)
        assert (read_clip(tmp_path / "a.mp4").frames - frames).abs().mean() < 0.03


def test_a_written_file_is_whole_or_not_there(
    tmp_path: Path, square_frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, square_frames, 10.0)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"a\.mp4: can't write this video \(No space left on device\)"):
        write_video(path, square_frames / 2, 10.0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path, square_frames: Tensor) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, square_frames, 10.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_frames_out_of_range_or_an_unknown_suffix_are_refused(tmp_path: Path, square_frames: Tensor) -> None:
    with pytest.raises(ShapeError):
        write_video(tmp_path / "a.mp4", square_frames * 255, 10.0)
    with pytest.raises(InputError, match=r"a\.avi.*Use \.mp4"):
        write_video(tmp_path / "a.avi", square_frames, 10.0)
    with pytest.raises(InputError, match="No such file or directory"):
        write_video(tmp_path / "no" / "a.mp4", square_frames, 10.0)
    assert os.listdir(tmp_path) == []


@given(
    length=st.integers(2, 200),
    rate=st.sampled_from([10.0, 23.976, 25.0, 30.0, 60.0]),
    target=st.floats(0.05, 1.0),
    slow=st.sampled_from([1.0, 2.0, 8.0]),
)
def test_a_plan_rises_never_repeats_and_keeps_time(length: int, rate: float, target: float, slow: float) -> None:
    times = [k / rate for k in range(length)]
    hypothesis.assume((length - 0.5) * target >= 1.01)  # else less than two frames come out
    plan = plan_frames(times, rate, fps=rate * slow * target, capture_fps=rate * slow)
    assert plan.indices[0] == 0
    assert all(a < b for a, b in zip(plan.indices, plan.indices[1:], strict=False))
    for k, index in enumerate(plan.indices):  # never off by more than half a frame of the file
        assert abs(times[index] / slow - k / plan.fps) <= 0.5 / (rate * slow) + 1e-3 / plan.fps


@given(height=st.integers(1, 300), width=st.integers(1, 300), out=st.tuples(st.integers(1, 99), st.integers(1, 99)))
def test_any_size_comes_out_as_asked(height: int, width: int, out: tuple[int, int]) -> None:
    resize = video._Resize.plan(height, width, out, Path("a.mp4"))
    assert resize(np.zeros((2, height, width, 3), np.uint8)).shape == (2, 3, *out)
