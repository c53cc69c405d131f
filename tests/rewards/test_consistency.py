"""Flow there and flow back: they meet where something is seen in both frames, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.rewards.consistency import confidence
from newtonrewards.rewards.observation import Networks, Observation
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.rewards.sentinels import LIMITS, alarms

SIZE, STEP = 32, 5
BEFORE, AFTER = slice(8, 16), slice(8 + STEP, 16 + STEP)
ROWS = slice(10, 20)


def square(columns: slice, speed: float) -> Tensor:
    """(1, 1, 2, SIZE, SIZE): a square at these columns that moves to the right over a still ground."""
    flow = torch.zeros(1, 1, 2, SIZE, SIZE)
    flow[..., 0, ROWS, columns] = speed
    return flow


def test_what_the_object_covers_is_unreliable_and_the_rest_is_not() -> None:
    """Exact flow of a square: only the ground that it comes to lie on has no counterpart."""
    seen = confidence(square(BEFORE, STEP), square(AFTER, -STEP))[0, 0]
    covered = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    covered[ROWS, 16 : 16 + STEP] = True
    assert (seen[covered] < 1e-6).all()
    assert (seen[~covered] > 0.999).all()


def test_what_leaves_the_frame_is_unreliable() -> None:
    flow = torch.zeros(1, 1, 2, 8, 12)
    flow[:, :, 0] = 3.0
    seen = confidence(flow, -flow)[0, 0]
    assert (seen[:, :9] > 0.999).all()
    assert (seen[:, 9:] == 0).all()


def test_the_larger_the_contradiction_the_smaller_the_confidence() -> None:
    forward = square(BEFORE, STEP)
    at = [float(confidence(forward, square(AFTER, -STEP + error))[0, 0, 15, 12]) for error in (0.0, 0.3, 1.0, 3.0)]
    assert at == sorted(at, reverse=True)
    assert at[0] == pytest.approx(1) and at[-1] < 1e-3
    allowed = 0.01 * (STEP**2 + (STEP - 1) ** 2) + 0.5
    assert at[2] == pytest.approx(torch.exp(torch.tensor(-1 / allowed)).item(), rel=1e-4)


class Scripted:
    """A flow network that says what it is told for each direction of time; a clip runs backwards if it darkens."""

    def __init__(self, forward: Tensor, backward: Tensor) -> None:
        self.flows, self.graphs = (forward, backward), []

    def __call__(self, frames: Tensor) -> Tensor:
        self.graphs.append(torch.is_grad_enabled() and frames.requires_grad)
        backwards = bool(frames[0, 0].mean() > frames[0, -1].mean())
        return self.flows[backwards] + 0 * frames.mean()


def clips() -> ClipBatch:
    """Four frames that grow brighter, with a red square and its mask; the flow is the same for every pair."""
    frames = torch.linspace(0.2, 0.5, 4)[None, :, None, None, None].expand(1, 4, 3, SIZE, SIZE).clone()
    frames[:, :, 0, ROWS, BEFORE] += 0.4
    masks = torch.zeros(1, 4, SIZE, SIZE)
    masks[..., ROWS, BEFORE] = 1
    return ClipBatch(frames, torch.tensor([10.0]), ("",), masks, torch.ones(1, 4, dtype=torch.bool), (0,))


def half_wrong() -> Scripted:
    """The right half of the square is read at twice its speed, and the way back doesn't confirm it."""
    forward, backward = square(BEFORE, STEP), square(AFTER, -STEP)
    forward[..., 0, ROWS, 12:16] = 2 * STEP
    return Scripted(forward.expand(1, 3, -1, -1, -1), backward.expand(1, 3, -1, -1, -1))


def test_a_support_weighted_by_it_reads_what_can_be_trusted() -> None:
    plain, weighed = (Observation(clips(), Networks(half_wrong(), _unused), weigh=weigh) for weigh in (False, True))
    height_per_px = 10 / SIZE
    assert plain.velocity("mask")[0, :, 0].tolist() == pytest.approx([1.5 * STEP * height_per_px] * 3)
    assert weighed.velocity("mask")[0, :, 0].tolist() == pytest.approx([STEP * height_per_px] * 3, rel=1e-3)


def _unused(frames: Tensor) -> Tensor:
    raise AssertionError("no term needs features")


@pytest.mark.parametrize("mode", ["ignore", "watch", "weigh"])
def test_the_reward_watches_or_weighs_and_trains_neither(mode: str) -> None:
    flow = half_wrong()
    terms = {"kinematic/fit": {"support": "mask"}}
    reward = Reward(RewardConfig.model_validate({"terms": terms, "consistency": mode}), Networks(flow, _unused))
    batch = clips()
    batch.frames.requires_grad_(True)
    out = reward(batch)
    assert ("consistency" in out.sentinels) == (mode != "ignore")
    assert len(flow.graphs) == (1 if mode == "ignore" else 2)  # there, and back once for all who ask
    assert flow.graphs[1:] in ([], [False])
    if mode != "ignore":
        value = out.sentinels["consistency"]
        assert not value.requires_grad
        assert 0 < value.item() < LIMITS["consistency"][0]
        assert alarms({"consistency": value.item()}) == ["consistency"]
