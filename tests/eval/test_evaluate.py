"""The table tells apart what is known to differ, names what is broken, and comes out the same twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.video import read_clip, write_video
from newtonrewards.eval import evaluate as command
from newtonrewards.eval.results import (
    ALL,
    OOD,
    TRUTH,
    ArmInfo,
    MetricInfo,
    Path2D,
    Score,
    Summary,
    TrackRecord,
    read_scores,
    read_summary,
)
from newtonrewards.eval.summary import pairs_of, summarise, verdict

ARMS = ("base", "fine_tuned", "post_trained")


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    arms = [part for name in ARMS for part in ("--arm", f"{name}={world / name}")]
    return ["--truth", str(world / "truth"), *arms, "--out", str(out), *more]


@pytest.fixture(scope="module")
def results(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert command.main(arguments(world, out)) == 0
    return out


def value(summary: Summary, arm: str, metric: str, shift: str = "id") -> float:
    number = summary.cell(arm, metric, ALL, shift)
    assert number is not None
    assert number.value is not None
    return number.value


@pytest.mark.parametrize("shift", ["id", OOD])
def test_better_arms_score_better_and_the_truth_best(results: Path, shift: str) -> None:
    summary = read_summary(results)
    order = [TRUTH, "post_trained", "fine_tuned", "base"]
    for metric in ("rmse_v", "rmse_a", "l2", "chamfer", "fit_residual"):
        values = [value(summary, arm, metric, shift) for arm in order]
        assert values == sorted(values), metric
    assert value(summary, TRUTH, "iou", shift) > 0.95
    change = summary.change("post_trained", "fine_tuned", "rmse_v", ALL, shift)
    assert change is not None
    assert change.verdict == "better"
    assert change.number.high is not None
    assert change.number.high < 0


def test_every_number_carries_what_it_needs(results: Path) -> None:
    summary = read_summary(results)
    assert set(summary.provenance) >= {"commit", "versions", "command"}
    assert summary.settings["seed"] == 0
    assert summary.arms[1].settings["num_inference_steps"] == 8
    for cell in summary.cells:
        assert summary.metrics[cell.metric].direction in ("lower", "higher", "one")
        assert cell.number.n + cell.number.n_missing > 0
    groups = {(cell.primitive, cell.shift) for cell in summary.cells}
    assert {("ramp_up", "ood_friction"), ("free_fall", "id"), (ALL, ALL), (ALL, "ood_height")} <= groups
    assert len(summary.examples) == 10  # each motion, in and out of distribution
    scores = read_scores(results)
    assert len(scores) == 4 * 20
    assert (results / scores[0].file).is_file()
    assert scores[0].track.fit is not None


def test_same_numbers_twice(results: Path, world: Path, tmp_path: Path) -> None:
    assert command.main(arguments(world, tmp_path)) == 0
    first, second = read_summary(results), read_summary(tmp_path)
    assert first.cells == second.cells
    assert first.changes == second.changes


def test_penalties_of_the_rewards_stand_beside_the_metrics(world: Path, tmp_path: Path) -> None:
    """The shipped flow network sees the wobble; a clip of another length is measured, but not paired."""
    arm = tmp_path / "arm"
    shutil.copytree(world / "base", arm)
    frames = read_clip(arm / "000000.mp4").frames
    write_video(arm / "000000.mp4", torch.cat([frames, frames[-1:]]), 10.0)
    argv = ["--truth", str(world / "truth"), "--arm", f"base={arm}", "--out", str(tmp_path / "out"), "--rewards"]
    assert command.main(argv) == 0
    summary = read_summary(tmp_path / "out")
    for name in ("second_difference", "fit", "acceleration", "velocity"):
        metric = f"reward/kinematic/{name}"
        assert value(summary, TRUTH, metric, ALL) < value(summary, "base", metric, ALL)
    paired = summary.cell(TRUTH, "reward/mass/paired", ALL, ALL)
    assert paired is not None
    assert paired.value == pytest.approx(0, abs=1e-5)
    number = summary.cell("base", "reward/mass/paired", ALL, ALL)
    assert number is not None
    assert (number.n, number.n_missing) == (19, 1)


def test_broken_and_missing_files_are_named_and_the_rest_goes_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = tmp_path / "broken"
    shutil.copytree(world / "base", arm)
    (arm / "000003.mp4").write_text("no video at all")
    (arm / "000004.mp4").write_bytes(b"")
    (arm / "000005.mp4").unlink()
    out = tmp_path / "out"
    assert command.main(["--truth", str(world / "truth"), "--arm", f"a={arm}", "--out", str(out)]) == 1
    told = capsys.readouterr().err
    for name in ("000003", "000004", "000005"):
        assert f"{name}.mp4" in told
    number = read_summary(out).cell("a", "rmse_v", ALL, ALL)
    assert number is not None
    assert (number.n, number.n_missing) == (17, 3)


def test_nothing_to_do_is_an_error(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command(command.main, ["--truth", str(world), "--arm", f"a={world / 'base'}", "--out", str(tmp_path)]) == 2
    )
    assert "index.jsonl" in capsys.readouterr().err
    assert run_command(command.main, arguments(world, tmp_path, "--baseline", "fine_tune")) == 2
    assert "fine_tune" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    arm = f"a={tmp_path / 'empty'}"
    assert (
        run_command(command.main, ["--truth", str(world / "truth"), "--arm", arm, "--out", str(tmp_path / "out")]) == 2
    )
    assert "no such clip" in capsys.readouterr().err


def test_runs_of_an_arm_are_measured_apart_and_must_be_as_many(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = [word for name in "aab" for word in ("--arm", f"{name}={world / 'base'}")]
    everything = ["--truth", str(world / "truth"), *three, "--out", str(tmp_path)]
    assert command.main(everything) == 0
    summary, scores = read_summary(tmp_path), read_scores(tmp_path)
    assert [arm.runs for arm in summary.arms] == [1, 2, 1]
    assert {(score.arm, score.run) for score in scores} == {(TRUTH, 0), ("a", 0), ("a", 1), ("b", 0)}
    twice, once, change = (summary.cell("a", "rmse_v"), summary.cell("b", "rmse_v"), summary.change("b", "a", "rmse_v"))
    assert twice is not None and once is not None and change is not None
    assert twice.value == pytest.approx(once.value) and twice.n == once.n
    assert change.number.value == change.number.low == change.number.high == 0
    more = [word for _ in range(2) for word in ("--arm", f"b={world / 'base'}")]
    assert run_command(command.main, [*everything, *more]) == 2
    assert "different numbers of runs (a 2, b 3)" in capsys.readouterr().err


def test_a_summary_of_another_schema_is_refused(results: Path, tmp_path: Path) -> None:
    content = json.loads((results / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(InputError, match="99"):
        read_summary(tmp_path)
    with pytest.raises(InputError, match="evaluate"):
        read_summary(tmp_path / "nowhere")


def score(arm: str, clip: str, number: float | None) -> Score:
    path = Path2D(seconds=[], x=[], y=[], speed=[])
    return Score(
        arm=arm, clip=clip, primitive="free_fall", shift="id", caption="", fps=20.0, height=8, width=8, file="",
        sha256="", preprocessing=[], values={"m": number},
        track=TrackRecord(path=path, valid=[], fit=None, acceleration=None),
    )  # fmt: skip


def test_pairs_are_made_by_clip_and_missing_ones_counted() -> None:
    rng = np.random.default_rng(0)
    before = rng.lognormal(0, 1, 30)
    scores = [score("a", str(i), float(x)) for i, x in enumerate(before)]
    scores += [score("b", str(i), float(0.9 * x)) for i, x in reversed(list(enumerate(before))) if i > 1]
    info = MetricInfo(label="m", unit="", direction="lower", source="", says="")
    summary = summarise(
        scores,
        clips=[(str(i), "free_fall", "id") for i in range(30)],
        arms=[ArmInfo(name=name, folder="", clips=0, settings={}) for name in "ab"],
        metrics={"m": info}, headline=["m"], pairs=pairs_of("ab"), failures=[], truth="", provenance={}, settings={},
        seed=0,
    )  # fmt: skip
    change = summary.change("b", "a", "m", "free_fall", "id")
    assert change is not None
    assert change.number.value == pytest.approx(-10)
    assert change.number.low == pytest.approx(-10)
    assert change.number.high == pytest.approx(-10)
    assert change.number.n_missing == 2
    assert change.verdict == "better"


def test_verdicts() -> None:
    assert verdict("lower", -5.0, -1.0) == "better"
    assert verdict("lower", 1.0, 5.0) == "worse"
    assert verdict("higher", 1.0, 5.0) == "better"
    assert verdict("higher", -5.0, -1.0) == "worse"
    assert verdict("lower", -5.0, 1.0) == "unclear"
    assert verdict("lower", float("nan"), float("nan")) == "unclear"
    assert verdict("one", 1.0, 5.0) == "changed"


def test_baselines() -> None:
    assert pairs_of(["a", "b", "c"]) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert pairs_of(["a", "b", "c"], ["b"]) == [("c", "b")]
