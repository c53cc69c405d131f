"""The best of several clips: what is chosen, that it is the same again, and that nobody looks at the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import run_command
from newtonrewards.core.run import read_jsonl
from newtonrewards.core.video import read_clip
from newtonrewards.launch import generate
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.rewards.reward import RewardOutput, rank_in_groups
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder

TERM = """
from newtonrewards.rewards.terms import term

@term(unit="1", needs=(), differentiable=False)
def bright(observation, support):
    return observation.clips.frames[:, 1:].mean((1, 2, 3, 4))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    simulate(SimulateRecipe(num_clips=5, seed=4, arrays=("masks",)), folder / "clips", workers=1)
    dataset = ClipFolder(folder / "clips")
    codec = PatchCodec.fit((dataset[i].frames for i in range(len(dataset))), components=24)
    small = EmbeddedConfig(num_heads=2, head_dim=12, num_layers=1, ffn_dim=24, freq_dim=16, text_dim=16, text_layers=1)
    EmbeddedModel.create(small, codec, seed=1).save(folder / "model")
    (folder / "term_of_best_of.py").write_text(TERM)
    (folder / "dark.yaml").write_text("terms: {'term_of_best_of:bright': {}}")
    (folder / "physics.yaml").write_text(
        "{flow: {num_flow_updates: 1}, terms: {kinematic/second_difference: {}, mass/conserved: {}, mass/area: {}}}"
    )
    (folder / "knows.yaml").write_text("terms: {mass/paired: {}, mass/area: {support: mask}}")
    return folder


def run(world: Path, out: Path, *more: str) -> int:
    arguments = ["--model", str(world / "model"), "--clips", str(world / "clips"), "--out", str(out)]
    return run_command(generate.main, [*arguments, "--num-inference-steps", "2", "--batch-size", "2", *more])


def frames(folder: Path, name: str) -> Tensor:
    return read_clip(folder / f"{name}.mp4").frames


def test_the_darkest_of_four_is_kept_and_all_rewards_are_written_down(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(world)
    best = ["--best-of", "4", "--reward", str(world / "dark.yaml")]
    assert run(world, tmp_path / "plain") == run(world, tmp_path / "best", *best) == 0
    rows = read_jsonl(tmp_path / "best" / "index.jsonl")
    for row in rows:
        assert len(row["rewards"]) == 4 and row["chosen"] == row["rewards"].index(max(row["rewards"]))
        kept, first = (frames(tmp_path / folder, row["name"]) for folder in ("best", "plain"))
        assert -kept[1:].mean().item() == pytest.approx(row["rewards"][row["chosen"]], abs=2e-3)
        assert -first[1:].mean().item() == pytest.approx(row["rewards"][0], abs=2e-3)  # the first is the plain clip
        assert torch.equal(kept, first) == (row["chosen"] == 0)
    assert {row["chosen"] for row in rows} != {0}
    assert run(world, tmp_path / "again", *best) == 0
    assert (tmp_path / "again" / "index.jsonl").read_text() == (tmp_path / "best" / "index.jsonl").read_text()
    assert all(torch.equal(*(frames(tmp_path / f, row["name"]) for f in ("again", "best"))) for row in rows)


def test_a_physics_reward_chooses_by_first_frame_and_clip_alone(world: Path, tmp_path: Path) -> None:
    assert run(world, tmp_path, "--best-of", "2", "--reward", str(world / "physics.yaml"), "--limit", "3") == 0
    rewards = torch.tensor([row["rewards"] for row in read_jsonl(tmp_path / "index.jsonl")])
    assert rewards.shape == (3, 2) and (rewards < 0).any() and rewards.isfinite().all()


def test_clips_chosen_otherwise_are_other_clips(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(world)
    assert run(world, tmp_path, "--limit", "1") == 0
    assert run(world, tmp_path, "--limit", "1", "--best-of", "2", "--reward", str(world / "dark.yaml")) == 2
    assert "best_of None, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--best-of", "2", "--reward", "knows.yaml"],
            "mass/paired, support 'mask' of mass/area would choose by looking",
        ),
        (["--best-of", "2"], "--best-of and --reward go together"),
        (["--reward", "physics.yaml"], "--best-of and --reward go together"),
        (["--best-of", "0"], "--best-of and --reward go together"),
    ],
)
def test_choices_that_cheat_or_make_no_sense_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    options = [str(world / word) if word.endswith(".yaml") else word for word in options]
    assert run(world, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err


def test_what_cannot_be_measured_is_never_the_best_of_its_group() -> None:
    weighted = {"a": torch.tensor([-1.0, 0.0, -3.0, 0.0, 0.0, 0.0]), "b": torch.tensor([-1.0, -1, -1, -2, -1, -3])}
    unmeasured = {"a": torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0]), "b": torch.zeros(6)}
    output = RewardOutput(sum(weighted.values(), torch.zeros(6)), weighted, {}, {}, {}, unmeasured)
    assert output.total.argmax() == 1  # a vanished object wins if nobody looks
    assert rank_in_groups(output, 3).tolist() == [-2, -4, -4, -2, -1, -3]
