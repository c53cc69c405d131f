"""Optimisers by name, and the learning rate as a function of the step (so there is nothing of it to save)."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from newtonrewards.training.recipe import OptimiserConfig


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
