"""A pipeline as its folder's JSON files describe it: the right classes and sizes, and no weight read.

Made under `FakeTensorMode` it holds no memory either, so a model of any size can be planned on any machine.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from newtonrewards.core.errors import CheckpointError

# Where transformers keeps the settings of what isn't a network.
PROCESSOR_FILE = "preprocessor_config.json"


def outline(path: str, *, dtype: dict[str, torch.dtype], **_: Any) -> Any:
    """What `DiffusionPipeline.from_pretrained` would return, with networks of arbitrary weights.

    A tokenizer without its vocabulary is replaced by a byte tokenizer: captions are padded to one length anyway.

    Args:
        path: folder with model_index.json and a config.json for each network.
        dtype: by name of a part; `default` for the others.
    Raises:
        CheckpointError: a file that is missing, or a class that isn't known here.
    """
    folder = Path(path)
    index = _read(folder / "model_index.json")
    parts: dict[str, Any] = {}
    settings = {key: value for key, value in index.items() if not key.startswith("_") and not _is_part(value)}
    for name, value in index.items():
        if not name.startswith("_") and _is_part(value):
            wanted = dtype.get(name, dtype.get("default", torch.float32))
            parts[name] = None if value[1] is None else _part(folder / name, value[0], value[1], wanted)
    return getattr(diffusers, index["_class_name"])(**parts, **settings)


def _part(folder: Path, library: str, class_name: str, dtype: torch.dtype) -> Any:
    try:
        cls = getattr(importlib.import_module(library), class_name)
    except (ImportError, AttributeError):
        raise CheckpointError(f"no class {class_name} in {library} here", where=folder) from None
    if library == "diffusers":
        file = next((file for file in sorted(folder.glob("*config.json"))), folder / "config.json")
        part = cls.from_config(_read(file))
    elif hasattr(cls, "config_class"):
        from transformers.initialization import no_init_weights

        with no_init_weights():  # what some draw again until it lies in a range never ends without content
            part = cls(cls.config_class.from_dict(_read(folder / "config.json")))
        part.tie_weights()
    elif "Tokenizer" in class_name:
        part = _tokenizer(cls, folder)
    else:
        part = cls.from_pretrained(str(folder)) if (folder / PROCESSOR_FILE).is_file() else cls()
    if isinstance(part, nn.Module):
        _cast(part.eval(), dtype)
    return part


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    """As `from_pretrained` does: what a class wants kept in float32 stays so; in transformers beside float16 alone."""
    kept = set(getattr(part, "_keep_in_fp32_modules_strict", None) or ())
    if isinstance(part, diffusers.ModelMixin) or dtype == torch.float16:
        kept |= set(getattr(part, "_keep_in_fp32_modules", None) or ())
    done: dict[int, nn.Parameter] = {}  # a tensor under two names stays one
    for place, module in part.named_modules():
        for name, old in module._parameters.items():
            if old is not None and old.is_floating_point() and not kept & {*place.split("."), name}:
                new = done.setdefault(id(old), old if old.dtype == dtype else nn.Parameter(old.to(dtype)))
                module._parameters[name] = new


def _tokenizer(cls: Any, folder: Path) -> Any:
    from transformers import ByT5Tokenizer

    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError):  # only its settings are there, or nothing
        return ByT5Tokenizer(extra_ids=0, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"can't read this config ({error})", where=file, fix="A plan needs the pipeline's JSON files."
        ) from None
    return content
