"""LoRA: attach, train a little, save, load, merge; and adapters that belong elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.models import lora
from newtonrewards.models.base import VideoModel, draw_noise
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.models.sampling import sample
from newtonrewards.models.tiny_wan import tiny_pipeline
from newtonrewards.models.wan import WanModel


def latents(model: VideoModel, clips: Tensor) -> Tensor:
    condition = model.condition(["an object falls"], clips[:1, 0])
    return sample(model, condition, draw_noise(model.spec, 0, 0, [0]), num_inference_steps=2, guidance_scale=1.0)


def trained(model: VideoModel) -> VideoModel:
    for name, parameter in model.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model


def again(model: EmbeddedModel) -> EmbeddedModel:
    return EmbeddedModel.create(model.config, model.codec, seed=0)


def test_new_layers_change_nothing_and_alone_can_train(embedded: EmbeddedModel, clips: Tensor) -> None:
    before = latents(embedded, clips)
    lora.add(embedded, rank=4)
    assert torch.equal(latents(embedded, clips), before)
    assert all(p.requires_grad == ("lora_" in name) for name, p in embedded.transformer.named_parameters())
    assert lora.is_attached(embedded)


def test_the_seed_alone_decides_the_first_weights(embedded: EmbeddedModel) -> None:
    models = [again(embedded) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        torch.rand(seed)  # the global stream must not matter
        lora.add(model, rank=4, seed=seed)
    first, same, other = (
        torch.cat([p.flatten() for name, p in m.transformer.named_parameters() if "lora_A" in name]) for m in models
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_saved_and_loaded_makes_the_same_latents_and_trains_on(
    embedded: EmbeddedModel, clips: Tensor, tmp_path: Path
) -> None:
    model = again(embedded)
    lora.add(model, rank=4, alpha=8.0)
    trained(model)
    lora.save(model, tmp_path / "adapter")
    loaded = again(embedded)
    lora.load(loaded, tmp_path / "adapter")
    assert torch.equal(latents(loaded, clips), latents(model, clips))
    assert {name for name, p in loaded.transformer.named_parameters() if p.requires_grad} == {
        name for name, p in model.transformer.named_parameters() if p.requires_grad
    }


def test_merged_weights_make_the_same_latents_without_an_adapter(embedded: EmbeddedModel, clips: Tensor) -> None:
    lora.add(embedded, rank=4)
    expected = latents(trained(embedded), clips)
    lora.merge(embedded)
    assert not lora.is_attached(embedded)
    torch.testing.assert_close(latents(embedded, clips), expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in embedded.transformer.parameters())


def test_targets_can_be_chosen_and_misspelt(embedded: EmbeddedModel) -> None:
    with pytest.raises(InputError, match=r"ends in to_query.*to_q"):
        lora.add(embedded, rank=2, targets=["to_query"])
    lora.add(embedded, rank=2, targets=["to_q"])
    adapted = [name for name, _ in embedded.transformer.named_parameters() if "lora_A" in name]
    assert len(adapted) == 2 * 2
    assert all("to_q" in name for name in adapted)


def test_an_adapter_of_another_model_is_refused_by_both_names(
    embedded: EmbeddedModel, codec: PatchCodec, tmp_path: Path
) -> None:
    wan = WanModel(tiny_pipeline("2.2"), num_frames=9, height=32, width=32, fps=16.0)
    lora.add(wan, rank=2)
    lora.save(wan, tmp_path / "wan")
    with pytest.raises(CheckpointError, match=r"adapter of the wan model .*doesn't fit the embedded model"):
        lora.load(embedded, tmp_path / "wan")
    wider = EmbeddedModel.create(EmbeddedConfig(num_heads=2, head_dim=24, num_layers=2, text_dim=16), codec, 0)
    lora.add(wider, rank=2)
    lora.save(wider, tmp_path / "wider")
    with pytest.raises(CheckpointError, match=r"width 48.*doesn't fit.*width 24"):
        lora.load(embedded, tmp_path / "wider")
    assert not lora.is_attached(embedded)


def test_a_foreign_file_of_the_wrong_shape_is_refused(embedded: EmbeddedModel, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    foreign = {
        f"transformer.blocks.0.attn1.to_q.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 99)), ("B", (99, 2)))
    }
    save_file(foreign, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: .*doesn't fit the embedded model"):
        lora.load(embedded, tmp_path / "foreign.safetensors")
    save_file({"other.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"without transformer layers"):
        lora.load(embedded, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    for missing in ("text.safetensors", "nothing.safetensors"):
        with pytest.raises(CheckpointError, match=missing):
            lora.load(embedded, tmp_path / missing)


def test_there_must_be_an_adapter_to_save(embedded: EmbeddedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no LoRA layers"):
        lora.save(embedded, tmp_path / "adapter")
    lora.add(embedded, rank=2)
    with pytest.raises(CheckpointError, match="adapters attached"):
        embedded.save(tmp_path / "model")
