"""SAM 2 as a tiny random instance of transformers' real class: what goes in, what comes out, and what is refused.

A random network finds nothing; so what is tested is the way of the prompt and of the masks, and that it stays frozen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import CheckpointError, InputError, MissingExtra
from newtonrewards.core.video import write_video
from newtonrewards.eval import measure, score
from newtonrewards.eval.find import Found
from newtonrewards.eval.measure import measure_clip
from newtonrewards.eval.sam2_masks import shown_frame
from newtonrewards.rewards.sam2 import Sam2Segmenter, load_sam2

SIZE = (40, 60)
SIDE = 64  # of the model's own frames
WIDE = 128  # the least that its object pointers allow: twice its memory's 64 channels
BACKBONE = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 2, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [8, 4, 4, 2],
    "global_attention_blocks": [4],
    "window_positional_embedding_background_size": [4, 4],
}
VISION = {
    "model_type": "sam2_vision_model",
    "backbone_config": BACKBONE,
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[SIDE // stride] * 2 for stride in (4, 8, 16)],
    "fpn_hidden_size": WIDE,
}
DECODER = {"hidden_size": WIDE, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def save_tiny(folder: Path) -> None:
    config = Sam2VideoConfig(
        vision_config=VISION,
        prompt_encoder_config={"hidden_size": WIDE, "image_size": SIDE},
        mask_decoder_config=DECODER,
        image_size=SIDE,
        memory_attention_hidden_size=WIDE,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_encoder_hidden_size=WIDE,
        mask_downsampler_embed_dim=WIDE,
        memory_fuser_embed_dim=WIDE,
        memory_fuser_intermediate_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam2VideoModel(config)
    nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 5.0)  # it takes the object to be there
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    images = Sam2ImageProcessor(size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4})
    Sam2VideoProcessor(images, Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sam2")
    save_tiny(root)
    return root


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> Sam2Segmenter:
    return load_sam2(str(folder))


def clip(time: int = 5) -> torch.Tensor:
    return torch.rand(time, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def box() -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[10:26, 12:36] = True
    return mask


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_the_frame_that_is_shown_comes_back_as_it_was_shown_and_all_others_get_masks(
    segmenter: Sam2Segmenter, frame: int
) -> None:
    masks = segmenter(clip(), mask=box(), frame=frame)
    assert masks.shape == (5, *SIZE)
    assert ((masks >= 0) & (masks <= 1)).all()
    shown = masks[frame] > 0.5
    assert (shown & box()).sum() > 0.9 * (shown | box()).sum()
    others = [t for t in range(5) if t != frame]
    assert (masks[others].amax((1, 2)) > 0).all()  # forwards and backwards: none was left out


def test_a_point_shows_the_object_too_and_the_same_twice(segmenter: Sam2Segmenter) -> None:
    first, again = (segmenter(clip(), point=(20.0, 15.0)) for _ in range(2))
    assert first.shape == (5, *SIZE)
    assert torch.equal(first, again)
    assert not torch.equal(first, segmenter(clip(), point=(50.0, 35.0)))


def test_a_hidden_object_has_no_mask(segmenter: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    head = segmenter.model.mask_decoder.pred_obj_score_head
    monkeypatch.setattr(head.proj_out.bias, "data", torch.full_like(head.proj_out.bias, -5.0))
    masks = segmenter(clip(), mask=box())
    assert masks[0].amax() > 0.9
    assert (masks[1:] == 0).all()


def test_frozen_means_frozen(segmenter: Sam2Segmenter) -> None:
    assert not isinstance(segmenter, nn.Module)
    assert not segmenter.model.training
    assert not any(parameter.requires_grad for parameter in segmenter.model.parameters())
    plain = segmenter(clip(3), mask=box())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, segmenter(clip(3).requires_grad_(True), mask=box()))


def test_what_cannot_be_shown_is_refused(segmenter: Sam2Segmenter) -> None:
    empty = torch.zeros(SIZE, dtype=torch.bool)
    cases: list[tuple[dict, str]] = [
        ({}, "once"),
        ({"mask": box(), "point": (1.0, 1.0)}, "once"),
        ({"mask": empty}, "is empty"),
        ({"mask": empty[:5]}, "has shape"),
        ({"point": (70.0, 10.0)}, "outside the frame"),
        ({"mask": box(), "frame": 5}, "frame 5 of a clip of 5"),
    ]
    for shown, says in cases:
        with pytest.raises(InputError, match=says):
            segmenter(clip(), **shown)


def test_other_models_and_missing_ones_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match="can't load SAM 2"):
        load_sam2(str(tmp_path / "nothing"))
    Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "d"
    )
    with pytest.raises(CheckpointError, match="holds a 'dinov2' model"):
        load_sam2(str(tmp_path / "d"))


# ---- in `newtonrewards score` ---------------------------------------------------------------------------------------


def falling() -> torch.Tensor:
    """(14, 3, 48, 64): a red disc that falls over grey."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    frames = torch.full((14, 3, 48, 64), 0.5)
    for t in range(14):
        disc = (5.5 - ((x - 30) ** 2 + (y - 8 - 0.17 * t**2) ** 2).sqrt()).clamp(0, 1)
        frames[t, 0] += 0.4 * disc
        frames[t, 1:] -= 0.3 * disc
    return frames


def test_it_is_shown_the_silhouette_of_the_most_usual_area() -> None:
    soft = np.zeros((5, 20, 20))
    for t, side in enumerate((0, 2, 6, 15, 7)):
        soft[t, :side, :side] = 1
    assert shown_frame(soft) == 2


def test_its_masks_count_where_they_follow_the_law_for_longest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmenter that sees the disc beats the silhouettes; the random one doesn't, and does no harm."""
    film = Clip(frames=falling(), fps=20.0)
    plain = measure_clip(film, None, None).score
    shown: list[int] = []
    real = measure.sam2_masks

    def watched(name: str, clip: Clip, soft: np.ndarray) -> np.ndarray:
        shown.append(shown_frame(soft))
        return real(name, clip, soft)

    monkeypatch.setattr(measure, "sam2_masks", watched)
    beside = measure_clip(film, None, None, segmenter=str(folder)).score
    assert len(shown) == 1
    assert beside.verdict == plain.verdict and beside.source == plain.source
    truth = (falling()[:, 0] - 0.5).numpy() / 0.4
    shaken = np.stack([np.roll(mask, 4 * (-1) ** t, axis=1) for t, mask in enumerate(truth)])
    monkeypatch.setattr(measure, "sam2_masks", lambda *_: truth)
    monkeypatch.setattr(measure, "find_object", lambda *_: Found(shaken, "", False, 0))
    monkeypatch.setattr(measure, "refine", lambda *_: None)
    assert measure_clip(film, None, None, segmenter=str(folder)).score.source == "sam2"


def test_the_option_and_what_is_wrong_with_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "fall.mp4", falling(), 20.0)
    command = [str(tmp_path / "fall.mp4"), "--flow", "none", "--workers", "1"]
    assert score.main([*command, "--segmenter", "sam2", "--segmenter-weights", str(folder)]) == 0
    assert "fall.mp4" in capsys.readouterr().out
    weights = ["--segmenter-weights", str(tmp_path / "nothing")]
    for more, kind, says in (
        (["--segmenter", "sam2"], MissingExtra, "--segmenter-weights"),
        (["--segmenter", "sam2", *weights], MissingExtra, "can't load SAM 2"),
        (weights, InputError, "Add --segmenter sam2"),
        (["--segmenter", "sam2", *weights, "--masks", str(tmp_path)], InputError, "known already"),
    ):
        with pytest.raises(kind, match=says):
            score.main([*command, *more])
