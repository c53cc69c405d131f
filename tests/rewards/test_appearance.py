"""The appearance encoders tell one object from another, differentiably, and stay frozen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from newtonrewards.core.errors import InputError, MissingExtra, NewtonError
from newtonrewards.rewards import mass
from newtonrewards.rewards.appearance import AppearanceConfig, AppearanceEncoder, Lite0Features, load_appearance
from newtonrewards.rewards.flow import FlowConfig, load_flow

pytestmark = pytest.mark.weights
FOREIGN = os.environ.get("NEWTONREWARDS_WEIGHTS")


def lite0(layer: str = "stride_16") -> Lite0Features:
    path = Path(FOREIGN) / "efficientnet_lite0_imagenet.safetensors" if FOREIGN else None
    config = AppearanceConfig.model_validate({"network": "efficientnet_lite0", "weights": path, "layer": layer})
    try:
        encoder = load_appearance(config, load_flow(FlowConfig()))
    except MissingExtra as missing:
        pytest.skip(f"{missing} Or set NEWTONREWARDS_WEIGHTS to a folder with efficientnet_lite0_imagenet.safetensors.")
    assert isinstance(encoder, Lite0Features)
    return encoder


@pytest.fixture(scope="module", params=["flow", "efficientnet_lite0"])
def encoder(request: pytest.FixtureRequest) -> AppearanceEncoder:
    return load_appearance(AppearanceConfig(), load_flow(FlowConfig())) if request.param == "flow" else lite0()


def picture(*colour: float, x: int = 24) -> torch.Tensor:
    """(1, 1, 3, 64, 64): a square of that colour on a shaded wall."""
    frame = torch.linspace(0.4, 0.7, 64)[None, None, None, :, None].expand(1, 1, 3, 64, 64).clone()
    frame[..., 24:40, x : x + 16] = torch.tensor(colour)[:, None, None]
    return frame


def test_each_frame_has_its_own_features_and_the_gradient_reaches_the_pixels(encoder: AppearanceEncoder) -> None:
    frames = torch.cat([picture(0.8, 0.2, 0.1), picture(0.1, 0.3, 0.8)], 1).requires_grad_(True)
    features = encoder(frames)
    assert features.dtype == torch.float32
    assert features.shape[:2] == (1, 2)
    assert (features[:, 1:] - encoder(frames[:, 1:])).abs().max() < 1e-3 * features.abs().max()
    features.square().mean().backward()
    assert frames.grad is not None
    assert frames.grad.isfinite().all()
    assert frames.grad.abs().max() > 0


def test_another_object_and_a_missing_one_are_farther_than_a_small_change_of_light(encoder: AppearanceEncoder) -> None:
    start = encoder(picture(0.8, 0.2, 0.1))

    def distance(frames: torch.Tensor) -> float:
        return mass.paired(encoder(frames), start).item()

    light = distance(picture(0.8, 0.2, 0.1) * 0.97)
    assert distance(picture(0.1, 0.3, 0.8)) > 2 * light
    gone = torch.linspace(0.4, 0.7, 64)[None, None, None, :, None].expand(1, 1, 3, 64, 64)
    assert distance(gone) > 2 * light


def test_autocast_changes_nothing(encoder: AppearanceEncoder) -> None:
    frames = picture(0.8, 0.2, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(frames), encoder(frames))
        inside = encoder(frames)
    assert torch.equal(inside, encoder(frames))


@pytest.mark.parametrize(("layer", "channels"), [("stride_8", 40), ("stride_16", 112), ("stride_32", 320)])
def test_the_layers_of_lite0(layer: str, channels: int) -> None:
    assert lite0(layer)(picture(0.8, 0.2, 0.1)).shape[2] == channels


def test_lite0_embeds_a_whole_frame() -> None:
    assert lite0().embed(picture(0.8, 0.2, 0.1)).shape == (1, 1, 1280)


def test_missing_weights_and_a_flow_without_encoder_say_what_to_do(tmp_path: Path) -> None:
    flow = load_flow(FlowConfig())
    with pytest.raises(NewtonError, match=r"gone\.safetensors"):
        load_appearance(AppearanceConfig(network="efficientnet_lite0", weights=tmp_path / "gone.safetensors"), flow)
    with pytest.raises(InputError, match="Use efficientnet_lite0"):
        load_appearance(AppearanceConfig(), lambda frames: frames)
