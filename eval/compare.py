"""Two sets of scored videos with the same names, before and after: paired differences with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from newtonrewards.core.errors import InputError
from newtonrewards.core.recipe import Config
from newtonrewards.eval import stats
from newtonrewards.eval.results import Number, finite
from newtonrewards.eval.score_store import Record
from newtonrewards.eval.summary import number_of
from newtonrewards.eval.video_score import VideoScore

# What is compared, and its unit.
COMPARED = {
    "score": "0 to 1",
    "lawful": "share",
    "kinematic_residual": "H/s²",
    "relative_residual": "of |a|",
    "acceleration_magnitude": "H/s²",
    "start_speed": "H/s",
    "mass": "1 - cos",
    "area_change": "|log|",
    "colour_change": "RGB",
    "flicker": "RGB",
    "presence": "share",
}


class Difference(Config):
    """One number of two sets.

    Attributes:
        name, unit: see `COMPARED`. before, after: means over the videos in which both could be measured.
        change: mean of after - before over them, with its 95 % bootstrap interval.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    change: Number


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    """Records by the stem of their file.

    Raises:
        InputError: two files of the same name, which can't be told apart.
    """
    names = Counter(Path(record.file).stem for record in records)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        fix = "Compare folders in which every name stands once."
        raise InputError(f"{names[twice[0]]} videos are called '{twice[0]}'", where="--reference", fix=fix)
    return {Path(record.file).stem: record for record in records}


def compare(before: Mapping[str, Record], after: Mapping[str, Record], seed: int = 0) -> list[Difference]:
    """Differences over the names that both have.

    Raises:
        InputError: no name in common.
    """
    names = sorted(set(before) & set(after))
    if not names:
        raise InputError("no video has the name of a reference", where="--reference", fix="Name them alike.")
    return [
        _difference(name, unit, _column(before, names, name), _column(after, names, name), seed)
        for name, unit in COMPARED.items()
    ]


def _column(records: Mapping[str, Record], names: Sequence[str], number: str) -> np.ndarray:
    return np.array([_value(records[name], number) for name in names])


def _difference(name: str, unit: str, before: np.ndarray, after: np.ndarray, seed: int) -> Difference:
    both = np.isfinite(before) & np.isfinite(after)
    number = number_of(stats.mean(after - before, seed=seed))
    sides = [finite(float(side[both].mean())) if both.any() else None for side in (before, after)]
    return Difference(name=name, unit=unit, before=sides[0], after=sides[1], change=number)


def _value(record: Record, name: str) -> float:
    if not isinstance(record, VideoScore):
        return float("nan")
    if name == "lawful":
        return float(record.verdict == "lawful")
    value = getattr(record, name)
    return float("nan") if value is None else abs(float(value))


def table(differences: Sequence[Difference]) -> Table:
    """For the terminal."""
    result = Table(title="after - before, paired, with 95 % intervals over videos", box=box.SIMPLE)
    for head in ("", "unit", "before", "after", "change", "videos"):
        result.add_column(head, justify="left" if head in ("", "unit") else "right")
    for one in differences:
        bounds = "" if one.change.low is None else f" \\[{one.change.low:+.3g}, {one.change.high:+.3g}]"
        change = "-" if one.change.value is None else f"{one.change.value:+.3g}{bounds}"
        sides = ["-" if side is None else f"{side:.3g}" for side in (one.before, one.after)]
        result.add_row(one.name, one.unit, *sides, change, str(one.change.n))
    return result
