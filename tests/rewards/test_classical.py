"""The second opinion: DIS reads real motion, and disagrees with a network that was fooled."""

from __future__ import annotations

import math

import pytest
import torch

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards import sentinels
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.classical import DisFlow
from newtonrewards.rewards.flow import FlowConfig, load_flow
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene


def test_a_shifted_texture_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    blots = torch.rand(1, 3, 24, 24, generator=generator)
    wall = torch.nn.functional.interpolate(blots, (96, 96), mode="bicubic")[0].clamp(0, 1)
    frames = torch.stack([wall[:, 8 : 8 + 64, 8 + 2 * t : 8 + 2 * t + 64] for t in range(4)])[None]
    flow = DisFlow()(frames)
    assert flow.shape == (1, 3, 2, 64, 64)
    middle = flow[0, :, :, 12:-12, 12:-12].mean((0, 2, 3))
    assert middle.tolist() == pytest.approx([-2, 0], abs=0.15)
    assert not flow.requires_grad


@pytest.mark.weights
def test_network_and_dis_agree_on_true_clips_and_not_where_one_is_given_another_clip() -> None:
    flow = load_flow(FlowConfig(num_flow_updates=3))
    config = RewardConfig.model_validate({"terms": {"mass/area": {}}, "second_opinion": True})
    truth = ClipBatch.stack([render(sample_scene(4, index, split="val")) for index in range(5)])

    class Fooled:
        """A network that sees the motion backwards."""

        def __call__(self, frames: torch.Tensor) -> torch.Tensor:
            return -flow(frames)

    def opinion(network: object) -> float:
        networks = Networks(network, FlowFeatures(flow), DisFlow())  # type: ignore[arg-type]
        out = Reward(config, networks)(truth.with_frames(truth.frames), truth)
        return float(out.sentinels["second_opinion"].mean())

    low, high = sentinels.LIMITS["second_opinion"]
    assert low <= opinion(flow) < high
    assert opinion(Fooled()) > 1.5


def test_what_only_one_sees_is_a_whole_disagreement() -> None:
    moving, still = torch.ones(1, 6, 2), torch.zeros(1, 6, 2)
    valid = torch.ones(1, 6, dtype=torch.bool)
    assert sentinels.second_opinion(moving, moving, valid).item() == 0
    assert sentinels.second_opinion(moving, still, valid).item() == pytest.approx(1)
    assert sentinels.second_opinion(still, moving, valid).item() == pytest.approx(1)
    assert sentinels.second_opinion(moving * torch.nan, moving, valid).isnan().all()


def test_alarms_ring_outside_and_where_nothing_can_be_measured() -> None:
    healthy = {"presence": 1.0, "area_ratio": 1.0, "saturation": 0.01, "high_frequency": 1.0}
    assert sentinels.alarms(healthy) == []
    assert sentinels.alarms({**healthy, "presence": 0.2, "high_frequency": math.nan}) == ["presence", "high_frequency"]
