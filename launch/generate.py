"""`newtonrewards generate`: `models.generate`, and with `--best-of` the choice of the best of several clips by a
reward.

A reward that is used to choose may know what the generator knows, caption and first frame, and nothing of the true
clip: terms that compare with it or with the true law are refused. Of the mask of the object only that of the first
frame is used.

    newtonrewards generate --model models/weights/fine_tuned --clips runs/data/test --out runs/best --best-of 8 \\
        --reward launch/recipes/methods/best_of_n.yaml
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError, run_command
from newtonrewards.core.recipe import load
from newtonrewards.models import generate
from newtonrewards.models.base import VideoSpec
from newtonrewards.models.generate import BestOf
from newtonrewards.models.jobs import Job
from newtonrewards.rewards.reward import Reward, RewardConfig, RewardOutput, rank_in_groups
from newtonrewards.simulation.store import ClipFolder


class Chooser:
    """Judges candidates without knowing the truth.

    Args:
        reward: with terms that need neither reference nor law.
        spec: of the model's clips, for their rate and size.
        clips: folder whose masks of the first frame are used where it has some; None: there are no masks.
        device: to judge on.
    """

    def __init__(self, reward: Reward, spec: VideoSpec, clips: Path | None, device: str) -> None:
        self.reward, self.spec, self.device = reward, spec, device
        self.folder = None if clips is None else ClipFolder(clips)

    @torch.no_grad()
    def __call__(self, jobs: Sequence[Job], candidates: Sequence[Tensor]) -> Float[Tensor, "N B"]:
        masks = self._first_masks(jobs)
        fps = torch.full((len(jobs),), self.spec.fps)
        captions, index = tuple(job.caption for job in jobs), tuple(job.index for job in jobs)
        outputs = [
            self.reward(ClipBatch(frames, fps, captions, masks, index=index).to(self.device)) for frames in candidates
        ]
        return rank_in_groups(_stacked(outputs), len(candidates)).unflatten(0, (-1, len(candidates))).T.cpu()

    def _first_masks(self, jobs: Sequence[Job]) -> Float[Tensor, "B T H W"] | None:
        """The mask of the first frame, which is given, in the place of every frame's, which isn't known."""
        if self.folder is None:
            return None
        found = [self.folder[job.index].masks for job in jobs]
        masks = [mask for mask in found if mask is not None]
        size = (self.spec.height, self.spec.width)
        if len(masks) < len(jobs) or any(tuple(mask.shape[1:]) != size for mask in masks):
            return None
        return torch.stack([mask[:1].expand(self.spec.num_frames, -1, -1) for mask in masks])


def _stacked(outputs: Sequence[RewardOutput]) -> RewardOutput:
    """Outputs of N batches of B clips as one of B groups of N."""

    def groups(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, 1).flatten()

    def named(field: str) -> dict[str, Tensor]:
        return {name: groups([getattr(o, field)[name] for o in outputs]) for name in getattr(outputs[0], field)}

    fields = ("weighted", "raw", "normalised", "sentinels", "unmeasured")
    return RewardOutput(groups([output.total for output in outputs]), *(named(field) for field in fields))


def chooser(config: RewardConfig, count: int, clips: Path | None, device: str, spec: VideoSpec) -> BestOf:
    """Best of `count` by a reward.

    Raises:
        InputError: a term or support that would know the true clip.
    """
    reward = Reward(config)
    knowing = [name for name, term in reward.terms.items() if {"reference", "law"} & term.needs]
    knowing += [f"support 'mask' of {name}" for name, term in config.terms.items() if term.support == "mask"]
    if knowing:
        raise InputError(
            f"{', '.join(knowing)} would choose by looking at the true clip",
            where="--reward",
            fix="Use terms that need no reference, as kinematic/second_difference, mass/conserved and mass/area.",
        )
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return BestOf(count, Chooser(reward, spec, clips, device), hashlib.sha256(text.encode()).hexdigest()[:16])


def parser() -> argparse.ArgumentParser:
    p = generate.parser()
    choice = p.add_argument_group("the best of several clips")
    choice.add_argument("--best-of", type=int, default=1, metavar="N", help="make N clips of each and keep the best")
    choice.add_argument(
        "--reward", type=Path, help="YAML file with the reward that chooses, see launch/recipes/methods/"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.best_of < 1 or (arguments.best_of == 1) != (arguments.reward is None):
        raise InputError(
            "--best-of and --reward go together",
            where=f"--best-of {arguments.best_of}",
            fix="Give N of at least 2 and the reward that chooses, or neither.",
        )
    if arguments.reward is None:
        return generate.run(arguments)
    config = load(RewardConfig, arguments.reward)
    return generate.run(
        arguments, functools.partial(chooser, config, arguments.best_of, arguments.clips, arguments.device)
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
