"""Our Wan against diffusers' own pipeline and autoencoder, on tiny random ones made from the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.video import to_8bit
from newtonrewards.models import lora, wan_vae
from newtonrewards.models.base import draw_noise
from newtonrewards.models.load import ModelConfig, load_video_model
from newtonrewards.models.sampling import sample
from newtonrewards.models.tiny_wan import STYLES, main, tiny_pipeline
from newtonrewards.models.wan import WanModel

CAPTION = "an object slides down a ramp of 30 degrees"
SIZE: dict[str, int] = {"num_frames": 9, "height": 32, "width": 32}


def wan(pipeline: WanImageToVideoPipeline, negative: str = "") -> WanModel:
    return WanModel(pipeline, **SIZE, fps=16.0, negative_caption=negative)


@pytest.fixture(scope="module")
def first_frame(clips: Tensor) -> Tensor:
    """(1, 3, 32, 32), rounded to 8 bits as a picture file is."""
    return (clips[:1, 0] * 255).round() / 255


def pipeline_clip(
    pipeline: Any, first_frame: Tensor, noise: Tensor, guidance_scale: float, negative: str = ""
) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        image=Image.fromarray(to_8bit(first_frame)[0]),
        prompt=CAPTION,
        negative_prompt=negative,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        output_type="pt",
        **SIZE,
    ).frames
    assert isinstance(frames, Tensor)
    return frames


def our_clip(model: WanModel, first_frame: Tensor, noise: Tensor, guidance_scale: float) -> Tensor:
    condition = model.condition([CAPTION], first_frame)
    return model.decode(
        sample(model, condition, noise, num_inference_steps=4, guidance_scale=guidance_scale), condition
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_our_sampler_makes_the_clip_of_the_pipeline(style: str, guidance_scale: float, first_frame: Tensor) -> None:
    pipeline = tiny_pipeline(style)
    model = wan(pipeline, "blurred, still")
    noise = draw_noise(model.spec, 0, 0, [0])
    ours = our_clip(model, first_frame, noise, guidance_scale)
    theirs = pipeline_clip(pipeline, first_frame, noise, guidance_scale, "blurred, still")
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("style", ["2.1", "2.2"])
def test_encode_and_decode_are_those_of_the_autoencoder(style: str, clips: Tensor) -> None:
    vae = tiny_pipeline(style).vae
    frames = clips[:2].transpose(1, 2) * 2 - 1
    with torch.no_grad():
        raw = vae.encode(frames).latent_dist.mode()
        theirs = vae.decode(raw).sample
        normalised = wan_vae.encode(vae, frames)
        ours = wan_vae.decode(vae, normalised)
    mean, spread = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(normalised, (raw - mean) / spread, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


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


def test_the_saved_lora_opens_in_diffusers_and_makes_the_same_clip(first_frame: Tensor, tmp_path: Path) -> None:
    for style in STYLES:
        model = wan(tiny_pipeline(style))
        lora.add(model, rank=3, alpha=6.0, seed=1)
        noise = draw_noise(model.spec, 0, 0, [0])
        before = our_clip(model, first_frame, noise, 1.0)
        for name, parameter in model.transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        ours = our_clip(model, first_frame, noise, 1.0)
        lora.save(model, tmp_path / style)
        fresh = tiny_pipeline(style)
        fresh.load_lora_weights(str(tmp_path / style))
        torch.testing.assert_close(pipeline_clip(fresh, first_frame, noise, 1.0), ours, rtol=0, atol=1e-4)
        assert (ours - before).abs().max() > 1e-3


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


def test_two_expert_pipelines_and_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 4 plus 1"):
        WanModel(tiny_pipeline("2.1"), num_frames=10, height=32, width=32, fps=16.0)
    pipeline = tiny_pipeline("2.1-no-image-encoder")
    both = WanImageToVideoPipeline(**{**pipeline.components, "transformer_2": pipeline.transformer}, boundary_ratio=0.9)
    both.save_pretrained(tmp_path / "a14b")
    with pytest.raises(CheckpointError, match=r"a14b: .*two transformers"):
        load_video_model(ModelConfig(name="wan", path=tmp_path / "a14b", **SIZE))


def test_the_tiny_pipeline_command_writes_a_folder_that_loads(tmp_path: Path, first_frame: Tensor) -> None:
    assert main(["--out", str(tmp_path / "tiny"), "--style", "2.2", "--seed", "3"]) == 0
    model = load_video_model(ModelConfig(name="wan", path=tmp_path / "tiny", **SIZE))
    assert isinstance(model, WanModel)
    noise = draw_noise(model.spec, 0, 0, [0])
    in_memory = wan(tiny_pipeline("2.2", seed=3))
    assert torch.equal(our_clip(model, first_frame, noise, 1.0), our_clip(in_memory, first_frame, noise, 1.0))
