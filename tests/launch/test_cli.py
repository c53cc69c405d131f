from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from newtonrewards.core.errors import InputError
from newtonrewards.launch import cli


def test_every_command_in_the_table_has_its_module() -> None:
    for name, command in cli.COMMANDS.items():
        assert importlib.util.find_spec(command.module) is not None, name


def test_help_lists_every_command_and_waits_for_no_library() -> None:
    """Measured in a process of its own: 0.1 s, where importing torch alone takes seconds."""
    code = "import sys; from newtonrewards.launch.cli import main; main(['--help']); print('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert done.stdout.splitlines()[-1] == "False"
    for name, command in cli.COMMANDS.items():
        assert f"{name} " in done.stdout
        assert command.summary in done.stdout


def test_the_console_script_and_the_module_are_the_same_entry() -> None:
    entry = importlib.metadata.entry_points(group="console_scripts")["newtonrewards"]
    assert entry.load() is cli.main
    done = subprocess.run(
        [sys.executable, "-m", "newtonrewards.launch.cli", "--version"], capture_output=True, text=True
    )
    assert done.stdout.startswith("newtonrewards 0.")


def test_no_argument_shows_the_usage_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: newtonrewards COMMAND")


@pytest.mark.parametrize(("typed", "hint"), [("simulat", "Did you mean 'simulate'?"), ("xyz", "Choose one of ")])
def test_an_unknown_command_names_the_nearest(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    assert capsys.readouterr().err.startswith(f"error: no command '{typed}'. {hint}")


def fake(monkeypatch: pytest.MonkeyPatch, raised: BaseException | int) -> list[Sequence[str]]:
    """Put a module behind the command `fake`; returns the list of arguments that it was called with."""
    calls: list[Sequence[str]] = []

    def main(argv: Sequence[str]) -> int:
        calls.append(argv)
        if isinstance(raised, BaseException):
            raise raised
        return raised

    monkeypatch.setitem(sys.modules, "fake_command", SimpleNamespace(main=main))  # type: ignore[arg-type]
    monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake_command", "for the test"))
    return calls


def test_arguments_and_exit_codes_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake(monkeypatch, 1)
    assert cli.main(["fake", "--out", "a b", "--help"]) == 1
    assert calls == [["--out", "a b", "--help"]]


def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, InputError("the file is empty", where="a.mp4", fix="Write it again."))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "error: a.mp4: the file is empty. Write it again.\n"


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake(monkeypatch, KeyboardInterrupt())
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "interrupted. Run the same command again to go on.\n"


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        if name == "test":
            continue  # pytest's own help
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert f"newtonrewards {name}" in shown
        assert "--out" in shown or name == "score"


def test_the_test_command_runs_pytest_from_any_folder_with_its_arguments(tmp_path: Path) -> None:
    """With the shape checks on: they refuse to start in a process that has imported a module of ours."""
    command = [sys.executable, "-P", "-m", "newtonrewards.launch.cli", "test", "tests/core/test_errors.py", "-q"]
    good = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "passed" in good.stdout
    none = subprocess.run([*command, "-k", "nothing_has_this_name"], cwd=tmp_path, capture_output=True, check=False)
    assert none.returncode == 5  # pytest's code for no tests
