"""Checkpointed flow over long clips: the plain gradient, in the memory of one group of pairs beyond the frames.

Memory is counted and not measured: every storage that torch makes on the way, for as long as it lives.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from newtonrewards.rewards.flow import FlowConfig, RaftFlow, load_flow

pytestmark = pytest.mark.weights
SIDE, UPSAMPLE = 40, 2


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made since it began, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.fixture(scope="module")
def flow() -> RaftFlow:
    return load_flow(FlowConfig(num_flow_updates=2, upsample=UPSAMPLE))


def as_configured(flow: RaftFlow, **settings: object) -> RaftFlow:
    return RaftFlow(flow.network, flow.config.model_copy(update=settings))


def clip(time: int) -> Tensor:
    """A smooth picture that moves by 2 px/frame to the right and 1 down."""
    wide = SIDE + 2 * time
    coarse = torch.rand(1, 3, wide // 4, wide // 4, generator=torch.Generator().manual_seed(time))
    picture = F.interpolate(coarse, size=(wide, wide), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    starts = [(time - step, 2 * (time - step)) for step in range(time)]
    return torch.stack([picture[:, y : y + SIDE, x : x + SIDE] for y, x in starts])[None]


def gradient(flow: RaftFlow, frames: Tensor) -> Tensor:
    leaf = frames.clone().requires_grad_(True)
    flow(leaf).square().mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def peak_bytes(flow: RaftFlow, frames: Tensor) -> int:
    gc.collect()
    gc.disable()  # so that what lives is what is referred to, on every run
    try:
        with LiveBytes() as live:
            gradient(flow, frames)
    finally:
        gc.enable()
    return live.peak


@pytest.mark.parametrize("pairs_at_once", [1, 2, 96])
def test_the_gradient_is_the_plain_one(flow: RaftFlow, pairs_at_once: int) -> None:
    frames = clip(5)
    plain = gradient(flow, frames)
    small = gradient(as_configured(flow, checkpoint=True, pairs_at_once=pairs_at_once), frames)
    assert plain.abs().max() > 0
    assert (small - plain).norm() < 1e-5 * plain.norm()


def test_each_more_frame_takes_what_a_frame_takes_and_not_what_a_pair_takes(flow: RaftFlow) -> None:
    frame = 3 * 4 * (SIDE * UPSAMPLE) ** 2  # bytes of one enlarged frame
    small = as_configured(flow, checkpoint=True, pairs_at_once=1)
    gradient(small, clip(3))  # whatever is made once
    checkpointed = [peak_bytes(small, clip(time)) for time in (3, 9)]
    plain = [peak_bytes(flow, clip(time)) for time in (3, 9)]
    per_frame, per_frame_plain = ((long - short) / 6 for short, long in (checkpointed, plain))
    assert per_frame < 5 * frame  # the frame, its scaled copies, its features and its gradient
    assert per_frame_plain > 20 * frame
