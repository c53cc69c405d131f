"""Small worlds for the models' tests: a soft disc over a textured wall, and tiny models with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel


def disc_clip(seed: int, num_frames: int = 9, size: int = 32) -> Tensor:
    """(T, 3, S, S): a coloured disc that falls over a smooth random wall."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=g)
    wall = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)[0].clamp(
        0, 1
    )
    colour = torch.rand(3, generator=g)[:, None, None]
    x0, y0, speed = (
        torch.rand(3, generator=g) * torch.tensor([0.6, 0.3, 0.02]) + torch.tensor([0.2, 0.1, 0.0])
    ).tolist()
    ys, xs = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    frames = []
    for t in range(num_frames):
        distance = ((xs - x0 - speed * t) ** 2 + (ys - y0 - 0.006 * t * t) ** 2).sqrt()
        cover = torch.sigmoid((0.14 - distance) * 2 * size)
        frames.append(wall * (1 - cover) + colour * cover)
    return torch.stack(frames)


@pytest.fixture(scope="session")
def clips() -> Tensor:
    """(24, 9, 3, 32, 32)."""
    return torch.stack([disc_clip(seed) for seed in range(24)])


@pytest.fixture(scope="session")
def codec(clips: Tensor) -> PatchCodec:
    return PatchCodec.fit(clips, components=24, patch=(4, 8, 8))


@pytest.fixture
def embedded(codec: PatchCodec) -> EmbeddedModel:
    config = EmbeddedConfig(num_heads=2, head_dim=12, num_layers=2, ffn_dim=48, freq_dim=16, text_dim=16, text_layers=1)
    return EmbeddedModel.create(config, codec, seed=0)
