"""Draws docs/images/throw.png from a finished demo: `.venv/bin/python docs/images/throw.py --demo runs/demo`.

The clip is the first parabolic throw, in distribution, of those that the report shows; nobody chose it by its looks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from newtonrewards.core.errors import InputError
from newtonrewards.core.video import read_clip
from newtonrewards.eval.film import Tile, film
from newtonrewards.eval.results import TRUTH, Score, read_scores, read_summary

ARMS = (TRUTH, "fine_tuned", "post_trained")
MOMENTS = 4


def row(results: Path, score: Score, truth: Score) -> np.ndarray:
    """One arm at some moments of the valid window: (h, w, 3) in 8 bits. White: true path. Yellow: measured path."""
    tile = Tile(read_clip(results / score.file), score.track.path, truth.track.path)
    last = max(frame for frame, valid in enumerate(truth.track.valid) if valid)
    frames = film([tile])[np.linspace(0, last, MOMENTS).round().astype(int)]
    return (np.concatenate(list(frames), axis=1) * 255).round().astype(np.uint8)


def example(results: Path) -> Mapping[str, Score]:
    """The scores of the clip, by arm.

    Raises:
        InputError: the demo shows no such clip.
    """
    shown = read_summary(results).examples
    clips: dict[str, dict[str, Score]] = {name: {} for name in shown}
    for score in read_scores(results):
        if score.clip in clips:
            clips[score.clip][score.arm] = score
    for arms in clips.values():
        if arms[TRUTH].primitive == "parabolic_throw" and arms[TRUTH].shift == "id":
            return arms
    raise InputError("these results show no parabolic throw", where=results, fix="Run the whole demo, not --quick.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    arguments = parser.parse_args()
    results = arguments.demo / "results"
    scores = example(results)
    picture = np.concatenate([row(results, scores[arm], scores[TRUTH]) for arm in ARMS])
    Image.fromarray(picture).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
