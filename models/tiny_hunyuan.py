"""Tiny HunyuanVideo 1.5 pipelines with random weights from the real classes: to try commands without a download.

    python -m newtonrewards.models.tiny_hunyuan --out runs/tiny_hunyuan

Styles: `1.5`, `1.5-t2v` (from text alone). Clips of 64 x 64 px and 4n + 1 frames suit both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)

from newtonrewards.models.embedded import BYTE_VOCABULARY
from newtonrewards.models.tiny import TEXT_DIM, byte_t5, seeded, write_tiny

STYLES = ("1.5", "1.5-t2v")
CHANNELS = 4
IMAGE_DIM = 16
TARGET_SIZE = 32  # the pipeline scales its picture to about this many pixels squared
# The pipeline drops 108 tokens before the caption, which is what its system message takes in the published tokenizer.
CHAT_TEMPLATE = "{{ '.' * 108 }}{{ messages[1]['content'] }}"


def tiny_pipeline(style: str, seed: int = 0) -> HunyuanVideo15ImageToVideoPipeline | HunyuanVideo15Pipeline:
    """A pipeline of one of `STYLES` whose weights depend on the seed alone."""
    return seeded(lambda: _pipeline(style), seed, "tiny hunyuan")


def _pipeline(style: str) -> HunyuanVideo15ImageToVideoPipeline | HunyuanVideo15Pipeline:
    from_text = style.endswith("t2v")
    second = byte_t5()
    return (HunyuanVideo15Pipeline if from_text else HunyuanVideo15ImageToVideoPipeline)(
        **_text_encoder(),
        **({} if from_text else _image_encoder()),
        text_encoder_2=second["text_encoder"],
        tokenizer_2=second["tokenizer"],
        transformer=_transformer("t2v" if from_text else "i2v"),
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def _transformer(task: str) -> HunyuanVideo15Transformer3DModel:
    return HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=TEXT_DIM,
        image_embed_dim=IMAGE_DIM,
        rope_axes_dim=(4, 6, 6),
        target_size=TARGET_SIZE,
        task_type=task,
    ).eval()


def _vae() -> AutoencoderKLHunyuanVideo15:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    ).eval()


def _text_encoder() -> dict[str, Any]:
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=BYTE_VOCABULARY,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    )
    tokenizer = ByT5Tokenizer(extra_ids=0, chat_template=CHAT_TEMPLATE)
    return {"tokenizer": tokenizer, "text_encoder": Qwen2_5_VLTextModel(config).eval()}


def _image_encoder() -> dict[str, Any]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    return {
        "image_encoder": SiglipVisionModel(config).eval(),
        "feature_extractor": SiglipImageProcessor(size={"height": 32, "width": 32}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    return write_tiny(argv, "tiny_hunyuan", __doc__, STYLES, tiny_pipeline)


if __name__ == "__main__":
    raise SystemExit(main())
