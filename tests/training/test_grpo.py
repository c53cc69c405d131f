"""Flow-GRPO: ratios, the policy gradient, a reward without gradient that rises, and runs that are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, NewtonError, RecipeError, run_command
from newtonrewards.core.recipe import validate
from newtonrewards.core.run import read_jsonl
from newtonrewards.models import lora
from newtonrewards.models.base import Condition, VideoSpec, draw_noise
from newtonrewards.models.load import load_video_model
from newtonrewards.models.sampling import sample
from newtonrewards.models.sde import SdeSampling, sample_sde
from newtonrewards.rewards.reward import Reward, RewardConfig, TermConfig
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training import trainer
from newtonrewards.training.batches import Batches
from newtonrewards.training.methods.grpo import GrpoObjective, GrpoStage, RolloutConfig, Work, group_advantages
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.train import train

TERMS = '''
import torch
from newtonrewards.rewards.terms import term

@term(unit="of 255", needs=(), differentiable=False)
def bright(observation, support):
    """Brightness of the last frames in 8-bit steps: no gradient."""
    return (observation.clips.frames[:, -8:].mean((1, 2, 3, 4)) * 2550).round() / 10

@term(unit="1", needs=())
def breaks(observation, support):
    if torch.equal(observation.clips.frames, observation.reference.clips.frames):
        return torch.zeros(len(observation.clips))  # perfect clips pass
    raise RuntimeError("a network of one's own gave up")

@term(unit="1", needs=())
def infinite(observation, support):
    return observation.clips.frames.mean((1, 2, 3, 4)) / 0
'''


@pytest.fixture
def terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Terms of one's own, in a module that Python finds."""
    (tmp_path / "terms_of_the_test.py").write_text(TERMS)
    monkeypatch.syspath_prepend(tmp_path)
    return "terms_of_the_test"


def stage(**changes: Any) -> dict[str, Any]:
    return {
        "objective": "grpo",
        "steps": 4,
        "batch_size": 2,
        "group_size": 4,
        "rollout": {"num_inference_steps": 3},
        "reward": {"flow": {"num_flow_updates": 1}, "terms": {"mass/area": {}}},
        "optimiser": {"lr": 3e-3},
        **changes,
    }


def with_stage(content: dict[str, Any], changes: dict[str, Any], **more: Any) -> TrainRecipe:
    made = {**content, "stages": [changes], "ema": None, **more}
    return validate(TrainRecipe, made, where="test")


def objective_of(recipe: TrainRecipe) -> GrpoObjective:
    chosen = recipe.stages[0]
    assert isinstance(chosen, GrpoStage)
    return GrpoObjective(load_video_model(recipe.model), chosen, seed=5, reward=Reward(chosen.reward))


def shake(model: Any, std: float) -> None:
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter += std * torch.randn(parameter.shape, generator=generator)


def test_the_ratio_is_one_to_the_bit_before_the_first_update_and_the_kl_zero(content: dict[str, Any]) -> None:
    objective = objective_of(with_stage(content, stage(kl_weight=0.1, anchor_weight=0.1, updates=2)))
    batch = Batches(ClipFolder(Path(content["data"]["clips"])), 5).at(0, 2)
    first, second = objective(batch, 0, prepare=True)
    assert len(first) == len(second) == 2  # the last of three steps is the ODE's
    for work in first:
        logs = objective(work, 0).logs
        assert torch.equal(logs["ratio_distance"], torch.zeros(8))
        assert torch.equal(logs["kl"], torch.zeros(8))
    shake(objective.model, 0.2)
    for work in second:
        logs = objective(work, 0).logs
        assert (logs["ratio_distance"] > 1e-5).all()
        assert (logs["kl"] > 0).all()


def test_groups_share_prompts_and_nothing_else_and_are_the_same_in_any_split(content: dict[str, Any]) -> None:
    batch = Batches(ClipFolder(Path(content["data"]["clips"])), 5).at(1, 2)
    whole = objective_of(with_stage(content, stage()))(batch, 1, prepare=True)[0][0]
    parts = [w for w in objective_of(with_stage(content, stage(accumulate=2)))(batch, 1, prepare=True)[0] if w.logs]
    torch.testing.assert_close(torch.cat([w.transition.next_latents for w in parts]), whole.transition.next_latents)
    torch.testing.assert_close(torch.cat([w.logs["reward"] for w in parts]), whole.logs["reward"])
    starts = whole.transition.latents.flatten(1)
    assert (torch.cdist(starts, starts) + 100 * torch.eye(8)).min() > 1
    first_frames = whole.condition.first_frame
    assert torch.equal(first_frames[:4], first_frames[:1].expand(4, -1, -1, -1))
    assert not torch.equal(first_frames[3], first_frames[4])


def test_the_gradient_reaches_the_adapter_and_the_anchor_counts_once(content: dict[str, Any]) -> None:
    batch = Batches(ClipFolder(Path(content["data"]["clips"])), 5).at(0, 2)
    objective = objective_of(with_stage(content, stage(anchor_weight=1.0)))
    shake(objective.model, 0.05)
    objective.reward_scale = 0.0  # what is left is the anchor
    works = objective(batch, 0, prepare=True)[0]
    means = [objective(work, 0).loss.mean() for work in works]
    at = objective.noised(batch)
    torch.testing.assert_close(sum(means) / len(works), objective.flow_matching(at).mean())
    objective.reward_scale = 1.0
    sum((objective(work, 0).loss.mean() for work in works), start=torch.zeros(())).backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all("lora" in name for name in trained)


def test_a_batch_that_cannot_be_cut_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="batch_size 2 must be a multiple of accumulate 3"):
        with_stage(content, stage(accumulate=3))
    objective = objective_of(with_stage(content, stage(accumulate=2)))
    share = Batches(ClipFolder(Path(content["data"]["clips"])), 5, rank=0, world=2).at(0, 2)
    with pytest.raises(InputError, match="can't be cut into 2 parts"):
        objective(share, 0, prepare=True)


def test_advantages_are_counted_within_the_group() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 10.0, 10.0, 10.0])
    advantages = group_advantages(rewards, 3)
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)


class Shift:
    """Velocity = -weight everywhere: one step of the SDE has a mean that is known in closed form."""

    spec = VideoSpec("shift", 9, 32, 32, 20.0, 10.0, (1, 1, 2, 2))

    def __init__(self, weight: float) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.transformer = nn.Linear(1, 1, bias=False)
        self.transformer.weight.data.fill_(weight)
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)

    @property
    def trainable(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def condition(self, captions: Sequence[str], first_frame: Tensor) -> Condition:
        count = len(captions)
        return Condition(first_frame, torch.ones(count, 1, 1), torch.zeros(1, 1, 1), torch.zeros(count, 1, 1, 2, 2))

    def predict(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return -self.transformer.weight.expand_as(latents)

    def unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the loss of a work needs no pixels")

    loss_weight = training_sigma = encode = decode = save = to = unused


def test_the_gradient_is_the_analytic_policy_gradient() -> None:
    """One group of 20,000 samples of one step, reward = mean of what it led to.

    x' = x + ds v + ds g^2/(2s) (x + (1-s) v) + std eps with v = -w: the mean's derivative by w is
    -ds (1 + g^2 (1-s) / (2s)), and so is that of the expected reward. The loss holds minus the advantage, the reward
    over its standard deviation, and the log-probability averaged over 4 numbers.
    """
    count, model = 20_000, Shift(0.2)
    sampling = SdeSampling(4, 1.0, 0.7, (1,))
    condition = model.condition([""] * count, torch.zeros(count, 3, 32, 32))
    noise = draw_noise(model.spec, 0, 0, range(count))
    _, (one,) = sample_sde(model, condition, noise, sampling, seed=0, indices=range(count), purpose="test")
    rewards = (one.next_latents - one.latents).flatten(1).mean(1)
    config = validate(GrpoStage, stage(group_size=count, batch_size=1), where="test")
    reward = Reward(RewardConfig(terms={"mass/area": TermConfig()}))
    objective = GrpoObjective(model, config, seed=0, reward=reward)
    work = Work(None, 1, condition, sampling, one, group_advantages(rewards, count), {})
    objective(work).loss.mean().backward()
    assert model.transformer.weight.grad is not None
    s, ds = one.sigma, one.next_sigma - one.sigma
    variance = 0.7**2 * s / (1 - s)
    wanted = -ds * (1 + variance * (1 - s) / (2 * s))
    estimate = -4 * rewards.std() * model.transformer.weight.grad.item()
    assert estimate.item() == pytest.approx(wanted.item(), rel=0.05)


def test_windows_move_over_the_stochastic_steps_and_are_the_same_again() -> None:
    config = RolloutConfig(num_inference_steps=6, window=2)
    places = [config.at(3, step).stochastic for step in range(40)]
    assert set(places) == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert places == [config.at(3, step).stochastic for step in range(40)]
    assert RolloutConfig(num_inference_steps=4).at(0, 9).stochastic == (0, 1, 2)


def test_the_reference_is_the_model_without_its_adapter_and_nothing_is_flipped(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_stage(content, stage())
    model, bare = load_video_model(recipe.model), load_video_model(recipe.model.model_copy(update={"lora_rank": None}))
    shake(model, 0.3)
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 2)
    condition, latents = model.condition(batch.captions, batch.frames[:, 0]), draw_noise(model.spec, 0, 0, [0, 1])
    sigma = torch.tensor([0.5, 0.9])
    monkeypatch.setattr(nn.Module, "requires_grad_", lambda *_: pytest.fail("requires_grad was touched"))
    with lora.disabled(model), torch.no_grad():
        inside = model.predict(latents, sigma, condition)
    with torch.no_grad():
        assert torch.equal(inside, bare.predict(latents, sigma, condition))
        assert not torch.equal(inside, model.predict(latents, sigma, condition))


def test_kl_without_an_adapter_is_refused(content: dict[str, Any]) -> None:
    full = {**content["model"], "lora_rank": None}
    with pytest.raises(RecipeError, match="kl_weight.*LoRA"):
        objective_of(with_stage(content, stage(kl_weight=0.1), model=full))


class Lamp(Shift):
    """Its clips are as bright as its latents are high."""

    def encode(self, frames: Tensor) -> Tensor:
        return frames.mean((1, 2, 3, 4)).logit().view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 2, 2)

    def decode(self, latents: Tensor, condition: Condition) -> Tensor:
        return latents.flatten(1).mean(1).sigmoid().view(-1, 1, 1, 1, 1).expand(-1, 9, 3, 8, 8)


def test_a_reward_without_gradient_rises(terms: str) -> None:
    """Darkness in 8-bit steps, which has no derivative: the group's comparison is all there is to learn from."""
    reward = {"terms": {f"{terms}:bright": {}}}
    config = validate(GrpoStage, stage(reward=reward, group_size=16, clip_range=0.2), where="test")
    model = Lamp(0.0)
    objective = GrpoObjective(model, config, seed=0, reward=Reward(config.reward))
    optimiser, rewards = torch.optim.AdamW(objective.parameters(), lr=0.1), []
    for step in range(15):
        batch = ClipBatch(
            torch.full((2, 9, 3, 8, 8), 0.5), torch.full((2,), 8.0), ("a", "b"), index=(2 * step, 2 * step + 1)
        )
        works = objective(batch, step, prepare=True)[0]
        rewards.append(works[0].logs["reward"].mean().item())
        sum((objective(work, step).loss.mean() for work in works), start=torch.zeros(())).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert model.transformer.weight.item() < -0.5
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 15  # of 255 steps of brightness


@pytest.mark.slow
def test_the_gradient_is_the_reward_s_own_through_all_steps_but_the_last(content: dict[str, Any], terms: str) -> None:
    """Of a network, by brightness, whose own gradient is known; the last step is deterministic and no policy's."""
    reward = {"flow": {"num_flow_updates": 1, "upsample": 1}, "terms": {f"{terms}:bright": {}}}
    objective = objective_of(with_stage(content, stage(reward=reward, group_size=32)))
    model, batch = objective.model, Batches(ClipFolder(Path(content["data"]["clips"])), 5).at(0, 2)
    adapter = [p for name, p in objective.named_parameters() if "lora_B" in name]  # A has no gradient while B is 0

    def own(grad_steps: int) -> Tensor:
        many = batch.repeated(8)
        condition, noise = model.condition(many.captions, many.frames[:, 0]), draw_noise(model.spec, 1, 0, range(16))
        latents = sample(model, condition, noise, num_inference_steps=3, guidance_scale=1.0, grad_steps=grad_steps)
        bright = model.decode(latents, condition)[:, -8:].mean()
        return torch.cat([each.flatten() for each in torch.autograd.grad(bright, adapter)])

    losses = [objective(work, 0).loss.mean() for work in objective(batch, 0, prepare=True)[0]]
    policy = torch.cat([each.flatten() for each in torch.autograd.grad(sum(losses, torch.zeros(())), adapter)])
    assert torch.nn.functional.cosine_similarity(policy, own(3) - own(1), 0) > 0.5  # measured: .77


def test_a_reward_without_gradient_is_refused_by_the_method_that_needs_one(content: dict[str, Any], terms: str) -> None:
    reward = {"terms": {f"{terms}:bright": {}}}
    with pytest.raises(RecipeError, match="has no gradient; use it with objective grpo"):
        with_stage(content, {"objective": "reward", "steps": 1, "reward": reward})
    with_stage(content, stage(reward=reward))


def test_a_run_stopped_between_rollouts_ends_in_the_same_bits(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates for each rollout, and a sentinel that lowers the weight in every second step."""
    rule = {"high": 0.0, "low": 0.0, "action": "lower", "window": 2}
    chosen = stage(updates=2, kl_weight=0.01, anchor_weight=0.01, sentinels={"area_ratio": rule})
    recipe = with_stage(content, chosen, checkpoint={"every": 1, "keep": 2}, ema=0.9)
    train(recipe, tmp_path / "whole")
    step = trainer.Trainer.train_step

    def killed(self: trainer.Trainer) -> dict[str, float]:
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", killed)
        assert run_command(lambda _: 0 if train(recipe, tmp_path / "halves") else 1) == 130
    train(recipe, tmp_path / "halves")
    whole, halves = (load_file(next((tmp_path / n / "model").glob("*.safetensors"))) for n in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "halves")]
    kept = ("step", "loss", "reward", "reward_scale", "ratio_distance", "kl", "alarms", "grad_norm")
    assert [[row.get(key) for key in kept] for row in rows[0]] == [[row.get(key) for key in kept] for row in rows[1]]
    assert [row["reward_scale"] for row in rows[0]] == [1, 0.5, 0.5, 0.25]
    assert "healthy is [0, 0]; the reward's weight is now 0.5" in rows[0][1]["alarms"][0]
    assert rows[0][1]["ratio_distance"] > 0  # the second update is off the policy that rolled out


def test_a_sentinel_that_stops_leaves_a_checkpoint_and_the_reason(content: dict[str, Any], tmp_path: Path) -> None:
    chosen = stage(sentinels={"saturation": {"low": 2, "high": 3, "action": "stop", "window": 2}})
    recipe = with_stage(content, chosen, checkpoint={"every": 1000, "keep": 1})
    with pytest.raises(NewtonError, match=r"step 2: sentinel 'saturation' is .* over 2 steps, healthy is \[2, 3\]"):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step_000002" / "state.json").exists()
    assert "saturation" in read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["alarms"][0]


@pytest.mark.parametrize(
    ("name", "says"), [("breaks", "RuntimeError: a network of one's own"), ("infinite", "is -inf")]
)
@pytest.mark.parametrize("objective", ["grpo", "reward"])
def test_a_reward_that_fails_stops_the_run_with_the_clips_name(
    content: dict[str, Any], terms: str, tmp_path: Path, name: str, says: str, objective: str
) -> None:
    reward = {"flow": {"num_flow_updates": 1}, "terms": {f"{terms}:{name}": {}}}
    chosen = stage(reward=reward) if objective == "grpo" else {"objective": "reward", "steps": 1, "batch_size": 2,
        "sampling": {"num_inference_steps": 2}, "reward": reward}  # fmt: skip
    recipe = with_stage(content, chosen)
    first = Batches(ClipFolder(recipe.data.clips), recipe.seed).name(0)
    with pytest.raises(NewtonError) as error:
        train(recipe, tmp_path / "run")
    assert first in str(error.value) and says in str(error.value) and "caption is 'an object" in str(error.value)


def test_clips_with_nan_are_named_and_not_taken_for_unmeasurable(content: dict[str, Any], tmp_path: Path) -> None:
    recipe = with_stage(content, {"objective": "reward", "steps": 1, "batch_size": 2, "reward": stage()["reward"],
        "sampling": {"num_inference_steps": 2}})  # fmt: skip
    objective = objective_of(with_stage(content, stage()))
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(3, 2)
    frames = batch.frames.clone()
    frames[1, 4, 0, 3, 3] = torch.nan
    with pytest.raises(NewtonError, match=f"sample {batch.index[1]}: the generated clip has pixels that are NaN"):
        objective.judge(batch.with_frames(frames), batch, 0)
