"""How well does `newtonrewards score` measure what a camera filmed? Writes the tables of docs/footage.md.

    .venv/bin/python benchmarks/filmed.py --clips 10 --out docs/footage.md

Simulated clips of 256 and 512 px are filmed by imperfect cameras (`simulation/film.py`), written as H.264, and scored
from the file with the name of the motion, without masks or truth. Some have the wrong physics. Among several objects
what is measured is held against the truth of the one that `score` followed.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import page_parser, write_below
from tqdm import tqdm

from newtonrewards.core.clip import BystanderTruth, Truth
from newtonrewards.core.video import write_video
from newtonrewards.core.workers import each
from newtonrewards.eval.measure import Options, measure_video
from newtonrewards.eval.video_score import Motion, VideoScore
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.simulation.corrupt import corrupt
from newtonrewards.simulation.film import Film, film, handheld
from newtonrewards.simulation.ranges import default_ranges
from newtonrewards.simulation.scene import sample_scene

SEED = 31
SIZES = (256, 512)
EVERYTHING = Film(shutter=0.5, shake=0.01, roll=0.4, noise=0.02, exposure=0.03)
WORLD: dict[str, object] = {"num_frames": 33, "capture_fps": 40.0}
TURNING: dict[str, object] = {"spin_rad_s": (3.0, 8.0)}
SLANT: dict[str, object] = {"camera_yaw_deg": (-20.0, 20.0), "camera_pitch_deg": (0.0, 12.0)}
OTHERS: dict[str, object] = {"bystanders": 2}
# Faults of the camera, and what is else about in the world.
CAMERAS: dict[str, tuple[Film, dict[str, object]]] = {
    "perfect": (Film(), {}),
    "shutter open half the time": (Film(shutter=0.5), {}),
    "hand-held": (Film(shake=0.01, roll=0.4), {}),
    "noise of 2 %": (Film(noise=0.02), {}),
    "exposure wanders by 3 %": (Film(exposure=0.03), {}),
    "object turns 3 to 8 rad/s": (Film(), TURNING),
    "all of these": (EVERYTHING, TURNING),
    "at a slant": (Film(), SLANT),
    "two other objects": (Film(), OTHERS),
    "everything": (EVERYTHING, TURNING | SLANT | OTHERS),
}
WRONG = ("jitter", "hover", "teleport", "constant_speed", "freeze", "vanish", "grow")
MOTION: dict[str, Motion] = {"free_fall": "fall", "horizontal_throw": "throw", "parabolic_throw": "throw"}


@dataclass(frozen=True)
class Case:
    """One clip: `camera` in `CAMERAS`, `wrong` a corruption at full strength, or empty for right physics."""

    index: int
    size: int
    camera: str
    wrong: str


@functools.cache
def _flow():  # type: ignore[no-untyped-def]
    return load_flow(FlowConfig())


def scored(case: Case) -> tuple[Case, VideoScore, Truth]:
    """Film a clip, write it, score the file."""
    ranges, (camera, world) = default_ranges(), CAMERAS[case.camera]
    world = WORLD | {"size_px": case.size} | world
    ranges = ranges.model_copy(update={"world": ranges.world.model_copy(update=world)})
    scene = sample_scene(SEED, case.index, split="val", ranges=ranges)
    clip = film(scene, camera)
    truth = clip.truth
    if case.wrong:
        clip = handheld(corrupt(scene, case.wrong, 1.0), camera, case.index)
    assert truth is not None, "films keep it"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, clip.frames, 40.0, lossless=False)
        options = Options(motion=MOTION.get(scene.primitive, "ramp"))
        return case, measure_video(path, options, _flow).score, truth


def accuracy(rows: list[tuple[Case, VideoScore, Truth]]) -> str:
    """For each camera and size: verdicts, and errors of the measured acceleration."""
    lines = [
        "| camera | px | lawful | unlawful | cannot tell | size of a off, median | 90 % of clips "
        "| direction off, median | residual, median px | another object |",
        "|" + "---|" * 10,
    ]
    for camera in CAMERAS:
        for size in SIZES:
            chosen = [(s, t) for c, s, t in rows if (c.camera, c.size, c.wrong) == (camera, size, "")]
            verdicts = Counter(score.verdict for score, _ in chosen)
            off, angle = zip(*(errors(s, t) for s, t in chosen if s.acceleration is not None), strict=True)
            rest = [s.kinematic_residual * s.height / s.fps**2 for s, _ in chosen if s.kinematic_residual is not None]
            others = sum(followed(s, t) is not t for s, t in chosen if s.window is not None)
            counts = " | ".join(str(verdicts[v]) for v in ("lawful", "unlawful", "cannot_tell"))
            lines.append(
                f"| {camera} | {size} | {counts} | {np.median(off):.1%} | {np.quantile(off, 0.9):.1%} "
                f"| {np.median(angle):.1f}° | {np.median(rest):.2f} | {others} |"
            )
    return "\n".join(lines)


def errors(score: VideoScore, truth: Truth) -> tuple[float, float]:
    """Relative error of |a|, and the angle (degrees) to the true acceleration, in the middle of the window."""
    assert score.acceleration is not None and score.window is not None
    own = np.array([score.acceleration.x, score.acceleration.y])
    true = followed(score, truth).acceleration[sum(score.window) // 2].double().numpy()
    cosine = own @ true / max(float(np.linalg.norm(own) * np.linalg.norm(true)), 1e-12)
    return abs(float(np.linalg.norm(own) / max(np.linalg.norm(true), 1e-12)) - 1), float(
        np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    )


def followed(score: VideoScore, truth: Truth) -> Truth | BystanderTruth:
    """The object that is nearest to what was measured, in the middle of the window."""
    assert score.window is not None and score.window_inside is not None
    middle, inside = sum(score.window) // 2, sum(score.window_inside) // 2
    x, y = score.path.x[inside], score.path.y[inside]
    if x is None or y is None:
        return truth
    place = np.array([x, y])
    bodies: list[Truth | BystanderTruth] = [truth, *truth.bystanders]
    return min(bodies, key=lambda one: float(np.linalg.norm(one.position[middle].numpy() - place)))


def verdicts(rows: list[tuple[Case, VideoScore, Truth]]) -> str:
    """What `score` says about wrong physics."""
    lines = ["| wrong physics | camera | unlawful | lawful | cannot tell |", "|---|---|---|---|---|"]
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case, score, _ in rows:
        if case.wrong:
            counts[case.wrong, case.camera][score.verdict] += 1
    for (wrong, camera), found in counts.items():
        cells = " | ".join(str(found[v]) for v in ("unlawful", "lawful", "cannot_tell"))
        lines.append(f"| {wrong} | {camera} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    cases = [Case(i, size, camera, "") for camera in CAMERAS for size in SIZES for i in range(a.clips)]
    cases += [Case(i, 256, c, wrong) for wrong in WRONG for c in ("perfect", "all of these") for i in range(a.clips)]
    rows = list(tqdm(each(scored, cases, a.workers, least=4, chunk=1), total=len(cases), unit="clip"))
    for case, score, _ in rows:
        if (score.verdict == "lawful") == bool(case.wrong):
            print(f"{case}: {score.verdict}, {'; '.join(score.reasons)}")
    told = f"{a.clips} clips each, 33 frames at 40 a second, seed {SEED}."
    write_below(a.out, "filmed.py", f"{told}\n\n{accuracy(rows)}\n\n{verdicts(rows)}")


if __name__ == "__main__":
    main()
