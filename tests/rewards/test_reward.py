"""The reward adds up what its terms say, looks at each thing once, and says what it could not measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.rewards.appearance import FlowFeatures
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, embedded_network
from newtonrewards.rewards.observation import Networks, Observation
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.rewards.terms import TERMS

SIZE, TIME = 24, 7
ALL = {name: {"support": "advected"} for name in TERMS}


class DownwardFlow:
    """Reads a flow from the red channel: 1 px/frame down for every 0.1 above 0.5. Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls += 1
        speed = (frames[:, :-1, 0] - 0.5) * 10
        return torch.stack([torch.zeros_like(speed), speed], 2)


class MeanColours:
    """Features: colours averaged over 4 x 4 px."""

    def __call__(self, frames: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])


def batch(speeds: Tensor, valid: Tensor | None = None) -> ClipBatch:
    """Two clips of a block whose red says how fast it falls; speeds (B, T) in px/frame."""
    frames = torch.full((len(speeds), TIME, 3, SIZE, SIZE), 0.5)
    masks = torch.zeros(len(speeds), TIME, SIZE, SIZE)
    masks[..., 2:-2, 8:14] = 1
    frames[:, :, 0] += masks * speeds[..., None, None] / 10
    fps = torch.full((len(speeds),), 10.0)
    law = torch.tensor([0.0, 0.2 * 10**2 / SIZE]).expand(len(speeds), 2)  # that of FALL, in H/s^2
    return ClipBatch(frames, fps, ("",) * len(speeds), masks, valid, tuple(range(len(speeds))), law)


FALL = torch.arange(TIME).float().expand(2, TIME) * 0.2
VALID = torch.ones(2, TIME, dtype=torch.bool)


def networks() -> Networks:
    return Networks(DownwardFlow(), MeanColours(), depth=lambda frames: frames.mean(2))


def test_total_is_the_sum_of_weighted_and_weighted_is_minus_weight_times_raw() -> None:
    jerky = FALL + torch.tensor([0, 0.3, 0, 0, -0.2, 0, 0])
    terms = {name: {"weight": 0.5 + place, "support": "advected"} for place, name in enumerate(TERMS)}
    out = Reward(RewardConfig.model_validate({"terms": terms}), networks())(batch(jerky), batch(FALL, VALID))
    assert set(out.raw) == set(out.weighted) == set(out.unmeasured) == set(TERMS)
    assert torch.allclose(out.total, torch.stack(list(out.weighted.values())).sum(0))
    for place, name in enumerate(TERMS):
        assert out.raw[name].shape == (2,)
        assert (out.raw[name] >= -1e-6).all()
        assert torch.allclose(out.weighted[name], -(0.5 + place) * out.raw[name])
        assert out.unmeasured[name].tolist() == [0, 0]


def test_a_known_second_difference_in_physical_units() -> None:
    jerky = FALL + torch.tensor([0, 0, 0, 0.6, 0, 0, 0])
    config = RewardConfig.model_validate({"terms": {"kinematic/second_difference": {"support": "mask"}}})
    out = Reward(config, networks())(replace(batch(jerky), valid=VALID))
    # a bump of 0.6 px/frame = 0.6 * 10 / 24 H/s at velocity 3 of 6: residuals b, -2b, b of four, mean over both axes
    bump = 0.6 * 10 / 24
    assert out.raw["kinematic/second_difference"].tolist() == pytest.approx([6 * bump**2 / 4 / 2] * 2, rel=1e-4)


def test_better_clips_earn_more() -> None:
    reward = Reward(RewardConfig.model_validate({"terms": ALL}), networks())
    reference = batch(FALL, VALID)
    wrong = [FALL + 0.4 * torch.tensor([0, 1, 0, 1, 0, 1, 0]), 0 * FALL, 2 * FALL]
    best = reward(reference.with_frames(reference.frames), reference).total
    assert all((reward(reference.with_frames(batch(speeds).frames), reference).total < best).all() for speeds in wrong)


def test_what_cannot_be_measured_adds_nothing_and_is_counted_and_has_no_gradient() -> None:
    reference = batch(FALL, VALID & torch.tensor([[True], [False]]))
    frames = batch(FALL + 0.2 * torch.tensor([0, 1, 0, 1, 0, 1, 0])).frames.requires_grad_(True)
    config = RewardConfig.model_validate({"terms": {"kinematic/second_difference": {"support": "advected"}}})
    out = Reward(config, networks())(reference.with_frames(frames), reference)
    assert out.unmeasured["kinematic/second_difference"].tolist() == [0, 1]
    assert out.raw["kinematic/second_difference"].isnan().tolist() == [False, True]
    assert out.total[1] == 0
    out.total.sum().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert frames.grad[0].abs().max() > 0
    assert frames.grad[1].abs().max() == 0


def test_the_reference_gets_no_gradient_and_each_network_looks_once() -> None:
    reference = batch(FALL, VALID)
    reference.frames.requires_grad_(True)
    pair = networks()
    frames = reference.frames.detach().clone().requires_grad_(True)
    out = Reward(RewardConfig.model_validate({"terms": ALL}), pair)(reference.with_frames(frames), reference)
    out.total.sum().backward()
    assert reference.frames.grad is None
    assert isinstance(pair.flow, DownwardFlow)
    assert pair.flow.calls == 2  # once for the clips, once for the reference


def test_flow_and_features_of_one_network_come_from_one_pass() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = RaftFlow(embedded_network(), FlowConfig(num_flow_updates=1))
    clips = batch(FALL)
    encoded: list[int] = []
    flow.network.feature_encoder.register_forward_hook(lambda *_: encoded.append(1))
    observation = Observation(clips, Networks(flow, FlowFeatures(flow)))
    assert observation.flow.shape == (2, TIME - 1, 2, SIZE, SIZE)
    assert observation.features.shape[:2] == (2, TIME)
    assert len(encoded) == 1


def test_a_missing_reference_or_mask_is_an_error_and_not_a_number() -> None:
    clips = replace(batch(FALL, VALID), masks=None)
    config = RewardConfig.model_validate({"terms": {"mass/paired": {}}})
    with pytest.raises(InputError, match="mass/paired compare with a reference"):
        Reward(config, networks())(clips)
    for terms in ({"mass/area": {}}, {"kinematic/fit": {"support": "mask"}}, {"kinematic/fit": {"support": "colour"}}):
        with pytest.raises(InputError, match="mask"):
            Reward(RewardConfig.model_validate({"terms": terms}), networks())(clips)


def test_the_masks_of_the_reference_are_not_taken_for_those_of_the_clip() -> None:
    reference = batch(FALL, VALID)
    config = RewardConfig.model_validate({"terms": {"kinematic/fit": {"support": "mask"}}})
    with pytest.raises(InputError, match="these very clips"):
        Reward(config, networks())(reference.with_frames(reference.frames), reference)


def test_without_masks_and_valid_frames_the_window_is_found() -> None:
    speeds = torch.cat([2 + FALL[:, :5], torch.zeros(2, 2)], 1)
    clips = replace(batch(speeds), masks=None)
    observation = Observation(clips, networks())
    assert observation.valid.tolist() == [[True] * 6 + [False]] * 2
    config = RewardConfig.model_validate({"terms": {"kinematic/second_difference": {"support": "motion"}}})
    assert Reward(config, networks())(clips).raw["kinematic/second_difference"].max() < 1e-3


def test_a_misspelt_term_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'kinematic/second_difference'"):
        RewardConfig.model_validate({"terms": {"kinematic/second_diference": {}}})


def test_the_reward_is_no_module() -> None:
    reward = Reward(RewardConfig.model_validate({"terms": ALL}), networks())
    assert not isinstance(reward, nn.Module)
    assert "reward" not in dict(nn.ModuleDict({}).named_parameters())


def test_sentinels_are_there_and_carry_no_gradient() -> None:
    reference = batch(FALL, VALID)
    frames = reference.frames.clone().requires_grad_(True)
    out = Reward(RewardConfig.model_validate({"terms": ALL}), networks())(reference.with_frames(frames), reference)
    assert set(out.sentinels) == {"saturation", "high_frequency", "motion_energy", "presence", "area_ratio"}
    assert all(value.shape == (2,) and not value.requires_grad for value in out.sentinels.values())
    assert out.sentinels["motion_energy"].tolist() == pytest.approx([1, 1])
