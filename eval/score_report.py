"""The page of scored videos: a table that can be sorted, and for each video what was measured, drawn into it.

Films lie beside the page in `overlays/`; it works from the file system, without a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from newtonrewards.core.run import write_atomic
from newtonrewards.eval.compare import Difference
from newtonrewards.eval.page import page_environment
from newtonrewards.eval.plots import Chart, Series, has_values, line_chart
from newtonrewards.eval.score_store import Record
from newtonrewards.eval.video_score import VideoScore

OVERLAYS = "overlays"
# So many videos are shown with film and charts; all stand in the table.
SHOWN = 200
WORDS = {"lawful": "lawful", "unlawful": "unlawful", "cannot_tell": "cannot tell"}


def overlay_path(folder: Path, file: Path) -> Path:
    """Where the film of a video lies: its name, and enough of a hash of its path to tell namesakes apart."""
    mark = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    return folder / OVERLAYS / f"{file.stem[:60]}.{mark}.mp4"


def write_score_report(
    folder: Path, records: Sequence[Record], differences: Sequence[Difference] = (), title: str = "Scored videos"
) -> Path:
    """Write `report.html` of a folder of scores.

    Raises:
        OSError: it can't be written.
    """
    environment = page_environment()
    environment.filters["number"] = _number
    counts = {word: sum(record.verdict == verdict for record in records) for verdict, word in WORDS.items()}
    page = environment.get_template("score_report.html.j2").render(
        title=title,
        rows=[_row(folder, number, record) for number, record in enumerate(records)],
        counts=counts,
        shown=min(SHOWN, len(records)),
        differences=differences,
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def _number(value: float | None, digits: int = 2) -> str:
    """Rounded; without a minus before zero."""
    text = "–" if value is None else f"{value:.{digits}f}"
    return text.removeprefix("-") if value is not None and float(text) == 0 else text


def _row(folder: Path, number: int, record: Record) -> dict[str, Any]:
    scored = isinstance(record, VideoScore)
    film = overlay_path(folder, Path(record.file))
    drawn = scored and number < SHOWN
    return {
        "number": number,
        "name": Path(record.file).name,
        "record": record,
        "scored": scored,
        "word": WORDS[record.verdict],
        "film": quote(film.relative_to(folder).as_posix()) if drawn and film.is_file() else None,
        "charts": [Markup(line_chart(chart)) for chart in charts(record)] if drawn else [],  # type: ignore[arg-type]
    }


def charts(score: VideoScore) -> Iterator[Chart]:
    """Position, velocity and acceleration over time: dots are measured, lines are the fitted constant acceleration."""
    path, window = score.path, score.window_inside
    seconds = np.array(path.seconds)
    shade = None if window is None else (float(seconds[window[0]]), float(seconds[window[1]]))
    half = 0.5 / score.fps
    rows: list[tuple[str, str, Sequence[float | None], float, str | None]] = [
        ("to the right (H)", "a", path.x, 0.0, None),
        ("downwards (H)", "d", path.y, 0.0, None),
        ("velocity to the right (H/s)", "a", path.velocity_x, half, "x"),
        ("velocity downwards (H/s)", "d", path.velocity_y, half, "y"),
        ("acceleration to the right (H/s²)", "a", _slopes(path.velocity_x, score.fps), 2 * half, "ax"),
        ("acceleration downwards (H/s²)", "d", _slopes(path.velocity_y, score.fps), 2 * half, "ay"),
    ]
    for name, css, values, shift, fit in rows:
        dots = Series(css, "measured", (seconds + shift).tolist(), list(values), dots=True)
        series = [dots, *_fitted(score, fit, seconds)]
        if has_values([dots]):
            title = f"{name} over time"
            yield Chart(title, "physical time (s)", name, series, shade=shade, down="downwards (H)" in name)


def _fitted(score: VideoScore, kind: str | None, seconds: np.ndarray) -> Iterator[Series]:
    """The fitted line inside the window; none for positions, whose start the fit doesn't know."""
    window = score.window_inside
    if kind is None or window is None or score.acceleration is None or score.start_velocity is None:
        return
    first, last = window
    inside = seconds[[first, last]]
    start, slope = (getattr(vector, kind[-1]) for vector in (score.start_velocity, score.acceleration))
    values = [slope, slope] if kind.startswith("a") else [start, start + slope * float(inside[1] - inside[0])]
    yield Series("truth", "fitted constant acceleration", inside.tolist(), values)


def _slopes(values: Sequence[float | None], fps: float) -> list[float | None]:
    """Differences of velocities, at the frame between them."""
    pairs = zip(values, [*values[1:], None], strict=True)
    return [None if a is None or b is None else (b - a) * fps for a, b in pairs]
