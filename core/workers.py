"""Independent work on several cores, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
# A process costs more to start (it imports torch) than a few dozen clips.
WORTH_A_PROCESS = 64


def each(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order, on `workers` processes; in this one if there is little to do.

    Each process has one thread, since several pools of threads on the same cores are slower than none. The function and
    the items are pickled; what the function raises is raised here.
    """
    if workers <= 1 or len(items) < WORTH_A_PROCESS:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, items, chunksize=max(1, min(16, len(items) // (4 * workers))))
