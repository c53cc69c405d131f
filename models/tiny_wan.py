"""Tiny Wan pipelines with random weights from the real classes: to try commands and launchers without a download.

    python -m newtonrewards.models.tiny_wan --style 2.2 --out runs/tiny_wan

Styles: `2.1` (channel concatenation, CLIP image encoder), `2.1-no-image-encoder`, `2.1-t2v` (from text alone), `2.2`
(TI2V, `expand_timesteps`), `2.2-a14b` (two experts), `2.2-t2v` (`expand_timesteps` from text alone).
Clips of 64 x 64 px and 4n + 1 frames suit all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from newtonrewards.models.tiny import TEXT_DIM, byte_t5, seeded, write_tiny

STYLES = ("2.1", "2.1-no-image-encoder", "2.1-t2v", "2.2", "2.2-a14b", "2.2-t2v")
IMAGE_DIM = 16
BOUNDARY_RATIO = 0.9


def tiny_pipeline(style: str, seed: int = 0) -> WanImageToVideoPipeline | WanPipeline:
    """A pipeline of one of `STYLES` whose weights depend on the seed alone."""
    return seeded(lambda: _pipeline(style), seed, "tiny wan")


def _pipeline(style: str) -> WanImageToVideoPipeline | WanPipeline:
    expanded = style in ("2.2", "2.2-t2v")
    image = _image_encoder() if style == "2.1" else {"image_encoder": None, "image_processor": None}
    kind = WanPipeline if style.endswith("t2v") else WanImageToVideoPipeline
    two: dict[str, Any] = {}
    if style == "2.2-a14b":
        two = {"transformer_2": _transformer(style), "boundary_ratio": BOUNDARY_RATIO}
    return kind(
        **byte_t5("UMT5"),
        **({} if kind is WanPipeline else image),
        vae=_vae(residual=expanded),
        transformer=_transformer(style),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        expand_timesteps=expanded,
        **two,
    )


def _transformer(style: str) -> WanTransformer3DModel:
    z_dim = 12 if style in ("2.2", "2.2-t2v") else 16
    beside = z_dim + 4 if style in ("2.1", "2.1-no-image-encoder", "2.2-a14b") else 0
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=z_dim + beside,
        out_channels=z_dim,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        image_dim=IMAGE_DIM if style == "2.1" else None,
        added_kv_proj_dim=24 if style == "2.1" else None,
    ).eval()


def _vae(*, residual: bool) -> AutoencoderKLWan:
    z_dim = 12 if residual else 16
    extra: dict[str, Any] = {}
    if residual:  # the autoencoder of Wan 2.2: pixels in 2 x 2 patches, sixteenfold in space
        extra = {
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
        }
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * (i % 3) for i in range(z_dim)],
        latents_std=[0.5 + 0.1 * i for i in range(z_dim)],
        **extra,
    ).eval()


def _image_encoder() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        projection_dim=IMAGE_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        intermediate_size=32,
        patch_size=8,
    )
    processor = CLIPImageProcessor(crop_size=32, size=32)
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}


def main(argv: Sequence[str] | None = None) -> int:
    return write_tiny(argv, "tiny_wan", __doc__, STYLES, tiny_pipeline)


if __name__ == "__main__":
    raise SystemExit(main())
