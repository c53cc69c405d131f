"""`newtonrewards test`: the tests of this checkout, through pytest.

Arguments go to pytest: `newtonrewards test tests/rewards -k kinematic`. Without any, all tests run, in two processes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from newtonrewards.core.errors import MissingExtra, run_command

ALL = ("-n", "2", "--dist", "loadfile")
ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Returns pytest's own exit code.

    Raises:
        MissingExtra: installed without the tests or without pytest.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ALL
    if not (ROOT / "tests").is_dir():
        raise MissingExtra("no tests here", where=ROOT, fix="They come with a clone, not with a wheel.")
    if importlib.util.find_spec("pytest") is None:
        raise MissingExtra("pytest isn't installed", fix="Install requirements.txt, or newtonrewards[dev].")
    # One thread, because tiny networks on small tensors lose more by a second one than they gain. A process of its own,
    # because the shape checks must see every module of ours being imported.
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    process = subprocess.Popen([sys.executable, "-P", "-m", "pytest", *arguments], cwd=ROOT, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # pytest got it too, and ends by itself with what it has
            continue


if __name__ == "__main__":
    raise SystemExit(run_command(main))
