"""The floor is what perfect clips get: near nothing where a term compares, the network's noise where it measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.floor import measure_floor
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene


@pytest.mark.weights
def test_perfect_clips_have_a_floor_above_zero_and_below_broken_ones() -> None:
    flow = load_flow(FlowConfig(num_flow_updates=3))
    terms = ("kinematic/second_difference", "kinematic/acceleration", "mass/paired")
    reward = Reward(
        RewardConfig.model_validate({"terms": {name: {} for name in terms}}), Networks(flow, FlowFeatures(flow))
    )
    clips = ClipBatch.stack([render(sample_scene(2, index, split="val")) for index in range(6)])
    floor = measure_floor(reward, [clips.part(0, 4), clips.part(4, 6)])
    seen = reward(clips.with_frames(clips.frames), clips).raw["kinematic/second_difference"].double()
    measured = floor["kinematic/second_difference"]
    assert measured.clips == 6
    assert measured.mean == pytest.approx(float(seen.mean()), rel=1e-4)
    assert 0 < measured.median <= measured.high
    assert floor["kinematic/acceleration"].high < 1e-6
    assert floor["mass/paired"].high < 1e-5
    order = [0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15]
    jerky = reward(clips.with_frames(clips.frames[:, order]), clips).raw["kinematic/second_difference"]
    assert float(jerky.mean()) > 3 * measured.mean


@pytest.mark.weights
def test_what_cannot_be_measured_has_no_floor() -> None:
    flow = load_flow(FlowConfig(num_flow_updates=1))
    config = RewardConfig.model_validate({"terms": {"kinematic/fit": {}}})
    clips = ClipBatch.stack([render(sample_scene(2, 0, split="val"))])
    nothing = torch.zeros(1, clips.frames.shape[1], dtype=torch.bool)
    floor = measure_floor(Reward(config, Networks(flow, FlowFeatures(flow))), [replace(clips, valid=nothing)])
    assert floor["kinematic/fit"].clips == 0
