"""`newtonrewards test`: the tests of this checkout, through pytest.

Arguments go to pytest: `newtonrewards test tests/rewards -k kinematic`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from newtonrewards.core.errors import MissingExtra, run_command

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Returns pytest's own exit code.

    Raises:
        MissingExtra: installed without the tests or without pytest.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not (ROOT / "tests").is_dir():
        raise MissingExtra("no tests here", where=ROOT, fix="They come with a clone, not with a wheel.")
    # Tiny networks on small tensors: a second thread costs more than it gives. Read before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import pytest
    except ImportError:
        raise MissingExtra("pytest isn't installed", fix="Install requirements.txt, or newtonrewards[dev].") from None
    os.chdir(ROOT)
    return int(pytest.main(arguments))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
