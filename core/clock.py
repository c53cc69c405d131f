"""How long work takes: by the clock, and of this process's processors, which other work changes little."""

from __future__ import annotations

import time

# What `Stopwatch.spent` tells.
SPENT = ("seconds", "processor_seconds")


class Stopwatch:
    """Runs from where it is made."""

    def __init__(self) -> None:
        self._started = self._now()

    def spent(self) -> dict[str, float]:
        """Seconds by each of `SPENT`."""
        return {kind: now - then for kind, now, then in zip(SPENT, self._now(), self._started, strict=True)}

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()
