"""`newtonrewards report`: one self-contained HTML file from the results of an evaluation and the logs of its training.

It draws what the JSON says and computes nothing: every number on the page stands in `summary.json`, `scores.jsonl` or
a `metrics.jsonl`. What isn't there becomes a sentence and never an empty plot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError, NewtonError, run_command
from newtonrewards.core.recipe import Config, validate
from newtonrewards.core.run import output_folder, read_jsonl, write_atomic
from newtonrewards.core.video import read_clip
from newtonrewards.eval.film import Tile, data_uri, film
from newtonrewards.eval.page import page_environment
from newtonrewards.eval.plots import Bar, Chart, Series, has_values, interval_chart, line_chart
from newtonrewards.eval.results import ALL, OOD, TRUTH, Number, Path2D, Score, Summary, read_scores, read_summary
from newtonrewards.eval.wording import headline, label, percent, side_effects, statements

SHIFTS = {"id": "in distribution", OOD: "out of distribution"}
MOTIONS = {
    "free_fall": ("Free fall", "let go at rest; straight down with constant acceleration g"),
    "horizontal_throw": ("Horizontal throw", "thrown level; constant speed sideways, falling as if let go"),
    "parabolic_throw": ("Parabolic throw", "thrown upwards at an angle; up, over and down again"),
    "ramp_down": ("Sliding down a ramp", "gravity against friction; constant acceleration along the slope"),
    "ramp_up": ("Sliding up a ramp", "slows down until it turns back or stays; only the way up is judged"),
}
# Colours (CSS classes) in the order of the arms; the last arm always has its own.
COLOURS = ("a", "b", "c", "e", "f")
LAST = "d"
# Lines with more points than this are thinned for drawing.
POINTS = 400


@dataclass(frozen=True)
class Training:
    """Rows of one `metrics.jsonl`."""

    name: str
    rows: Sequence[Mapping[str, Any]]


class Compute(Config):
    """What one arm cost: means over its runs.

    Attributes:
        name: of the arm. runs: how many.
        steps: training steps. training_seconds: of them, wall-clock.
        training_processor_seconds: of the first process's processors, which other work on the machine changes little.
        generation_seconds, generation_processor_seconds: of all test clips.
    """

    name: str
    runs: int
    steps: int
    training_seconds: float
    training_processor_seconds: float
    generation_seconds: float
    generation_processor_seconds: float


def write_report(
    summary_folder: Path,
    out: Path,
    training: Sequence[Training] = (),
    title: str | None = None,
    compute: Sequence[Compute] = (),
) -> list[str]:
    """Write the page.

    Args:
        summary_folder: folder with `summary.json` and `scores.jsonl`; clips are found relative to it.
        out: the HTML file.
        training: runs whose curves are shown.
        title: of the page.
        compute: what each arm cost.
    Returns:
        What could not be shown, one sentence each.
    Raises:
        InputError: no results there, or the page can't be written.
    """
    summary = read_summary(summary_folder)
    scores = [score for score in read_scores(summary_folder) if score.run == 0]  # films and paths show the first run
    output_folder(out.parent)
    arms = [arm.name for arm in summary.arms]
    css = _colours(arms)
    missing: list[str] = []
    films = dict(_films(summary_folder, summary, scores, missing))
    environment = page_environment()
    environment.filters |= {"label": label, "value": _value, "percent": percent, "pretty": _pretty}
    page = environment.get_template("report.html.j2").render(
        title=title or "Do physics rewards make generated motion more physical?",
        summary=summary,
        headline=headline(summary),
        statements=statements(summary),
        side_effects=side_effects(summary),
        shifts={shift: name for shift, name in SHIFTS.items() if any(cell.shift == shift for cell in summary.cells)},
        arms=arms,
        css=css,
        intervals=_intervals(summary),
        motions=[_motion(summary, scores, films, css, name) for name in _primitives(summary)],
        training=list(_curves(training)),
        runs=[run.name for run in training],
        compute=list(compute),
        missing=missing,
        command=_command(summary),
    )
    write_atomic(out, page)
    return missing


# ---- tables and text ------------------------------------------------------------------------------------------------


def _colours(arms: Sequence[str]) -> dict[str, str]:
    named = [arm for arm in arms if arm != TRUTH]
    css = {arm: COLOURS[place % len(COLOURS)] for place, arm in enumerate(named[:-1])}
    return css | dict.fromkeys(named[-1:], LAST) | {TRUTH: TRUTH}


def _value(number: Number | float | None) -> str:
    """Four decimals for small numbers, two for others, `–` for none."""
    value = number.value if isinstance(number, Number) else number
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)


def _primitives(summary: Summary) -> list[str]:
    known = {cell.primitive for cell in summary.cells} - {ALL}
    return [name for name in MOTIONS if name in known] + sorted(known - set(MOTIONS))


def _command(summary: Summary) -> str:
    return str(summary.provenance.get("command", ""))


# ---- charts ---------------------------------------------------------------------------------------------------------


def _intervals(summary: Summary) -> list[dict[str, Any]]:
    """For the last arm: one chart for each baseline, newest first."""
    last = summary.arms[-1].name
    baselines = list(dict.fromkeys(change.baseline for change in summary.changes if change.arm == last))
    charts = []
    for baseline in reversed(baselines):
        bars = [
            bar
            for metric in summary.headline
            if summary.metrics[metric].direction != "one" and metric != "presence"
            for shift in SHIFTS
            if (bar := _bar(summary, last, baseline, metric, shift)) is not None
        ]
        if bars:
            title = f"Change of {label(last)} against {label(baseline)}"
            charts.append({"title": title, "svg": Markup(interval_chart(title, bars))})
    return charts


def _bar(summary: Summary, arm: str, baseline: str, metric: str, shift: str) -> Bar | None:
    change = summary.change(arm, baseline, metric, ALL, shift)
    if change is None or change.number.value is None:
        return None
    css = {"better": "good", "worse": "bad"}.get(change.verdict, "open")
    text = f"{summary.metrics[metric].label}, {'ID' if shift == 'id' else 'OOD'}"
    return Bar(text, css, change.number.value, change.number.low, change.number.high, percent(change.number))


def _motion(
    summary: Summary, scores: Sequence[Score], films: Mapping[str, str], css: Mapping[str, str], primitive: str
) -> dict[str, Any]:
    """Name, table and examples of one motion."""
    name, says = MOTIONS.get(primitive, (label(primitive), ""))
    examples = []
    for clip in summary.examples:
        own = [score for score in scores if score.clip == clip]
        if own and own[0].primitive == primitive:
            tracks = [Markup(line_chart(chart)) for chart in _track_charts(own, css)]
            examples.append({"score": own[0], "film": films.get(clip), "charts": tracks, "rows": own})
    return {"key": primitive, "name": name, "says": says, "examples": examples}


def _track_charts(scores: Sequence[Score], css: Mapping[str, str]) -> Iterator[Chart]:
    """Position and speed over time: dots are measured, lines are the fitted constant acceleration."""
    truth = next((score for score in scores if score.arm == TRUTH), scores[0])
    seconds = [t for t, valid in zip(truth.track.path.seconds, truth.track.valid, strict=True) if valid]
    shade = (seconds[0], seconds[-1]) if seconds else None
    for key, name, down in (
        ("x", "to the right (H)", False),
        ("y", "downwards (H)", True),
        ("speed", "speed (H/s)", False),
    ):
        series = [line for score in scores for line in _track_series(score, key, css[score.arm])]
        if has_values(series):
            title = f"{name} over time, {truth.caption}"
            yield Chart(title, "physical time (s)", name, series, shade=shade, down=down, zero=key == "speed")


def _track_series(score: Score, key: str, css: str) -> Iterator[Series]:
    def column(path: Path2D) -> Sequence[float | None]:
        return {"x": path.x, "y": path.y, "speed": path.speed}[key]

    if score.track.fit is not None:
        fit = score.track.fit
        yield Series(css, f"{label(score.arm)}, fitted constant acceleration", fit.seconds, column(fit))
    path = score.track.path
    yield Series(css, f"{label(score.arm)}, measured", path.seconds, column(path), dots=True)


CURVES = {
    "loss": ("Loss", "What the optimiser minimises. Its size means little across stages."),
    "flow_matching": ("Flow matching", "The supervised loss; in the reward stage it is the anchor."),
    "reward": ("Reward", "Sum of the weighted terms; higher is better."),
    "raw": (
        "Penalties of the reward",
        "Each term in its own unit; lower is more physical. Black: what perfect clips get, the noise of the networks.",
    ),
    "sentinel": ("Sentinels", "Alarms against winning by a trick; never trained on."),
    "unmeasured": ("Unmeasured", "Share of clips on which a term could not be measured."),
}


def _curves(training: Sequence[Training]) -> Iterator[dict[str, Any]]:
    """Groups of charts, one chart for each logged number, all runs that have it in the same chart."""
    for group, (name, says) in CURVES.items():
        keys = dict.fromkeys(
            key for run in training for row in run.rows for key in row if key == group or key.startswith(f"{group}/")
        )
        charts = []
        for key in keys:
            series = [line for place, run in enumerate(training) for line in _run_series(run, place, key)]
            if group == "raw":
                floor = [line for run in training[:1] for line in _run_series(run, 0, key.replace("raw", "floor", 1))]
                series += [replace(line, css=TRUTH, label="perfect clips") for line in floor]
            if has_values(series):
                svg = line_chart(Chart(f"{key} over training", "step", "", series))
                charts.append({"name": key, "svg": Markup(svg)})
        if charts:
            yield {"name": name, "says": says, "charts": charts}


def _run_series(run: Training, place: int, key: str) -> Iterator[Series]:
    rows = [row for row in run.rows if isinstance(row.get(key), int | float) and "step" in row]
    rows = rows[:: max(1, len(rows) // POINTS)]
    if rows:
        x, y = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
        yield Series(f"run{place % 4}", label(run.name), x, y, dash=place)


# ---- clips ----------------------------------------------------------------------------------------------------------


def _films(folder: Path, summary: Summary, scores: Sequence[Score], missing: list[str]) -> Iterator[tuple[str, str]]:
    """A film for each example; a clip that can't be read any more is named and left out."""
    for name in summary.examples:
        own = {score.arm: score for score in scores if score.clip == name}
        try:
            tiles = [_tile(folder, own[arm.name], own) for arm in summary.arms if arm.name in own]
            clips = [tile.clip for tile in tiles]
            yield name, data_uri(film(tiles), clips[0].source.playback_fps or clips[0].fps)
        except NewtonError as error:
            missing.append(f"The film of clip {name} can't be shown: {error}")


def _tile(folder: Path, score: Score, own: Mapping[str, Score]) -> Tile:
    clip: Clip = read_clip(folder / score.file)
    truth = own[TRUTH].track.path if TRUTH in own and score.arm != TRUTH else None
    return Tile(clip, score.track.path, truth)


# ---- command --------------------------------------------------------------------------------------------------------


def read_training(text: str) -> Training:
    """A run folder (or its `metrics.jsonl`), optionally with a name: `NAME=FOLDER`.

    Raises:
        InputError: there is no `metrics.jsonl`.
    """
    name, equals, folder = text.rpartition("=")
    path = Path(folder)
    path = path if path.suffix == ".jsonl" else path / "metrics.jsonl"
    if not path.is_file():
        raise InputError("no such training log", where=path, fix="Give the folder of a `newtonrewards train` run.")
    return Training(name if equals else path.parent.name, read_jsonl(path))


def read_compute(path: Path) -> list[Compute]:
    """A JSON list of `Compute`, as `newtonrewards table` writes it.

    Raises:
        InputError, RecipeError: it can't be read, or isn't one.
    """
    try:
        rows = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"can't read the compute of the arms ({error})", where=path) from None
    return [validate(Compute, row, where=str(path)) for row in rows]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="newtonrewards report", description=__doc__)
    p.add_argument("--summary", type=Path, required=True, help="folder that `newtonrewards evaluate --out` wrote")
    p.add_argument("--training", nargs="*", default=[], metavar="[NAME=]RUN",
                   help="run folders of `newtonrewards train` whose curves are shown")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, help="the HTML file to write; it needs no other file")
    p.add_argument("--compute", type=Path, help="JSON list of what each arm cost, as `newtonrewards table` writes it")
    p.add_argument("--title", help="heading of the page")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: the page is whole; 1: it is written, but a clip of it could not be read."""
    a = parser().parse_args(argv)
    missing = write_report(a.summary, a.out, [read_training(text) for text in a.training], a.title,
                           read_compute(a.compute) if a.compute else ())  # fmt: skip
    for sentence in missing:
        print(sentence)
    print(f"{a.out}: {a.out.stat().st_size / 2**20:.1f} MiB, open it in any browser")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
