"""`newtonrewards score`: does the object in a video move by one law, and does it stay what it is?

For any video files, without truth or masks. Two instruments look at each video, silhouettes and optical flow; where
they disagree, where nothing moves or the camera does, the verdict is `cannot tell`. Writes scores.jsonl, scores.csv and
report.html into --out; run again, it goes on with the videos that have no score yet.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from newtonrewards.core.errors import InputError, MissingExtra, NewtonError, run_command
from newtonrewards.core.run import output_folder, write_json
from newtonrewards.core.shard import Shard, add_shard_option, of_this_process
from newtonrewards.core.video import write_video
from newtonrewards.core.workers import Lost, isolated
from newtonrewards.eval import compare
from newtonrewards.eval.compare import Difference
from newtonrewards.eval.measure import Options, measure_video
from newtonrewards.eval.overlay import overlay
from newtonrewards.eval.sam2_masks import segmenter
from newtonrewards.eval.score_report import OVERLAYS, overlay_path, write_score_report
from newtonrewards.eval.score_store import Record, ScoreStore, digest, record_name, unchanged
from newtonrewards.eval.video_score import Motion, VideoFailure, VideoScore
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, load_flow

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v"}
# Seconds for one video, by default. A minute of 4K takes about two on one core.
TIME_LIMIT = 900.0
# A film plays at least this slowly, so that one can follow it.
FILM_FPS = 12.0


@dataclass(frozen=True)
class Job:
    """What is done with every video.

    Attributes:
        overlays: folder whose `overlays/` gets the films, or None.
        seconds: a video that takes longer is given up, None: never.
    """

    options: Options
    flow: FlowConfig | None
    overlays: Path | None
    seconds: float | None = None


def score_file(job: Job, path: Path) -> Record:
    """The record of one video; of one that can't be read, what is wrong with it."""
    if record_name(path) != str(path):
        what = f"{record_name(path)}: its name is not valid UTF-8. Rename it."
        return VideoFailure(file=record_name(path), sha256=digest(path), error=what)
    flow = None if job.flow is None else functools.partial(_network, job.flow)
    try:
        measured = measure_video(path, job.options, flow)
        if job.overlays is not None:
            rate = min(measured.score.playback_fps or measured.score.fps, FILM_FPS)
            write_video(overlay_path(job.overlays, path), overlay(measured), rate, lossless=False)
    except NewtonError as error:
        return VideoFailure(file=str(path), sha256=digest(path), error=str(error))
    return measured.score


@functools.lru_cache(maxsize=1)
def _network(config: FlowConfig) -> RaftFlow:
    """Loaded once in each process, when it is first needed."""
    return load_flow(config)


def _scored(files: Sequence[Path], job: Job, workers: int) -> Iterator[Record]:
    """A record for each file, as they are done; in this process for no workers."""
    if not workers:
        yield from (score_file(job, file) for file in files)
        return
    for file, record in isolated(functools.partial(score_file, job), files, workers, seconds=job.seconds):
        if isinstance(record, Lost):
            again = "Score it alone to see whether it is the file; encoding it again often helps."
            record = VideoFailure(
                file=record_name(file),
                sha256=digest(file),
                reasons=["scoring it failed"],
                error=f"{record_name(file)}: {record.why}. {again}",
            )
        yield record


def score_files(files: Sequence[Path], job: Job, out: Path | None, shard: Shard, workers: int) -> list[Record]:
    """Score this shard's videos and keep each record in `out` as soon as it is there.

    Returns:
        records of all files that have one: with `out` also those of earlier runs and of other shards.
    """
    store = None if out is None else ScoreStore(out, _settings(job), shard)
    mine = shard.of(files)
    records: dict[str, Record] = {} if store is None else store.records()
    done = unchanged(mine, records)
    missing = [file for file in mine if file not in done]
    bar = tqdm(desc="score", unit="video", total=len(mine), initial=len(done), disable=len(missing) < 2)
    for record in _scored(missing, job, workers):
        records[record.file] = record
        if store is not None:
            store.add(record)
        bar.update()
    bar.close()
    if store is not None:
        store.finish(files)
    names = [record_name(file) for file in files]
    return [records[name] for name in names if name in records]


def _settings(job: Job) -> dict[str, object]:
    options = {name: value for name, value in vars(job.options).items() if value is not None}
    return {**options, "flow": None if job.flow is None else job.flow.model_dump(mode="json")}


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files as given, folders searched for videos; each file once.

    Raises:
        InputError: a folder without any video, with nothing else to score. Beside others it stands in the result and
            becomes an error there.
    """
    files: list[Path] = []
    for path in paths:
        found = path.rglob("*") if path.is_dir() else ()
        inside = sorted(file for file in found if file.suffix.lower() in SUFFIXES and not file.is_dir())
        if path.is_dir() and not inside and len(paths) == 1:
            raise InputError("no video in this folder", where=path, fix=f"Known are {', '.join(sorted(SUFFIXES))}.")
        files += inside or [path]
    return list(dict.fromkeys(files))


# ---- terminal -------------------------------------------------------------------------------------------------------


def table(records: Sequence[Record]) -> Table:
    """One row for each video: acceleration and residual in H/s^2, 1 - cos of the look, log of the area ratio."""
    result = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    heads = ("video", "verdict", "score", "frames", "|a|", "residual", "mass", "area", "sure")
    for head in heads:
        result.add_column(head, justify="right" if head in heads[2:] else "left", overflow="fold")
    for record in records:
        mark = {"lawful": "green", "unlawful": "red"}.get(record.verdict, "dim")
        cells = [f"[{mark}]{record.verdict.replace('_', ' ')}", _text(record.score)]
        if isinstance(record, VideoScore):
            cells += [
                "-" if record.window is None else f"{record.window[0]}-{record.window[1]}",
                _text(record.acceleration_magnitude),
                _text(record.kinematic_residual),
                _text(record.mass),
                _text(record.area_change, "{:+.2f}"),
                f"{record.confidence:.0%}",
            ]
        result.add_row(escape(Path(record.file).name), *cells)
    return result


def _text(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def _say(records: Sequence[Record], console: Console) -> None:
    """The table, and under it each verdict with its reasons; what failed goes to the error stream."""
    console.print(table(records))
    for record in records:
        name = Path(record.file).name
        if isinstance(record, VideoFailure):
            print(f"error: {record.error}", file=sys.stderr)
            continue
        doubts = [doubt for doubt in record.doubts if doubt not in record.reasons]
        more = f" ({'; '.join(doubts)})" if doubts else ""
        verdict = record.verdict.replace("_", " ")
        console.print(f"{name}: {verdict}, {'; '.join(record.reasons)}{more}", markup=False)


# ---- command --------------------------------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="newtonrewards score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: newtonrewards score clips/ more.mp4 --motion fall --out runs/scores",
    )
    p.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="video files, or folders searched for them")
    p.add_argument("--motion", choices=get_args(Motion), default="auto",
                   help="what the videos show: a fall is also asked to go straight down, a throw to be pulled down, a "
                        "ramp to be straight (default auto: any constant acceleration)")  # fmt: skip
    scale = p.add_mutually_exclusive_group()
    scale.add_argument("--metres-per-height", type=_positive, metavar="M",
                       help="metres in one frame height at the object's distance: the size of g is judged as well, for "
                            "falls, throws and ramps")  # fmt: skip
    scale.add_argument("--object-metres", type=_positive, metavar="M",
                       help="the same from the width of the object: the diameter of a ball (tennis .067)")  # fmt: skip
    where = p.add_mutually_exclusive_group()
    where.add_argument("--masks", type=Path, metavar="DIR",
                       help="the object, if known: NAME.npz (`masks`, T x H x W) for each video NAME.*")  # fmt: skip
    where.add_argument("--tracks", type=Path, metavar="CSV",
                       help="its centres: columns frame, x_px, y_px, area_px, and file for several videos")  # fmt: skip
    p.add_argument("--reference", type=Path, metavar="DIR",
                   help="videos of the same names to compare with, before and after: paired differences")  # fmt: skip
    p.add_argument("--out", type=Path, metavar="DIR", help="write scores.jsonl, scores.csv and report.html here")
    p.add_argument("--no-report", action="store_true", help="no report and no films, which take most of the disk")
    p.add_argument("--fps", type=float, help="resample to so many frames per second of physical time")
    p.add_argument("--playback-fps", "--capture-fps", dest="capture_fps", type=float, metavar="FPS",
                   help="frames per second that play the video at the speed of life: for slow motion the rate at "
                        "which it was taken (default: the file's)")  # fmt: skip
    p.add_argument("--num-frames", type=int, help="look at the first so many frames only")
    p.add_argument("--flow", default="embedded", choices=("embedded", "raft_small", "raft_large", "none"),
                   help="second instrument (default embedded; none: silhouettes alone, faster)")  # fmt: skip
    p.add_argument("--flow-weights", type=Path, help="weights file, for raft_small and raft_large")
    p.add_argument("--segmenter", choices=("none", "sam2"), default="none",
                   help="sam2: SAM 2, shown the object that was found, masks it as well; the masks under which it "
                        "follows a law for longest count (default none)")  # fmt: skip
    p.add_argument("--segmenter-weights", metavar="DIR",
                   help="for sam2: folder of a SAM 2 video model of transformers, or its name on the hub")  # fmt: skip
    add_shard_option(p, "video")
    p.add_argument("--workers", type=_count, default=os.cpu_count() or 1,
                   help="processes (default: one for each core); one that crashes costs its video only. 0: all in this "
                        "process")  # fmt: skip
    p.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="S",
                   help=f"give up a video that takes longer, with an error in its record (default {TIME_LIMIT:g} s; "
                        "needs --workers)")  # fmt: skip
    return p


def _segmenter(a: argparse.Namespace) -> str | None:
    """The segmenter's weights, loaded once to be sure of them before the first video.

    Raises:
        InputError, MissingExtra, CheckpointError: options that don't go together, or weights that can't be used.
    """
    if a.segmenter == "none":
        if a.segmenter_weights is not None:
            raise InputError("weights of no segmenter", where="--segmenter-weights", fix="Add --segmenter sam2.")
        return None
    if a.masks is not None or a.tracks is not None:
        raise InputError(
            "the object is known already", where="--segmenter", fix="Leave it, or --masks or --tracks, out."
        )
    if a.segmenter_weights is None:
        fix = "Give --segmenter-weights: a folder or hub name, such as facebook/sam2.1-hiera-tiny."
        raise MissingExtra("SAM 2 has no weights here", where="--segmenter", fix=fix)
    segmenter(a.segmenter_weights)
    return str(a.segmenter_weights)


def _options(a: argparse.Namespace) -> Options:
    """How the videos are read and judged.

    Raises:
        InputError: a scale that nothing tells, and see `_segmenter`.
    """
    if a.tracks is not None and a.object_metres is not None:
        fix = "Give --metres-per-height instead."
        raise InputError("a track doesn't show how wide the object is", where="--object-metres", fix=fix)
    asked = {name: getattr(a, name) for name in Options.__dataclass_fields__ if name != "segmenter"}
    return Options(**asked, segmenter=_segmenter(a))


def main(argv: Sequence[str] | None = None) -> int:
    """0: every video was scored; 1: some files couldn't be, the others are."""
    tqdm.monitor_interval = 0  # no thread beside this one, so that workers can be forks
    a = parser().parse_args(argv)
    shard = of_this_process(a.shard)
    if shard.count > 1 and a.out is None:
        raise InputError("parts of the work need a place to meet", where="--shard", fix="Give --out.")
    flow = None if a.flow == "none" else FlowConfig(network=a.flow, weights=a.flow_weights)
    options = _options(a)
    films = None if a.no_report or a.out is None else a.out
    if films is not None:
        output_folder(films / OVERLAYS)
    files = files_of(a.paths)
    records = score_files(files, Job(options, flow, films, a.time_limit), a.out, shard, a.workers)
    differences: list[Difference] = []
    whole = len(records) == len(files)
    if a.reference is not None and whole:
        into = None if a.out is None else a.out / "reference"
        others = score_files(files_of([a.reference]), Job(options, flow, None, a.time_limit), into, Shard(), a.workers)
        differences = compare.compare(compare.by_name(others), compare.by_name(records))
    console = Console()
    _say(records, console)
    if differences:
        console.print(compare.table(differences))
    if a.out is not None and whole:
        if differences:
            write_json(a.out / "comparison.json", [one.model_dump(mode="json") for one in differences])
        wrote = [a.out / "scores.jsonl", a.out / "scores.csv"]
        wrote += [] if films is None else [write_score_report(a.out, records, differences)]
        console.print(", ".join(map(str, wrote)), soft_wrap=True)
    failed = sum(isinstance(record, VideoFailure) for record in records)
    if failed:
        print(f"{failed} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
