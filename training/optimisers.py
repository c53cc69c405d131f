"""Optimisers by name, and the learning rate as a function of the step (so there is nothing of it to save)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from newtonrewards.core.recipe import Config


class OptimiserConfig(Config):
    """Optimiser of a stage.

    Attributes:
        name: `adamw`, or `muon`: Muon for the matrices of the blocks and AdamW for the rest.
        lr: peak learning rate; it is a function of the step alone.
        warmup_steps: linear rise from zero.
        decay: `linear` to zero at the stage's last step, or `constant`.
        grad_clip: largest gradient norm.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear"] = "constant"
    grad_clip: float = Field(1.0, gt=0)


def optimisers(module: nn.Module, config: OptimiserConfig) -> list[Optimizer]:
    """AdamW for all, or Muon for the matrices of the transformer's blocks and AdamW for the rest.

    Muon's update is scaled to the size of AdamW's (`match_rms_adamw`), so one learning rate serves both.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if config.name == "adamw":
        return [AdamW([p for _, p in named], lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)]
    matrices = [p for name, p in named if ".blocks." in name and p.ndim == 2]
    rest = [p for name, p in named if not (".blocks." in name and p.ndim == 2)]
    return [
        Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay),
    ]


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (0 is the first) of `steps`: linear warm-up, then constant or linear to zero."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "constant" or step < config.warmup_steps:
        return config.lr * warm
    return config.lr * (steps - step) / max(1, steps - config.warmup_steps)
