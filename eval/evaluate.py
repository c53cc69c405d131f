"""`newtonrewards evaluate`: generated clips against simulated truth, arm beside arm, with paired intervals.

Each arm is a folder of videos named like the true clips. A file that is broken or missing is named, the rest goes on,
and the command ends with 1.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from newtonrewards.core.clip import Clip, ClipBatch
from newtonrewards.core.errors import InputError, NewtonError, run_command
from newtonrewards.core.run import output_folder, provenance, read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.core.workers import each
from newtonrewards.eval import segment, stats
from newtonrewards.eval.metrics import METRICS, METRICS_VERSION, measure, window
from newtonrewards.eval.results import (
    TRUTH,
    ArmInfo,
    Failure,
    MetricInfo,
    Path2D,
    Score,
    Summary,
    TrackRecord,
    finite,
    write_results,
)
from newtonrewards.eval.summary import pairs_of, summarise
from newtonrewards.eval.table import table
from newtonrewards.eval.tracks import Track, fit_constant_acceleration, true_track, velocity
from newtonrewards.rewards.reward import Reward, RewardConfig, TermConfig
from newtonrewards.rewards.terms import STANDARD, TERMS
from newtonrewards.simulation.store import ClipFolder

HEADLINE = ("rmse_v", "rmse_a", "l2", "iou", "area_ratio", "presence")
REWARD_BATCH = 8


@dataclass(frozen=True)
class Arm:
    """A folder of generated clips: `FOLDER/NAME.mp4`, or `FOLDER/clips/NAME.mp4` as the simulator writes.

    Attributes:
        run: which of the folders of this name; `numbered` counts them.
    """

    name: str
    folder: Path
    run: int = 0

    @functools.cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What the generator recorded, by clip; empty where it left no index."""
        index = self.folder / "index.jsonl"
        return {str(row.get("name")): row for row in read_jsonl(index)} if index.is_file() else {}

    def file(self, clip: str) -> Path:
        nested = self.folder / "clips" / f"{clip}.mp4"
        return nested if nested.is_file() else self.folder / f"{clip}.mp4"

    def settings(self) -> dict[str, Any]:
        """What was recorded alike for all clips."""
        rows = list(self.rows.values())
        return {key: value for key, value in rows[0].items() if all(r.get(key) == value for r in rows)} if rows else {}


def numbered(arms: Sequence[Arm]) -> list[Arm]:
    """Folders of one name are runs of one arm, in the order in which they stand."""
    seen: Counter[str] = Counter()
    made = []
    for arm in arms:
        made.append(replace(arm, run=seen[arm.name]))
        seen[arm.name] += 1
    return made


@dataclass
class Outcome:
    """What one pass over the clips found."""

    scores: list[Score] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    kinds: list[tuple[str, str, str]] = field(default_factory=list)


def evaluate(
    truth: Path,
    arms: Sequence[Arm],
    out: Path,
    *,
    baselines: Sequence[str] = (),
    rewards: bool = False,
    seed: int = 0,
    workers: int = 1,
) -> Summary:
    """Measure every clip of every arm and write `scores.jsonl` and `summary.json`.

    Args:
        truth: folder that `newtonrewards simulate` wrote, with masks.
        arms: folders of generated clips; several of one name are runs of it, with other training seeds.
        out: folder of the results.
        baselines: arms with which those that stand after them are compared; empty: all arms.
        rewards: also the penalties of `rewards.terms.STANDARD`, through the frozen networks.
        seed: of the bootstrap.
        workers: processes that measure; the numbers don't depend on it.
    Raises:
        InputError: no such folder, unknown baseline, or no clip could be measured at all.
    """
    _check(arms, baselines)
    output_folder(out)
    folder = ClipFolder(truth)
    everyone = (Arm(TRUTH, truth), *numbered(arms))
    first = [arm for arm in everyone if arm.run == 0]
    outcome = _measure_all(truth, everyone, out, len(folder), workers)
    if not any(score.arm != TRUTH for score in outcome.scores):
        reason = outcome.failures[0].reason if outcome.failures else "no clips"
        raise InputError(f"no clip of any arm could be measured; the first: {reason}", where=truth)
    definitions = {name: _info(name) for name in METRICS}
    if rewards:
        definitions |= _add_rewards(folder, everyone, outcome)
    summary = summarise(
        outcome.scores,
        clips=outcome.kinds,
        arms=[_arm_info(arm, out, outcome.scores) for arm in first],
        metrics=definitions,
        headline=HEADLINE,
        pairs=pairs_of([arm.name for arm in first[1:]], baselines),
        failures=outcome.failures,
        truth=os.path.relpath(truth, out),
        provenance=provenance(),
        settings={
            "seed": seed,
            "resamples": stats.RESAMPLES,
            "level": stats.LEVEL,
            "metrics_version": METRICS_VERSION,
            "tracker": segment.SETTINGS,
        },
        seed=seed,
    )
    write_results(out, summary, outcome.scores)
    return summary


def _check(arms: Sequence[Arm], baselines: Sequence[str]) -> None:
    names = [arm.name for arm in arms]
    for arm in arms:
        if not arm.folder.is_dir():
            raise InputError(f"arm '{arm.name}' has no such folder", where=arm.folder, fix="Generate its clips first.")
    if TRUTH in names:
        raise InputError(f"arm names must differ from '{TRUTH}'", where="--arm")
    runs = Counter(names)
    several = {count for count in runs.values() if count > 1}
    if len(several) > 1:
        said = ", ".join(f"{name} {count}" for name, count in runs.items())
        raise InputError(
            f"arms have different numbers of runs ({said})", where="--arm", fix="Give each arm as many, or one."
        )
    unknown = [name for name in baselines if name not in names]
    if unknown:
        raise InputError(f"unknown baseline '{unknown[0]}'", where="--baseline", fix=f"Use one of {', '.join(names)}.")


# ---- clip by clip ---------------------------------------------------------------------------------------------------


def _measure_all(truth: Path, arms: tuple[Arm, ...], out: Path, count: int, workers: int) -> Outcome:
    _opened.cache_clear()  # the folders may have changed since the last evaluation in this process
    outcome = Outcome()
    measured = each(functools.partial(_measure_clip, truth, arms, out), range(count), workers)
    for part in tqdm(measured, desc="evaluate", unit="clip", total=count):
        outcome.scores += part.scores
        outcome.failures += part.failures
        outcome.kinds += part.kinds
    return outcome


@functools.lru_cache(maxsize=1)
def _opened(truth: Path, arms: tuple[Arm, ...]) -> tuple[ClipFolder, tuple[Arm, ...]]:
    """The indices of all folders, read once in each process."""
    return ClipFolder(truth), arms


def _measure_clip(truth_folder: Path, arms: tuple[Arm, ...], out: Path, index: int) -> Outcome:
    """One clip of every arm."""
    folder, arms = _opened(truth_folder, arms)
    row, name = folder.rows[index], folder.names[index]
    outcome = Outcome(kinds=[(name, str(row["primitive"]), str(row["shift"]))])
    try:
        clip = folder[index]
        scene, truth = segment.learn_scene(clip), true_track(clip)
    except NewtonError as error:
        outcome.failures.append(Failure(arm=TRUTH, clip=name, reason=str(error)))
        return outcome
    for arm in arms:
        try:
            generated = clip if arm.name == TRUTH else _read(arm, name, clip, row)
            outcome.scores.append(_score(arm, name, generated, segment.track(scene, generated), clip, truth, out))
        except NewtonError as error:
            outcome.failures.append(Failure(arm=arm.name, clip=name, reason=str(error)))
    return outcome


def _read(arm: Arm, name: str, truth: Clip, row: Mapping[str, Any]) -> Clip:
    """A generated clip in physical time: its index says at which rate, else it plays as much slower than life as the
    truth."""
    path = arm.file(name)
    if not path.is_file():
        raise InputError("no such clip in this arm", where=path, fix="Generate it with the others.")
    clip = read_clip(path)
    own = arm.rows.get(name, {})
    rates = own if own.get("fps") and own.get("playback_fps") else row
    factor = float(rates["fps"]) / float(rates.get("playback_fps") or rates["fps"])
    return Clip(frames=clip.frames, fps=clip.fps * factor, caption=truth.caption, source=clip.source)


def _score(arm: Arm, name: str, clip: Clip, track: Track, truth_clip: Clip, truth: Track, out: Path) -> Score:
    known = truth_clip.truth
    source = clip.source if clip.source.path else truth_clip.source
    return Score(
        arm=arm.name,
        run=arm.run,
        clip=name,
        primitive=known.primitive if known else "",
        shift=known.shift if known else "",
        caption=truth_clip.caption,
        fps=float(clip.fps),
        height=clip.frames.shape[-2],
        width=clip.frames.shape[-1],
        file=os.path.relpath(source.path, out),
        sha256=source.sha256,
        preprocessing=list(source.preprocessing),
        values={key: finite(value) for key, value in measure(truth, track).items()},
        track=track_record(truth, track),
    )


def track_record(truth: Track, track: Track) -> TrackRecord:
    """Path and fit as the report draws them."""
    usable = window(truth, track)
    fit = fit_constant_acceleration(track, usable)
    speed = np.linalg.norm(velocity(track.position, track.fps), axis=1)
    fitted = None
    if fit is not None:
        seconds = track.seconds[usable]
        steady = np.linalg.norm(fit.velocity + fit.acceleration * seconds[:, None], axis=1)
        fitted = _path(seconds, fit.at(seconds), steady)
    return TrackRecord(
        path=_path(track.seconds, track.position, speed),
        valid=usable.tolist(),
        fit=fitted,
        acceleration=None if fit is None else (float(fit.acceleration[0]), float(fit.acceleration[1])),
    )


def _path(seconds: np.ndarray, position: np.ndarray, speed: np.ndarray) -> Path2D:
    def column(values: np.ndarray) -> list[float | None]:
        return [finite(value, 5) for value in values.tolist()]

    times = [round(value, 5) for value in seconds.tolist()]
    return Path2D(seconds=times, x=column(position[:, 0]), y=column(position[:, 1]), speed=column(speed))


def _info(name: str) -> MetricInfo:
    metric = METRICS[name]
    return MetricInfo(
        label=metric.label, unit=metric.unit, direction=metric.direction, source=metric.source, says=metric.says
    )


def _arm_info(arm: Arm, out: Path, scores: Sequence[Score]) -> ArmInfo:
    own = [score for score in scores if score.arm == arm.name]
    settings = {} if arm.name == TRUTH else arm.settings()
    runs = 1 + max((score.run for score in own), default=0)
    return ArmInfo(name=arm.name, folder=os.path.relpath(arm.folder, out), runs=runs, clips=len(own), settings=settings)


# ---- penalties of the rewards ---------------------------------------------------------------------------------------


def _add_rewards(folder: ClipFolder, arms: Sequence[Arm], outcome: Outcome) -> dict[str, MetricInfo]:
    """Put every term's raw penalty into the scores; returns their definitions."""
    reward = Reward(RewardConfig(terms={name: TermConfig() for name in STANDARD}))
    place = {name: index for index, name in enumerate(folder.names)}
    folders = {(arm.name, arm.run): arm for arm in arms}
    sizes: dict[tuple[int, int, int], list[int]] = {}
    for number, score in enumerate(outcome.scores):
        sizes.setdefault((len(score.track.valid), score.height, score.width), []).append(number)
    batches = [alike[k : k + REWARD_BATCH] for alike in sizes.values() for k in range(0, len(alike), REWARD_BATCH)]
    for batch in tqdm(batches, desc="rewards", unit="batch"):
        scores = [outcome.scores[number] for number in batch]
        for number, values in zip(batch, _penalties(reward, folder, folders, scores, place), strict=True):
            score = outcome.scores[number]
            outcome.scores[number] = score.model_copy(update={"values": score.values | values})
    return {
        f"reward/{name}": MetricInfo(
            label=name,
            unit=term.unit,
            direction="lower",
            source=term.source,
            says="Penalty of the reward, through the frozen networks.",
        )
        for name, term in ((name, TERMS[name]) for name in STANDARD)
    }


def _penalties(
    reward: Reward,
    folder: ClipFolder,
    arms: Mapping[tuple[str, int], Arm],
    scores: Sequence[Score],
    place: Mapping[str, int],
) -> list[dict[str, float | None]]:
    """Raw penalties of clips of one size; none for clips of another length than the truth, which can't be paired."""
    truths = [folder[place[score.clip]] for score in scores]
    if any(len(score.track.valid) != clip.num_frames for score, clip in zip(scores, truths, strict=True)):
        return [{} for _ in scores]
    clips = [
        truth
        if score.arm == TRUTH
        else _read(arms[score.arm, score.run], score.clip, truth, folder.rows[place[score.clip]])
        for score, truth in zip(scores, truths, strict=True)
    ]
    with torch.no_grad():
        output = reward(ClipBatch.stack([_bare(clip) for clip in clips]), ClipBatch.stack(truths))
    return [
        {f"reward/{name}": finite(float(raw[number])) for name, raw in output.raw.items()}
        for number in range(len(scores))
    ]


def _bare(clip: Clip) -> Clip:
    """Without the masks that only true clips have, so that all arms are measured by the same instrument."""
    return Clip(frames=clip.frames, fps=float(clip.fps), caption=clip.caption)


# ---- command --------------------------------------------------------------------------------------------------------


def _arm(text: str) -> Arm:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME=FOLDER")
    return Arm(name, Path(folder))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="newtonrewards evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: newtonrewards evaluate --truth runs/test --arm fine_tuned=runs/a --arm post_trained=runs/b "
        "--out runs/results",
    )
    p.add_argument("--truth", type=Path, required=True, help="folder that `newtonrewards simulate` wrote")
    p.add_argument("--arm", type=_arm, action="append", required=True, metavar="NAME=FOLDER",
                   help="a folder of generated clips named like the true ones; give it once for each arm, or "
                   "several times with one name for the runs of an arm (training seeds)")  # fmt: skip
    p.add_argument("--baseline", action="append", default=[], metavar="NAME",
                   help="compare the arms after it with this one; repeatable (default: every arm)")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, help="folder for summary.json and scores.jsonl")
    p.add_argument("--rewards", action="store_true", help="also the penalties of every reward term (runs the networks)")
    p.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: all clips measured; 1: some failed, the rest is done. Raises NewtonError if nothing could be done."""
    a = parser().parse_args(argv)
    console = Console()
    summary = evaluate(a.truth, a.arm, a.out, baselines=a.baseline, rewards=a.rewards, seed=a.seed, workers=a.workers)
    console.print(table(summary))
    for failure in summary.failures:
        print(f"{failure.arm}/{failure.clip}: {failure.reason}", file=sys.stderr)
    console.print(f"{a.out / 'summary.json'}: {len(summary.arms)} arms, {sum(summary.counts.values())} clips each")
    return 1 if summary.failures else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
