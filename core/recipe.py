"""Recipes: safe YAML to a frozen pydantic model. An unknown key is an error that names the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from newtonrewards.core.errors import RecipeError


class Config(BaseModel):
    """Base of every config: frozen, and strict about unknown keys. It lives beside the thing it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


def load(model: type[M], path: Path, overrides: Sequence[str] = ()) -> M:
    """Read and validate one recipe.

    Args:
        model: the pydantic model of the command.
        path: YAML file.
        overrides: `key.inner=value` strings, the value parsed as YAML; list items by number (`stages.0.lr=1e-4`).
    Raises:
        RecipeError: missing file, bad YAML, unknown key, wrong type or bad override.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"can't read the recipe ({error.strerror})", where=path, fix=_similar_file(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid YAML ({' '.join(str(error).split())})", where=path) from None
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=path)
    return validate(model, changed(content, overrides), where=str(path))


def changed(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A parsed recipe with `key.inner=value` strings applied to it; see `load`."""
    for override in overrides:
        _apply(content, override)
    return content


def validate(model: type[M], content: dict[str, Any], *, where: str) -> M:
    """Validate an already parsed mapping; see `load`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(model, problem) for problem in error.errors()), where=where) from None


def _similar_file(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"Did you mean '{path.parent / near[0]}'?" if near else "Give the path of a YAML file."


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"'{override}' is not of the form key.inner=value", where="--set")
    node: Any = content
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = _value(text)
        else:
            node[last] = _value(text)
    except yaml.YAMLError:
        raise RecipeError(f"the value of '{override}' is not valid YAML", where="--set") from None
    except (ValueError, IndexError, TypeError, AttributeError):
        raise RecipeError(f"'{key}' doesn't lead to a value of this recipe", where="--set") from None


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(model: type[BaseModel], problem: Any) -> str:
    place = _spell([part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))])
    if problem["type"] != "extra_forbidden":
        return f"{place or 'the recipe'}: {problem['msg'][:1].lower()}{problem['msg'][1:]} (got {problem['input']!r})"
    parent, unknown = place.rpartition(".")[0], str(problem["loc"][-1])
    near = difflib.get_close_matches(unknown, _all_keys(model), n=1, cutoff=0.6)
    hint = f". Did you mean '{near[0]}'?" if near else ""
    return f"{parent + ': ' if parent else ''}unknown key '{unknown}'{hint}"


def _spell(parts: list[Any]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _all_keys(model: type[BaseModel]) -> list[str]:
    """Every key that stands anywhere in the schema: the nearest name is good enough a hint."""
    schema = model.model_json_schema()
    tables = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for table in tables for key in table.get("properties", {})})
