"""Reading and writing video: decord first, then PyAV, and a record of everything that was done to the pixels.

The frames are planned before any is decoded: memory is bounded by the clip that comes out, not by the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from newtonrewards.core.clip import Clip, Source, check_frames
from newtonrewards.core.errors import InputError
from newtonrewards.core.frame_plan import MIN_FRAMES, plan_frames
from newtonrewards.core.run import write_atomic

# Frames that are decoded at a time: so many, or as many as fit into so many bytes.
CHUNK, CHUNK_BYTES = 32, 2**27
MAX_BYTES = 4 * 2**30  # of the float32 clip; asked for before decoding
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


def read_clip(
    path: str | Path,
    *,
    start: int = 0,
    num_frames: int | None = None,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    capture_fps: float | None = None,
    caption: str = "",
    max_bytes: int = MAX_BYTES,
) -> Clip:
    """Read a video file as a Clip; `source` says what was done to it.

    Args:
        path: any file that decord or PyAV can decode (mp4, mov, mkv, webm, avi, gif, ...).
        start: leave out so many frames at the beginning, after resampling.
        num_frames: keep the first so many frames from there on; None keeps all.
        fps: resample to this many frames per second of *physical* time, each time the nearest frame (frames are never
            blended or repeated); None keeps the file's rate. A variable rate is made even at its longest interval.
        size: (height, width) in px: scaled until it covers this, then cut at the centre, so that lengths along x and y
            stay comparable; one number: the shorter side. None keeps the file's.
        capture_fps: frames per second of physical time at which the file's frames were taken (slow motion: more than
            the playback rate); None: it plays at life speed.
        caption: goes into the clip.
        max_bytes: upper bound for the pixels of the clip in memory.
    Returns:
        Clip with frames (T, 3, H, W) float32 in [0, 1], T >= 2, and `fps` in physical time.
    Raises:
        InputError: missing, empty or damaged file, no video in it, one frame only, fewer frames than `num_frames`, a
            slower rate than `fps`, or more than `max_bytes`; always names the file.
    """
    path = _checked(path)
    with _open(path) as decoder:
        times, rate = decoder.times, decoder.fps
        plan = plan_frames(
            times, rate, fps=fps, start=start, num_frames=num_frames, capture_fps=capture_fps, where=path
        )
        resize = _Resize.plan(decoder.height, decoder.width, size, path)
        need = len(plan.indices) * 3 * resize.height * resize.width * 4
        if need > max_bytes:
            much = (
                f"{len(plan.indices)} frames of {resize.height}x{resize.width} px take {need / 2**30:.1f} GiB of memory"
            )
            fix = "Read less of it: give num_frames, fps or size."
            raise InputError(f"{much}, the limit is {max_bytes / 2**30:.1f}", where=path, fix=fix)
        chunks = [resize(frames) for frames in decoder.read(plan.indices)]
    done = (f"decoded with {decoder.name}", *plan.record, *resize.record)
    source = Source(path=str(path), sha256=sha256(path), playback_fps=decoder.fps, preprocessing=done)
    return Clip(frames=torch.cat(chunks), fps=plan.fps, caption=caption, source=source)


@dataclass(frozen=True)
class Size:
    """What a video file holds: frames after resampling, height and width in px."""

    num_frames: int
    height: int
    width: int


def video_size(path: str | Path, *, fps: float | None = None, capture_fps: float | None = None) -> Size:
    """How much `read_clip` would read with these arguments, known without decoding more than one frame.

    Raises:
        InputError: as `read_clip`.
    """
    path = _checked(path)
    with _open(path) as decoder:
        plan = plan_frames(decoder.times, decoder.fps, fps=fps, capture_fps=capture_fps, where=path)
        return Size(len(plan.indices), decoder.height, decoder.width)


def write_video(
    path: str | Path, frames: Float[Tensor, "T 3 H W"], playback_fps: float, *, lossless: bool = True
) -> None:
    """Write a whole video file or nothing.

    Args:
        path: .mp4, .mov or .mkv; its folder must exist.
        frames: (T, 3, H, W) RGB in [0, 1], rounded to 8 bits.
        playback_fps: frames per second at which it plays.
        lossless: H.264 in RGB without loss: reading gives the same 8-bit values back. Otherwise H.264 at crf 12 (in
            YUV 4:2:0, which every player knows), for looking at: compression shifts measured motion by up to .15 px.
    Raises:
        ShapeError: frames of the wrong shape or range.
        InputError: another suffix, or the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in CONTAINERS:
        raise InputError(f"can't write video into a '{path.suffix}' file", where=path, fix="Use .mp4, .mov or .mkv.")
    content = encode_video(frames, playback_fps, container=CONTAINERS[path.suffix.lower()], lossless=lossless)
    try:
        # Not forced to disk: thousands are written, and what a power cut leaves empty is an error on reading.
        write_atomic(path, content, durable=False)
    except OSError as error:
        fix = "Check that the folder exists, is writable and has space."
        raise InputError(f"can't write this video ({error.strerror})", where=path, fix=fix) from None


def encode_video(
    frames: Float[Tensor, "T 3 H W"], playback_fps: float, *, container: str = "mp4", lossless: bool = True
) -> bytes:
    """The bytes of a video file; see `write_video`. The same frames give the same bytes on every machine."""
    check_frames(frames, batched=False)
    return _encode(to_8bit(frames), playback_fps, container=container, lossless=lossless)


def to_8bit(frames: Float[Tensor, "*B 3 H W"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """[0, 1] to 0..255 by rounding, channels last: the values that a written file holds."""
    scaled = np.rint(np.moveaxis(frames.detach().float().cpu().numpy(), -3, -1) * np.float32(255))
    return np.ascontiguousarray(scaled.clip(0, 255).astype(np.uint8))


def sha256(path: str | Path) -> str:
    """Hash of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Resize:
    """Scale to cover the wanted size, then cut at the centre; height and width are those that come out."""

    scaled: tuple[int, int] | None
    height: int
    width: int
    record: tuple[str, ...]

    @staticmethod
    def plan(height: int, width: int, size: int | tuple[int, int] | None, where: Path) -> _Resize:
        size = (height, width) if size is None else size
        ratio = size / min(height, width) if isinstance(size, int) else 0.0
        out = (round(height * ratio), round(width * ratio)) if isinstance(size, int) else size
        if min(out) < 1:
            raise InputError(f"size is {size}, it must be positive", where=where)
        cover = max(out[0] / height, out[1] / width)
        scaled = (max(out[0], round(height * cover)), max(out[1], round(width * cover)))
        record = []
        if scaled != (height, width):
            record.append(f"scaled from {height}x{width} to {scaled[0]}x{scaled[1]} px, bilinear with antialiasing")
        if scaled != out:
            record.append(f"cut to the middle {out[0]}x{out[1]} px")
        return _Resize(None if scaled == (height, width) else scaled, *out, tuple(record))

    def __call__(self, pixels: UInt8[np.ndarray, "T h w 3"]) -> Float[Tensor, "T 3 H W"]:
        # In numpy: torch's thread pool costs milliseconds per call on a busy machine.
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        frames = torch.from_numpy(planes.astype(np.float32) / np.float32(255))
        if self.scaled is not None:
            frames = torch.nn.functional.interpolate(frames, self.scaled, mode="bilinear", antialias=True).clamp_(0, 1)
        top, left = (frames.shape[-2] - self.height) // 2, (frames.shape[-1] - self.width) // 2
        return frames[..., top : top + self.height, left : left + self.width]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Decord | _PyAV]:
    """decord where it can read the file, else PyAV."""
    with _quiet():
        try:
            decoder = _Decord.open(path) or _PyAV(path)
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"not a video that can be decoded ({error.strerror})", where=path) from None
    yield decoder


class _Decord:
    """Random access; frames equal PyAV's to the bit."""

    name = "decord"

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.reader = path, reader
        self.times = reader.get_frame_timestamp(range(len(reader)))[:, 0].tolist()
        self.fps = _rate(self.times, float(reader.get_avg_fps()))
        self.first = reader[0].asnumpy()  # kept: going back to frame 0 would decode it twice
        self.height, self.width = self.first.shape[:2]

    @staticmethod
    def open(path: Path) -> _Decord | None:
        """None where decord isn't installed or misreads: gif, times of some mkv, 32 or 48 px wide (as 4 channels)."""
        try:
            import decord
        except (ImportError, OSError):
            return None
        try:
            decoder = _Decord(path, decord.VideoReader(str(path), num_threads=1))
        except (decord.DECORDError, RuntimeError, IndexError):
            return None
        return decoder if decoder.first.shape[-1] == 3 and bool(np.all(np.diff(decoder.times) > 0)) else None

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        import decord

        if indices[0] == 0:
            yield self.first[None]
        size = _chunk(self.height, self.width)
        for start in range(int(indices[0] == 0), len(indices), size):
            with _quiet():
                try:
                    chunk = self.reader.get_batch(list(indices[start : start + size])).asnumpy()
                except (decord.DECORDError, RuntimeError) as error:
                    raise _damaged(self.path, indices[start], " ".join(str(error).split())[:80]) from None
            yield chunk


class _PyAV:
    """One pass over the packets for the time stamps, one over the frames; keeps only those asked for."""

    name = "PyAV"

    def __init__(self, path: Path) -> None:
        self.path = path
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError("no video stream in this file", where=path)
            stream = container.streams.video[0]
            stamps = sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.size and p.pts is not None)
            declared, rate = stream.frames, float(stream.average_rate or 0)
        with av.open(str(path)) as container:
            first = next(container.decode(video=0), None)
        if first is None or not stamps:
            raise InputError("not a single frame of this video can be decoded", where=path, fix="Encode it again.")
        if declared > len(stamps):
            raise _damaged(path, len(stamps), "the file is cut short")
        self.times, self.fps = stamps, _rate(stamps, rate)
        self.height, self.width = _rgb(first).shape[:2]

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        wanted, kept, size = set(indices), [], _chunk(self.height, self.width)
        with av.open(str(self.path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            number = -1
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        kept.append(_rgb(frame))
                    if len(kept) == size:
                        yield np.stack(kept)
                        kept = []
                    if number == indices[-1]:
                        break
            except av.error.FFmpegError as error:
                raise _damaged(self.path, number + 1, str(error.strerror)) from None
        if number < indices[-1]:
            raise _damaged(self.path, number + 1, "the file is cut short")
        if kept:
            yield np.stack(kept)


def _chunk(height: int, width: int) -> int:
    return max(1, min(CHUNK, CHUNK_BYTES // (height * width * 3)))


def _rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """RGB the right way up: telephones store a turn beside the pixels (decord undoes it by itself)."""
    return np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)


def _rate(times: Sequence[float], declared: float) -> float:
    """The container's rate where it is that of the frames (it is exact), else what the time stamps say."""
    if len(times) < MIN_FRAMES or times[-1] <= times[0]:
        return declared or 1.0
    measured = (len(times) - 1) / (times[-1] - times[0])
    return declared if abs(declared / measured - 1) < 0.01 else measured


def _damaged(path: Path, frame: int, why: str) -> InputError:
    return InputError(f"damaged at frame {frame} ({why})", where=path, fix="Encode it again or cut it there.")


def _checked(path: str | Path) -> Path:
    path = Path(path)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        what = f"can't open this file ({error.strerror})"
        raise InputError(what, where=path, fix="Check its path and its rights.") from None
    if empty:
        raise InputError("the file is empty (0 bytes)", where=path, fix="Write it again.")
    return path


def _encode(pixels: UInt8[np.ndarray, "T H W 3"], fps: float, *, container: str, lossless: bool) -> bytes:
    height, width = pixels.shape[1:3]
    chroma = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    codec, layout = ("libx264rgb", "rgb24") if lossless else ("libx264", chroma)
    options = {"preset": "veryfast"} | ({"qp": "0"} if lossless else {"crf": "12"})
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, layout
        stream.thread_count = 1  # the same bytes on every machine
        for picture in pixels:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return memory.getvalue()


_stderr_lock = threading.RLock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Close file descriptor 2 to the C libraries, which print there whatever Python catches."""
    with _stderr_lock:
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            for handle in (kept, nothing):
                os.close(handle)
