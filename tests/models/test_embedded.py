"""What is particular to the embedded model: its text path, its loss, its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.models.base import draw_noise
from newtonrewards.models.embedded import EmbeddedModel
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.load import ModelConfig, load_video_model, save_trained


def test_the_text_is_zero_past_the_captions_end(embedded: EmbeddedModel, clips: Tensor) -> None:
    text = embedded.condition(["abc", "an object falls"], clips[:2, 0]).text
    assert text[0, 4:].abs().max() == 0  # three bytes and the end mark
    assert text[0, :4].abs().amax(1).min() > 0
    assert text[1, :16].abs().amax(1).min() > 0


def test_the_text_encoder_trains_only_when_asked(embedded: EmbeddedModel, clips: Tensor) -> None:
    clean, noise = embedded.encode(clips[:2]), draw_noise(embedded.spec, 0, 0, [0, 1])

    def gradient() -> list[bool]:
        condition = embedded.condition(["an object falls", "another"], clips[:2, 0])
        flow_matching_loss(embedded, clean, noise, torch.tensor([0.5, 0.5]), condition).mean().backward()
        return [p.grad is not None and bool(p.grad.abs().max() > 0) for p in embedded.text_encoder.parameters()]

    assert not any(gradient())
    assert list(embedded.trainable) == ["transformer"]
    embedded.train_text_encoder = True
    assert all(gradient())
    assert list(embedded.trainable) == ["transformer", "text_encoder"]


def test_the_loss_is_the_clean_error_with_the_level_floored(embedded: EmbeddedModel, clips: Tensor) -> None:
    """(x error)^2 / max(sigma, .1)^2: written out here from the model's own prediction."""
    clean, noise = embedded.encode(clips[:2]), draw_noise(embedded.spec, 0, 0, [0, 1])
    condition = embedded.condition(["a", "b"], clips[:2, 0])
    for level in (0.03, 0.6):
        sigma = torch.full((2,), level)
        latents = (1 - level) * clean + level * noise
        predicted_clean = latents - level * embedded.predict(latents, sigma, condition)
        gain = embedded.codec.gain.view(1, -1, 1, 1, 1)
        weight = (1 / gain) / (1 / gain).mean() * torch.where(embedded.codec.moving(clean), 5.0, 1.0)
        expected = ((predicted_clean - clean) ** 2 * weight / max(level, 0.1) ** 2).mean((1, 2, 3, 4))
        loss = flow_matching_loss(embedded, clean, noise, sigma, condition)
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)


def test_half_precision_storage_halves_the_file_and_barely_moves_the_weights(
    embedded: EmbeddedModel, tmp_path: Path
) -> None:
    embedded.save(tmp_path / "half", torch.float16)
    embedded.save(tmp_path / "full", torch.float32)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / name).stat().st_size < 0.6 * (tmp_path / "full" / name).stat().st_size
    half = EmbeddedModel.load(tmp_path / "half")
    for (key, ours), theirs in zip(
        embedded.transformer.state_dict().items(), half.transformer.state_dict().values(), strict=True
    ):
        assert theirs.dtype == torch.float32, key
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-6)


def test_diffusers_and_transformers_open_the_parts(embedded: EmbeddedModel, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    embedded.save(tmp_path / "model", torch.float32)
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "model", subfolder="transformer")
    encoder = UMT5EncoderModel.from_pretrained(tmp_path / "model" / "text_encoder")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
    for ours, theirs in ((embedded.transformer, transformer), (embedded.text_encoder, encoder)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    assert scheduler.config.shift == embedded.scheduler.config.shift


def test_a_caption_that_does_not_fit_is_refused_and_not_cut(embedded: EmbeddedModel, clips: Tensor) -> None:
    with pytest.raises(InputError, match="caption of 112 bytes, this model reads 111"):
        embedded.condition(["x" * 112], clips[:1, 0])
    embedded.condition(["x" * 111], clips[:1, 0])


def test_wrong_folders_are_named_with_what_was_expected(embedded: EmbeddedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such model folder\. name: embedded needs"):
        load_video_model(ModelConfig(name="embedded", path=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: not a model folder"):
        load_video_model(ModelConfig(name="embedded", path=tmp_path / "empty"))
    embedded.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"this is a EmbeddedModel.*Did you mean name: embedded\?"):
        load_video_model(ModelConfig(name="wan", path=tmp_path / "model"))
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors: damaged"):
        load_video_model(ModelConfig(name="embedded", path=tmp_path / "model"))


def test_training_saves_the_adapter_alone_or_the_whole_model(embedded: EmbeddedModel, tmp_path: Path) -> None:
    embedded.save(tmp_path / "model")
    config = ModelConfig(name="embedded", path=tmp_path / "model", lora_rank=2, train_text_encoder=True)
    model = load_video_model(config)
    assert list(model.trainable) == ["transformer", "text_encoder"]
    save_trained(model, config, tmp_path / "adapter")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    config = ModelConfig(name="embedded", path=tmp_path / "model")
    save_trained(load_video_model(config), config, tmp_path / "whole")
    load_video_model(ModelConfig(name="embedded", path=tmp_path / "whole"))
