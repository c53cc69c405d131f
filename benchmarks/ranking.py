"""Does every corruption cost reward, and more of it more? Writes the tables of docs/ranking.md.

    .venv/bin/python benchmarks/ranking.py --clips 40 --out docs/ranking.md

Clips of the val split with right physics, of plain, textured and turning objects in turn, are corrupted in known ways
and amounts (`simulation/corrupt.py`), and judged by every reward term against the true clip, and by `newtonrewards
score` without it, once without a scale and once with the metres in a frame height. AUC: the chance that a corrupted
clip is judged worse than a true one, over all pairs of clips.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from pages import page_parser, write_below
from scipy.stats import rankdata
from tqdm import tqdm

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.workers import each
from newtonrewards.eval.measure import measure_clip
from newtonrewards.eval.scale import NO_SCALE, Scale
from newtonrewards.eval.video_score import Motion
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.flow import RaftFlow, load_flow
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig, TermConfig
from newtonrewards.rewards.terms import STANDARD
from newtonrewards.simulation.corrupt import LOOKS, MOTIONS, corrupt
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene

KINDS = ("plain", "textured", "turning")
TURNING = 5.0  # rad/s
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
SEED = 11
MOTION: dict[str, Motion] = {"free_fall": "fall", "horizontal_throw": "throw", "parabolic_throw": "throw"}
# The term that must catch it, and what a user sees of it.
CAUGHT_BY = {
    "jitter": "kinematic/second_difference",
    "teleport": "kinematic/centroid",
    "hover": "kinematic/velocity",
    "wrong_g": "kinematic/acceleration",
    "constant_speed": "kinematic/acceleration",
    "reverse": "kinematic/fit",
    "freeze": "kinematic/velocity",
    "fade": "mass/paired",
    "vanish": "mass/area",
    "grow": "mass/area",
    "shrink": "mass/area",
    "split": "mass/area",
    "colour": "mass/paired",
    "texture_noise": "mass/paired",
    "flicker": "mass/paired",
}
SCORES = {"score": False, "score, scaled": True}  # whether it is told the scale
Judged = dict[str, float]


@functools.cache
def instruments() -> tuple[Reward, RaftFlow]:
    """Loaded once in each process; `score` sees through the reward's own flow network."""
    config = RewardConfig(terms={name: TermConfig() for name in STANDARD})
    flow = load_flow(config.flow)
    return Reward(config, Networks(flow, FlowFeatures(flow))), flow


def scene_of(index: int) -> tuple[str, Scene]:
    """Five motions, each with every kind of object."""
    kind, scene = KINDS[index // 5 % len(KINDS)], sample_scene(SEED, index, split="val")
    if kind == "plain":
        surface = scene.object_surface
        scene = replace(scene, object_surface=replace(surface, colours=(surface.colours[0],) * 2))
    elif kind == "turning" and scene.wedge is None:
        scene = replace(scene, spin=TURNING)
    return kind, scene


def judged(index: int) -> dict[tuple[str, float], Judged]:
    """Every corruption of one clip, as every term and `score` see it."""
    reward, flow = instruments()
    _, scene = scene_of(index)
    motion = MOTION.get(scene.primitive, "ramp")
    truth = render(scene)
    kinds = [("none", 0.0), *((name, s) for name in (*MOTIONS, *LOOKS) for s in STRENGTHS)]
    clips = [corrupt(scene, *kind) for kind in kinds]
    result = {}
    for start in range(0, len(kinds), 8):
        part = clips[start : start + 8]
        with torch.no_grad():
            seen = reward(ClipBatch.stack(part), ClipBatch.stack([truth] * len(part)))
        for place, kind in enumerate(kinds[start : start + 8]):
            result[kind] = {name: float(raw[place]) for name, raw in seen.raw.items()}
    for kind, clip in zip(kinds, clips, strict=True):
        for name, metres in SCORES.items():
            scale = Scale(truth.truth.metres_per_height) if metres and truth.truth else NO_SCALE
            score = measure_clip(clip, None, lambda: flow, motion, scale=scale).score.score
            result[kind][name] = -1.0 if score is None else score
    return result


def auc(true: np.ndarray, wrong: np.ndarray) -> float:
    """Chance that a wrong clip's penalty is above a true one's; half for equal ones."""
    true, wrong = true[np.isfinite(true)], wrong[np.isfinite(wrong)]
    ranks = rankdata(np.concatenate([wrong, true]))[: len(wrong)]
    return float((ranks.sum() - len(wrong) * (len(wrong) + 1) / 2) / (len(wrong) * len(true)))


Values = dict[tuple[str, str, float], np.ndarray]


def gather(results: list[dict[tuple[str, float], Judged]]) -> Values:
    """Penalties of all clips by (term or `score`, corruption, strength)."""
    gathered: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for clip in results:
        for (name, strength), row in clip.items():
            for key, value in row.items():
                gathered[key, name, strength].append(-value if key in SCORES else value)
    return {key: np.array(column) for key, column in gathered.items()}


def tables(results: list[dict[tuple[str, float], Judged]]) -> str:
    values = gather(results)
    heads = [f"{what} at {s:g}" for what in ("median", "AUC") for s in STRENGTHS]
    lines = ["What the term that must catch it says:", ""]
    lines += [f"| corruption | caught by | median, true | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for name, term in CAUGHT_BY.items():
        true = values[term, "none", 0.0]
        medians = [f"{np.nanmedian(values[term, name, s]):.3g}" for s in STRENGTHS]
        caught = [f"{auc(true, values[term, name, s]):.2f}" for s in STRENGTHS]
        lines.append(f"| {name} | `{term}` | {np.nanmedian(true):.3g} | " + " | ".join(medians + caught) + " |")
    heads = [f"{what} at {s:g}" for what in SCORES for s in STRENGTHS]
    lines += ["", "AUC of `score`, without and with a scale:", "", f"| corruption | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(heads))
    for name in CAUGHT_BY:
        cells = [f"{auc(values[s, 'none', 0.0], values[s, name, at]):.2f}" for s in SCORES for at in STRENGTHS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "AUC of all at strength 1:", "", f"| corruption | {' | '.join((*STANDARD, *SCORES))} |"]
    lines.append("|---|" + "---|" * (len(STANDARD) + len(SCORES)))
    for name in CAUGHT_BY:
        cells = [f"{auc(values[t, 'none', 0.0], values[t, name, 1.0]):.2f}" for t in (*STANDARD, *SCORES)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines + kinds_table(results))


def kinds_table(results: list[dict[tuple[str, float], Judged]]) -> list[str]:
    """AUC of the catching term and of `score` at strength 1, by kind of object."""
    heads = [f"{what}, {kind}" for what in ("term", "score") for kind in KINDS]
    lines = ["", "By kind of object, AUC at strength 1:", "", f"| corruption | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(heads))
    by_kind = {k: gather([r for i, r in enumerate(results) if scene_of(i)[0] == k]) for k in KINDS}
    for name, term in CAUGHT_BY.items():
        cells = [
            f"{auc(by_kind[k][key, 'none', 0.0], by_kind[k][key, name, 1.0]):.2f}" if by_kind[k] else "-"
            for key in (term, "score")
            for k in KINDS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    results = list(tqdm(each(judged, range(a.clips), a.workers, least=4, chunk=1), total=a.clips, unit="clip"))
    write_below(a.out, "ranking.py", f"{a.clips} clips, seed {SEED}.\n\n{tables(results)}")


if __name__ == "__main__":
    main()
