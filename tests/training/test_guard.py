"""Sentinels during training: what rings, what is done, and that a resumed guard goes on."""

from __future__ import annotations

import json
import math

import pytest

from newtonrewards.training.guard import Guard, SentinelRule, SentinelRules


def test_it_warns_after_a_window_outside_the_limits_and_then_waits_for_a_new_one() -> None:
    guard = Guard({"presence": SentinelRule(window=3)})
    rang = [[a.name for a in guard.see({"sentinel/presence": value})] for value in (1, 0.2, 0.3, 0.1, 0.1, 0.1, 1)]
    assert rang == [[], [], ["presence"], [], [], ["presence"], []]
    assert guard.scale == 1


def test_it_lowers_the_weight_and_says_what_and_why() -> None:
    guard = Guard({"saturation": SentinelRule(action="lower", window=1, factor=0.25)})
    (alarm,) = guard.see({"sentinel/saturation": 0.4})
    assert alarm.reason == (
        "sentinel 'saturation' is 0.4 over this step, healthy is [0, 0.1]; "
        "the reward's weight is now 0.25 of the recipe's"
    )
    guard.see({"sentinel/saturation": 0.05})
    guard.see({"sentinel/saturation": 0.5})
    assert guard.scale == 0.25**2


def test_limits_of_ones_own_replace_the_known_ones() -> None:
    guard = Guard({"presence": SentinelRule(low=0.1, action="stop", window=1)})
    assert not guard.see({"sentinel/presence": 0.2})
    assert guard.see({"sentinel/presence": 0.05})[0].action == "stop"


def test_what_cannot_be_measured_in_a_whole_window_rings() -> None:
    guard = Guard({"presence": SentinelRule(window=2)})
    assert not guard.see({"sentinel/presence": math.nan})
    assert not guard.see({"sentinel/presence": 0.9})  # one of two is enough
    assert not guard.see({})
    (alarm,) = guard.see({"sentinel/presence": math.nan})
    assert "could not be measured over 2 steps" in alarm.reason


def test_a_guard_from_a_checkpoint_goes_on_as_if_nothing_had_been() -> None:
    rules = {"presence": SentinelRule(action="lower", window=3), "area_ratio": SentinelRule(window=4)}
    values = [1, 0.3, math.nan, 0.2, 0.1, 0.9, math.nan, 0.1, 0.1, 0.1]
    whole, halves = Guard(rules), Guard(rules)
    for place, value in enumerate(values):
        if place == 5:
            written = json.dumps(halves.state(), allow_nan=False)
            halves = Guard(rules)
            halves.restore(json.loads(written))
        logs = {"sentinel/presence": value, "sentinel/area_ratio": 2 * value}
        assert halves.see(logs) == whole.see(logs)
    assert halves.scale == whole.scale < 1


def test_a_misspelt_sentinel_is_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'saturation'"):
        SentinelRules(sentinels={"saturatoin": SentinelRule()})
