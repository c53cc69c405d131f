"""House rules that no linter knows: sizes, sources of random numbers, and what may be read from disk."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "simulation", "models", "rewards", "training", "eval", "launch")
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

# Draw from torch's global state unless they are given a generator.
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "rand_like", "randn_like"}
MODULE_LINES, FUNCTION_LINES = 400, 60
KERNELS = {"draw_tile"}  # compiled by numba, which can't take a structure apart as cheaply as arguments


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, ast.unparse(node.func)


def random_draws(tree: ast.AST) -> list[str]:
    """Calls whose numbers depend on more than `core.run.stream`."""
    found = []
    for node, name in calls(tree):
        given = {keyword.arg for keyword in node.keywords}
        torch_draw = name.startswith("torch.") and name.split(".")[-1] in DRAWS and "generator" not in given
        legacy = re.match(r"(np|numpy)\.random\.(?!default_rng|Generator)", name) or name.startswith("random.")
        unseeded = name.endswith("random.default_rng") and not node.args
        if torch_draw or legacy or unseeded:
            found.append(f"line {node.lineno}: {name}")
    return found


def unsafe_reads(tree: ast.AST) -> list[str]:
    """Loaders that run code from the file."""
    found = []
    for node, name in calls(tree):
        safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        pickled = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "True" for k in node.keywords)
        if (name == "torch.load" and not safe) or name in ("yaml.load", "yaml.unsafe_load") or pickled:
            found.append(f"line {node.lineno}: {name}")
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    text, tree = path.read_text(encoding="utf-8"), parse(path)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= FUNCTION_LINES and f.name not in KERNELS]
    assert text.count("\n") <= MODULE_LINES
    assert not long
    assert not random_draws(tree)
    assert not unsafe_reads(tree)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


def test_the_rules_see_what_they_forbid() -> None:
    draws = "torch.randn(3)\nnp.random.rand(2)\nrandom.random()\nnp.random.default_rng()\ntorch.rand(2, generator=g)"
    assert len(random_draws(ast.parse(draws))) == 4
    reads = "torch.load(p)\nyaml.load(p)\nnp.load(p, allow_pickle=True)\ntorch.load(p, weights_only=True)"
    assert len(unsafe_reads(ast.parse(reads))) == 3


def test_every_room_is_packaged_and_seen_by_the_type_checker() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for room in ROOMS:
        assert f'"newtonrewards.{room}" = "{room}"' in project
        assert (ROOT / ".types" / "newtonrewards" / room).resolve() == ROOT / room
