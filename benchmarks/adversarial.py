"""Can pixels alone win the reward? Writes the table of docs/hacking.md.

    .venv/bin/python benchmarks/adversarial.py --steps 200 --out docs/hacking.md

Pixels of bad clips (frozen, noise, fading) are optimised directly against the reward, with nothing that keeps them
natural: the strongest attacker there is. A row says at which step the reward passes that of perfect motion, and which
sentinels had left their healthy range by then.
"""

from __future__ import annotations

import torch
from pages import page_parser, write_below
from torch import Tensor
from tqdm import trange

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards import sentinels
from newtonrewards.rewards.reward import Reward, RewardConfig, RewardOutput
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

RECIPES = {
    "the demo's without its floor": {
        "kinematic/second_difference": {"weight": 3.0},
        "mass/paired": {"weight": 0.2},
        "mass/area": {"weight": 0.05},
    },
    "the demo's": {
        "kinematic/second_difference": {"weight": 3.0, "floor": 0.01},
        "mass/paired": {"weight": 0.2},
        "mass/area": {"weight": 0.05},
    },
    "kinematic alone": {"kinematic/second_difference": {"weight": 3.0}},
    "without a paired clip": {
        "kinematic/second_difference": {"weight": 3.0},
        "mass/conserved": {"weight": 0.5},
        "mass/area": {"weight": 0.05},
    },
    "with the law": {
        "kinematic/second_difference": {"weight": 3.0},
        "kinematic/gravity": {"weight": 0.5},
        "mass/conserved": {"weight": 0.5},
        "mass/area": {"weight": 0.05},
    },
}


def starts(truth: ClipBatch) -> dict[str, Tensor]:
    """Bad clips with the true first frame."""
    frames = truth.frames
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(frames.shape, generator=generator)
    fade = torch.linspace(0, 1, frames.shape[1])[None, :, None, None, None]
    return {
        "frozen": frames[:, :1].expand_as(frames).clone(),
        "noise": torch.cat([frames[:, :1], noise[:, 1:]], 1),
        "fading": torch.lerp(frames, frames.mean((-2, -1), keepdim=True).expand_as(frames), fade),
    }


def attack(reward: Reward, truth: ClipBatch, start: Tensor, steps: int) -> tuple[str, str, str, str]:
    """Reward of perfect motion and at the end; the step that passes it; alarms there."""
    with torch.no_grad():
        perfect = reward(truth.with_frames(truth.frames), truth).total.mean().item()
    pixels = torch.logit(start[:, 1:].clamp(0.01, 0.99)).requires_grad_(True)
    optimiser = torch.optim.Adam([pixels], lr=0.05)
    passed, alarms = None, ""
    for step in trange(steps, leave=False):
        frames = torch.cat([truth.frames[:, :1], torch.sigmoid(pixels)], 1)
        out = reward(truth.with_frames(frames), truth)
        total = out.total.mean().item()
        if passed is None and total > perfect:
            passed = step
            alarms = ringing(out)
        optimiser.zero_grad()
        (-out.total.mean()).backward()
        optimiser.step()
    if passed is None:
        alarms = ringing(out)
    return f"{perfect:.3f}", f"{total:.3f}", "never" if passed is None else str(passed), alarms


def ringing(out: RewardOutput) -> str:
    """The sentinels outside their healthy range, in words."""
    means = {name: values.nanmean().item() for name, values in out.sentinels.items()}
    return ", ".join(sorted(sentinels.alarms(means))) or "**none**"


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--clips", type=int, default=3)
    a = parser.parse_args()
    truth = ClipBatch.stack([render(sample_scene(21, index, split="val")) for index in range(a.clips)])
    lines = [
        "| reward | start | perfect motion | after | passes it at step | sentinels that ring by then |",
        "|" + "---|" * 6,
    ]
    networks = None
    for name, terms in RECIPES.items():
        reward = Reward(RewardConfig.model_validate({"terms": terms, "second_opinion": True}), networks)
        networks = reward.networks
        for start, frames in starts(truth).items():
            row = attack(reward, truth, frames, a.steps)
            lines.append(f"| {name} | {start} | {' | '.join(row)} |")
            print(lines[-1])
    told = f"{a.clips} clips, {a.steps} steps of Adam on the pixels.\n\n"
    write_below(a.out, "adversarial.py", told + "\n".join(lines))


if __name__ == "__main__":
    main()
