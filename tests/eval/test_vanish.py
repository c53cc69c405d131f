"""An object that stands elsewhere all at once, whatever the masks made of it; and what only looks like that."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from newtonrewards.eval.vanish import jumped_at

Array = NDArray[np.float32]
RED, GREEN = (0.9, 0.2, 0.1), (0.1, 0.7, 0.2)
FRAMES, SIZE, RADIUS, JUMP = 14, 64, 5.0, 6


def path(jump: float) -> NDArray[np.float64]:
    """Centres (x, y) in px: 2 px a frame to the right; `jump` px up and to the right after frame `JUMP`."""
    frames = np.arange(FRAMES)
    across = 10 + 2.0 * frames + np.where(frames > JUMP, jump / 2, 0)
    return np.stack([across, np.where(frames > JUMP, 50 - jump, 50.0)], axis=1)


def discs(centres: NDArray[np.float64], radius: float = RADIUS) -> Array:
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    x, y = centres[:, 0, None, None], centres[:, 1, None, None]
    return np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1).astype(np.float32)


def drawn(*things: tuple[Array, tuple[float, float, float]]) -> Array:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    wall = 0.5 + 0.05 * np.sin(columns / 4) * np.cos(rows / 6)
    frames = np.repeat(np.repeat(wall[None, :, :, None], FRAMES, 0), 3, -1)
    for mask, colour in things:
        frames = frames * (1 - mask[..., None]) + mask[..., None] * np.array(colour)
    return frames.astype(np.float32)


@pytest.mark.parametrize("masks", ["follow it", "lose it", "see it afterwards"])
def test_a_jump_is_seen_whatever_the_masks_do(masks: str) -> None:
    where = discs(path(30))
    frames = drawn((where, RED))
    if masks == "lose it":
        where[JUMP + 1 :] = 0
    if masks == "see it afterwards":
        where[: JUMP + 1] = 0
    assert jumped_at(frames, where) == JUMP


def test_motion_is_no_jump() -> None:
    where = discs(path(0))
    assert jumped_at(drawn((where, RED)), where) is None
    short = discs(path(4))  # the masks know better than the pixels how fast it may be
    assert jumped_at(drawn((short, RED)), short) is None


@pytest.mark.parametrize(("colour", "radius"), [(GREEN, RADIUS), (RED, 2 * RADIUS)])
def test_another_thing_that_comes_up_as_it_goes_is_no_jump(colour: tuple[float, float, float], radius: float) -> None:
    gone, other = discs(path(0)), discs(path(30), radius)
    gone[JUMP + 1 :], other[: JUMP + 1] = 0, 0
    assert jumped_at(drawn((gone, RED), (other, colour)), gone) is None


def test_what_stays_has_not_jumped_though_its_like_comes_up() -> None:
    stays, other = discs(path(0)), discs(path(30))
    other[: JUMP + 1] = 0
    seen = stays.copy()
    seen[JUMP + 1 :] = 0  # the masks lose it at that moment
    assert jumped_at(drawn((stays, RED), (other, RED)), seen) is None


def test_an_empty_mask_has_no_jump() -> None:
    assert jumped_at(drawn(), np.zeros((FRAMES, SIZE, SIZE), np.float32)) is None
