"""What only Wan has: an autoencoder decoded piece by piece, a given first frame, two experts. See test_pipelines.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import InputError
from newtonrewards.models import lora, wan_vae
from newtonrewards.models.base import draw_noise, draw_sigma
from newtonrewards.models.tiny_wan import BOUNDARY_RATIO, tiny_pipeline
from newtonrewards.models.wan import WanModel

CAPTION = "an object slides down a ramp of 30 degrees"
SIZE: dict[str, int] = {"num_frames": 9, "height": 32, "width": 32}


def wan(pipeline: Any) -> WanModel:
    return WanModel(pipeline, **SIZE, fps=16.0)


@pytest.mark.parametrize("style", ["2.1", "2.2"])
def test_checkpointed_decoding_equals_plain_decoding_to_the_bit(style: str) -> None:
    """In value and gradient, over five latent frames, so that caches of all ages are recomputed."""
    vae = tiny_pipeline(style).vae
    mean, spread = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    start = torch.randn(1, vae.config.z_dim, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for decode in (lambda z: wan_vae.decode(vae, z), lambda z: vae.decode(z * spread + mean).sample):
        latents = start.clone().requires_grad_()
        frames = decode(latents)
        weight = torch.linspace(-1, 1, frames.numel()).view_as(frames)
        (gradient,) = torch.autograd.grad((frames * weight).sum(), latents)
        results.append((frames.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(our_gradient, their_gradient)
    assert (our_gradient.abs().amax((0, 1, 3, 4)) > 0).all()


def test_the_scheduler_of_published_folders_becomes_euler_with_its_shift() -> None:
    from diffusers import UniPCMultistepScheduler

    pipeline = tiny_pipeline("2.2")
    pipeline.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    assert wan(pipeline).scheduler.config.shift == 5.0


def test_the_given_frame_of_ti2v_is_not_learned_from(clips: Tensor) -> None:
    model = wan(tiny_pipeline("2.2"))
    clean = model.encode(clips[:1])
    weight = model.loss_weight(clean, torch.ones(1)).expand_as(clean)
    assert weight[:, :, 0].abs().max() == 0
    assert weight.mean().item() == pytest.approx(1.0)


def test_each_expert_predicts_at_its_own_noise_levels(clips: Tensor) -> None:
    model = wan(tiny_pipeline("2.2-a14b"))
    assert model.transformer_2 is not None
    condition = model.condition([CAPTION] * 2, clips[:2, 0])
    latents, sigma = draw_noise(model.spec, 0, 0, [0, 1]), torch.tensor([BOUNDARY_RATIO + 0.01, BOUNDARY_RATIO - 0.01])
    both = model.predict(latents, sigma, condition)
    for changed, expert in enumerate((model.transformer, model.transformer_2)):
        with torch.no_grad():
            expert.proj_out.bias += 1.0  # type: ignore[operator, union-attr]
        moved = (model.predict(latents, sigma, condition) - both).abs().amax((1, 2, 3, 4))
        assert moved[changed] > 0.5 and moved[1 - changed] < (1e-5 if changed == 0 else 2.0)


@pytest.mark.parametrize(("experts", "trains", "low", "high"), [
    ("both", ["transformer", "transformer_2"], 0.0, 1.0),
    ("high_noise", ["transformer"], BOUNDARY_RATIO, 1.0),
    ("low_noise", ["transformer_2"], 0.0, BOUNDARY_RATIO),
])  # fmt: skip
def test_one_expert_trains_alone_at_its_own_levels(experts: Any, trains: list[str], low: float, high: float) -> None:
    model = wan(tiny_pipeline("2.2-a14b"))
    model.choose_experts(experts)
    assert list(model.trainable) == trains
    sigma = draw_sigma(model, 0, 0, range(400))
    assert low - 1e-6 <= sigma.min() and sigma.max() <= high + 1e-6
    assert sigma.min() < low + 0.15 and sigma.max() > high - 0.1
    lora.add(model, rank=2)
    for name in ("transformer", "transformer_2"):
        adapted = any("lora_" in key and p.requires_grad for key, p in getattr(model, name).named_parameters())
        assert adapted == (name in trains)


def test_the_adapter_of_one_expert_goes_back_to_it(tmp_path: Path) -> None:
    model = wan(tiny_pipeline("2.2-a14b"))
    model.choose_experts("low_noise")
    lora.add(model, rank=2)
    lora.save(model, tmp_path / "adapter")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights_2.safetensors"]
    fresh = wan(tiny_pipeline("2.2-a14b"))
    lora.load(fresh, tmp_path / "adapter")
    assert fresh.transformer_2 is not None
    names = {name for name, _ in fresh.transformer_2.named_parameters()}
    assert any("lora_" in name for name in names)
    assert not any("lora_" in name for name, _ in fresh.transformer.named_parameters())


def test_experts_of_a_model_with_one_transformer_are_refused() -> None:
    with pytest.raises(InputError, match="one transformer, not two experts"):
        wan(tiny_pipeline("2.1-no-image-encoder")).choose_experts("low_noise")
