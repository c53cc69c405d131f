"""Peak memory of `newtonrewards score` against the length, the size and the rate of a video, each in a fresh process.

    .venv/bin/python benchmarks/memory.py                # 10 s and 3 minutes, and 4K at 240 fps
    .venv/bin/python benchmarks/memory.py --flow none    # silhouettes alone

A longer video should take no more than the 10 s one: it is read in stretches of as many frames. Peak: VmHWM of Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SCORE = """
import sys
from pathlib import Path
from newtonrewards.eval import score
code = score.main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""
# Name, seconds, frames per second, height, width.
CASES = [
    ("10 s", 10, 30, 160, 160),
    ("3 minutes", 180, 30, 160, 160),
    ("4K, 240 fps, 0.5 s", 0.5, 240, 2160, 3840),
    ("4K, 240 fps, 1.25 s", 1.25, 240, 2160, 3840),
]


def write(path: Path, seconds: float, fps: int, height: int, width: int) -> None:
    """A ball that falls once a second before a striped wall; frame by frame, so that this process stays small too."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32) / height
    wall = (110 + 40 * np.sin(40 * columns) + 30 * np.cos(23 * rows))[..., None].repeat(3, axis=2)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(fps), options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(round(seconds * fps)):
            moment = frame / fps % 1
            ball = np.hypot(rows - (0.1 + 0.8 * moment**2), columns - 0.5 * width / height) < 0.06
            pixels = np.where(ball[..., None], np.float32([230, 60, 30]), wall).clip(0, 255).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())


def measured(path: Path, flow: str) -> tuple[float, float, str]:
    """Peak resident memory, MiB; seconds; verdict."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", SCORE, str(path), "--workers", "0", "--flow", flow, "--out", out]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        row = json.loads((Path(out) / "scores.jsonl").read_text())
    kib = next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return kib / 1024, seconds, row["verdict"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", default="embedded", help="as in `newtonrewards score`")
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))), help="which, from 0")
    a = parser.parse_args()
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds, fps, height, width in (CASES[number] for number in a.cases):
            path = Path(folder) / "clip.mp4"
            write(path, seconds, fps, height, width)
            peak, spent, verdict = measured(path, a.flow)
            first = first or peak
            frames = round(seconds * fps)
            print(
                f"{name:20s} {frames:5d} frames of {width}x{height}: {peak:6.0f} MiB, {peak / first:.2f} of the first; "
                f"{spent:5.0f} s, {frames / spent:5.1f} frames/s; {verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
