"""Tiny Wan pipelines with random weights from the real classes: to try commands and launchers without a download.

    python -m newtonrewards.models.tiny_wan --style 2.2 --out runs/tiny_wan

Styles: `2.1` (channel concatenation, CLIP image encoder), `2.1-no-image-encoder`, `2.2` (TI2V, `expand_timesteps`).
Clips of 64 x 64 px and 4n + 1 frames suit all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)

from newtonrewards.core.errors import NewtonError
from newtonrewards.core.run import output_folder, stream_seed
from newtonrewards.models.embedded import BYTE_VOCABULARY

STYLES = ("2.1", "2.1-no-image-encoder", "2.2")
TEXT_DIM = 32
IMAGE_DIM = 16


def tiny_pipeline(style: str, seed: int = 0) -> WanImageToVideoPipeline:
    """A pipeline of one of `STYLES` whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, 0, 0, "tiny wan"))
        image = _image_encoder() if style == "2.1" else {"image_encoder": None, "image_processor": None}
        return WanImageToVideoPipeline(
            **_text_encoder(),
            **image,
            vae=_vae(residual=style == "2.2"),
            transformer=_transformer(style),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            expand_timesteps=style == "2.2",
        )


def _transformer(style: str) -> WanTransformer3DModel:
    z_dim = 12 if style == "2.2" else 16
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=z_dim if style == "2.2" else 2 * z_dim + 4,
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


def _text_encoder() -> dict[str, Any]:
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=BYTE_VOCABULARY, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return {"tokenizer": ByT5Tokenizer(extra_ids=0), "text_encoder": UMT5EncoderModel(config).eval()}


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
    parser = argparse.ArgumentParser(
        prog="python -m newtonrewards.models.tiny_wan",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--style", choices=STYLES, default="2.1", help="which generation's layout (default 2.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    arguments = parser.parse_args(argv)
    try:
        output_folder(arguments.out)
    except NewtonError as error:
        print(f"error: {error}")
        return 2
    tiny_pipeline(arguments.style, arguments.seed).save_pretrained(arguments.out)
    print(f"{arguments.out}: tiny Wan {arguments.style} pipeline with random weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
