"""Damaged video files: read, or refused by name; never a crash, a hang or another error."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

FORMATS = {
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "avi": ("mpeg4", "yuv420p"),
}
PER_FORMAT = 40


def video(container: str, seed: int) -> bytes:
    """A small valid file; odd sizes and few frames among them."""
    rng = np.random.default_rng(seed)
    codec, layout = FORMATS[container]
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(10))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = (int(x) * 2 for x in rng.integers(9, 30, 2))
        stream.pix_fmt = layout
        for _ in range(int(rng.integers(1, 12))):
            pixels = rng.integers(0, 255, (stream.height, stream.width, 3), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=layout)))
        output.mux(stream.encode())
    return memory.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, with flipped bits, with a wrong head, with a hole, with rubbish at the end, or with two of these."""
    data = bytearray(content)
    for kind in rng.choice(["cut", "flip", "head", "hole", "tail"], int(rng.integers(1, 3)), replace=False):
        if kind == "cut":
            data = data[: int(rng.integers(0, len(data) + 1))]
        elif kind == "flip":
            for place in rng.integers(0, max(1, len(data)), int(rng.integers(1, 30))):
                if place < len(data):
                    data[place] ^= 1 << int(rng.integers(8))
        elif kind == "head":
            data[: int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(0, 64)))
        elif kind == "hole":
            start = int(rng.integers(0, len(data) + 1))
            del data[start : start + int(rng.integers(1, 200))]
        else:
            data += rng.bytes(int(rng.integers(1, 500)))
    return bytes(data)


READ_ALL = """
    import sys
    from pathlib import Path
    import torch
    from newtonrewards.core.errors import InputError
    from newtonrewards.core.video import read_clip
    for path in sorted(Path(sys.argv[1]).iterdir()):
        print(path.name, end=" ", flush=True)
        try:
            clip = read_clip(path, max_bytes=2**26)
            assert clip.num_frames >= 2 and bool(torch.isfinite(clip.frames).all()), path
            print("read", flush=True)
        except InputError as error:
            assert str(path) in str(error), error
            print("refused", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("container", FORMATS)
def test_damaged_files_are_read_or_refused_by_name(container: str, tmp_path: Path) -> None:
    """In a process of its own, so that a crash of a C library is seen as one."""
    rng = np.random.default_rng(len(container) * 100 + ord(container[0]))
    for number in range(PER_FORMAT):
        (tmp_path / f"{number:03d}.{container}").write_bytes(damaged(video(container, number), rng))
    command = [sys.executable, "-c", textwrap.dedent(READ_ALL), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = done.stdout.split("\n")
    assert done.returncode == 0, (done.returncode, lines[-2:], done.stderr[-2000:])
    outcomes = [line.split()[1] for line in lines if line]
    assert len(outcomes) == PER_FORMAT
    assert {"read", "refused"} == set(outcomes)
