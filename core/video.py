"""Reading and writing video files, and a record of everything that was done to the pixels.

The frames are planned before any is decoded: memory is bounded by the clip that comes out, not by the file.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from newtonrewards.core.clip import Clip, Source, check_frames
from newtonrewards.core.decoders import checked, open_video
from newtonrewards.core.errors import InputError
from newtonrewards.core.frame_plan import plan_frames
from newtonrewards.core.run import write_atomic

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
    path = checked(path)
    with open_video(path) as decoder:
        plan = plan_frames(
            decoder.times,
            decoder.fps,
            fps=fps,
            start=start,
            num_frames=num_frames,
            capture_fps=capture_fps,
            where=path,
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
    source = Source(path=str(path), sha256=sha256(path), playback_fps=decoder.fps, preprocessing=done, even=plan.even)
    return Clip(frames=_to_float(torch.cat(chunks)), fps=plan.fps, caption=caption, source=source)


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a video, held in 8 bits until it is its turn.

    Attributes:
        frames: (T, 3, H, W), 0 to 255. fps: of physical time. source: as in the clip.
        start: number of its first frame in the video, after resampling. height, width: of the file's own pixels, before
            any scaling.
    """

    frames: UInt8[Tensor, "T 3 H W"]
    fps: float
    source: Source
    start: int
    height: int
    width: int

    def clip(self) -> Clip:
        return Clip(frames=_to_float(self.frames), fps=self.fps, source=self.source)


def read_stretches(
    path: str | Path,
    *,
    length: int,
    overlap: int,
    num_frames: int | None = None,
    fps: float | None = None,
    max_pixels: int | None = None,
    capture_fps: float | None = None,
) -> Iterator[Stretch]:
    """Read a video of any length in parts, each frame decoded once, in the memory of one part.

    Args:
        path, fps, capture_fps: as in `read_clip`.
        length: frames in each part but the last one. overlap: so many of them are the end of the part before, so that
            no short event is cut in two.
        num_frames: keep the first so many at most; None keeps all.
        max_pixels: scaled down until a frame holds no more than that.
    Raises:
        InputError: as `read_clip`; damage in a later part is found when it is reached.
    """
    path = checked(path)
    with open_video(path) as decoder:
        planned = functools.partial(
            plan_frames, decoder.times, decoder.fps, fps=fps, capture_fps=capture_fps, where=path
        )
        indices = planned().indices
        if num_frames is not None:
            indices = planned(num_frames=min(num_frames, len(indices))).indices
        height, width = decoder.height, decoder.width
        factor = min(1.0, ((max_pixels or height * width) / (height * width)) ** 0.5)
        size = None if factor == 1.0 else (max(1, round(height * factor)), max(1, round(width * factor)))
        resize = _Resize.plan(height, width, size, path)
        digest = sha256(path)
        chunks = (resize(frames) for frames in decoder.read(indices))
        held = torch.empty(0, 3, resize.height, resize.width, dtype=torch.uint8)
        for start in (0, *range(length - overlap, len(indices) - overlap, length - overlap)):
            count = min(length, len(indices) - start)
            parts = [held]
            while sum(map(len, parts)) < count:
                parts.append(next(chunks))
            held = torch.cat(parts)
            plan = planned(start=start, num_frames=count)
            done = (f"decoded with {decoder.name}", *plan.record, *resize.record)
            source = Source(path=str(path), sha256=digest, playback_fps=decoder.fps, preprocessing=done, even=plan.even)
            yield Stretch(held[:count], plan.fps, source, start, height, width)
            held = held[length - overlap :].clone()


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
    if frames.ndim > 3 and len(frames):  # one by one: floats of a whole film several times over are gigabytes
        return np.stack([to_8bit(one) for one in frames])
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

    def __call__(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> UInt8[Tensor, "t 3 H W"]:
        """In 8 bits, as the pixels came: 20 times as fast as in floats, and at most 1/2 step away."""
        frames = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        if self.scaled is not None:
            frames = torch.nn.functional.interpolate(frames, self.scaled, mode="bilinear", antialias=True)
        top, left = (frames.shape[-2] - self.height) // 2, (frames.shape[-1] - self.width) // 2
        return frames[..., top : top + self.height, left : left + self.width]


def _to_float(frames: UInt8[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 H W"]:
    """0..255 to [0, 1], in numpy: torch's thread pool costs milliseconds per call on a busy machine."""
    planes = np.ascontiguousarray(frames.numpy()).astype(np.float32)
    planes /= np.float32(255)
    return torch.from_numpy(planes)


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
