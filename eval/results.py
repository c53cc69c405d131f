"""The schema of `scores.jsonl` and `summary.json`: no number without unit, direction, n, interval, version and commit.

`scores.jsonl` holds one row for each clip of each arm, `summary.json` what the tables show. The report draws these two
and computes nothing. A changed meaning raises SCHEMA_VERSION; a changed formula raises `metrics.METRICS_VERSION`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config, validate
from newtonrewards.core.run import jsonable, read_jsonl, write_atomic, write_json

SCHEMA_VERSION = 1
SUMMARY, SCORES = "summary.json", "scores.jsonl"

# Groups of clips that are summed up beside single motions and shifts.
ALL = "all"
OOD = "ood"
TRUTH = "truth"


class Number(Config):
    """A mean or change over clips.

    Attributes:
        value: None if no clip could be measured.
        low, high: bounds of the bootstrap interval; None where there are too few clips.
        n: clips it rests on, whatever the number of runs. n_missing: clips that could not be measured or are
            missing, counted in each run.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_missing: int


class MetricInfo(Config):
    """What a reader needs to judge a metric's values; copied from its definition."""

    label: str
    unit: str
    direction: Literal["lower", "higher", "one", "none"]
    source: str
    says: str


class ArmInfo(Config):
    """One set of generated clips.

    Attributes:
        name: as given on the command line, and `truth` for the tracker's floor.
        folder: relative to the summary; of the first run, where there are several.
        runs: how many folders were given under this name, one for each training seed.
        clips: clips measured. settings: what the generator recorded beside them, by key; keys whose value differs from
            clip to clip are left out.
    """

    name: str
    folder: str
    runs: int = 1
    clips: int
    settings: dict[str, Any]


class Cell(Config):
    """One mean: `primitive` is a motion or `all`; `shift` is `id`, `ood` (all of them), one OOD shift, or `all`."""

    arm: str
    metric: str
    primitive: str
    shift: str
    number: Number


class Change(Config):
    """Paired change of an arm's mean against a baseline's, percent of the baseline's.

    Attributes:
        verdict: `better` or `worse` where the interval lies on one side of zero and the metric has a better side,
            `changed` where it has none, else `unclear`.
    """

    arm: str
    baseline: str
    metric: str
    primitive: str
    shift: str
    number: Number
    verdict: Literal["better", "worse", "changed", "unclear"]


class Failure(Config):
    """A file that could not be measured, and why."""

    arm: str
    clip: str
    reason: str


class Path2D(Config):
    """A path over time in frame heights; None where there is no object."""

    seconds: list[float]
    x: list[float | None]
    y: list[float | None]
    speed: list[float | None]


class TrackRecord(Config):
    """The measured path of a clip and the constant acceleration fitted to it.

    Attributes:
        path: centre (H) and speed (H/s, central differences) in each frame.
        valid: frames inside the truth's valid window.
        fit: the fitted path over the valid frames, None where it couldn't be fitted.
        acceleration: fitted acceleration, H/s^2, x right, y down.
    """

    path: Path2D
    valid: list[bool]
    fit: Path2D | None
    acceleration: tuple[float, float] | None


class Score(Config):
    """One clip of one arm.

    Attributes:
        run: which of the runs of its arm, from 0.
        file: relative to the summary. sha256: of the file. preprocessing: everything done to its pixels.
        values: metric -> number, None where it can't be measured.
    """

    schema_version: Literal[1] = 1
    arm: str
    run: int = 0
    clip: str
    primitive: str
    shift: str
    caption: str
    fps: float
    height: int
    width: int
    file: str
    sha256: str
    preprocessing: list[str]
    values: dict[str, float | None]
    track: TrackRecord


class Summary(Config):
    """Everything that tables and report need beside the clips.

    Attributes:
        provenance: commit, versions, command (`core.run.provenance`).
        settings: seed, resamples and level of the bootstrap, versions of metrics and tracker.
        truth: folder of the true clips, relative to the summary, and how many there are by motion and shift.
        metrics: definitions by name, in table order. headline: those that the first table shows.
        examples: clips that the report shows, chosen by their place in the list and not by their looks.
    """

    schema_version: Literal[1] = 1
    kind: Literal["newtonrewards.summary"] = "newtonrewards.summary"
    provenance: dict[str, Any]
    settings: dict[str, Any]
    truth: str
    counts: dict[str, int]
    arms: list[ArmInfo]
    metrics: dict[str, MetricInfo]
    headline: list[str]
    cells: list[Cell]
    changes: list[Change]
    failures: list[Failure]
    examples: list[str]

    def cell(self, arm: str, metric: str, primitive: str = ALL, shift: str = ALL) -> Number | None:
        """The mean of one group, None where there is no such group."""
        for cell in self.cells:
            if (cell.arm, cell.metric, cell.primitive, cell.shift) == (arm, metric, primitive, shift):
                return cell.number
        return None

    def change(self, arm: str, baseline: str, metric: str, primitive: str = ALL, shift: str = ALL) -> Change | None:
        """The paired change of one group, None where it wasn't compared."""
        key = (arm, baseline, metric, primitive, shift)
        for change in self.changes:
            if (change.arm, change.baseline, change.metric, change.primitive, change.shift) == key:
                return change
        return None


def write_results(folder: Path, summary: Summary, scores: Sequence[Score]) -> None:
    """Write both files, scores first, so that a summary never stands without them."""
    rows = (json.dumps(jsonable(score.model_dump(mode="json")), allow_nan=False) for score in scores)
    write_atomic(folder / SCORES, "".join(row + "\n" for row in rows))
    write_json(folder / SUMMARY, summary.model_dump(mode="json"))


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`.

    Raises:
        InputError: missing, no JSON, or of another schema version.
        RecipeError: it doesn't validate.
    """
    path = folder / SUMMARY
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        fix = "Make it with `newtonrewards evaluate --out`."
        raise InputError(f"can't read the summary ({error.strerror})", where=path, fix=fix) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg}, line {error.lineno})", where=path, fix="Evaluate again.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        fix = "Evaluate again with this version."
        raise InputError(f"schema version {version}, this program reads {SCHEMA_VERSION}", where=path, fix=fix)
    return validate(Summary, content, where=str(path))


def read_scores(folder: Path) -> list[Score]:
    """Read `scores.jsonl`; errors as in `read_summary`."""
    path = folder / SCORES
    try:
        rows = read_jsonl(path)
    except OSError as error:
        fix = "Make it with `newtonrewards evaluate --out`."
        raise InputError(f"can't read the scores ({error.strerror})", where=path, fix=fix) from None
    return [validate(Score, row, where=f"{path}, line {number}") for number, row in enumerate(rows, 1)]


def finite(value: float, digits: int | None = None) -> float | None:
    """NaN and infinity as None, which JSON can hold; optionally rounded."""
    if not math.isfinite(value):
        return None
    return float(value) if digits is None else round(float(value), digits)
