"""Independent work on several cores, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, *, least: int = 64, chunk: int = 16
) -> Iterator[Result]:
    """`function` of each item, in order, on `workers` processes.

    Args:
        least: with fewer items all is done in this process, since another one costs seconds to start (it imports
            torch): as much as a few dozen small clips.
        chunk: items that a process takes at a time.

    Each process has one thread, since several pools of threads on the same cores are slower than none. The function and
    the items are pickled; what the function raises is raised here.
    """
    if workers <= 1 or len(items) < least:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, items, chunksize=max(1, min(chunk, len(items) // (4 * workers))))
