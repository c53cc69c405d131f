"""The embedded model: Wan's transformer and text encoder classes, small, on the latents of a fixed linear codec.

It predicts clean latents; `predict` turns them into the velocity that sampler and loss speak. The first frame enters
twice: as input channels, its pixels at the same place beside every latent frame, and in the codec, whose latents are
differences to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.recipe import Config
from newtonrewards.core.run import stream_seed, whole_folder, write_json
from newtonrewards.models.base import (
    Condition,
    Latents,
    PerSample,
    VideoSpec,
    check_clip_shape,
    check_condition_inputs,
    gradient_only,
    logit_normal,
)
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.files import save_weights

CLASS_NAME = "EmbeddedModel"  # what stands in model_index.json
BYTE_VOCABULARY = 259  # 256 bytes and ByT5's padding, end and unknown
NUM_TRAIN_TIMESTEPS = 1000
# An x-prediction's velocity is its error over sigma; below this its weight stops growing (docs: (x error)^2 /
# max(sigma, .1)^2).
SIGMA_FLOOR = 0.1
# Most patches are still background: without this the few that move are drowned.
MOVING_WEIGHT = 5.0


class EmbeddedConfig(Config):
    """Architecture; stored beside the weights.

    Attributes:
        num_heads, head_dim, num_layers, ffn_dim: transformer; its width is num_heads x head_dim.
        freq_dim: width of the noise level's sinusoids.
        text_dim, text_layers, text_heads: byte-level T5 encoder.
        text_length: longest caption in bytes, its end mark included.
        flow_shift: shift of the noise schedule towards noise, in training and sampling.
        last_sigma: noise level of the last sampling step's start. diffusers' default, .009 after a shift of 3, would
            spend the last step on a clip that is all but finished, and the reward's gradient with it.
        fps: frames per second of physical time.
        playback_fps: frames per second at which clips play.
    """

    num_heads: int = 4
    head_dim: int = 48
    num_layers: int = 6
    ffn_dim: int = 512
    freq_dim: int = 128
    text_dim: int = 64
    text_layers: int = 3
    text_heads: int = 4
    text_length: int = 112
    flow_shift: float = 3.0
    last_sigma: float = 0.2
    fps: float = 20.0
    playback_fps: float = 10.0


class EmbeddedModel:
    """A `VideoModel`; make one with `create` or `load`.

    Attributes:
        train_text_encoder: whether `condition` lets gradients through the text encoder and `trainable` names it
            (pre-training).
    """

    def __init__(
        self, config: EmbeddedConfig, codec: PatchCodec, transformer: nn.Module, text_encoder: nn.Module
    ) -> None:
        from transformers import ByT5Tokenizer

        self.config = config
        self.codec = codec
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.tokenizer = ByT5Tokenizer(extra_ids=0)
        self.scheduler = _scheduler(config)
        self.train_text_encoder = False
        self.spec = VideoSpec(
            "embedded", codec.num_frames, codec.height, codec.width, config.fps, config.playback_fps, codec.latent_shape
        )

    @staticmethod
    def create(config: EmbeddedConfig, codec: PatchCodec, seed: int) -> EmbeddedModel:
        """A model with random weights that depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, 0, 0, "initial weights"))
            return EmbeddedModel(config, codec, _transformer(config, codec), _text_encoder(config))

    @property
    def trainable(self) -> dict[str, nn.Module]:
        modules = {"transformer": self.transformer}
        return {**modules, "text_encoder": self.text_encoder} if self.train_text_encoder else modules

    def condition(self, captions: Sequence[str], first_frame: Float[Tensor, "B 3 H W"]) -> Condition:
        """Encode captions (and the empty one) byte by byte, and lay out the first frame's pixels.

        Raises:
            InputError: a caption longer than the model reads.
            ShapeError: first frames of another size.
        """
        check_condition_inputs(self.spec, captions, first_frame)
        tokens, mask = self._tokens([*captions, ""])
        tokens, mask = tokens.to(first_frame.device), mask.to(first_frame.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_text_encoder):
            # Zero past the end, as Wan's pipeline does: cross-attention has no mask.
            text = self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]
        channels = self.codec.image_channels(first_frame)[:, :, None].expand(-1, -1, self.spec.latent_shape[1], -1, -1)
        return Condition(first_frame, text[:-1], text[-1:], channels)

    def predict(self, latents: Latents, sigma: PerSample, condition: Condition) -> Latents:
        clean = self.transformer(
            hidden_states=torch.cat([latents, condition.channels], dim=1),
            timestep=sigma * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=condition.text,
            return_dict=False,
        )[0]
        velocity: Tensor = (latents - clean) / sigma.view(-1, 1, 1, 1, 1)
        return velocity

    def training_sigma(self, normal: PerSample) -> PerSample:
        return logit_normal(normal, self.config.flow_shift)

    def loss_weight(self, clean: Latents, sigma: PerSample) -> Latents:
        """Makes the squared velocity error (clean error)^2 / max(sigma, .1)^2, over the gain, and more where it moves.

        Source: measured on a prototype of this model; the weights' mean over components is 1.
        """
        level = sigma.view(-1, 1, 1, 1, 1)
        by_level = (level / level.clamp(min=SIGMA_FLOOR)).square()
        by_component = 1 / self.codec.gain
        by_component = (by_component / by_component.mean()).view(1, -1, 1, 1, 1)
        return by_level * by_component * torch.where(self.codec.moving(clean), MOVING_WEIGHT, 1.0)

    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Latents:
        check_clip_shape(self.spec, frames)
        return self.codec.encode(frames)

    def decode(
        self, latents: Latents, condition: Condition, with_gradient: Sequence[int] | None = None
    ) -> Float[Tensor, "B T 3 H W"]:
        return self.codec.decode(gradient_only(latents, with_gradient), condition.first_frame)

    def to(self, device: torch.device | str) -> EmbeddedModel:
        self.transformer.to(device)
        self.text_encoder.to(device)
        self.codec = self.codec.to(device)
        return self

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a folder laid out like a diffusers pipeline, whole or not at all.

        Args:
            dtype: of the stored weights; float16 rounds them by up to 5e-4 relative, float32 is exact.
        Raises:
            CheckpointError: LoRA adapters are attached; they are saved by `models.lora`, or merged first.
        """
        if getattr(self.transformer, "peft_config", None):
            raise CheckpointError(
                "can't save with LoRA adapters attached", where=path, fix="Merge them with lora.merge."
            )
        with whole_folder(path) as folder:
            write_json(folder / "model_index.json", {"_class_name": CLASS_NAME, "config": self.config.model_dump()})
            _save_module(self.transformer, folder / "transformer", "diffusion_pytorch_model.safetensors", dtype)
            _save_module(self.text_encoder, folder / "text_encoder", "model.safetensors", dtype)
            self.scheduler.save_pretrained(folder / "scheduler")
            self.codec.save(folder / "codec.safetensors")

    @staticmethod
    def load(path: Path, *, train_text_encoder: bool = False) -> EmbeddedModel:
        """Read what `save` wrote, in float32.

        Args:
            train_text_encoder: see the class.
        Raises:
            CheckpointError: missing, damaged, or a folder of another model.
        """
        try:
            index = json.loads((path / "model_index.json").read_text())
            config = EmbeddedConfig.model_validate(index["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"not a folder of the embedded model ({' '.join(str(error).split())})",
                where=path,
                fix="It needs model_index.json, transformer/, text_encoder/ and codec.safetensors.",
            ) from None
        codec = PatchCodec.load(path / "codec.safetensors")
        model = EmbeddedModel.create(config, codec, seed=0)
        _load_module(model.transformer, path / "transformer" / "diffusion_pytorch_model.safetensors")
        _load_module(model.text_encoder, path / "text_encoder" / "model.safetensors")
        model.train_text_encoder = train_text_encoder
        model.text_encoder.requires_grad_(train_text_encoder)
        return model

    def _tokens(self, captions: Sequence[str]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        limit = self.config.text_length
        for text in captions:
            if len(text.encode()) + 1 > limit:
                size = len(text.encode())
                raise InputError(f"caption of {size} bytes, this model reads {limit - 1} ('{text[:40]}...')")
        encoded = self.tokenizer(list(captions), padding="max_length", max_length=limit, return_tensors="pt")
        return encoded.input_ids, encoded.attention_mask


def _transformer(config: EmbeddedConfig, codec: PatchCodec) -> nn.Module:
    from diffusers import WanTransformer3DModel

    components = codec.latent_shape[0]
    module: nn.Module = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=components + 3 * codec.patch[1] * codec.patch[2],
        out_channels=components,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )
    return module


def _text_encoder(config: EmbeddedConfig) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    module: nn.Module = UMT5EncoderModel(
        UMT5Config(
            vocab_size=BYTE_VOCABULARY,
            d_model=config.text_dim,
            d_kv=config.text_dim // config.text_heads,
            d_ff=2 * config.text_dim,
            num_layers=config.text_layers,
            num_heads=config.text_heads,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
    return module


def _scheduler(config: EmbeddedConfig) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=config.flow_shift, shift_terminal=config.last_sigma
    )


def _save_module(module: Any, folder: Path, name: str, dtype: torch.dtype) -> None:
    """Config and weights as `from_pretrained` reads them; a tensor under two names (T5's embedding) is stored once."""
    module.config.save_pretrained(folder) if hasattr(module.config, "save_pretrained") else module.save_config(folder)
    unique = {value.data_ptr(): (key, value) for key, value in module.state_dict().items()}
    save_weights({key: value.to("cpu", dtype).contiguous() for key, value in unique.values()}, folder / name)


def _load_module(module: nn.Module, path: Path) -> None:
    try:
        load_model(module, str(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"damaged or foreign weights ({reason})", where=path) from None
