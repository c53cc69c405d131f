"""The summary of an evaluation as a table for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from newtonrewards.eval.results import ALL, OOD, TRUTH, Summary


def table(summary: Summary) -> Table:
    """Means of all motions together in and out of distribution, and under them the paired changes in percent."""
    result = Table(
        title="all motions together; changes are paired, with 95 % intervals over clips"
        + (" and runs" if any(arm.runs > 1 for arm in summary.arms) else ""),
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    result.add_column("arm", no_wrap=True)
    shown = [name for name in summary.headline if name != "presence"]  # five fit a terminal of 80 columns
    for name in shown:
        info = summary.metrics[name]
        arrow = {"lower": "↓", "higher": "↑", "one": "→1"}.get(info.direction, "")
        result.add_column(f"{name} {arrow}\n{info.unit}", justify="right")
    for shift, title in (("id", "in distribution"), (OOD, "out of distribution")):
        if not any(cell.shift == shift for cell in summary.cells):
            continue
        result.add_row(f"[bold]{title}")
        for arm in summary.arms:
            name = "truth (floor)" if arm.name == TRUTH else arm.name
            result.add_row(name, *(_mean(summary, arm.name, metric, shift) for metric in shown))
            for baseline in dict.fromkeys(change.baseline for change in summary.changes if change.arm == arm.name):
                cells = [_change(summary, arm.name, baseline, metric, shift) for metric in shown]
                result.add_row(f"[dim]  vs {baseline}", *cells)
        result.add_section()
    return result


def _mean(summary: Summary, arm: str, metric: str, shift: str) -> str:
    number = summary.cell(arm, metric, ALL, shift)
    return "-" if number is None or number.value is None else f"{number.value:.4f}"[:6]


def _change(summary: Summary, arm: str, baseline: str, metric: str, shift: str) -> str:
    change = summary.change(arm, baseline, metric, ALL, shift)
    if change is None or change.number.value is None:
        return "-"
    colour = {"better": "green", "worse": "red"}.get(change.verdict, "dim")
    number = change.number
    bounds = "" if number.low is None or number.high is None else f"\n\\[{number.low:+.0f},{number.high:+.0f}]"
    return f"[{colour}]{number.value:+.1f} %{bounds}"
