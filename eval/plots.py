"""Charts of the report as inline SVG: they scale, follow the page's light or dark colours, and need no script.

Lines take the colour of their CSS class `s-NAME` (`report.html.j2` holds the colours, which the colour-blind can tell
apart); each also has its own dashes, so that colour is never alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 10, 34
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3")
# A line with more points than this is too busy for dashes.
DASHED_POINTS = 60


@dataclass(frozen=True)
class Series:
    """One line or one row of dots. `y` is None where there is no value: the line breaks there.

    Attributes:
        css: name of the CSS class `s-CSS` that gives the colour.
        label: shown when the mouse rests on the line.
        dots: draw dots instead of a line.
        dash: number in `DASHES`.
    """

    css: str
    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    dots: bool = False
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: what is drawn, for those who can't see it. x_label, y_label: with units.
        shade: part of the x axis that is shaded, or None.
        down: y grows downwards, as in an image.
        zero: the y axis must show zero.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    shade: tuple[float, float] | None = None
    down: bool = False
    zero: bool = False


def has_values(series: Sequence[Series]) -> bool:
    """Whether there is anything to draw: a chart without a value becomes a sentence."""
    return any(value is not None for line in series for value in line.y)


def line_chart(chart: Chart) -> str:
    """SVG text of a chart that `has_values`."""
    points = [(x, y) for line in chart.series for x, y in zip(line.x, line.y, strict=True) if y is not None]
    across = Axis.around([x for x, _ in points], LEFT, WIDTH - RIGHT, tight=True)
    bottom, top = (TOP, HEIGHT - BOTTOM) if chart.down else (HEIGHT - BOTTOM, TOP)
    up = Axis.around([y for _, y in points] + ([0.0] if chart.zero else []), bottom, top)
    parts = [*_frame(chart, across, up), *(_line(line, across, up) for line in chart.series)]
    return _svg(chart.title, WIDTH, HEIGHT, parts)


@dataclass(frozen=True)
class Axis:
    """Numbers to places on the picture, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...] = field(default=())

    @staticmethod
    def around(values: Sequence[float], start: float, end: float, *, tight: bool = False) -> Axis:
        low, high = min(values), max(values)
        spread = high - low or abs(high) or 1.0
        margin = 0.0 if tight and high > low else 0.06 * spread
        low, high = low - margin, high + margin
        return Axis(low, high, start, end, tuple(round_ticks(low, high)))

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """As few digits as tell the ticks apart."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    if abs(value) < step / 1e3:
        return "0"
    if max(abs(tick) for tick in ticks) < 1e-3 or max(abs(tick) for tick in ticks) >= 1e5:
        return f"{value:.1e}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _frame(chart: Chart, across: Axis, up: Axis) -> list[str]:
    parts = []
    if chart.shade is not None:
        a, b = (across(min(max(x, across.low), across.high)) for x in chart.shade)
        parts.append(
            f'<rect class="shade" x="{a:.1f}" y="{TOP}" width="{b - a:.1f}" height="{HEIGHT - BOTTOM - TOP}"/>'
        )
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick_text(tick, up.ticks)}</text>')
    for tick in across.ticks:
        x = across(tick)
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        text = tick_text(tick, across.ticks)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    turn = (TOP + HEIGHT - BOTTOM) / 2
    place = f'x="{-turn}" y="11" transform="rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="name" {place}>{escape(chart.y_label)}</text>')
    return parts


def _line(line: Series, across: Axis, up: Axis) -> str:
    places = [None if y is None else (across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]
    title = f"<title>{escape(line.label)}</title>"
    if line.dots:
        dots = "".join(f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.1"/>' for p in places if p is not None)
        return f'<g class="dots s-{line.css}">{title}{dots}</g>'
    path, pen = "", "M"
    for place in places:
        path += "" if place is None else f"{pen}{place[0]:.1f} {place[1]:.1f}"
        pen = "M" if place is None else "L"
    pattern = DASHES[line.dash % len(DASHES)] if len(places) <= DASHED_POINTS else ""
    dash = f' stroke-dasharray="{pattern}"' if pattern else ""
    return f'<path class="line s-{line.css}" d="{path}"{dash}>{title}</path>'


# ---- intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One row of an interval chart: a dot with its whiskers, in percent.

    Attributes:
        text: to its left. css: `good`, `bad` or `open`, the colour. note: the numbers, to its right.
    """

    text: str
    css: str
    value: float
    low: float | None
    high: float | None
    note: str


ROW, NAMES, NOTES = 22, 152, 160


def interval_chart(title: str, bars: Sequence[Bar], width: int = 560) -> str:
    """Dots with whiskers around a zero line; every bound is inside the picture."""
    ends = [x for bar in bars for x in (bar.value, bar.low, bar.high) if x is not None]
    axis = Axis.around([*ends, 0.0], NAMES, width - NOTES)
    height = ROW * len(bars) + 24
    zero = axis(0.0)
    parts = [f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{height - 20}"/>']
    for tick in axis.ticks:
        text = f"{tick_text(tick, axis.ticks)} %"
        parts.append(f'<text x="{axis(tick):.1f}" y="{height - 5}" text-anchor="middle">{text}</text>')
    for row, bar in enumerate(bars):
        y = ROW * row + 16
        parts.append(f'<text class="name" x="{NAMES - 12}" y="{y + 4}" text-anchor="end">{escape(bar.text)}</text>')
        if bar.low is not None and bar.high is not None:
            a, b = axis(bar.low), axis(bar.high)
            parts.append(f'<line class="whisker {bar.css}" x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {bar.css}" cx="{axis(bar.value):.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{width - NOTES + 12}" y="{y + 4}">{escape(bar.note)}</text>')
    return _svg(title, width, height, parts)


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"
