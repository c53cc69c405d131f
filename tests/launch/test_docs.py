"""What the documents tell people to type is true."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from newtonrewards.launch.cli import COMMANDS
from newtonrewards.rewards.reward import Reward, RewardConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "launch" / "recipes").rglob("*.yaml"))


def commands() -> list[tuple[str, str]]:
    """Every line that starts a command of ours: in code blocks, in code spans of tables, in recipes' first lines."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
        found += [(page.name, line) for line in [*blocks.splitlines(), *re.findall(r"`(newtonrewards [^`]+)`", text)]]
    for recipe in RECIPES:
        lines = recipe.read_text(encoding="utf-8").splitlines()
        found += [(recipe.name, line.lstrip("# ")) for line in lines if line.startswith("#   newtonrewards")]
    return [(name, line) for name, line in found if re.match(r"(\./)?newtonrewards [a-z]", line)]


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_line_is_one_that_its_command_understands(page: str, line: str) -> None:
    _, command, *arguments = shlex.split(line, comments=True)
    assert command in COMMANDS, f"{page}: {line}"
    module = importlib.import_module(COMMANDS[command].module)
    if command != "test" and arguments:
        module.parser().parse_args(arguments)  # leaves with SystemExit where it doesn't understand them


def test_there_are_command_lines_at_all() -> None:
    assert len(commands()) > 10


def what_a_reader_has() -> dict[str, object]:
    """Names that the examples take for granted."""
    terms = {"kinematic/second_difference": {"support": "motion"}}
    clips = torch.rand(2, 9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {
        "generated": clips.clone().requires_grad_(),
        "decoded": clips.clone().requires_grad_(),
        "videos": clips,
        "reward": Reward(RewardConfig.model_validate({"terms": terms})),
        "prompts": ["a ball falls"] * 2,
        "metadata": None,
        "pipeline": lambda prompt, output_type: SimpleNamespace(frames=clips),
    }


@pytest.mark.weights
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=str)
def test_every_python_example_runs(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        names = what_a_reader_has()
        exec(compile(block, str(page), "exec"), names)
        if isinstance(loss := names.get("loss"), torch.Tensor):
            assert torch.isfinite(loss)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in code spans such as `core/clip.py`, with or without the name of a thing in that file."""
    rooms = "core|simulation|models|rewards|training|eval|launch|tests|docs"
    for path, _, name in re.findall(rf"`((?:{rooms})/[\w/.]*)(:(\w+))?`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
        if name:
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{page.name}: {path}:{name}"
