"""Tiny CogVideoX pipelines with random weights from the real classes: to try commands and launchers without a download.

    python -m newtonrewards.models.tiny_cogvideox --style 1.5 --out runs/tiny_cogvideox

Styles: `1.0`, `1.5` (two latent frames to a patch, offset embedding), `1.0-t2v` (from text alone).
Clips of 64 x 64 px and 4n + 1 frames suit all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from newtonrewards.models.tiny import TEXT_DIM, byte_t5, seeded, write_tiny

STYLES = ("1.0", "1.5", "1.0-t2v")
CHANNELS = 8


def tiny_pipeline(style: str, seed: int = 0) -> CogVideoXImageToVideoPipeline | CogVideoXPipeline:
    """A pipeline of one of `STYLES` whose weights depend on the seed alone."""
    return seeded(lambda: _pipeline(style), seed, "tiny cogvideox")


def _pipeline(style: str) -> CogVideoXImageToVideoPipeline | CogVideoXPipeline:
    kind = CogVideoXPipeline if style.endswith("t2v") else CogVideoXImageToVideoPipeline
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return kind(**byte_t5(), vae=_vae(style), transformer=_transformer(style), scheduler=scheduler)


def _transformer(style: str) -> CogVideoXTransformer3DModel:
    newer = style == "1.5"
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS if style.endswith("t2v") else 2 * CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=16,
        ofs_embed_dim=16 if newer else None,
        text_embed_dim=TEXT_DIM,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        patch_size_t=2 if newer else None,
        patch_bias=not newer,
        max_text_seq_length=64,
        use_rotary_positional_embeddings=True,
    ).eval()


def _vae(style: str) -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
        invert_scale_latents=style == "1.5",
    ).eval()


def main(argv: Sequence[str] | None = None) -> int:
    return write_tiny(argv, "tiny_cogvideox", __doc__, STYLES, tiny_pipeline)


if __name__ == "__main__":
    raise SystemExit(main())
