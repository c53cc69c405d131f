"""From a config to a video model, and from a trained model to a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.training_utils import cast_training_params
from pydantic import Field, field_validator, model_validator

from newtonrewards.core.errors import CheckpointError
from newtonrewards.core.recipe import Config
from newtonrewards.models import lora
from newtonrewards.models.base import VideoModel
from newtonrewards.models.causal import Tiles
from newtonrewards.models.cogvideox import CogVideoXModel
from newtonrewards.models.embedded import CLASS_NAME, EmbeddedModel
from newtonrewards.models.hunyuan import HunyuanModel
from newtonrewards.models.ltx import LTXModel
from newtonrewards.models.pipelines import PipelineModel
from newtonrewards.models.wan import WanModel

# Every family that is a diffusers pipeline on disk: a file of its own and a line here.
FAMILIES: dict[str, type[PipelineModel]] = {
    family.name: family
    for family in (
        WanModel,
        CogVideoXModel,
        LTXModel,
        HunyuanModel,
    )
}
# What `_class_name` in a folder's model_index.json may say, for each name of a config.
PIPELINES = {"embedded": (CLASS_NAME,), **{name: tuple(family.pipelines) for name, family in FAMILIES.items()}}


class ModelConfig(Config):
    """Which model, and what of it trains. The embedded model has its own size, so what says "pipeline" is not for it.

    Attributes:
        name: `embedded`, or the family of a diffusers pipeline: `wan`, `cogvideox`, `ltx`, `hunyuan` (docs/models.md).
        path: its folder.
        lora: adapter to start from (folder or file), or null.
        lora_rank: rank of new LoRA layers; null trains all weights, unless `lora` names an adapter to train on.
        lora_alpha: updates are scaled by alpha / rank; null means alpha = rank.
        lora_targets: ends of the names of the layers to adapt; empty means all linear layers of the blocks.
        lora_seed: seed of the new layers.
        train_text_encoder: let the embedded model's text encoder train too (pre-training).
        save_dtype: how full weights are stored; float16 halves the file.
        num_frames, height, width: clip size of a pipeline; null is what its family was trained at.
        fps: frames per second of physical time, for a pipeline; null is its family's.
        negative_caption: what guidance leads away from, for a pipeline.
        dtype: of the weights that don't train, for a pipeline. Those that do are float32: an update is smaller than
            what bfloat16 can tell apart.
        gradient_checkpointing: recompute the transformer block by block in the backward pass, for a pipeline.
        embeddings: folder where encoded captions and first frames are kept; training computes them once for all clips
            and then frees the pipeline's text and image encoders.
        experts: which of two transformers trains (Wan 2.2 A14B): `both`, `high_noise`, `low_noise`; null is both.
        tiles: decode large frames tile by tile (Wan, HunyuanVideo); null decodes whole frames.
    """

    name: str
    path: Path
    lora: Path | None = None
    lora_rank: int | None = Field(None, ge=1)
    lora_alpha: float | None = Field(None, gt=0)
    lora_targets: tuple[str, ...] = ()
    lora_seed: int = 0
    train_text_encoder: bool = False
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    num_frames: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=16)
    width: int | None = Field(None, ge=16)
    fps: float | None = Field(None, gt=0)
    negative_caption: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    embeddings: Path | None = None
    experts: Literal["both", "high_noise", "low_noise"] | None = None
    tiles: Tiles | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PIPELINES:
            raise ValueError(f"no such model; there are {', '.join(PIPELINES)}")
        return name

    @model_validator(mode="after")
    def _for_pipelines(self) -> ModelConfig:
        given = [name for name in ("embeddings", "experts", "tiles") if getattr(self, name) is not None]
        if self.name == "embedded" and given:
            raise ValueError(f"{', '.join(given)}: for pipelines, not for the embedded model")
        return self


def load_video_model(config: ModelConfig, *, read: Callable[..., Any] | None = None) -> VideoModel:
    """Read a model and attach its LoRA layers.

    Args:
        read: gives the pipeline of a folder; see `PipelineModel.load`.
    Raises:
        CheckpointError: missing or damaged folder, or one of another model.
        InputError: an option that the model's family doesn't have.
    """
    check_folder(config)
    model: VideoModel
    if config.name == "embedded":
        model = EmbeddedModel.load(config.path, train_text_encoder=config.train_text_encoder)
    else:
        pipeline = FAMILIES[config.name].load(
            config.path,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            negative_caption=config.negative_caption,
            dtype=getattr(torch, config.dtype),
            gradient_checkpointing=config.gradient_checkpointing,
            read=read,
        )
        if config.tiles is not None:
            pipeline.decode_in_tiles(config.tiles)
        if config.experts is not None:
            pipeline.choose_experts(config.experts)
        if config.embeddings is not None:
            pipeline.keep_embeddings(config.embeddings)
        model = pipeline
    if config.lora is not None:
        lora.load(model, config.lora)
    elif config.lora_rank is not None:
        lora.add(
            model, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets, seed=config.lora_seed
        )
    cast_training_params(list(model.trainable.values()), torch.float32)
    return model


def save_trained(model: VideoModel, config: ModelConfig, path: Path) -> None:
    """Write what training changed: the adapter alone where there is one, else the whole model."""
    if lora.is_attached(model):
        lora.save(model, path)
    else:
        model.save(path, getattr(torch, config.save_dtype))


def check_folder(config: ModelConfig) -> None:
    """Compare a folder's model_index.json with the model that the config names.

    Raises:
        CheckpointError: naming the folder, what it holds and what was expected.
    """
    expected = f"name: {config.name} needs a folder whose model_index.json says {' or '.join(PIPELINES[config.name])}"
    index = config.path / "model_index.json"
    if not config.path.is_dir():
        raise CheckpointError("no such model folder", where=config.path, fix=f"{expected}.")
    try:
        found = json.loads(index.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            "not a model folder (no readable model_index.json)", where=config.path, fix=f"{expected}."
        ) from None
    if found not in PIPELINES[config.name]:
        other = [name for name, pipelines in PIPELINES.items() if found in pipelines]
        hint = f" Did you mean name: {other[0]}?" if other else ""
        raise CheckpointError(f"this is a {found}", where=config.path, fix=f"{expected}.{hint}")
