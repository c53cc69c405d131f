"""Independent work on several cores: in order, or so that an item that kills its process stops no other."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any, Generic, TypeVar

import torch
from tqdm import tqdm

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


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; each is made in a thread of its own while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, _NOTHING)
        while (item := coming.result()) is not _NOTHING:
            coming = pool.submit(next, items, _NOTHING)
            yield item


@dataclass(frozen=True)
class Lost:
    """What came of an item instead of a result: `why`, one clause in words."""

    why: str


def isolated(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, *, seconds: float | None = None
) -> Iterator[tuple[Item, Result | Lost]]:
    """`function` of each item in processes of their own, as they are done: whatever an item does, the others go on.

    Args:
        function: what it raises, and what it prints, stays in its process.
        workers: processes, at least 1, each with one thread. One that dies is replaced.
        seconds: an item that takes longer is given up and its process killed; None: never.
    Yields:
        each item with its result, or with `Lost`: its process died (a crash in a C library, or memory ran out), it took
        too long, or the function raised.
    Raises:
        RuntimeError: a process dies before it has begun with an item, so that none ever would.
    """
    waiting, crew = deque(items), [_Worker(function) for _ in range(min(workers, len(items)))]
    try:
        while crew:
            _wait(crew, seconds)
            for worker in [worker for worker in crew if worker.answered(seconds)]:
                item, answer = worker.item, worker.answer
                if worker.gone or not waiting:
                    worker.kill()
                    crew.remove(worker)
                if waiting and worker.gone:
                    crew.append(_Worker(function))
                elif waiting:
                    worker.give(waiting.popleft())
                if item is not _NOTHING:
                    yield item, answer
    finally:
        for worker in crew:
            worker.kill()


_NOTHING: Any = object()


def _own_progress_lock() -> None:
    """tqdm's lock is a semaphore that forks share: one that is killed while its bar is drawn takes it along, and the
    next bar of the others waits for ever."""
    tqdm.set_lock(threading.RLock())


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_own_progress_lock)


def _context() -> Any:
    """A fork has all imports done and costs milliseconds. It copies no other thread, whose locks would stay shut: where
    there is one, and where libraries don't bear forks (macOS), processes start from nothing."""
    return get_context("fork" if sys.platform == "linux" and threading.active_count() == 1 else "spawn")


class _Worker(Generic[Item]):
    """A process that works on one item at a time.

    Attributes:
        item: what it was given last. answer: its result, or `Lost`. gone: whether it is dead.
    """

    def __init__(self, function: Callable[[Item], Any]) -> None:
        context = _context()
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        self.process.start()
        other.close()  # so that the pipe ends when the process does
        self.item, self.answer, self.gone, self.since = _NOTHING, _NOTHING, False, math.inf

    def give(self, item: Item) -> None:
        self.item, self.since = item, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it died between two items: `answered` finds that out
            self.pipe.send(item)

    def answered(self, seconds: float | None) -> bool:
        """Whether its item is done with, one way or the other; at first whether it is ready."""
        if self.pipe.poll():
            try:
                self.answer = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                self.gone, self.answer = True, Lost(_ending(self.process.exitcode or 0))
                if self.item is _NOTHING:
                    raise RuntimeError(f"a worker could not start: {self.answer.why}") from None
            return True
        if seconds is not None and time.monotonic() - self.since > seconds:
            self.gone, self.answer = True, Lost(f"it took longer than {seconds:g} s and was given up")
        return self.gone

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _wait(crew: Sequence[_Worker[Any]], seconds: float | None) -> None:
    """Until somebody answers or dies, or the next one's time is over."""
    left = None
    if seconds is not None:
        ends = min(worker.since for worker in crew) + seconds
        left = None if math.isinf(ends) else max(0.0, ends - time.monotonic()) + 0.01
    connection.wait([worker.pipe for worker in crew], left)


def _serve(function: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(item))
        except MemoryError:
            pipe.send(Lost("there is not enough memory for it"))
        except Exception as error:  # noqa: BLE001 - it becomes the item's answer; the next item must not suffer
            pipe.send(Lost(_raised(error)))


def _raised(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__}: {text} ({place.filename.rsplit('/', 1)[-1]}, line {place.lineno})"


def _ending(code: int) -> str:
    """Exit code of a process in words."""
    if code >= 0:
        return f"the process that worked on it ended with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", mostly for want of memory" if -code == signal.SIGKILL else ""
    return f"the process that worked on it crashed ({name}{memory})"
