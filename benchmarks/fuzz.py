"""Damaged and odd videos for `newtonrewards score`, and whether it keeps its promises on them.

    .venv/bin/python benchmarks/fuzz.py --videos 1000 --flow none
    .venv/bin/python benchmarks/fuzz.py --videos 1000 --flow embedded --workers 2

Every file gets one record; what can't be read has an error that names it; whole videos among them are scored; the
command ends by itself with 1 and no traceback. Processes that a decoder takes down with it, time limits and errors that
nobody foresaw are counted apart: they cost their file only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Container, codec and pixel format of whole videos: 8, 10 and 16 bits, grey, with alpha, with palette.
LOOKS = [
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "libx264", "yuv444p10le"),
    ("mp4", "mpeg4", "yuv420p"),
    ("mov", "libx264", "yuv420p"),
    ("mov", "qtrle", "argb"),
    ("mov", "png", "rgba64be"),
    ("matroska", "ffv1", "gbrp16le"),
    ("matroska", "ffv1", "gray"),
    ("matroska", "ffv1", "yuva420p"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("avi", "mpeg4", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("avi", "rawvideo", "bgr24"),
]
SUFFIX = {"matroska": "mkv"}
# Height and width; the odd ones are for formats that can hold them.
SIZES = [(32, 32), (36, 64), (64, 36), (33, 47), (2, 2), (48, 32), (17, 1), (16, 200)]
DAMAGES = ["none", "none", "cut", "flip", "flip few", "head", "hole", "tail", "two"]
ODDITIES = [
    "empty",
    "text",
    "folder",
    "loop",
    "dangling",
    "pipe",
    "bad name",
    "sound",
    "wrong suffix",
    "turned",
]


def picture(height: int, width: int, moment: int) -> np.ndarray:
    """A disc that falls before a striped wall, (height, width, 3) uint8."""
    rows, columns = np.mgrid[:height, :width]
    wall = 90 + 40 * np.sin(columns / 3) + 20 * np.cos(rows / 5)
    y, radius = (0.2 + 0.004 * moment**2) * height, 0.12 * min(height, width) + 1
    inside = np.hypot(rows - y, columns - width / 2) < radius
    return np.where(inside[..., None], (230, 60, 30), wall[..., None]).clip(0, 255).astype(np.uint8)


def whole(rng: np.random.Generator, look: tuple[str, str, str], frames: int, size: tuple[int, int]) -> bytes:
    """A valid file; now and then with uneven times and with sound."""
    container, codec, layout = look
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as output:
        stream = output.add_stream(
            codec, rate=Fraction(int(rng.choice([5, 12, 24, 30, 50, 240][: 5 if container == "gif" else 6])))
        )
        stream.height, stream.width, stream.pix_fmt = *size, layout
        stream.thread_count = 1
        uneven = rng.random() < 0.15
        for moment in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(*size, moment), format="rgb24").reformat(format=layout)
            frame.pts = moment + int(uneven and moment > frames // 2) * (moment - frames // 2)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return memory.getvalue()


def sound() -> bytes:
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return memory.getvalue()


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """`content` with one or two kinds of damage."""
    data = bytearray(content)
    if kind == "two":
        first, second = rng.choice(["cut", "flip", "flip few", "head", "hole", "tail"], 2, replace=False)
        return damaged(damaged(content, str(first), rng), str(second), rng)
    if kind == "cut":
        return bytes(data[: int(rng.integers(0, len(data) + 1))])
    if kind in ("flip", "flip few"):
        for place in rng.integers(0, max(1, len(data)), int(rng.integers(1, 30 if kind == "flip" else 3))):
            if place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
    elif kind == "head":
        data[: int(rng.integers(1, 64))] = rng.bytes(int(rng.integers(0, 64)))
    elif kind == "hole":
        start = int(rng.integers(0, len(data) + 1))
        del data[start : start + int(rng.integers(1, 200))]
    elif kind == "tail":
        data += rng.bytes(int(rng.integers(1, 500)))
    return bytes(data)


def odd(folder: Path, name: str, kind: str, content: bytes) -> str:
    """Something that isn't a plain video file under a video's name; what must come of it: `scored` or `error`."""
    path = folder / f"{name}.mp4"
    makers: dict[str, Callable[[], object]] = {
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("not a video\n" * 50),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path.name),
        "dangling": lambda: path.symlink_to("nowhere.mp4"),
        "pipe": lambda: os.mkfifo(path),
        "bad name": lambda: Path(os.fsdecode(os.fsencode(folder / name) + b"\xff\xfe.mp4")).write_bytes(content),
        "sound": lambda: path.write_bytes(sound()),
        "wrong suffix": lambda: (folder / f"{name}.avi").write_bytes(content),
        "turned": lambda: path.write_bytes(turned(content)),
    }
    makers[kind]()
    return {"folder": "nothing", "wrong suffix": "scored", "turned": "scored"}.get(kind, "error")


def turned(content: bytes) -> bytes:
    """An mp4 with a quarter turn in its track header, as telephones write it."""
    data = bytearray(content)
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    return bytes(data)


def make(folder: Path, number: int) -> tuple[str, str]:
    """Write the number-th file; its kind, and what must come of it: `scored`, `error`, `any` or `nothing` (no file)."""
    rng = np.random.default_rng(number)
    name = f"{number:04d}"
    if number % 10 == 0:
        kind = ODDITIES[number // 10 % len(ODDITIES)]
        return kind, odd(folder, name, kind, whole(rng, LOOKS[0], 12, (32, 32)))
    look = LOOKS[int(rng.integers(len(LOOKS)))]
    frames, size = int(rng.choice([1, 2, 3, 8, 12, 16])), SIZES[int(rng.integers(len(SIZES)))]
    kind = DAMAGES[int(rng.integers(len(DAMAGES)))]
    try:
        content = whole(rng, look, frames, size)
    except (av.error.FFmpegError, ValueError):  # a format that can't hold this size: an even one, then
        size = (32, 48)
        content = whole(rng, look, frames, size)
    (folder / f"{name}.{SUFFIX.get(look[0], look[0])}").write_bytes(damaged(content, kind, rng))
    return f"{look[0]}, {kind}", "any" if kind != "none" else "error" if frames == 1 else "scored"


def check(folder: Path, expected: dict[str, str], rows: list[dict[str, object]]) -> list[str]:
    """Promises that were broken, in words."""
    seen = Counter(Path(str(row["file"])).name[:4] for row in rows)
    wanted = {name for name, outcome in expected.items() if outcome != "nothing"}
    broken = [f"{name}: no record" for name in sorted(wanted - set(seen))]
    broken += [f"{name}: {count} records" for name, count in seen.items() if count > 1]
    for row in rows:
        error, outcome = row.get("error"), expected[Path(str(row["file"])).name[:4]]
        if (outcome == "scored") != (error is None) and outcome != "any":
            broken.append(f"{row['file']}: {outcome} was expected; {error or 'scored'}")
        if error is not None and not str(error).startswith(str(row["file"])):
            broken.append(f"{row['file']}: the error doesn't name it: {error}")
        if error is None and row["verdict"] not in ("lawful", "unlawful", "cannot_tell"):
            broken.append(f"{row['file']}: no verdict")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--flow", default="none", help="as in `newtonrewards score`")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--time-limit", default="120", help="seconds for one video")
    parser.add_argument("--keep", type=Path, help="make the files here and leave them, with what came of them")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = a.keep or Path(temporary)
        folder, out = root / "videos", root / "out"
        folder.mkdir(parents=True)
        made = {f"{number:04d}": make(folder, number) for number in range(a.videos)}
        command = [sys.executable, "-m", "newtonrewards.eval.score", str(folder), "--flow", a.flow, "--out", str(out)]
        command += ["--no-report", "--workers", a.workers, "--time-limit", a.time_limit]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    broken = check(folder, {name: outcome for name, (_, outcome) in made.items()}, rows)
    if done.returncode != 1 or "Traceback" in done.stderr:
        broken.append(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    errors = [str(row["error"]) for row in rows if "error" in row]
    print(f"{len(rows)} files in {seconds:.0f} s: {len(rows) - len(errors)} scored, {len(errors)} refused by name")
    for word in ("crashed", "took longer", "unexpected"):
        found = [error for error in errors if word in error]
        print(f"{len(found)} {word}" + "".join(f"\n    {error}" for error in found[:20]))
    print("\n".join(["broken promises:", *broken] if broken else ["every promise was kept"]))
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
