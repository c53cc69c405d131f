"""torchrun with the exit code of the rank that ended first, where torchrun itself ends with 1 whatever happened.

A scheduler's script must know a stop (130, 143) and bad input (2) from a crash.

    python -m newtonrewards.launch.ranks --nproc-per-node 8 -m newtonrewards.training.train --recipe R.yaml --out runs/r
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """Takes torchrun's arguments.

    Returns:
        0, or the first failure's exit code; 128 + the signal's number for a rank or a launcher that a signal ended.
    """
    try:
        run.run(run.parse_args(sys.argv[1:] if argv is None else list(argv)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"rank {rank} ended first, with exit code {code}", file=sys.stderr)
        return int(code)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
