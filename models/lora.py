"""LoRA adapters through peft, in the file format that diffusers' `load_lora_weights` opens."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.run import stream_seed, whole_folder
from newtonrewards.models.base import VideoModel
from newtonrewards.models.files import save_weights

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
# Where a pipeline has two experts (Wan 2.2 A14B), diffusers wants one file for each, with the same prefix in both.
FILES = {"transformer": WEIGHTS_NAME, "transformer_2": "pytorch_lora_weights_2.safetensors"}
PREFIX = "transformer"
ADAPTER = "default"
BLOCK = re.compile(r"(?:transformer_)?blocks\.\d+\.(.+)")


def add(
    model: VideoModel, *, rank: int, alpha: float | None = None, targets: Sequence[str] = (), seed: int = 0
) -> None:
    """Freeze each transformer that trains and attach trainable LoRA layers that change nothing yet (B is zero).

    Args:
        model: its transformers are changed in place.
        rank: of each update B A.
        alpha: updates are scaled by alpha / rank; None means alpha = rank.
        targets: ends of the names of the linear layers; empty means all of the blocks but the norms' modulation. Layers
            that the model has frozen get none.
        seed: the initial A depend on it alone.
    Raises:
        InputError: adapters are there already, or no layer has such a name.
    """
    from peft import LoraConfig

    if is_attached(model):
        raise InputError("this model has LoRA layers already", fix="Merge them with models.lora.merge first.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, 0, 0, "lora"))
        for transformer in _transformers(model, trained=True).values():
            config = LoraConfig(
                r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=_layers(transformer, targets)
            )
            transformer.add_adapter(config, adapter_name=ADAPTER)  # peft freezes everything else


def is_attached(model: VideoModel) -> bool:
    """Whether a transformer has LoRA layers."""
    return any(_has_adapter(transformer) for transformer in _transformers(model).values())


@contextlib.contextmanager
def disabled(model: VideoModel) -> Iterator[None]:
    """Inside, the transformers compute what they did before their LoRA layers were added: the reference of a KL term.

    The layers' scale is set to 0 and back. peft's own switch flips `requires_grad`, which launchers don't survive
    in the middle of a step.
    """
    from peft.tuners.lora import LoraLayer

    layers = [
        module
        for transformer in _transformers(model).values()
        for module in transformer.modules()
        if isinstance(module, LoraLayer)
    ]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update(dict.fromkeys(layer.scaling, 0.0))
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def save(model: VideoModel, path: Path) -> None:
    """Write the adapter to `path/pytorch_lora_weights.safetensors` in float32, with rank, alpha and the kind of model.

    A second expert's goes to `pytorch_lora_weights_2.safetensors`; diffusers opens that one with
    `load_lora_weights(path, weight_name=..., load_into_transformer_2=True)`.

    Raises:
        CheckpointError: no adapter to save.
    """
    from peft import get_peft_model_state_dict

    if not is_attached(model):
        raise CheckpointError("the model has no LoRA layers to save", where=path)
    with whole_folder(path) as folder:
        for name, transformer in _transformers(model).items():
            if not _has_adapter(transformer):
                continue
            layers = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
            tensors = {f"{PREFIX}.{key}": value.detach().to("cpu").float() for key, value in layers.items()}
            save_weights(tensors, folder / FILES[name], _metadata(model, transformer))


def load(model: VideoModel, path: Path) -> None:
    """Attach an adapter that `save` (or diffusers) wrote; its layers may train on, the rest is frozen.

    Args:
        path: the folder, or the safetensors file of the (first) transformer.
    Raises:
        CheckpointError: missing, damaged, or an adapter of another model.
        InputError: adapters are there already.
    """
    if is_attached(model):
        raise InputError(
            "this model has LoRA layers already", where=path, fix="Merge them with models.lora.merge first."
        )
    transformers = _transformers(model)
    files = {name: path / FILES[name] for name in transformers} if path.is_dir() else {"transformer": path}
    there = {name: file for name, file in files.items() if file.exists()} or {"transformer": files["transformer"]}
    for name, transformer in transformers.items():
        if name in there:
            _check_origin(model, there[name])
            _load_one(model, transformer, there[name])
        trains = any(transformer is module for module in model.trainable.values())
        for key, parameter in transformer.named_parameters():
            parameter.requires_grad_("lora_" in key and trains)


def merge(model: VideoModel) -> None:
    """Add each update to its layer and drop the adapter: same clips, plain weights, all of them trainable again."""
    for transformer in _transformers(model).values():
        if _has_adapter(transformer):
            transformer.fuse_lora()
            transformer.unload_lora()
            transformer.requires_grad_(True)


def _transformers(model: VideoModel, *, trained: bool = False) -> dict[str, Any]:
    """The model's transformers by name: one, or two experts; or only those that train."""
    found = {name: getattr(model, name, None) for name in FILES}
    training = list(model.trainable.values())
    return {
        name: module
        for name, module in found.items()
        if module is not None and (not trained or any(module is one for one in training))
    }


def _has_adapter(transformer: nn.Module) -> bool:
    return bool(getattr(transformer, "peft_config", None))


def _layers(transformer: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers to adapt.

    Raises:
        InputError: none, with the ends that there are.
    """
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    inside = {name: match.group(1) for name in linear if (match := BLOCK.fullmatch(name))}
    usual = {name: end for name, end in inside.items() if not end.startswith("norm")}
    chosen = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in targets)] if targets else usual
    free = [name for name in chosen if linear[name].weight.requires_grad]
    if not free:
        raise InputError(
            f"no linear layer's name ends in {', '.join(targets)}",
            fix=f"Use some of {', '.join(dict.fromkeys(usual.values()))}.",
        )
    return free


def _metadata(model: VideoModel, transformer: Any) -> dict[str, str]:
    config = transformer.peft_config[ADAPTER].to_dict()
    settings = {f"{PREFIX}.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True, default=str),
        "newtonrewards": json.dumps({"model": model.spec.name, "shape": _shape(model)}),
    }


def _load_one(model: VideoModel, transformer: Any, file: Path) -> None:
    try:
        transformer.load_lora_adapter(
            str(file.parent), weight_name=file.name, prefix=PREFIX, adapter_name=ADAPTER, local_files_only=True
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise _foreign("an adapter", model, file, str(error)) from None
    if not _has_adapter(transformer):
        raise _foreign("a file without transformer layers", model, file, f"no name starts with '{PREFIX}.'")


def _shape(model: VideoModel) -> str:
    """What tells two transformers of one class apart, for people."""
    c: Any = model.transformer.config
    return (
        f"{c.num_layers} layers of width {c.num_attention_heads * c.attention_head_dim}, {c.in_channels} input channels"
    )


def _check_origin(model: VideoModel, file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as content:
            origin = json.loads((content.metadata() or {}).get("newtonrewards", "null"))
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        fix = f"Give a folder with {WEIGHTS_NAME} or a .safetensors file."
        raise CheckpointError(f"can't read a LoRA adapter ({reason})", where=file, fix=fix) from None
    if origin is not None and (origin["model"], origin["shape"]) != (model.spec.name, _shape(model)):
        raise _foreign(
            f"an adapter of the {origin['model']} model ({origin['shape']})", model, file, "another transformer"
        )


def _foreign(what: str, model: VideoModel, file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{what} doesn't fit the {model.spec.name} model ({_shape(model)}): {' '.join(reason.split())[:200]}",
        where=file,
        fix="Load it onto the model that it was trained from.",
    )
