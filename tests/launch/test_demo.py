"""The demo with tiny untrained models in the place of the shipped ones: the path, not the gain."""

from __future__ import annotations

from pathlib import Path

import pytest

from newtonrewards.core.errors import InputError, Interrupted, RecipeError, run_command
from newtonrewards.core.recipe import load
from newtonrewards.core.run import read_jsonl
from newtonrewards.eval.results import read_scores, read_summary
from newtonrewards.launch import demo, stages
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.methods.reward import RewardStage
from newtonrewards.training.methods.sft import SftStage
from newtonrewards.training.recipe import TrainRecipe

RECIPES = demo.RECIPES


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models of the embedded class."""
    folder = tmp_path_factory.mktemp("weights")
    simulate(SimulateRecipe(num_clips=10, seed=4, arrays=("masks",)), folder / "clips", workers=1)
    dataset = ClipFolder(folder / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(
        num_heads=2, head_dim=16, num_layers=2, ffn_dim=32, freq_dim=16, text_dim=16, text_layers=1, text_heads=2
    )
    for seed, name in enumerate(("base", "fine_tuned")):
        EmbeddedModel.create(small, codec, seed=seed).save(folder / name)
    return folder


@pytest.fixture
def small(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", weights)


@pytest.mark.parametrize("name", ["demo", "long", "quick"])
def test_recipes_of_the_demo_are_valid_and_the_arms_start_from_the_same_model(name: str) -> None:
    recipe = load(demo.DemoRecipe, RECIPES / f"{name}.yaml")
    control = load(TrainRecipe, RECIPES / recipe.more_fine_tuning, recipe.overrides.get("more_fine_tuning", ()))
    reward = load(TrainRecipe, RECIPES / recipe.post_trained, recipe.overrides.get("post_trained", ()))
    assert all(isinstance(stage, SftStage) for stage in control.stages)
    assert any(isinstance(stage, RewardStage) for stage in reward.stages)
    assert control.model == reward.model
    assert control.data == reward.data


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((RECIPES / "quick.yaml").read_text().replace("train_clips", "trian_clips"))
    with pytest.raises(RecipeError, match="unknown key 'trian_clips'. Did you mean 'train_clips'"):
        demo.main(["--recipe", str(path)])


def test_a_dry_run_prints_commands_that_the_shell_understands(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--quick", "--dry-run", "--out", str(tmp_path / "a b")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert [line.split()[1] for line in lines] == ["simulate"] * 2 + ["train"] * 2 + ["generate"] * 4 + [
        "evaluate",
        "report",
    ]
    assert all(f"'{tmp_path / 'a b'}" in line for line in lines)
    assert not (tmp_path / "a b").exists()


def test_missing_weights_are_named_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        demo.main(["--quick", "--out", str(tmp_path / "out")])
    assert not any((tmp_path / "out").glob("*/*"))


@pytest.mark.slow
def test_it_stops_goes_on_and_ends_in_a_report(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "the demo"
    arguments = ["--quick", "--out", str(out)]
    run, calls = stages.run_stage, []

    def interrupted(stage: stages.Stage, log: Path) -> dict[str, object]:
        calls.append(stage.title)
        if stage.title == "post-train with the reward" and calls.count(stage.title) == 1:
            raise Interrupted("stopped after step 1", where=out, fix="The same command goes on from there.")
        return run(stage, log)

    monkeypatch.setattr(stages, "run_stage", interrupted)
    assert run_command(demo.main, arguments) == 130
    assert run_command(demo.main, arguments) == 0
    assert len(calls) == len(set(calls)) + 1  # only the stage that was stopped ran again
    said = capfd.readouterr()
    assert "stopped after step 1" in said.err
    assert "stage 4/10: post-train with the reward" in said.err
    for arm in ("base", "fine_tuned", "more_fine_tuning", "post_trained"):
        assert arm in said.out
        assert len(read_jsonl(out / "generated" / arm / "index.jsonl")) == 10
    assert "more_fine_tuning: 2 steps in" in said.out
    assert str(out / "report.html") in said.out.replace("\n", "")
    assert (out / "report.html").stat().st_size > 10_000
    assert run_command(demo.main, arguments) == 0
    assert len(calls) == len(set(calls)) + 1
    with pytest.raises(InputError, match="another --out, or delete"):
        demo.main([*arguments, "--seed", "1"])
    again = tmp_path / "again"
    assert run_command(demo.main, ["--quick", "--out", str(again)]) == 0
    same_twice(out, again)


def same_twice(one: Path, other: Path) -> None:
    """Same seed, same machine: the weights to the bit, and every number of the report."""
    for arm in demo.TRAINED:
        files = [sorted((run / arm / "model").rglob("*.safetensors")) for run in (one, other)]
        assert files[0]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    first, second = read_summary(one / "results"), read_summary(other / "results")
    assert first.cells == second.cells
    assert first.changes == second.changes
    scores = [read_scores(run / "results") for run in (one, other)]
    assert [(s.arm, s.clip, s.sha256, s.values) for s in scores[0]] == [
        (s.arm, s.clip, s.sha256, s.values) for s in scores[1]
    ]


def test_arms_differ_only_by_their_weights(small: None, tmp_path: Path) -> None:
    """Same clips, same noise, same settings: what `generate` is told differs in model and folder alone."""
    recipe = load(demo.DemoRecipe, RECIPES / "demo.yaml")
    made = [stage for stage in demo.plan(recipe, RECIPES, tmp_path, 3) if stage.command == "generate"]
    assert len({stage.argv[stage.argv.index("--clips") :][2:] for stage in made}) == 4
    same = [[w for k, w in enumerate(s.argv) if s.argv[k - 1] not in ("--model", "--lora", "--out")] for s in made]
    assert all([w for w in words if w != "--lora"] == same[0] for words in same)
