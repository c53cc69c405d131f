"""./newtonrewards with a fake Python: what it does when something is missing, without installing 6 GB each time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["sh", "cat", "cmp", "cut", "dirname", "grep", "mkdir", "mv", "readlink", "rm", "sleep", "tail", "cp", "env"]

PYTHON = """#!/bin/sh
here=$0
printf '%s\\n' "$*" >>"$FAKE_CALLS"
case "$*" in
    *version_info*) exit "${FAKE_OLD:-0}" ;;
    *"import ensurepip"*) exit "${FAKE_NO_VENV:-0}" ;;
    "-m venv --clear "*)
        [ "${FAKE_NO_VENV:-0}" = 0 ] || exit 1
        mkdir -p "$4/bin" && cp "$here" "$4/bin/python" ;;
    "-m pip --version") ;;
    "-m pip install"*)
        case ${FAKE_PIP:-good} in
            good) ;;
            hang) sleep 60 ;;
            *) echo "ERROR: $FAKE_PIP"; exit 1 ;;
        esac ;;
    "-P -m newtonrewards.launch.cli"*) shift 3; printf 'cli[%s] in %s\\n' "$*" "$PWD" ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""

UV = """#!/bin/sh
printf 'uv %s\\n' "$*" >>"$FAKE_CALLS"
case "$1" in
    venv) for last; do :; done; mkdir -p "$last/bin" && cp "$FAKE_PYTHON" "$last/bin/python" ;;
esac
"""


class House:
    """A copy of what the script needs, in a folder with a space in its name, and a PATH with a fake Python only."""

    def __init__(self, base: Path) -> None:
        self.root, self.bin, self.calls = base / "a clone", base / "bin", base / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        for name in ("newtonrewards", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.add("python3", PYTHON)
        self.calls.touch()

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "FAKE_CALLS": str(self.calls),
            "FAKE_PYTHON": str(self.bin / "python3"),
            **settings,
        }

    def run(self, *arguments: str, cwd: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.root / "newtonrewards"), *arguments]
        environment = self.environment(**settings)
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=30)

    def installs(self) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if "pip install" in line]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error, below the announcement of an installation."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "installing into" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("newtonrewards: ")
    return lines[0]


def test_the_first_start_installs_and_the_second_does_not(house: House, tmp_path: Path) -> None:
    first = house.run("score", "a b.mp4", cwd=tmp_path)
    assert first.returncode == 0, first
    assert first.stdout == f"cli[score a b.mp4] in {tmp_path}\n"
    requirements, itself = house.installs()
    assert requirements.endswith(f"-r {house.root}/requirements.txt")
    assert itself.endswith(f"--no-deps --no-build-isolation -e {house.root}")
    started = time.perf_counter()
    second = house.run("score", cwd=tmp_path)
    assert time.perf_counter() - started < 1
    assert second.stdout == f"cli[score] in {tmp_path}\n"
    assert second.stderr == ""
    assert len(house.installs()) == 2


def test_it_can_be_called_through_a_link(house: House, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(house.root / "newtonrewards")
    (tmp_path / "links" / "two").symlink_to("one")
    done = subprocess.run(
        [tmp_path / "links" / "two", "--help"], env=house.environment(), capture_output=True, text=True
    )
    assert done.stdout.startswith("cli[--help]")
    assert (house.root / ".venv").is_dir()


@pytest.mark.parametrize("changed", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_or_project_are_installed_again(house: House, changed: str) -> None:
    house.run("--help")
    with (house.root / changed).open("a") as file:
        file.write("# a newer one\n")
    house.run("--help")
    assert len(house.installs()) == 4
    house.run("--help")
    assert len(house.installs()) == 4


def test_a_moved_clone_is_installed_again(house: House) -> None:
    house.run("--help")
    house.root = house.root.rename(house.root.with_name("moved"))
    house.run("--help")
    assert len(house.installs()) == 4


def test_uv_is_used_where_it_is_installed(house: House) -> None:
    house.add("uv", UV)
    assert house.run("--help").stdout.startswith("cli[--help]")
    made, requirements, itself = (line for line in house.calls.read_text().splitlines() if line.startswith("uv "))
    assert made == f"uv venv --allow-existing --python python3 {house.root}/.venv"
    assert requirements.startswith(f"uv pip install --python {house.root}/.venv/bin/python -r ")
    assert itself.endswith(f"-e {house.root}")


def test_an_old_or_missing_python_is_one_line(house: House) -> None:
    assert "Python 3.11 or newer is needed and not found. Install it" in error_of(house.run("test", FAKE_OLD="1"))
    (house.bin / "python3").unlink()
    assert "Python 3.11 or newer is needed" in error_of(house.run("test"))
    assert not (house.root / ".venv").exists()


def test_another_python_can_be_named(house: House) -> None:
    (house.bin / "python3").rename(house.bin / "my-python")
    assert house.run("--help", PYTHON="my-python").returncode == 0


def test_a_python_without_venv_is_one_line(house: House) -> None:
    assert "python3 can't make virtual environments. Install its venv" in error_of(house.run("test", FAKE_NO_VENV="1"))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "NewConnectionError(...): Failed to establish a new connection",
            "no connection to the package index. Connect",
        ),
        ("[Errno -3] Temporary failure in name resolution", "no connection to the package index"),
        ("Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full. Free"),
        ("Could not install packages due to an OSError: [Errno 13] Permission denied", "can't write to"),
        ("Could not find a version that satisfies nothing", "installing failed (ERROR: Could not find a version"),
    ],
)
def test_what_stops_the_installer_is_one_line_and_the_next_start_tries_again(
    house: House, reason: str, words: str
) -> None:
    assert words in error_of(house.run("demo", FAKE_PIP=reason))
    assert not (house.root / ".venv" / "newtonrewards.stamp").exists()
    assert house.run("demo").stdout.startswith("cli[demo]")


def test_ctrl_c_while_installing_is_one_line_and_the_next_start_goes_on(house: House) -> None:
    command = [str(house.root / "newtonrewards"), "demo"]
    environment = house.environment(FAKE_PIP="hang")
    # Tests that run in the background inherit an ignored SIGINT, which no shell can trap.
    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, default)
    deadline = time.monotonic() + 10
    while not house.installs() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "newtonrewards: installation interrupted. Run the same command again to go on."
    assert house.run("demo").stdout.startswith("cli[demo]")


def test_an_installation_that_was_killed_is_redone(house: House) -> None:
    house.run("demo")
    (house.root / ".venv" / "newtonrewards.stamp").unlink()
    (house.root / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert house.run("demo").stdout.startswith("cli[demo]")


@pytest.fixture
def open_house() -> Iterator[House]:
    """In a folder that others may enter: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        yield House(Path(base))


def test_a_clone_without_write_access_is_one_line(open_house: House) -> None:
    house = open_house
    house.calls.chmod(0o666)
    house.root.chmod(0o555)
    somebody = {"user": 65534} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [house.root / "newtonrewards", "demo"], env=house.environment(), capture_output=True, text=True, **somebody
        )
    except PermissionError:
        pytest.skip("may not act as another user here")
    finally:
        house.root.chmod(0o755)
    assert f"can't write to {house.root}. Change its rights, or copy" in error_of(done)


def test_the_script_is_posix_shell() -> None:
    checker = shutil.which("dash") or shutil.which("sh")
    assert checker
    subprocess.run([checker, "-n", str(ROOT / "newtonrewards")], check=True)
    assert os.access(ROOT / "newtonrewards", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
