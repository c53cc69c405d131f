"""Decoding a video file: PyAV, and for small frames decord where it can read them; pixels as stored, the right way up.

Both know the time stamps of all frames before any is decoded, and hold one chunk of frames at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from newtonrewards.core.errors import InputError
from newtonrewards.core.frame_plan import MIN_FRAMES

# Frames that are decoded at a time: so many, or as many as fit into so many bytes.
CHUNK, CHUNK_BYTES = 32, 2**26
# decord keeps about a hundred frames to itself, whatever is asked for: larger ones are PyAV's, which needs a third of
# the memory and, at 1080 x 1920, half the time for them.
DECORD_PIXELS = 1_000_000


def checked(path: str | Path) -> Path:
    """The path of a file that can be read and isn't empty.

    Raises:
        InputError: anything else.
    """
    path = Path(path)
    try:
        if not path.is_dir() and path.exists() and not path.is_file():
            raise InputError("not a file but a pipe or a device", where=path, fix="Write the video into a file.")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        what = f"can't open this file ({error.strerror})"
        raise InputError(what, where=path, fix="Check its path and its rights.") from None
    if empty:
        raise InputError("the file is empty (0 bytes)", where=path, fix="Write it again.")
    return path


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Decord | PyAV]:
    """decord where it can read the file and frames are small, else PyAV."""
    with _quiet():
        try:
            decoder = Decord.open(path) or PyAV(path)
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"not a video that can be decoded ({error.strerror})", where=path) from None
    yield decoder


class Decord:
    """Random access; frames equal PyAV's to the bit."""

    name = "decord"

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.reader = path, reader
        self.times = reader.get_frame_timestamp(range(len(reader)))[:, 0].tolist()
        self.fps = _rate(self.times, float(reader.get_avg_fps()))
        self.first = reader[0].asnumpy()  # kept: going back to frame 0 would decode it twice
        self.height, self.width = self.first.shape[:2]

    @staticmethod
    def open(path: Path) -> Decord | None:
        """None where decord isn't installed, needs too much memory, or misreads: gif, times of some mkv, 32 or 48 px
        wide (as 4 channels)."""
        try:
            import decord
        except (ImportError, OSError):
            return None
        try:
            decoder = Decord(path, decord.VideoReader(str(path), num_threads=1))
        except (decord.DECORDError, RuntimeError, IndexError):
            return None
        small = decoder.height * decoder.width <= DECORD_PIXELS
        return decoder if small and decoder.first.shape[-1] == 3 and bool(np.all(np.diff(decoder.times) > 0)) else None

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


class PyAV:
    """One pass over the packets for the time stamps, one over the frames; keeps only those asked for."""

    name = "PyAV"

    def __init__(self, path: Path) -> None:
        self.path = path
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError("no video stream in this file", where=path)
            stream = container.streams.video[0]
            stamps = sorted(float(p.pts * p.time_base) for p in container.demux(stream) if p.size and p.pts is not None)
            declared, rate = stream.frames, float(stream.average_rate or 0)
        with av.open(str(path), metadata_errors="replace") as container:
            first = next(container.decode(video=0), None)
        if first is None or not stamps:
            raise InputError("not a single frame of this video can be decoded", where=path, fix="Encode it again.")
        # An avi counts pictures that only stay, too, so it is asked for time as well.
        covered = round((stamps[-1] - stamps[0]) * rate) + 1
        if declared > max(len(stamps), covered):
            raise _damaged(path, len(stamps), "the file is cut short")
        self.times, self.fps = stamps, _rate(stamps, rate)
        self.height, self.width = _rgb(first).shape[:2]

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        wanted, kept, size = set(indices), [], _chunk(self.height, self.width)
        with av.open(str(self.path), metadata_errors="replace") as container:
            container.streams.video[0].thread_type = "AUTO"
            number = -1
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        kept.append(_rgb(frame))
                        if kept[-1].shape[:2] != (self.height, self.width):
                            raise _damaged(self.path, number, "the size of the picture changes")
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
