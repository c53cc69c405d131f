"""docs/metrics.md explains every number that the program writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from newtonrewards.eval.metrics import METRICS
from newtonrewards.eval.video_score import VideoScore
from newtonrewards.rewards.terms import TERMS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
EXPLAINED = {
    name for row in re.findall(r"^\| ([^|]+) \|", PAGE, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
}
EXPLAINED |= set(re.findall(r"`(coverage|reasons|doubts)`", PAGE))
# Fields that say which file, how it was read, and why; not numbers.
NO_NUMBERS = {"schema_version", "kind", "source", "path"}


@pytest.mark.parametrize("name", [*METRICS, *TERMS, *sorted(set(VideoScore.model_fields) - NO_NUMBERS)])
def test_it_is_explained(name: str) -> None:
    assert name in EXPLAINED


@pytest.mark.parametrize("name", METRICS)
def test_unit_and_direction_are_those_of_the_code(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    unit, direction = row.split("|")[2].strip().rsplit(", ", 1)
    assert direction == METRICS[name].direction
    assert unit == (METRICS[name].unit or unit)
