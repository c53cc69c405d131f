"""LoRA adapters through peft, in the file format that diffusers' `load_lora_weights` opens."""

from __future__ import annotations

import contextlib
import json
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
ADAPTER = "default"
# Every linear layer of a Wan block: self- and cross-attention (with its image branch, if any) and feed-forward.
WAN_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "ffn.net.0.proj", "ffn.net.2")


def add(
    model: VideoModel, *, rank: int, alpha: float | None = None, targets: Sequence[str] = (), seed: int = 0
) -> None:
    """Freeze the transformer and attach trainable LoRA layers that change nothing yet (B is zero).

    Args:
        model: its `transformer` is changed in place.
        rank: of each update B A.
        alpha: updates are scaled by alpha / rank; None means alpha = rank.
        targets: ends of the names of the linear layers; empty means `WAN_TARGETS`.
        seed: the initial A depend on it alone.
    Raises:
        InputError: adapters are there already, or no layer has such a name.
    """
    from peft import LoraConfig

    transformer: Any = model.transformer
    if is_attached(model):
        raise InputError("this model has LoRA layers already", fix="Merge them with models.lora.merge first.")
    ends = _present(model.transformer, targets or WAN_TARGETS)
    if not ends:
        raise InputError(
            f"no linear layer's name ends in {', '.join(targets)}", fix=f"Use some of {', '.join(WAN_TARGETS)}."
        )
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, 0, 0, "lora"))
        transformer.add_adapter(config, adapter_name=ADAPTER)  # peft freezes everything else


def is_attached(model: VideoModel) -> bool:
    """Whether the transformer has LoRA layers."""
    return bool(getattr(model.transformer, "peft_config", None))


@contextlib.contextmanager
def disabled(model: VideoModel) -> Iterator[None]:
    """Inside, the transformer computes what it did before its LoRA layers were added: the reference of a KL term.

    The layers' scale is set to 0 and back. peft's own switch flips `requires_grad`, which launchers don't survive
    in the middle of a step.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.transformer.modules() if isinstance(module, LoraLayer)]
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

    Raises:
        CheckpointError: no adapter to save.
    """
    from peft import get_peft_model_state_dict

    transformer: Any = model.transformer
    if not is_attached(model):
        raise CheckpointError("the model has no LoRA layers to save", where=path)
    config = transformer.peft_config[ADAPTER].to_dict()
    settings = {
        f"transformer.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True, default=str),
        "newtonrewards": json.dumps({"model": model.spec.name, "shape": _shape(model)}),
    }
    layers = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    tensors = {f"transformer.{name}": value.detach().to("cpu", torch.float32) for name, value in layers.items()}
    with whole_folder(path) as folder:
        save_weights(tensors, folder / WEIGHTS_NAME, metadata)


def load(model: VideoModel, path: Path) -> None:
    """Attach an adapter that `save` (or diffusers) wrote; its layers may train on, the rest is frozen.

    Args:
        path: the folder or the safetensors file.
    Raises:
        CheckpointError: missing, damaged, or an adapter of another model.
        InputError: adapters are there already.
    """
    transformer: Any = model.transformer
    if is_attached(model):
        raise InputError(
            "this model has LoRA layers already", where=path, fix="Merge them with models.lora.merge first."
        )
    file = path / WEIGHTS_NAME if path.is_dir() else path
    _check_origin(model, file)
    transformer.requires_grad_(False)
    try:
        transformer.load_lora_adapter(
            str(file.parent), weight_name=file.name, prefix="transformer", adapter_name=ADAPTER, local_files_only=True
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise _foreign("an adapter", model, file, str(error)) from None
    if not is_attached(model):
        raise _foreign("a file without transformer layers", model, file, "no name starts with 'transformer.'")
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge(model: VideoModel) -> None:
    """Add each update to its layer and drop the adapter: same clips, plain weights, all of them trainable again."""
    transformer: Any = model.transformer
    transformer.fuse_lora()
    transformer.unload_lora()
    transformer.requires_grad_(True)


def _present(transformer: nn.Module, ends: Sequence[str]) -> list[str]:
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    return [end for end in ends if any(f".{name}".endswith(f".{end}") for name in names)]


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
