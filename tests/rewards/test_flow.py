"""The flow estimators say what moved, in px/frame of the frames they were given, and stay frozen."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.optical_flow import RAFT, raft, raft_large, raft_small
from torchvision.models.optical_flow._utils import make_coords_grid

from newtonrewards.core.errors import CheckpointError, MissingExtra, ShapeError
from newtonrewards.rewards.flow import EMBEDDED_WEIGHTS, FlowConfig, RaftFlow, embedded_network, load_flow, load_network
from newtonrewards.rewards.raft import estimate, freeze

pytestmark = pytest.mark.weights
FOREIGN = os.environ.get("NEWTONREWARDS_WEIGHTS")


@pytest.fixture(scope="module", params=["embedded", "raft_small"])
def flow(request: pytest.FixtureRequest) -> RaftFlow:
    """Every flow estimator goes through the same battery."""
    if request.param == "embedded":
        return load_flow(FlowConfig())
    if FOREIGN is None:
        pytest.skip("set NEWTONREWARDS_WEIGHTS to a folder with raft_small_princeton.safetensors")
    path = Path(FOREIGN) / "raft_small_princeton.safetensors"
    return load_flow(FlowConfig(network="raft_small", weights=path, num_flow_updates=8))


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) smooth random picture in [0, 1]."""
    coarse = torch.rand(1, 3, height // 4 + 3, width // 4 + 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def panned(dx: int, dy: int, size: int = 64, steps: int = 3, seed: int = 0) -> torch.Tensor:
    """(1, steps, 3, size, size) frames whose content moves by (dx, dy) px/frame."""
    wide = texture(size + 40, size + 40, seed)
    starts = [(20 - step * dy, 20 - step * dx) for step in range(steps)]
    return torch.stack([wide[:, y : y + size, x : x + size] for y, x in starts])[None]


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-3, 0), (0, 2), (2, -4)])
def test_a_pan_is_read_with_its_sign_and_size(flow: RaftFlow, dx: int, dy: int) -> None:
    found = flow(panned(dx, dy))[0, :, :, 12:-12, 12:-12].mean((0, 2, 3))
    assert found.tolist() == pytest.approx([dx, dy], abs=0.5)


def test_a_still_clip_hardly_flows(flow: RaftFlow) -> None:
    assert flow(panned(0, 0)).abs().mean() < 0.15


def test_mirrored_frames_have_mirrored_flow(flow: RaftFlow) -> None:
    frames = panned(3, 1)
    there, back = flow(frames), flow(frames.flip(-1)).flip(-1)
    inner = (..., slice(12, -12), slice(12, -12))
    assert (there[:, :, 0][inner] + back[:, :, 0][inner]).abs().mean() < 0.4


@pytest.mark.parametrize(("height", "width"), [(37, 50), (64, 96), (20, 20)])
def test_any_size_goes_in_and_the_same_size_comes_out(flow: RaftFlow, height: int, width: int) -> None:
    frames = torch.stack([texture(height, width, seed) for seed in range(3)])[None]
    found = flow.flow_and_features(frames)
    assert found.flow.shape == (1, 2, 2, height, width)
    assert found.flow.isfinite().all()
    assert found.features.shape[:2] == (1, 3)
    assert torch.equal(found.features, flow.features(frames))


def test_clips_of_a_batch_do_not_see_each_other_and_nothing_is_random(flow: RaftFlow) -> None:
    frames = torch.cat([panned(3, 0), panned(-1, 2, seed=5)])
    together = flow(frames)
    assert torch.equal(together, flow(frames))
    assert (together[1:] - flow(frames[1:])).abs().max() < 1e-3


def test_the_frozen_stay_frozen_under_autocast(flow: RaftFlow) -> None:
    frames = panned(2, 1).requires_grad_(True)
    before = [value.clone() for value in flow.network.state_dict().values()]
    plain = flow(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = flow(frames)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    cast.square().mean().backward()
    assert not flow.network.training
    assert all(not p.requires_grad and p.grad is None for p in flow.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, flow.network.state_dict().values(), strict=True))
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert frames.grad.abs().max() > 0


def test_checkpointing_changes_memory_and_nothing_else(flow: RaftFlow) -> None:
    small = RaftFlow(flow.network, flow.config.model_copy(update={"checkpoint": True, "pairs_at_once": 1}))
    results = []
    for estimator in (flow, small):
        frames = panned(2, 1, size=48).requires_grad_(True)
        found = estimator(frames)
        found.square().mean().backward()
        assert frames.grad is not None
        results.append((found.detach(), frames.grad))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-3
    assert (results[0][1] - results[1][1]).norm() < 1e-2 * results[0][1].norm()


def plain_torchvision(flow: RaftFlow, frames: torch.Tensor) -> torch.Tensor:
    """The same flow by torchvision's own forward, pair by pair, all estimates up-sampled."""
    config, (_, _, _, height, width) = flow.config, frames.shape
    network = load_network(config).eval()
    images = F.interpolate(frames[0] * 2 - 1, scale_factor=config.upsample, mode="bilinear", align_corners=False)
    pairs = [
        network(images[t : t + 1], images[t + 1 : t + 2], num_flow_updates=config.num_flow_updates)[-1]
        for t in range(len(images) - 1)
    ]
    return F.interpolate(torch.cat(pairs), size=(height, width), mode="area")[None] / config.upsample


def test_the_shortcut_equals_torchvision(flow: RaftFlow) -> None:
    """Not to the bit: the sums of a float32 network are taken in another order."""
    frames = panned(3, 1, steps=5)
    assert (flow(frames) - plain_torchvision(flow, frames)).abs().max() < 1e-3


@pytest.mark.parametrize("make", [embedded_network, raft_small, raft_large])
def test_the_shortcut_and_its_gradient_equal_torchvision_in_double(
    make: Callable[..., RAFT], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a unit near zero may be on in one and off in the other, which changes the gradient by 1e-4."""
    monkeypatch.setattr(raft, "make_coords_grid", lambda *shape: make_coords_grid(*shape).double())  # float otherwise
    torch.manual_seed(0)
    network = make().eval().double().requires_grad_(False)
    images = F.interpolate(panned(3, 1, size=72, steps=2)[0].double(), size=(128, 136), mode="bilinear") * 2 - 1
    results = []
    for ours in (True, False):
        first, second = images[:1].clone().requires_grad_(), images[1:].clone().requires_grad_()
        if ours:
            own = freeze(copy.deepcopy(network))
            found = estimate(own, first, own.feature_encoder(first), own.feature_encoder(second), 3)
        else:
            found = network(first, second, num_flow_updates=3)[-1]
        results.append((found.detach(), *torch.autograd.grad(found.square().mean(), (first, second))))
    for mine, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        assert (mine - theirs).norm() < 1e-6 * theirs.norm()  # torchvision takes the root of C in float32


def test_flow_grows_with_the_picture(flow: RaftFlow) -> None:
    frames = panned(2, 0)
    large = F.interpolate(frames[0], scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)[None]
    inner = slice(12, -12)
    small, big = flow(frames)[0, :, 0, inner, inner].mean(), flow(large)[0, :, 0, 24:-24, 24:-24].mean()
    assert big.item() == pytest.approx(2 * small.item(), rel=0.15)


def test_wrong_pixels_are_refused_at_the_border() -> None:
    flow = load_flow(FlowConfig())
    with pytest.raises(ShapeError, match=r"want \[0, 1\]"):
        flow(panned(1, 0) * 255)
    with pytest.raises(ShapeError, match="at least two frames"):
        flow(panned(1, 0)[:, :1])


def test_weights_that_are_missing_or_foreign_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"flow\.weights"):
        load_flow(FlowConfig(network="raft_large"))
    with pytest.raises(MissingExtra, match="gone.safetensors"):
        load_flow(FlowConfig(weights=tmp_path / "gone.safetensors"))
    with pytest.raises(CheckpointError, match="another network"):
        load_flow(FlowConfig(network="raft_small", weights=EMBEDDED_WEIGHTS))
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(CheckpointError, match=name):
            load_flow(FlowConfig(weights=tmp_path / name))


def test_the_embedded_network_is_small() -> None:
    assert sum(p.numel() for p in embedded_network().parameters()) < 180_000
    assert EMBEDDED_WEIGHTS.stat().st_size < 400_000
