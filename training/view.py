"""Something to look at while a model trains: the same few clips every so many steps, as files and as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from newtonrewards.core.clip import Clip, ClipBatch
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import whole_folder
from newtonrewards.core.video import write_video
from newtonrewards.models.base import VideoModel, draw_noise
from newtonrewards.models.sampling import sample

# Frames of a clip that the picture shows.
COLUMNS = 6


class SamplesConfig(Config):
    """Clips generated during training, from the weights as they are. They change nothing of the run.

    Attributes:
        every: steps of the run between two looks; 0 is never.
        clips: the first so many of the data set, always from the same noise.
        num_inference_steps, guidance_scale: of the sampler.
    """

    every: int = Field(0, ge=0)
    clips: int = Field(4, ge=1)
    num_inference_steps: int = Field(8, ge=1)
    guidance_scale: float = Field(1.0, ge=1.0)

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


@torch.no_grad()
def generate_samples(
    model: VideoModel, batch: ClipBatch, config: SamplesConfig, seed: int
) -> Float[Tensor, "B T 3 H W"]:
    """The clips of one look, on the CPU. Every process has to call it: a sharded model needs them all."""
    condition = model.condition(batch.captions, batch.frames[:, 0])
    noise = draw_noise(model.spec, seed, 0, range(len(batch)), "samples").to(batch.frames)
    steps, scale = config.num_inference_steps, config.guidance_scale
    latents = sample(model, condition, noise, num_inference_steps=steps, guidance_scale=scale)
    return model.decode(latents, condition).float().clamp(0, 1).cpu()


def write_samples(
    folder: Path, step: int, clips: list[Clip], frames: Float[Tensor, "B T 3 H W"], playback_fps: float
) -> None:
    """`FOLDER/step_NNNNNN/K.mp4`, the true clip on the left and the generated one on the right."""
    with whole_folder(folder / f"step_{step:06d}") as target:
        for number, (clip, made) in enumerate(zip(clips, frames, strict=True)):
            write_video(target / f"{number}.mp4", torch.cat([clip.frames, made], -1), playback_fps, lossless=True)


def picture(frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "3 _ _"]:
    """One row for each clip, `COLUMNS` frames of it from first to last."""
    last = frames.shape[1] - 1
    chosen = sorted({round(k * last / max(1, COLUMNS - 1)) for k in range(COLUMNS)})
    return torch.cat([torch.cat([clip[t] for t in chosen], -1) for clip in frames], -2)
