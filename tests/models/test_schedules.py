"""Noise schedules against diffusers' own: DDIM of a v-prediction model, and shifts that grow with the clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from newtonrewards.core.errors import InputError
from newtonrewards.models.base import draw_noise
from newtonrewards.models.cogvideox import CogVideoXModel
from newtonrewards.models.flow_matching import flow_matching_loss
from newtonrewards.models.sampling import schedule
from newtonrewards.models.schedules import VPredictionSigmas, alpha_and_noise, even_sigmas
from newtonrewards.models.tiny_cogvideox import tiny_pipeline

PUBLISHED = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}


def ddim() -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler(**PUBLISHED, timestep_spacing="trailing", clip_sample=False)


def test_a_ddim_step_is_an_euler_step_on_the_straight_path() -> None:
    theirs, ours = ddim(), VPredictionSigmas(ddim())
    theirs.set_timesteps(5)
    sigmas = schedule(ours, 5)
    assert sigmas[0] == 1 and sigmas[-1] == 0
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 50, generator=g, dtype=torch.float64)
    for i, step in enumerate(theirs.timesteps):
        alpha, noise = alpha_and_noise(sigmas[i].double())
        velocity = (noise - alpha) * x + (alpha + noise) * v
        latents = x / (alpha + noise) + (sigmas[i + 1] - sigmas[i]).double() * velocity
        alpha, noise = alpha_and_noise(sigmas[i + 1].double())
        torch.testing.assert_close(
            (alpha + noise) * latents, theirs.step(v, step, x, return_dict=False)[0], rtol=0, atol=1e-6
        )


def test_each_level_belongs_to_its_training_step_and_the_last_is_pure_noise() -> None:
    ours = VPredictionSigmas(ddim())
    assert torch.equal(ours.step_of(ours.levels), torch.arange(1000))
    assert ours.levels[-1] == 1 and (ours.levels.diff() > 0).all() and ours.levels[0] > 0
    steps = ours.step_of(ours.uniform_step(torch.randn(4000, generator=torch.Generator().manual_seed(0))))
    assert steps.float().mean() / 1000 == pytest.approx(0.5, abs=0.02)
    assert steps.float().std() / 1000 == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize("steps", [1, 3, 7, 50])
def test_levels_fall_from_one_to_zero_for_any_number_of_steps(steps: int) -> None:
    dpm = CogVideoXDPMScheduler(**PUBLISHED)  # what the published folders ship
    sigmas = schedule(VPredictionSigmas(dpm), steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_the_loss_of_cogvideox_is_the_squared_error_of_v(clips: Tensor) -> None:
    model = CogVideoXModel(tiny_pipeline("1.0"), num_frames=9, height=32, width=32)
    clean, noise = model.encode(clips[:2]), draw_noise(model.spec, 0, 0, [0, 1])
    step = torch.tensor([120, 940])
    condition = model.condition(["a ball falls"] * 2, clips[:2, 0])
    theirs = ddim()
    alpha = theirs.alphas_cumprod[step].sqrt().float().view(-1, 1, 1, 1, 1)
    noisy = theirs.add_noise(clean, noise, step)
    predicted = model.transformer(
        hidden_states=torch.cat([noisy, condition.channels], 1).transpose(1, 2),
        encoder_hidden_states=condition.text,
        timestep=step,
        image_rotary_emb=model.pipeline._prepare_rotary_positional_embeddings(32, 32, 3, torch.device("cpu")),
        return_dict=False,
    )[0].transpose(1, 2)
    error = predicted - (alpha * noise - (1 - alpha**2).sqrt() * clean)
    ours = flow_matching_loss(model, clean, noise, model.scheduler.levels[step], condition)
    torch.testing.assert_close(ours, error.square().flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_models_that_predict_noise_or_never_saw_pure_noise_are_refused() -> None:
    for wrong in ({"prediction_type": "epsilon"}, {"rescale_betas_zero_snr": False}):
        with pytest.raises(InputError, match="only v_prediction down to pure noise"):
            VPredictionSigmas(CogVideoXDDIMScheduler(**{**PUBLISHED, **wrong}))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_that_grows_with_the_clip_is_the_pipelines(kind: str) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    tokens = 1900
    mu = 0.95 + (2.05 - 0.95) / (4096 - 256) * (tokens - 256)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6), mu=mu)
    torch.testing.assert_close(schedule(even_sigmas(theirs, tokens), 6), theirs.sigmas, rtol=0, atol=1e-6)
    plain = FlowMatchEulerDiscreteScheduler(shift=7.0)
    plain.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6))
    torch.testing.assert_close(schedule(even_sigmas(plain, tokens), 6), plain.sigmas, rtol=0, atol=1e-6)
