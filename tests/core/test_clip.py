from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from newtonrewards.core.clip import Clip, ClipBatch, Source, check_frames
from newtonrewards.core.errors import ShapeError


def frames(*shape: int) -> torch.Tensor:
    return torch.linspace(0, 1, torch.Size(shape).numel()).reshape(shape)


def test_a_clip_knows_how_many_frames_it_has() -> None:
    assert Clip(frames(5, 3, 8, 6), fps=10.0).num_frames == 5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (frames(5, 8, 6, 3), "want \\(T, 3, H, W\\)"),
        (frames(5, 3, 8), "want \\(T, 3, H, W\\)"),
        (frames(5, 3, 8, 6) * 255, "8-bit with x / 255"),
        (frames(5, 3, 8, 6) * 2 - 1, "Map \\[-1, 1\\]"),
        (frames(5, 3, 8, 6) * float("nan"), "want \\[0, 1\\]"),
        ((frames(5, 3, 8, 6) * 255).to(torch.uint8), "floating point"),
    ],
)
def test_wrong_frames_are_refused_with_the_way_out(wrong: torch.Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        check_frames(wrong, batched=False)


def test_a_rounding_error_of_a_decoder_is_let_through() -> None:
    check_frames(frames(2, 3, 4, 4) * 1.0005, batched=False)
    with pytest.raises(ShapeError):
        check_frames(frames(2, 3, 4, 4) * 1.01, batched=False)


@pytest.mark.parametrize("fps", [0.0, -3.0, float("nan")])
def test_a_rate_must_be_positive_and_the_error_names_the_file(fps: float) -> None:
    with pytest.raises(ShapeError, match="throw.mp4.*positive"):
        Clip(frames(2, 3, 4, 4), fps=fps, source=Source(path="throw.mp4"))


def test_stacking_keeps_masks_only_where_every_clip_has_them() -> None:
    bare = Clip(frames(4, 3, 6, 6), fps=10.0, caption="a")
    masked = Clip(frames(4, 3, 6, 6), fps=20.0, caption="b", masks=torch.ones(4, 6, 6), valid=torch.ones(4).bool())
    both = ClipBatch.stack([masked, masked], index=[7, 3])
    assert both.masks is not None
    assert both.masks.shape == (2, 4, 6, 6)
    assert both.valid is not None
    assert both.index == (7, 3)
    mixed = ClipBatch.stack([bare, masked])
    assert mixed.masks is None
    assert mixed.valid is None
    assert mixed.captions == ("a", "b")
    assert mixed.fps.tolist() == [10.0, 20.0]


def test_clips_of_two_sizes_do_not_stack() -> None:
    with pytest.raises(ShapeError, match="different shapes"):
        ClipBatch.stack([Clip(frames(4, 3, 6, 6), fps=1.0), Clip(frames(4, 3, 8, 6), fps=1.0)])


def test_new_pixels_leave_old_masks_behind() -> None:
    clip = Clip(frames(4, 3, 6, 6), fps=10.0, masks=torch.ones(4, 6, 6), valid=torch.ones(4).bool())
    batch = ClipBatch.stack([clip]).with_frames(torch.zeros(1, 4, 3, 6, 6))
    assert batch.masks is None
    assert batch.valid is not None
    assert batch.frames.max() == 0


@given(count=st.integers(2, 5), length=st.integers(1, 4))
def test_stacking_and_taking_apart_is_the_identity(count: int, length: int) -> None:
    clips = [Clip(frames(length, 3, 4, 5) * (k + 1) / count, fps=k + 1.0) for k in range(count)]
    batch = ClipBatch.stack(clips)
    assert len(batch) == count
    for k, clip in enumerate(clips):
        assert torch.equal(batch.frames[k], clip.frames)
        assert batch.fps[k].item() == clip.fps
