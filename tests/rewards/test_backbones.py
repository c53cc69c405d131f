"""Encoders of transformers and torchvision, as tiny random instances of the real classes: shape, layer, frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Model

from newtonrewards.core.errors import CheckpointError, InputError, MissingExtra, RecipeError
from newtonrewards.core.recipe import validate
from newtonrewards.rewards.appearance import AppearanceConfig, AppearanceEncoder, load_appearance
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, embedded_network
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig


def raft() -> RaftFlow:
    return RaftFlow(embedded_network(), FlowConfig(num_flow_updates=1))


def load(tiny_networks: Path, kind: str) -> AppearanceEncoder:
    config = {
        "dinov2": {"network": "dino", "name": str(tiny_networks / "dinov2"), "side": 42},
        "dinov3": {"network": "dino", "name": str(tiny_networks / "dinov3"), "layer": 1},
        "vjepa2": {"network": "vjepa2", "name": str(tiny_networks / "vjepa2"), "window": 4},
        "torchvision": {
            "network": "torchvision",
            "name": "resnet18",
            "layer": "layer2",
            "weights": tiny_networks / "resnet18.pth",
            "side": 64,
        },
    }[kind]
    return load_appearance(AppearanceConfig.model_validate(config), raft())


def clip(time: int = 5) -> torch.Tensor:
    return torch.rand(2, time, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("dinov2", (24, 3, 4)), ("dinov3", (24, 4, 6)), ("vjepa2", (24, 2, 3)), ("torchvision", (128, 8, 12))],
)
def test_each_frame_has_a_map_and_the_gradient_reaches_the_pixels(
    tiny_networks: Path, kind: str, shape: tuple[int, ...]
) -> None:
    frames = clip().requires_grad_(True)
    encoder = load(tiny_networks, kind)
    features = encoder(frames)
    assert features.shape == (2, 5, *shape)
    features.square().mean().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert (frames.grad.abs().amax((2, 3, 4)) > 0).all()


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "vjepa2", "torchvision"])
def test_frozen_means_frozen(tiny_networks: Path, kind: str) -> None:
    """No parameter takes a gradient, nothing trains or drops out, and the trainer's autocast doesn't reach it."""
    encoder = load(tiny_networks, kind)
    network = encoder.network  # type: ignore[attr-defined]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    plain = encoder(clip())
    with torch.autocast("cpu", torch.bfloat16):
        cast = encoder(clip())
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    assert torch.equal(plain, encoder(clip()))


def test_layer_and_place_are_those_of_the_model(tiny_networks: Path) -> None:
    """The last layer is the model's own output, in its place on the grid."""
    encoder = load(tiny_networks, "dinov2")
    model = Dinov2Model.from_pretrained(tiny_networks / "dinov2").eval()
    frames = clip(1)
    with torch.no_grad():
        tokens = model(pixel_values=encoder._prepared(frames)[:, 0]).last_hidden_state  # type: ignore[attr-defined]
        maps = encoder(frames)
    assert torch.allclose(maps[:, 0, :, 1, 2], tokens[:, 1 + 1 * 4 + 2], atol=1e-5)


def test_video_windows_are_independent_and_an_odd_end_is_filled(tiny_networks: Path) -> None:
    encoder = load(tiny_networks, "vjepa2")
    frames = clip(7)
    with torch.no_grad():
        whole, start = encoder(frames), encoder(frames[:, :4])
    assert torch.allclose(whole[:, :4], start, atol=1e-5)
    assert torch.equal(whole[:, 0], whole[:, 1])  # one tubelet
    assert not torch.equal(whole[:, 1], whole[:, 2])


def test_a_reward_takes_them(tiny_networks: Path) -> None:
    config = RewardConfig.model_validate({"terms": {"mass/conserved": {"support": "motion"}}})
    from newtonrewards.core.clip import ClipBatch

    batch = ClipBatch(clip(), torch.full((2,), 10.0), ("", ""), index=(0, 1))
    out = Reward(config, Networks(raft(), load(tiny_networks, "vjepa2")))(batch)
    assert out.total.shape == (2,)


def test_what_is_wrong_is_said(tiny_networks: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match="can't load this encoder"):
        load_appearance(AppearanceConfig(network="dino", name=str(tmp_path / "nothing")), raft())
    with pytest.raises(CheckpointError, match="holds a 'dinov2' model"):
        load_appearance(AppearanceConfig(network="vjepa2", name=str(tiny_networks / "dinov2")), raft())
    with pytest.raises(InputError, match="no hidden layer 9"):
        load_appearance(AppearanceConfig(network="dino", name=str(tiny_networks / "dinov2"), layer=9), raft())
    with pytest.raises(InputError, match="cuts a tubelet"):
        load_appearance(AppearanceConfig(network="vjepa2", name=str(tiny_networks / "vjepa2"), window=3), raft())
    for wrong in ({"network": "dino"}, {"network": "flow", "name": "x"}, {"network": "flow", "side": 64}):
        with pytest.raises(RecipeError):
            validate(AppearanceConfig, wrong, where="recipe")
