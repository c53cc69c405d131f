"""What changes of an object count, and what was never looked at doesn't."""

from __future__ import annotations

import numpy as np
import pytest

from newtonrewards.eval.constancy import constancy
from newtonrewards.rewards.window import Window

FRAMES = 60


def disc(radii: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:48, :48] - 24.0
    return np.clip(radii[:, None, None] - np.hypot(y, x) + 0.5, 0, 1).astype(np.float32)


def test_frames_that_the_network_never_saw_say_nothing_about_the_look() -> None:
    """The cut-out is shorter than a long clip; what is outside it isn't unlike the rest."""
    soft = disc(np.full(FRAMES, 8.0))
    frames = np.repeat(soft[..., None], 3, axis=3)
    features = np.full((FRAMES, 4), np.nan)
    features[5:20] = [1.0, 2.0, 0.0, 1.0]
    window = Window(0, FRAMES - 1, 1.0)
    assert constancy(frames, soft, features, window).mass == pytest.approx(0.0, abs=1e-6)
    features[12:20] = [-2.0, 1.0, 0.0, 0.0]
    assert constancy(frames, soft, features, window).mass == pytest.approx(8 / 14, abs=1e-6)
    features[6:] = np.nan
    assert constancy(frames, soft, features, window).mass is None


def test_an_area_is_compared_at_both_ends_of_the_window() -> None:
    radii = np.linspace(8.0, 16.0, FRAMES)
    soft = disc(radii)
    frames = np.repeat(soft[..., None], 3, axis=3)
    found = constancy(frames, soft, None, Window(10, 40, 1.0))
    assert found.area_change == pytest.approx(2 * np.log(radii[39] / radii[11]), rel=0.02)
    assert constancy(frames, soft * 0, None, Window(10, 40, 1.0)).area_change is None
