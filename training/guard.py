"""Sentinels during training: what is done when the mean of one leaves its limits.

The guard is a function of the logged means alone, which are the same on every process, and its state is part of a
checkpoint: a resumed run lowers the same weights in the same steps.
"""

from __future__ import annotations

import difflib
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from newtonrewards.core.recipe import Config
from newtonrewards.rewards.sentinels import LIMITS

Action = Literal["warn", "lower", "stop"]


class SentinelRule(Config):
    """When a sentinel rings, and what then.

    Attributes:
        low, high: limits of its mean over the window; null: those of `rewards.sentinels.LIMITS`.
        action: `warn` says so, `lower` multiplies the weight of the reward by `factor`, `stop` ends the run.
        window: steps of the mean. After it rang, a whole new window is awaited.
        factor: see `lower`.
    """

    low: float | None = None
    high: float | None = None
    action: Action = "warn"
    window: int = Field(20, ge=1)
    factor: float = Field(0.5, ge=0, lt=1)


class SentinelRules(Config):
    """Mixin of stages with a reward.

    Attributes:
        sentinels: what is watched, by name; see `rewards.sentinels`.
    """

    sentinels: dict[str, SentinelRule] = {}

    @model_validator(mode="after")
    def _known(self) -> SentinelRules:
        for name in self.sentinels:
            if name not in LIMITS:
                near = difflib.get_close_matches(name, LIMITS, n=1, cutoff=0.0)
                raise ValueError(f"unknown sentinel '{name}'. Did you mean '{near[0]}'?")
        return self


@dataclass(frozen=True)
class Alarm:
    """One sentinel that rang: what to do, and the reason in words."""

    name: str
    action: Action
    reason: str


class Guard:
    """Watches the logs of a stage.

    Attributes:
        scale: factor of the reward's weight, 1 until a sentinel lowers it.
    """

    def __init__(self, rules: Mapping[str, SentinelRule]) -> None:
        self.rules = dict(rules)
        self.scale = 1.0
        self._recent = {name: deque[float](maxlen=rule.window) for name, rule in self.rules.items()}

    def see(self, logs: Mapping[str, float]) -> list[Alarm]:
        """Take in the means of one step; returns what rang. A sentinel that could not be measured in a whole window
        rings too."""
        alarms = []
        for name, rule in self.rules.items():
            recent = self._recent[name]
            recent.append(logs.get(f"sentinel/{name}", math.nan))
            if len(recent) < rule.window:
                continue
            known = [value for value in recent if not math.isnan(value)]
            mean = sum(known) / len(known) if known else math.nan
            low, high = limits(name, rule)
            if low <= mean <= high:
                continue
            recent.clear()
            alarms.append(Alarm(name, rule.action, self._act(name, rule, mean, low, high)))
        return alarms

    def _act(self, name: str, rule: SentinelRule, mean: float, low: float, high: float) -> str:
        measured = "could not be measured" if math.isnan(mean) else f"is {mean:.3g}"
        steps = f"{rule.window} steps" if rule.window > 1 else "this step"
        reason = f"sentinel '{name}' {measured} over {steps}, healthy is [{low:g}, {high:g}]"
        if rule.action == "lower":
            self.scale *= rule.factor
            reason += f"; the reward's weight is now {self.scale:g} of the recipe's"
        return reason

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; NaN as None."""
        recent = {
            name: [None if math.isnan(value) else value for value in values] for name, values in self._recent.items()
        }
        return {"scale": self.scale, "recent": recent}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; sentinels that it doesn't know begin anew."""
        self.scale = float(state.get("scale", 1.0))
        for name, values in state.get("recent", {}).items():
            if name in self._recent:
                self._recent[name].extend(math.nan if value is None else float(value) for value in values)


def limits(name: str, rule: SentinelRule) -> tuple[float, float]:
    """A rule's limits, with the known healthy ones in the place of null."""
    low, high = LIMITS[name]
    return low if rule.low is None else rule.low, high if rule.high is None else rule.high
