"""Penalties in units of their batch: what stays, what the gradient is, and that processes and resumes don't matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, RecipeError
from newtonrewards.core.recipe import validate
from newtonrewards.rewards.normalise import normalise
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig, RewardOutput

ROOT = Path(__file__).resolve().parents[2]
PENALTIES = torch.tensor([0.2, 0.0, 0.5, float("nan"), 0.1])
KNOWN = PENALTIES[~PENALTIES.isnan()]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_unit_of_a_penalty_makes_no_difference(factor: float) -> None:
    for how in ("batch_rms", "batch_standard"):
        plain = normalise({"term": PENALTIES}, {"term": how})["term"]
        other = normalise({"term": factor * PENALTIES}, {"term": how})["term"]
        assert torch.allclose(plain, other, rtol=1e-4, equal_nan=True)
        assert plain.isnan().tolist() == PENALTIES.isnan().tolist()
    assert torch.equal(normalise({"term": KNOWN}, {"term": "scale"})["term"], KNOWN)


def test_rms_keeps_zero_and_standard_has_mean_zero_and_spread_one() -> None:
    rms = normalise({"term": KNOWN}, {"term": "batch_rms"})["term"]
    assert rms.square().mean().item() == pytest.approx(1)
    assert rms[1] == 0
    standard = normalise({"term": KNOWN}, {"term": "batch_standard"})["term"]
    assert standard.mean().item() == pytest.approx(0, abs=1e-6)
    assert standard.std(correction=0).item() == pytest.approx(1)
    assert torch.equal(standard.argsort(), KNOWN.argsort())


def test_the_gradient_is_that_of_the_penalty_in_the_batch_s_unit() -> None:
    for how, unit in (("batch_rms", KNOWN.square().mean().sqrt()), ("batch_standard", KNOWN.std(correction=0))):
        leaf = KNOWN.clone().requires_grad_(True)
        normalise({"term": leaf}, {"term": how})["term"].sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.tolist() == pytest.approx([1 / unit.item()] * len(KNOWN), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_clips_that_are_all_alike_blow_nothing_up(value: float) -> None:
    for how, want in (("batch_rms", float(value > 0)), ("batch_standard", 0.0)):
        leaf = torch.full((4,), value, requires_grad=True)
        result = normalise({"term": leaf}, {"term": how})["term"]
        assert result.tolist() == pytest.approx([want] * 4)
        result.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().max() <= (1 / value if value else 1.0) * 1.001
    nothing = torch.full((3,), torch.nan)
    assert normalise({"term": nothing}, {"term": "batch_rms"})["term"].isnan().all()


def test_a_single_clip_is_refused() -> None:
    for how in ("batch_rms", "batch_standard"):
        with pytest.raises(InputError, match=r"terms\.term: a single clip has no statistics"):
            normalise({"term": torch.tensor([0.3])}, {"term": how})


def judged(**settings: object) -> RewardOutput:
    """Four clips of differently dark ends, by the change of colour against their references."""
    frames = torch.full((4, 5, 3, 16, 16), 0.5)
    for clip in range(4):
        frames[clip, 1:, 0] -= 0.1 * clip
    batch = ClipBatch(frames, torch.full((4,), 8.0), ("",) * 4, index=tuple(range(4)))
    perfect = batch.with_frames(torch.full_like(frames, 0.5))
    networks = Networks(lambda f: f[:, :-1, :2], lambda f: f)
    config = {"terms": {"mass/paired": {"weight": 2.0, **settings}}}
    return Reward(RewardConfig.model_validate(config), networks)(batch, perfect)


def test_in_a_reward_the_raw_value_stands_beside_the_normalised() -> None:
    plain = judged()
    for how in ("batch_rms", "batch_standard"):
        out = judged(normalisation=how)
        assert torch.equal(out.raw["mass/paired"], plain.raw["mass/paired"])
        want = normalise({"x": plain.raw["mass/paired"]}, {"x": how})["x"]
        assert torch.allclose(out.normalised["mass/paired"], want)
        assert torch.allclose(out.total, -2 * want)
        assert torch.equal(out.total, judged(normalisation=how).total)  # nothing is remembered
    floored = judged(normalisation="batch_rms", floor=float(plain.raw["mass/paired"][1]))
    assert (floored.normalised["mass/paired"] == 0).tolist() == [True, True, False, False]
    settings = {"normalisation": "batch_rms", "scale": 2.0}
    with pytest.raises(RecipeError, match="takes no 'scale'"):
        validate(RewardConfig, {"terms": {"mass/paired": settings}}, where="recipe")


SPLIT = """
import sys, torch
from newtonrewards.rewards.normalise import normalise
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
values = torch.tensor([0.2, 0.0, 0.5, float("nan"), 0.1])
mine = values[:2] if rank == 0 else values[2:]
for how in ("batch_rms", "batch_standard"):
    whole = normalise({"a": mine, "b": 3 * mine}, {"a": how, "b": "scale"})["a"]
    torch.save(whole, f"{sys.argv[1]}/{how}_{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Shares of different size, one with a clip that can't be measured."""
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, str(script), str(tmp_path)], check=True, env=environment, cwd=ROOT)
    for how in ("batch_rms", "batch_standard"):
        parts = [torch.load(tmp_path / f"{how}_{rank}.pt", weights_only=True) for rank in (0, 1)]
        want = normalise({"term": PENALTIES}, {"term": how})["term"]
        assert torch.allclose(torch.cat(parts), want, equal_nan=True)
