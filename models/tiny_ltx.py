"""Tiny LTX-Video pipelines with random weights from the real classes: to try commands and launchers without a download.

    python -m newtonrewards.models.tiny_ltx --out runs/tiny_ltx

Styles: `0.9` (shift that grows with the clip), `0.9.1` (decoder told a noise level), `0.9-t2v` (from text alone).
Clips of 64 x 64 px and 8n + 1 frames suit all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from newtonrewards.models.tiny import TEXT_DIM, byte_t5, seeded, write_tiny

STYLES = ("0.9", "0.9.1", "0.9-t2v")
CHANNELS = 8


def tiny_pipeline(style: str, seed: int = 0) -> LTXImageToVideoPipeline | LTXPipeline:
    """A pipeline of one of `STYLES` whose weights depend on the seed alone."""
    return seeded(lambda: _pipeline(style), seed, "tiny ltx")


def _pipeline(style: str) -> LTXImageToVideoPipeline | LTXPipeline:
    kind = LTXPipeline if style.endswith("t2v") else LTXImageToVideoPipeline
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return kind(**byte_t5(), vae=_vae(style), transformer=_transformer(), scheduler=scheduler)


def _transformer() -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT_DIM,
    ).eval()


def _vae(style: str) -> AutoencoderKLLTXVideo:
    """Eightfold in time and 32-fold in space, as published; latents' mean and spread are among its weights."""
    newer: dict[str, Any] = {}
    if style == "0.9.1":
        newer = {"timestep_conditioning": True, "decoder_inject_noise": (False,) * 5}
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=4,
        **newer,
    ).eval()
    vae.latents_mean = torch.linspace(-0.1, 0.1, CHANNELS)
    vae.latents_std = torch.linspace(0.5, 1.2, CHANNELS)
    return vae


def main(argv: Sequence[str] | None = None) -> int:
    return write_tiny(argv, "tiny_ltx", __doc__, STYLES, tiny_pipeline)


if __name__ == "__main__":
    raise SystemExit(main())
