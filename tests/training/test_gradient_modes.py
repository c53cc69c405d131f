"""Where the reward's gradient passes: every mode against plain autograd without checkpoints, and finite differences."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from newtonrewards.models.base import Condition, VideoModel, draw_noise
from newtonrewards.models.load import load_video_model
from newtonrewards.models.sampling import guided_velocity, schedule
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.batches import Batches
from newtonrewards.training.methods.reward import SamplingConfig
from newtonrewards.training.recipe import TrainRecipe

STEPS, SCALE, SEED = 4, 2.0, 3
STEP = 1e-3  # of the differences: the transformer computes its norms in float32 even in float64


def double(condition: Condition) -> Condition:
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return Condition(**{name: v.double() if isinstance(v, Tensor) else v for name, v in values.items()})


@pytest.fixture
def world(recipe: TrainRecipe) -> tuple[VideoModel, Condition, Tensor]:
    """A tiny model with LoRA layers that do something, in float64."""
    model = load_video_model(recipe.model)
    model.transformer.double()
    for parameter in model.transformer.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    batch = Batches(ClipFolder(recipe.data.clips), 5).at(0, 2)
    condition = double(model.condition(batch.captions, batch.frames[:, 0]))
    return model, condition, draw_noise(model.spec, 0, 0, batch.index).double()


def plain(model: VideoModel, condition: Condition, noise: Tensor, first: int, stop: int) -> Tensor:
    """Euler steps as one would write them down; those before `first` are detached, `stop` jumps to the clean clip."""
    sigmas = schedule(model.scheduler, STEPS)
    x = noise
    for i in range(stop + 1):
        velocity = guided_velocity(model, x, sigmas[i].expand(2), condition, SCALE)
        x = x + ((0.0 if i == stop else sigmas[i + 1]) - sigmas[i]) * velocity
        if i < first:
            x = x.detach()
    return x


def trained(model: VideoModel) -> list[Tensor]:
    return [p for p in model.transformer.parameters() if p.requires_grad]


def gradient(latents: Tensor, model: VideoModel) -> list[Tensor]:
    return list(torch.autograd.grad(latents.square().mean(), trained(model)))


def drawn(
    world: tuple[VideoModel, Condition, Tensor], mode: Literal["random", "x0"], monkeypatch: pytest.MonkeyPatch
) -> dict[int, int]:
    """For every outcome of the draw a step at which it comes; by watching the predictions that the sampler asks for."""
    model, condition, noise = world
    predict, seen, found = model.predict, list[bool](), dict[int, int]()

    def watched(*arguments: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return predict(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "predict", watched)
        for step in range(14):
            seen.clear()
            config = SamplingConfig(num_inference_steps=STEPS, grad_steps=mode)
            config.generate(model, condition, noise, SEED, step)
            assert any(seen)
            found.setdefault(sum(seen) if mode == "random" else len(seen) - 1, step)
    return found


@pytest.mark.parametrize(("mode", "first", "stop"), [(1, 3, 3), (2, 2, 3), ("full", 0, 3)])
def test_last_steps_and_full_chain(
    world: tuple[VideoModel, Condition, Tensor], mode: int | Literal["full"], first: int, stop: int
) -> None:
    model, condition, noise = world
    config = SamplingConfig(num_inference_steps=STEPS, guidance_scale=SCALE, grad_steps=mode)
    got = config.generate(model, condition, noise, SEED, 0)
    wanted = plain(model, condition, noise, first, stop)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(gradient(got, model), gradient(wanted, model), rtol=1e-4, atol=1e-7)


def test_random_cut_offs_and_clean_estimates(
    world: tuple[VideoModel, Condition, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, condition, noise = world
    random, clean = drawn(world, "random", monkeypatch), drawn(world, "x0", monkeypatch)
    assert set(random) == {1, 2, 3, 4}  # every cut-off comes
    assert set(clean) == {2, 3}  # the later half
    cases: list[tuple[Literal["random", "x0"], int, int, int]] = [
        ("random", random[3], 1, 3),
        ("x0", clean[2], 2, 2),
    ]
    for mode, step, first, stop in cases:
        config = SamplingConfig(num_inference_steps=STEPS, guidance_scale=SCALE, grad_steps=mode)
        got = config.generate(model, condition, noise, SEED, step)
        wanted = plain(model, condition, noise, first, stop)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(gradient(got, model), gradient(wanted, model), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["full", "x0"])
def test_the_gradient_is_the_derivative(
    world: tuple[VideoModel, Condition, Tensor], mode: Literal["full", "x0"]
) -> None:
    """Central differences along a random direction. For `x0` the start of the one step depends on the weights, too,
    and is held still by letting the step be the first: a schedule of one."""
    model, condition, noise = world
    steps = STEPS if mode == "full" else 1
    config = SamplingConfig(num_inference_steps=steps, guidance_scale=SCALE, grad_steps=mode)

    def value() -> Tensor:
        return config.generate(model, condition, noise, SEED, 0).square().mean()

    parameters = trained(model)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(
        ((g * d).sum() for g, d in zip(torch.autograd.grad(value(), parameters), direction, strict=True)),
        start=torch.zeros((), dtype=torch.float64),
    )
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * STEP * d
            ends.append(value())
            for p, d in zip(parameters, direction, strict=True):
                p -= sign * STEP * d
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * STEP), slope, rtol=2e-3, atol=1e-7)


def test_no_requires_grad_is_flipped(
    world: tuple[VideoModel, Condition, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, condition, noise = world

    def flipped(*_: object) -> None:
        raise AssertionError("requires_grad was touched in the middle of a step")

    monkeypatch.setattr(torch.nn.Module, "requires_grad_", flipped)
    before = [p.requires_grad for p in model.transformer.parameters()]
    for mode in (2, "full", "random", "x0"):
        config = SamplingConfig.model_validate({"num_inference_steps": STEPS, "grad_steps": mode})
        config.generate(model, condition, noise, SEED, 0).square().mean().backward()
        assert [p.requires_grad for p in model.transformer.parameters()] == before
