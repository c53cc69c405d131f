"""The table with tiny untrained models in the place of the shipped one: every method, two seeds, one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newtonrewards.core.errors import InputError, Interrupted, RecipeError, run_command
from newtonrewards.core.recipe import load
from newtonrewards.core.run import read_jsonl
from newtonrewards.eval.results import ALL, read_scores, read_summary
from newtonrewards.launch import stages, table
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.rewards.reward import RewardConfig
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.recipe import TrainRecipe

RECIPES = table.RECIPES
ARMS = ("base", "sft", "oro_flow", "grpo", "best_of_n", "reward")


@pytest.mark.parametrize("path", sorted((RECIPES / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipe_of_every_method_is_valid(path: Path) -> None:
    if path.stem == "best_of_n":
        load(RewardConfig, path)
    else:
        assert load(TrainRecipe, path).model.lora_rank


@pytest.mark.parametrize("name", ["paper_table", "paper_table_quick"])
def test_arms_of_a_table_share_start_and_data_and_every_file_is_there(name: str) -> None:
    recipe = load(table.TableRecipe, RECIPES / f"{name}.yaml")
    assert tuple(recipe.arms) == ARMS
    trained = [load(TrainRecipe, RECIPES / a.recipe, a.changes) for a in recipe.arms.values() if a.recipe]
    assert len({r.model.model_dump_json() for r in trained}) == len({r.data.model_dump_json() for r in trained}) == 1


def test_a_choice_without_a_reward_and_an_unknown_baseline_are_named(tmp_path: Path) -> None:
    quick = RECIPES / "paper_table_quick.yaml"
    with pytest.raises(RecipeError, match="best_of and reward go together"):
        load(table.TableRecipe, quick, ["arms.base.best_of=3"])
    with pytest.raises(RecipeError, match="unknown baseline 'bass'"):
        load(table.TableRecipe, quick, ["baselines=[bass]"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    simulate(SimulateRecipe(num_clips=8, seed=4, arrays=("masks",)), folder / "clips", workers=1)
    dataset = ClipFolder(folder / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(
        num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
    )
    EmbeddedModel.create(small, codec, seed=1).save(folder / "fine_tuned")
    return folder


@pytest.mark.slow
def test_it_stops_goes_on_skips_what_is_done_and_ends_in_one_report(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "WEIGHTS", weights)
    monkeypatch.setenv("COLUMNS", "200")
    out, run, calls = tmp_path / "table", stages.run_stage, []

    def interrupted(stage: stages.Stage, log: Path) -> dict[str, object]:
        calls.append(stage.title)
        if calls.count("grpo, seed 1: train") == 1 and stage.title == "grpo, seed 1: train":
            raise Interrupted("stopped after step 1", where=out, fix="The same command goes on from there.")
        return run(stage, log)

    monkeypatch.setattr(stages, "run_stage", interrupted)
    arguments = ["--quick", "--out", str(out), "--set", "test_clips=5", "--set", "train_clips=8"]
    assert run_command(table.main, arguments) == 130
    assert run_command(table.main, arguments) == 0
    assert len(calls) == len(set(calls)) + 1 == 2 + 2 * (6 + 4) + 2 + 1
    summary, scores = read_summary(out / "results"), read_scores(out / "results")
    assert {arm.name: arm.runs for arm in summary.arms} == {"truth": 1, **dict.fromkeys(ARMS, 2)}
    cell, change = summary.cell("grpo", "rmse_v"), summary.change("reward", "sft", "rmse_v")
    assert cell is not None and cell.n + cell.n_missing >= 5
    assert change is not None and change.number.n + change.number.n_missing >= 5
    own = [s.values["rmse_v"] for s in scores if s.arm == "sft"]
    mean = summary.cell("sft", "rmse_v", ALL, ALL)
    known = [value for value in own if value is not None]
    assert mean is not None and mean.value == pytest.approx(sum(known) / len(known))
    compute = {row["name"]: row for row in json.loads((out / "compute.json").read_text())}
    assert compute["base"]["training_seconds"] == 0 and compute["grpo"]["training_seconds"] > 0
    assert all(compute[name]["training_processor_seconds"] > 0 for name in ("sft", "oro_flow", "grpo", "reward"))
    assert all(compute[name]["generation_processor_seconds"] > 0 for name in ARMS)
    rows = read_jsonl(out / "seed_1" / "generated" / "best_of_n" / "index.jsonl")
    assert all(len(row["rewards"]) == 2 and row["best_of"] == 2 for row in rows)
    page = (out / "report.html").read_text()
    assert "training steps" in page and "training seeds" in page
    assert "best_of_n: 0 training steps" in capfd.readouterr().out
    assert run_command(table.main, arguments) == 0
    assert len(calls) == len(set(calls)) + 1
    with pytest.raises(InputError, match="another --out, or delete"):
        table.main([*arguments, "--set", "data_seed=1"])


def test_shards_share_the_runs_and_the_last_one_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage is run once, by one shard; those that need all others come last, and again when a seed is added."""
    calls: list[str] = []

    def pretended(stage: stages.Stage, log: Path) -> dict[str, object]:
        calls.append(stage.title)
        stage.result.parent.mkdir(parents=True, exist_ok=True)
        stage.result.touch()
        if stage.command == "train":
            row = {"step": 1, "seconds": 2.0, "processor_seconds": 1.0}
            (stage.result.parent / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return {**stage.row, "code": 0, "seconds": 3.0, "processor_seconds": 1.5}

    def no_clips(seconds: float) -> None:
        raise Interrupted("waits", where=tmp_path, fix="")

    monkeypatch.setattr(stages, "run_stage", pretended)
    monkeypatch.setattr(stages.time, "sleep", no_clips)
    monkeypatch.setattr(table, "read_summary", lambda path: None)
    monkeypatch.setattr(table, "table", lambda summary: "the table")
    arguments = ["--quick", "--out", str(tmp_path)]
    with pytest.raises(Interrupted, match="waits"):
        table.main([*arguments, "--shard", "1/2"])
    assert not calls
    assert table.main([*arguments, "--shard", "0/2"]) == 0
    assert "12 stages of other shards are still to come" in capsys.readouterr().out
    first = set(calls)
    assert table.main([*arguments, "--shard", "1/2"]) == 0
    assert "the table" in capsys.readouterr().out
    assert len(calls) == len(set(calls)) == 2 + 2 * (6 + 4) + 2
    assert calls[-2:] == ["measure against the truth", "write the report"] and not first & set(calls[-2:])
    calls.clear()
    for _ in range(2):
        assert table.main([*arguments, "--set", "seeds=[0,1,7]"]) == 0
    assert len(calls) == 6 + 4 + 2 and sum("seed 7" in title for title in calls) == 6 + 4
    with pytest.raises(InputError, match="another --out, or delete"):
        table.main(arguments)
