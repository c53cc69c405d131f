"""The flow network trains on pairs whose flow is right, and a run that was stopped ends as if it hadn't been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, Interrupted
from newtonrewards.core.run import read_jsonl
from newtonrewards.training import flow as training
from newtonrewards.training.flow import FlowRecipe, FlowTraining, Pairs, Pool, draw, main, make_pool, run

TINY = FlowRecipe(
    clips=3, val_clips=1, steps=4, batch_size=2, num_flow_updates=2, checkpoint_every=3, log_every=1, odd_pairs=0.7
)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(TINY)


def unexplained(pairs: Pairs, flow: Tensor) -> float:
    """Mean difference inside the object between the first frame and the second read where the flow points."""
    height, width = flow.shape[-2:]
    identity = F.affine_grid(torch.eye(2, 3).expand(len(flow), 2, 3), list(pairs.second.shape), align_corners=False)
    grid = identity + flow.permute(0, 2, 3, 1) * 2 / torch.tensor([width, height])
    warped = F.grid_sample(pairs.second, grid, align_corners=False, padding_mode="border")
    inside = (pairs.mask > 0.9).float()[:, None]
    return (((warped - pairs.first).abs() * inside).sum() / inside.sum()).item()


def test_the_flow_explains_the_second_frame_after_every_augmentation(pool: Pool) -> None:
    recipe = TINY.model_copy(update={"batch_size": 48})
    for step in (0, 3):  # panned at the first step, hardly at the last
        pairs = draw(pool, recipe, step)
        assert unexplained(pairs, pairs.flow) < 0.5 * unexplained(pairs, torch.zeros_like(pairs.flow))
        assert unexplained(pairs, pairs.flow) < 0.5 * unexplained(pairs, -pairs.flow)


def test_a_batch_depends_on_seed_and_step_alone(pool: Pool) -> None:
    assert torch.equal(draw(pool, TINY, 2).first, draw(pool, TINY, 2).first)
    assert not torch.equal(draw(pool, TINY, 2).first, draw(pool, TINY, 3).first)


def test_a_stopped_run_ends_with_the_same_weights_and_the_same_log(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "make_pool", lambda _: pool)
    summary = run(TINY, tmp_path / "whole")
    monkeypatch.setattr(training, "draw", stop_at(2))
    with pytest.raises(Interrupted, match="stopped at step 2"):
        run(TINY, tmp_path / "halves")
    monkeypatch.setattr(training, "draw", draw)
    again = run(TINY, tmp_path / "halves")
    whole, halves = (load_file(tmp_path / name / "flow.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert summary["sha256"] == again["sha256"]
    assert summary["val"] == again["val"]
    rows = [[row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("whole", "halves")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == TINY.steps


def stop_at(step: int) -> Callable[[Pool, FlowRecipe, int], Pairs]:
    def stopping(pool: Pool, recipe: FlowRecipe, at: int) -> Pairs:
        if at == step:
            raise KeyboardInterrupt
        return draw(pool, recipe, at)

    return stopping


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    FlowTraining(TINY, tmp_path).save()
    with pytest.raises(CheckpointError, match="another recipe"):
        FlowTraining(TINY.model_copy(update={"lr": 1e-5}), tmp_path)


def test_the_shipped_recipe_is_valid_and_a_misspelt_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(Path(training.__file__).resolve().parent.parent / "launch" / "recipes" / "flow.yaml")
    assert main(["--recipe", recipe, "--dry-run"]) == 0
    assert main(["--recipe", recipe, "--dry-run", "--set", "stepps=3"]) == 2
    assert "Did you mean 'steps'" in capsys.readouterr().out
