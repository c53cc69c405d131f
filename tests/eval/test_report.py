"""The page stands alone, shows what the JSON says, and turns what is missing into sentences."""

from __future__ import annotations

import json
import re
import shutil
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import pytest

from newtonrewards.core.errors import run_command
from newtonrewards.eval import evaluate, report
from newtonrewards.eval.plots import Axis, Bar, Chart, Series, interval_chart, line_chart, round_ticks, tick_text
from newtonrewards.eval.results import ALL, OOD, Change, Number, Summary, read_summary
from newtonrewards.eval.wording import headline, label, percent, side_effects, statements

LOG = [
    {"step": k, "stage": "reward", "loss": 1 / k, "raw/mass/paired": 0.1 / k, "sentinel/presence": 1.0}
    for k in (1, 2, 3)
]


@pytest.fixture(scope="module")
def results(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    arms = [part for name in ("fine_tuned", "post_trained") for part in ("--arm", f"{name}={world / name}")]
    assert evaluate.main(["--truth", str(world / "truth"), *arms, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    out = folder / "report.html"
    assert report.main(["--summary", str(results), "--training", f"a<b={folder / 'run'}", "--out", str(out)]) == 0
    return out.read_text()


class Links(HTMLParser):
    """Every address in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "poster") and value]


def test_it_needs_no_other_file(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith(("#", "data:video/mp4;base64,")) for link in links.found)
    assert "<script" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_it_shows_films_charts_and_curves(page: str) -> None:
    assert page.count("<video ") == 10  # each motion, in and out of distribution
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) > 30
    for svg in svgs:
        drawn = xml.dom.minidom.parseString(svg)
        assert drawn.getElementsByTagName("path") or drawn.getElementsByTagName("circle"), "an empty plot"
    for words in ("raw/mass/paired", "sentinel/presence", "Free fall", "out of distribution (friction)"):
        assert words in page


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "a&lt;b" in page
    assert "a<b" not in page


def test_numbers_are_those_of_the_summary(page: str, results: Path) -> None:
    summary = read_summary(results)
    number = summary.cell("post_trained", "rmse_a", ALL, "id")
    assert number is not None
    assert number.value is not None
    assert f"{number.value:.2f}" in page
    assert headline(summary) in page.replace("&#39;", "'")


def test_missing_things_become_sentences(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(results, tmp_path / "moved")  # the clips, found by relative paths, stay behind
    out = tmp_path / "report.html"
    assert report.main(["--summary", str(tmp_path / "moved"), "--out", str(out)]) == 1
    page = out.read_text()
    assert "No training log was given" in page
    assert page.count("No film") == 10
    assert "can't be shown" in capsys.readouterr().out


def test_wrong_arguments(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "r.html")
    assert run_command(report.main, ["--summary", str(tmp_path), "--out", out]) == 2
    assert "evaluate" in capsys.readouterr().err
    assert run_command(report.main, ["--summary", str(results), "--training", str(tmp_path), "--out", out]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


# ---- words ----------------------------------------------------------------------------------------------------------


def with_changes(summary: Summary, bounds: dict[str, tuple[float, float]], verdicts: dict[str, str]) -> Summary:
    """A summary in which the last arm changed against `fine_tuned` as given, alike in and out of distribution."""
    changes = [
        Change(
            arm="post_trained", baseline="fine_tuned", metric=metric, primitive=ALL, shift=shift,
            number=Number(value=sum(ends) / 2, low=ends[0], high=ends[1], n=9, n_missing=0),
            verdict=verdicts[metric],  # type: ignore[arg-type]
        )
        for metric, ends in bounds.items()
        for shift in ("id", OOD)
    ]  # fmt: skip
    return summary.model_copy(update={"changes": changes})


def test_good_news_bad_news_and_no_news(results: Path) -> None:
    summary = read_summary(results)
    names = ("rmse_v", "rmse_a", "l2", "iou")
    good = with_changes(summary, dict.fromkeys(names, (-20.0, -10.0)), dict.fromkeys(names, "better"))
    assert "closer to the truth than fine-tuned, on all 4" in headline(good)
    assert "velocity error fell by 15.0 % [−20, −10]" in statements(good)[0]
    bad = with_changes(summary, dict.fromkeys(names, (10.0, 20.0)), dict.fromkeys(names, "worse"))
    assert "further from the truth" in headline(bad)
    assert "rose by 15.0 %" in statements(bad)[0]
    assert side_effects(bad)[0].startswith("It had a price: L2 rose by 15.0 %")
    unclear = with_changes(summary, dict.fromkeys(names, (-5.0, 6.0)), dict.fromkeys(names, "unclear"))
    assert "no differently" in headline(unclear)
    assert "unclear]" in statements(unclear)[0]
    mixed = with_changes(
        summary, dict.fromkeys(names, (-5.0, -1.0)), {**dict.fromkeys(names, "better"), "rmse_a": "worse"}
    )
    assert "better on 2 and worse on 2 of 4" in headline(mixed)


def test_labels_and_percent() -> None:
    assert label("more_fine_tuning") == "more fine-tuning"
    assert percent(Number(value=-3.21, low=-5.0, high=1.0, n=3, n_missing=0)) == "−3.2 % [−5.0, +1.0]"
    assert percent(Number(value=-3.21, low=None, high=None, n=2, n_missing=0)) == "−3.2 %"


# ---- charts ---------------------------------------------------------------------------------------------------------


def test_ticks_are_round_and_inside() -> None:
    assert round_ticks(0, 1) == pytest.approx([0, 0.5, 1.0])
    assert round_ticks(-0.013, 0.041) == pytest.approx([0, 0.02, 0.04])
    assert [tick_text(x, [0, 0.02, 0.04]) for x in (0, 0.02, 0.04)] == ["0", "0.02", "0.04"]


def test_lines_break_at_gaps_and_stay_inside() -> None:
    chart = Chart("t", "x", "y", [Series("a", "l", [0.0, 1.0, 2.0, 3.0], [1.0, None, 3.0, 2.0])])
    path = re.findall(r'd="([^"]+)"', line_chart(chart))[0]
    assert path.count("M") == 2
    for x, y in re.findall(r"([\d.]+) ([\d.]+)", path):
        assert 0 <= float(x) <= 340
        assert 0 <= float(y) <= 210


def test_a_constant_and_a_single_point_can_be_drawn() -> None:
    for values in ([0.0, 0.0], [5.0]):
        assert "<path" in line_chart(
            Chart("t", "x", "y", [Series("a", "l", [float(i) for i in range(len(values))], values)])
        )


def test_intervals_hold_their_ends() -> None:
    svg = interval_chart("t", [Bar("a", "good", -10.0, -400.0, 300.0, "n"), Bar("b", "open", 1.0, None, None, "n")])
    assert svg.count("<circle") == 2
    assert svg.count("whisker") == 1
    ends = [float(x) for x in re.findall(r'whisker good" x1="([\d.]+)" x2="([\d.]+)"', svg)[0]]
    assert 152 <= ends[0] < ends[1] <= 560 - 160


def test_axis_maps_both_ends() -> None:
    axis = Axis.around([1.0, 3.0], 10, 50, tight=True)
    assert (axis(1.0), axis(3.0)) == (10, 50)
