"""What every room's tests share: one thread, no network, repeatable property tests, and a small clip."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)

# The same examples on every run: a red test can be gone back to.
hypothesis.settings.register_profile(
    "newtonrewards", deadline=None, derandomize=True, max_examples=25, database=None, print_blob=True
)
hypothesis.settings.load_profile("newtonrewards")


@pytest.fixture
def square_frames() -> Tensor:
    """(9, 3, 32, 48) frames in 8-bit steps: a light square that moves 3 px/frame to the right over a shaded ground."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    ground = torch.stack([x * 4, y * 5, (x + y) * 2]) % 160
    frames = ground.repeat(9, 1, 1, 1)
    for t in range(9):
        frames[t, :, 10:20, 4 + 3 * t : 14 + 3 * t] = torch.tensor([250, 220, 40])[:, None, None]
    return frames / 255
