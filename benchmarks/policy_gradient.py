"""How much of a gradient is signal: the policy gradient of Flow-GRPO beside the reward's own, on the same two prompts.

    .venv/bin/python benchmarks/policy_gradient.py --out docs/methods.md --clips runs/data/train

Each gradient is drawn several times from other noise, with the model and the reward of the recipes in
launch/recipes/methods. The cosine of two such draws is the share of signal in them: near 0 they have nothing in common,
and (1 - c) / c of them must be averaged to come within 45 degrees of the gradient that they estimate. The policy's
last step is deterministic, so that it never sees what the weights do there; hence the reward's gradient in two parts.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pages import page_parser, write_below
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.recipe import load
from newtonrewards.models.load import load_video_model
from newtonrewards.rewards.reward import Reward
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.batches import Batches
from newtonrewards.training.methods.base import Objective
from newtonrewards.training.methods.grpo import GrpoObjective, GrpoStage
from newtonrewards.training.methods.reward import RewardObjective, RewardStage
from newtonrewards.training.recipe import TrainRecipe

METHODS = Path(__file__).resolve().parents[1] / "launch" / "recipes" / "methods"
PROMPTS = 2


def gradient(objective: Objective, batch: ClipBatch, draw: int) -> tuple[Tensor, float]:
    """Of the loss at the adapter's weights, from noise of the draw's own; and processor seconds."""
    objective.zero_grad()
    began = time.process_time()
    at = replace(batch, index=tuple(1000 + PROMPTS * draw + place for place in range(PROMPTS)))
    works = objective(at, draw, prepare=True)[0]
    for work in works:
        (objective(work, draw).loss.mean() / len(works)).backward()
    seconds = time.process_time() - began
    # those of the layers' A are exactly 0 as long as B is
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None and p.grad.any()]), seconds


def row(name: str, clips: int, draws: list[tuple[Tensor, float]], right: Tensor) -> str:
    """A line of the table; `right` is the mean of the reward's own gradients."""
    gradients = [each for each, _ in draws]
    pairs = [F.cosine_similarity(a, b, 0).item() for a, b in itertools.combinations(gradients, 2)]
    mean = statistics.mean(pairs)
    needed = f"{(1 - mean) / mean:.0f}" if mean > 0 else "can't be told"
    toward = F.cosine_similarity(torch.stack(gradients).mean(0), right, 0).item()
    seconds = statistics.mean(taken for _, taken in draws)
    cosine = f"{mean:+.3f} ({min(pairs):+.3f} to {max(pairs):+.3f})"
    return f"| {name} | {clips} | {seconds:.1f} | {cosine} | {needed} | {toward:+.3f} |"


HEAD = (
    "| gradient | clips | s | cosine of two draws | draws to average | cosine of the mean with the reward's |\n"
    "|---|---|---|---|---|---|"
)


def main() -> None:
    p = page_parser(__doc__)
    p.add_argument("--clips", type=Path, required=True, help="training clips, of which the first batch's are taken")
    p.add_argument("--model", type=Path, default=Path("models/weights/fine_tuned"))
    p.add_argument("--draws", type=int, default=4)
    a = p.parse_args()
    torch.set_num_threads(1)
    paths = [f"data.clips={a.clips}", f"model.path={a.model}"]
    of_reward, of_grpo = (load(TrainRecipe, METHODS / f"{name}.yaml", paths) for name in ("reward", "grpo"))
    model = load_video_model(of_reward.model)
    stage, policy = of_reward.stages[0], of_grpo.stages[0]
    assert isinstance(stage, RewardStage) and isinstance(policy, GrpoStage)
    reward = Reward(policy.reward)
    batch = Batches(ClipFolder(a.clips), of_grpo.seed).at(0, PROMPTS)
    steps = policy.rollout.num_inference_steps
    alone: dict[str, Any] = {"anchor_weight": 0.0, "reward_every": 1}
    chain = {
        where: stage.sampling.model_copy(update={"num_inference_steps": steps, "grad_steps": where})
        for where in ("full", 1)
    }

    def drawn(objective: Objective) -> list[tuple[Tensor, float]]:
        return [gradient(objective, batch, draw) for draw in range(a.draws)]

    def of(**rollout: Any) -> Callable[[], list[tuple[Tensor, float]]]:
        changed = policy.model_copy(
            update={"kl_weight": 0.0, "updates": 1, "rollout": policy.rollout.model_copy(update=rollout)}
        )
        return lambda: drawn(GrpoObjective(model, changed, 0, reward))

    own, last = (
        drawn(RewardObjective(model, stage.model_copy(update={**alone, "sampling": sampling}), 0, reward))
        for sampling in chain.values()
    )
    right = torch.stack([each for each, _ in own]).mean(0)
    before = [(whole - end, seconds) for (whole, seconds), (end, _) in zip(own, last, strict=True)]
    named = {
        "of the reward, full chain": own,
        "its part in the last step": last,
        "its part in the steps before": before,
    }
    rows = [row(name, PROMPTS, draws, right) for name, draws in named.items()]
    print(*rows, sep="\n", flush=True)
    clips = PROMPTS * policy.group_size
    for name, draws in (("policy, as in `grpo.yaml`", of()), ("policy, `noise_level` .3", of(noise_level=0.3))):
        rows.append(row(name, clips, draws(), right))
        print(rows[-1], flush=True)
    write_below(a.out, "policy_gradient.py", "\n".join([HEAD, *rows]))


if __name__ == "__main__":
    main()
