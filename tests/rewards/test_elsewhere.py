"""The snippets of docs/rewards.md, with stand-ins that are called as the real ones are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, RecipeError, ShapeError
from newtonrewards.core.recipe import validate
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.elsewhere import judge_frames, physics_loss, reward_function
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig

pytestmark = pytest.mark.weights
PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


@pytest.fixture(scope="module")
def reward() -> Reward:
    flow = load_flow(FlowConfig(num_flow_updates=3))
    terms = {"kinematic/second_difference": {"support": "motion"}, "mass/conserved": {"support": "motion"}}
    return Reward(RewardConfig.model_validate({"terms": terms}), Networks(flow, FlowFeatures(flow)))


def fall(shake: float = 0.0, time: int = 9) -> Tensor:
    """(T, 3, 64, 64): a square with a pattern falls; with `shake` px it trembles on the way."""
    axis = torch.arange(64.0)
    wall = (0.4 + 0.1 * torch.sin(axis / 3)[:, None] * torch.cos(axis / 4)[None]).expand(3, 64, 64)
    pattern = 0.6 + 0.3 * torch.sin(axis[:16] * 1.3)[:, None] * torch.sin(axis[:16] * 0.9)[None]
    frames = []
    for t in range(time):
        frame = wall.clone()
        top, left = 4 + round(0.5 * t * t) + round(shake * (-1) ** t), 24 + round(shake * (-1) ** (t // 2))
        top = max(0, top)
        frame[0, top : top + 16, left : left + 16] = pattern
        frame[1:, top : top + 16, left : left + 16] = 0.15
        frames.append(frame)
    return torch.stack(frames)


class Pipeline:
    """A diffusers video pipeline as its caller sees it: `pipeline(...).frames` in the form of `output_type`."""

    def __call__(self, prompt: list[str], output_type: str = "np") -> Any:
        frames = torch.stack([fall(3.0 * ("shaking" in text)) for text in prompt])
        channels_last = frames.movedim(2, -1).numpy()
        pictures = [[Image.fromarray((f * 255).round().astype(np.uint8)) for f in clip] for clip in channels_last]
        return SimpleNamespace(frames={"pt": frames, "np": channels_last, "pil": pictures}[output_type])


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_the_output_of_a_diffusers_pipeline(reward: Reward, output_type: str) -> None:
    frames = Pipeline()(prompt=["a square falls", "a shaking square falls"], output_type=output_type).frames
    rewards = judge_frames(reward, frames, fps=16.0)
    assert rewards[0] > rewards[1]
    plain = judge_frames(reward, Pipeline()(prompt=["a square falls"], output_type="pt").frames, fps=16.0)
    assert rewards[0] == pytest.approx(plain[0], rel=0.05, abs=1e-3)  # 8 bits at most lie between the forms


def grpo_step(
    fn: Callable[..., list[float]], videos: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
) -> Tensor:
    """What TRL and flow_grpo do with a reward: call it by position and normalise within the group."""
    scores = torch.tensor(fn(videos, prompts, metadata))
    return (scores - scores.mean()) / scores.std()


def test_a_reward_function_of_trl_and_flow_grpo(reward: Reward) -> None:
    videos = torch.stack([fall(), fall(1.0), fall(3.0)])
    prompts = ["a square falls"] * 3
    advantages = grpo_step(reward_function(reward), videos, prompts, [{"fps": 16.0}] * 3)
    assert advantages[0] > advantages[2]
    assert reward_function(reward, fps=16.0)(videos, prompts, None) == reward_function(reward)(
        videos, prompts, [{"fps": 16.0}] * 3
    )
    with pytest.raises(InputError, match="at which rate video 1"):
        reward_function(reward)(videos, prompts, [{"fps": 16.0}, {}, {}])


def test_a_differentiable_loss_of_videox_fun_and_vader(reward: Reward) -> None:
    """They decode (B, C, T, H, W) latents with gradient and back-propagate one loss."""
    decoded = torch.stack([fall(), fall(3.0)]).movedim(1, 2).requires_grad_(True)
    loss = physics_loss(reward, decoded, fps=16.0)
    loss.backward()
    assert decoded.grad is not None
    assert decoded.grad.isfinite().all()
    assert decoded.grad[1].abs().max() > 0
    assert physics_loss(reward, decoded.detach().movedim(2, 1), fps=[16.0, 16.0]).item() == pytest.approx(loss.item())
    with pytest.raises(ShapeError, match="frames have shape"):
        physics_loss(reward, torch.zeros(1, 4, 4, 8, 8), fps=8.0)


def test_a_term_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the page, as it stands there."""
    code = PAGE.split("## A term of one's own")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "my_terms.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_terms", raising=False)
    config = RewardConfig.model_validate({"terms": {"my_terms:top_speed": {"weight": 0.1, "support": "motion"}}})
    frames = torch.stack([fall(), fall(3.0)]).requires_grad_(True)
    out = Reward(config)(ClipBatch(frames, torch.full((2,), 16.0), ("", ""), index=(0, 1)))
    assert out.raw["my_terms:top_speed"][0] < out.raw["my_terms:top_speed"][1]
    out.total.sum().backward()
    assert frames.grad is not None
    assert frames.grad.abs().max() > 0
    for name in ("my_terms:other", "nowhere:term"):
        with pytest.raises(RecipeError, match=name.partition(":")[0 if "nowhere" in name else 2]):
            validate(RewardConfig, {"terms": {name: {}}}, where="recipe")


def test_weights_grow_and_only_what_is_above_the_floor_counts(reward: Reward) -> None:
    batch = ClipBatch(torch.stack([fall(3.0)]), torch.full((1,), 16.0), ("",), index=(0,))
    name = "kinematic/second_difference"

    def total(step: int | None, **settings: float) -> tuple[float, float]:
        config = RewardConfig.model_validate({"terms": {name: {"support": "motion", **settings}}})
        out = Reward(config, reward.networks)(batch, step=step)
        return out.total.item(), out.raw[name].item()

    plain, raw = total(None)
    assert plain == pytest.approx(-raw)
    assert [total(step, ramp_steps=4)[0] for step in (0, 1, 4)] == pytest.approx([0, -raw / 4, -raw])
    assert total(None, floor=raw / 2, scale=raw)[0] == pytest.approx(-0.5)
    assert total(None, floor=2 * raw)[0] == 0
