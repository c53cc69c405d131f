"""One battery for every VideoModel, on tiny random instances of the real classes.

Families join by themselves: each one in `FAMILIES` has a module `tiny_NAME` with its styles. What only a pipeline has
(diffusers' own clip, its `load_lora_weights`) is in test_pipelines.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from newtonrewards.core.errors import InputError, ShapeError
from newtonrewards.models import lora
from newtonrewards.models.base import VideoModel, draw_noise, draw_sigma
from newtonrewards.models.causal import Tiles
from newtonrewards.models.embedded import EmbeddedModel
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.load import FAMILIES, ModelConfig, load_video_model
from newtonrewards.models.pipelines import PipelineModel
from newtonrewards.models.sampling import sample

CAPTIONS = ("an object falls", "an object is thrown left at 2.1 m/s")
TINY = {name: importlib.import_module(f"newtonrewards.models.tiny_{name}") for name in FAMILIES}
# The first style of each family, and those that train or sample in another way.
OTHERS = ["wan 2.2", "wan 2.2-a14b", "wan 2.1-t2v", "cogvideox 1.5"]
MODELS = ["embedded", *(f"{name} {tiny.STYLES[0]}" for name, tiny in TINY.items()), *OTHERS]
SIZE = {"num_frames": 9, "height": 32, "width": 32}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, embedded: EmbeddedModel) -> VideoModel:
    name, _, style = request.param.partition(" ")
    return embedded if name == "embedded" else FAMILIES[name](TINY[name].tiny_pipeline(style), **SIZE, fps=16.0)


def transformers(model: VideoModel) -> dict[str, Any]:
    return {name: module for name, module in model.trainable.items() if name.startswith("transformer")}


def parameters(model: VideoModel) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in transformers(model).items()
        for key, value in module.named_parameters()
    }


@pytest.fixture
def pair(clips: Tensor) -> Tensor:
    return clips[:2]


def make(
    model: VideoModel, frames: Tensor, indices: list[int], grad_steps: int = 0, guidance_scale: float = 1.0
) -> Tensor:
    condition = model.condition([CAPTIONS[i] for i in indices], frames[indices, 0])
    latents = sample(
        model,
        condition,
        draw_noise(model.spec, 0, 0, indices),
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        grad_steps=grad_steps,
    )
    return model.decode(latents, condition)


def test_clips_have_the_promised_shape_range_and_first_frame(model: VideoModel, pair: Tensor) -> None:
    frames = make(model, pair, [0, 1])
    spec = model.spec
    assert frames.shape == (2, spec.num_frames, 3, spec.height, spec.width)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    assert torch.isfinite(frames).all()
    assert model.encode(pair).shape == (2, *spec.latent_shape)


def test_same_noise_same_clip_and_other_noise_another(model: VideoModel, pair: Tensor) -> None:
    assert torch.equal(make(model, pair, [0]), make(model, pair, [0]))
    condition = model.condition(CAPTIONS, pair[:, 0])
    a, b = (
        sample(model, condition, draw_noise(model.spec, seed, 0, [0, 1]), num_inference_steps=2, guidance_scale=1.0)
        for seed in (0, 1)
    )
    assert (a - b).abs().max() > 1e-3


def test_a_clip_does_not_depend_on_its_neighbours(model: VideoModel, pair: Tensor) -> None:
    torch.testing.assert_close(make(model, pair, [0, 1])[1:], make(model, pair, [1]), rtol=0, atol=2e-5)


def test_the_caption_matters_and_the_first_frame_where_it_is_given(model: VideoModel, pair: Tensor) -> None:
    noise = draw_noise(model.spec, 0, 0, [0])

    def latents(caption: str, first_frame: Tensor) -> Tensor:
        condition = model.condition([caption], first_frame[None])
        return sample(model, condition, noise, num_inference_steps=2, guidance_scale=1.0)

    plain = latents(CAPTIONS[0], pair[0, 0])
    assert (latents(CAPTIONS[1], pair[0, 0]) - plain).abs().max() > 1e-6
    moved = (latents(CAPTIONS[0], pair[1, 0]) - plain).abs().max()
    assert moved > 1e-6 if model.spec.from_image else moved == 0


def test_guidance_changes_the_clip_and_a_scale_of_one_does_not(model: VideoModel, pair: Tensor) -> None:
    condition = model.condition(CAPTIONS, pair[:, 0])
    noise = draw_noise(model.spec, 0, 0, [0, 1])
    plain, guided, empty = (
        sample(model, c, noise, num_inference_steps=1, guidance_scale=scale)
        for c, scale in ((condition, 1.0), (condition, 3.0), (condition.without_text(), 1.0))
    )
    torch.testing.assert_close(guided, empty + 3 * (plain - empty), rtol=1e-4, atol=1e-4)


def test_decode_undoes_encode_as_well_as_the_codec_can(model: VideoModel, pair: Tensor) -> None:
    """A fitted codec's second trip changes less than its first; an untrained VAE must only be repeatable."""
    condition = model.condition(CAPTIONS, pair[:, 0])
    once = model.decode(model.encode(pair), condition)
    assert torch.equal(once, model.decode(model.encode(pair), condition))
    if model.spec.name == "embedded":
        assert (once - pair).square().mean() < 1e-3
        torch.testing.assert_close(model.decode(model.encode(once), condition), once, rtol=0, atol=0.05)


def test_gradient_through_some_latent_frames_or_a_plain_word(model: VideoModel, pair: Tensor) -> None:
    condition = model.condition(CAPTIONS, pair[:, 0])
    latents = draw_noise(model.spec, 0, 0, [0, 1]).requires_grad_()
    if model.spec.name == "ltx":
        with pytest.raises(InputError, match="decoded_latents"):
            model.decode(latents, condition, [1])
        return
    frames = model.decode(latents, condition, [1])
    assert torch.equal(frames, model.decode(latents, condition))
    (gradient,) = torch.autograd.grad(frames.square().sum(), latents)
    reached = gradient.abs().amax((0, 1, 3, 4)) > 0
    assert reached.tolist() == [i == 1 for i in range(model.spec.latent_shape[1])]


def test_tiles_change_what_is_kept_or_are_refused(model: VideoModel, pair: Tensor) -> None:
    if not isinstance(model, PipelineModel):
        with pytest.raises(ValueError, match="tiles"):
            ModelConfig(name=model.spec.name, path=Path("x"), tiles=Tiles(side=2))
        return
    if model.spec.name not in ("wan", "hunyuan"):
        with pytest.raises(InputError, match="tiles"):
            model.decode_in_tiles(Tiles(side=2))
        return
    whole = make(model, pair, [0])
    model.decode_in_tiles(Tiles(side=2, margin=0))
    one_tile = model.spec.latent_shape[-1] <= 2
    assert torch.equal(make(model, pair, [0]), whole) == one_tile
    model.decode_in_tiles(Tiles(side=2, margin=16))
    torch.testing.assert_close(make(model, pair, [0]), whole, rtol=0, atol=1e-5)


def test_sampling_with_gradient_gives_the_same_clip(model: VideoModel, pair: Tensor) -> None:
    plain = make(model, pair, [0, 1], guidance_scale=2.0)
    for grad_steps in (1, 3):
        torch.testing.assert_close(make(model, pair, [0, 1], grad_steps, 2.0).detach(), plain, rtol=0, atol=1e-6)


def test_the_gradient_reaches_every_lora_layer_and_nothing_else(model: VideoModel, pair: Tensor) -> None:
    lora.add(model, rank=2, seed=0)
    layers = {name: p for name, p in parameters(model).items() if "lora_" in name}
    for name, parameter in layers.items():
        if "lora_B" in name:  # it starts at zero, which keeps A's gradient at zero
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    make(model, pair, [0, 1], grad_steps=3).square().mean().backward()
    assert len(layers) >= 2 * 2 * 6  # two blocks with attention and feed-forward, A and B
    for name, parameter in parameters(model).items():
        if name in layers:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_loss_is_finite_for_each_sample_and_trains_everything_it_names(model: VideoModel, pair: Tensor) -> None:
    condition = model.condition(CAPTIONS, pair[:, 0])
    clean, noise = model.encode(pair), draw_noise(model.spec, 0, 0, [0, 1])
    sigma = torch.tensor([0.02, 0.95])
    loss = flow_matching_loss(model, clean, noise, sigma, condition)
    assert loss.shape == (2,)
    assert torch.isfinite(loss).all()
    assert (loss > 0).all()
    alone = flow_matching_loss(model, clean[1:], noise[1:], sigma[1:], model.condition(CAPTIONS[1:], pair[1:, 0]))
    torch.testing.assert_close(loss[1:], alone, rtol=1e-4, atol=1e-5)
    loss.mean().backward()
    assert next(iter(model.trainable)) == "transformer"
    for module in model.trainable.values():
        grads = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        assert [name for name, grad in grads.items() if grad is None or not torch.isfinite(grad).all()] == []


def test_training_levels_lie_in_the_range_that_the_model_knows(model: VideoModel) -> None:
    sigma = draw_sigma(model, 0, 0, range(500))
    assert 0 < sigma.min() < 0.3
    assert 0.9 < sigma.max() <= 1


def test_a_few_steps_on_one_clip_lower_its_loss(model: VideoModel, pair: Tensor) -> None:
    clean, noise = model.encode(pair), draw_noise(model.spec, 0, 0, [0, 1])
    sigma = torch.tensor([0.5, 0.8])
    condition = model.condition(CAPTIONS, pair[:, 0])
    optimiser = torch.optim.Adam([p for p in parameters(model).values() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = flow_matching_loss(model, clean, noise, sigma, condition).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_what_is_saved_makes_the_same_clips(model: VideoModel, pair: Tensor, tmp_path: Path) -> None:
    # Written twice: the codec's basis is kept in half precision, so the second trip is the exact one.
    config = ModelConfig(name=model.spec.name, path=tmp_path / "b", **SIZE, fps=16.0)
    model.save(tmp_path / "a", torch.float32)
    first = load_video_model(config.model_copy(update={"path": tmp_path / "a"}))
    first.save(tmp_path / "b", torch.float32)
    assert torch.equal(make(load_video_model(config), pair, [0]), make(first, pair, [0]))
    torch.testing.assert_close(make(first, pair, [0]), make(model, pair, [0]), rtol=0, atol=2e-3)


def test_wrong_sizes_are_refused(model: VideoModel, pair: Tensor) -> None:
    with pytest.raises(ShapeError, match="wants"):
        model.condition(CAPTIONS, pair[:, 0, :, :16])
    with pytest.raises(ShapeError, match="wants"):
        model.condition(CAPTIONS[:1], pair[:, 0])
    with pytest.raises(ShapeError, match="wants"):
        model.encode(pair[:, :5])
    lora.add(model, rank=2)
    with pytest.raises(InputError, match="LoRA layers already"):
        lora.add(model, rank=2)
