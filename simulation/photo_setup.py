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

from newtonrewards.core.errors import InputError, MissingExtra
from newtonrewards.core.run import output_folder, write_atomic

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
        InputError: the folder holds something else.
    """
    folder = home()
    if (folder / "whole").is_file():
        return folder
    output_folder(folder)
    if any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise InputError("holds something else", where=folder, fix="Name an empty folder in NEWTONREWARDS_BLENDER.")
    _step([_interpreter(), "-m", "venv", "--clear", str(folder)], "making its environment failed")
    inside = str(folder / "bin" / "python")
    pip = [inside, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:"]
    _step([*pip, f"bpy=={BPY}"], "installing bpy failed")
    _step([inside, "-I", "-c", CHECK.format(BPY)], "bpy doesn't start here")
    write_atomic(folder / "whole", f"bpy {BPY}\n")
    return folder


def _interpreter() -> str:
    """A Python of `VERSION`."""
    if sys.version.startswith(f"{VERSION}."):
        return sys.executable
    found = shutil.which(f"python{VERSION}")
    if found is None:
        raise MissingExtra(f"bpy {BPY} needs Python {VERSION}", fix=f"Put a python{VERSION} into the PATH.")
    return found


def _step(command: list[str], failing: str) -> None:
    """Run a command, whose progress is seen and whose last complaint is told."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise MissingExtra(f"{failing} ({said[-1][:200]})", where=home(), fix="Mend that, then run the same again.")
