"""`newtonrewards simulate set-up-photo`: Blender as a Python package, in an environment of its own in the user's cache.

bpy is GPL-3.0, wants numpy < 2 and one version of Python, and takes a gigabyte: nothing here imports it or depends on
it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from newtonrewards.core.errors import MissingExtra
from newtonrewards.core.run import write_atomic

BPY = "5.0.1"
VERSION = "3.11"  # of Python: the only one that this bpy has a wheel for
COMMAND = "newtonrewards simulate set-up-photo"
CHECK = "import bpy; assert bpy.app.version_string == {!r}, bpy.app.version_string"


def home() -> Path:
    """Where the environment lies: $NEWTONREWARDS_BLENDER, or newtonrewards/blender-VERSION in the user's cache."""
    given = os.environ.get("NEWTONREWARDS_BLENDER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "newtonrewards" / f"blender-{BPY}"


def python() -> Path:
    """The Python that has bpy.

    Raises:
        MissingExtra: it isn't set up.
    """
    folder = home()
    if not (folder / "whole").is_file():
        raise MissingExtra("the photo tier needs Blender", where=folder, fix=f"Set it up once with: {COMMAND}")
    return folder / "bin" / "python"


def set_up() -> Path:
    """Make the environment, or leave it as it is where it is whole.

    Raises:
        MissingExtra: no Python of that version, or pip failed; its last line says why.
    """
    folder = home()
    if (folder / "whole").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _step([_interpreter(), "-m", "venv", str(folder)], "making its environment failed")
    inside = str(folder / "bin" / "python")
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:"]
    _step([*pip, f"bpy=={BPY}"], "installing bpy failed")
    _step([inside, "-c", CHECK.format(BPY)], "bpy doesn't start here")
    write_atomic(folder / "whole", f"bpy {BPY}\n")
    return folder


def _interpreter() -> str:
    """A Python of `VERSION`."""
    if sys.version.startswith(f"{VERSION}."):
        return sys.executable
    found = shutil.which(f"python{VERSION}")
    if found is None:
        raise MissingExtra(
            f"bpy {BPY} needs Python {VERSION}", where="PATH", fix=f"Install Python {VERSION} beside it."
        )
    return found


def _step(command: list[str], failing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no reason given"]
        raise MissingExtra(f"{failing} ({said[-1][:200]})", where=home(), fix="Then run the same command again.")
