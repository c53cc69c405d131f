"""Work is spread over processes, and comes back in order, with its errors."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from newtonrewards.core.workers import Lost, ahead, each, isolated


@pytest.fixture(autouse=True)
def found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an earlier test left a thread behind, workers aren't forks and import this file by its name."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[2])])


@pytest.mark.slow
def test_several_processes_give_what_one_gives_in_order() -> None:
    items = list(range(20))
    assert list(each(math.sqrt, items, 2, least=4, chunk=3)) == [math.sqrt(item) for item in items]
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        list(each(math.sqrt, [4, 1, -1, 9], 2, least=4))


def test_a_little_work_stays_here() -> None:
    here: list[int] = []

    def note(item: int) -> int:  # can't be pickled, so it would fail in another process
        here.append(item)
        return item

    assert list(each(note, [1, 2, 3], 8)) == here == [1, 2, 3]
    assert list(each(note, [], 8)) == []


def act(item: str) -> str:
    """What an item does to its process."""
    if item == "abort":
        os.abort()
    if item == "segfault":
        ctypes.string_at(0)
    if item == "killed":  # as the kernel does when memory is used up
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "hang":
        time.sleep(600)
    if item == "raise":
        raise ValueError("a fault in the code")
    if item == "memory":
        raise MemoryError
    return item.upper()


WHY = {
    "abort": "crashed (SIGABRT)",
    "segfault": "crashed (SIGSEGV)",
    "killed": "crashed (SIGKILL, mostly for want of memory)",
    "exit": "ended with exit code 3",
    "hang": "took longer than 1 s",
    "raise": "unexpected ValueError: a fault in the code (test_workers.py, line ",
    "memory": "not enough memory",
}


def test_a_process_that_dies_while_it_draws_a_bar_stops_nobody_elses() -> None:
    tqdm.get_lock()  # there before the process is

    def die() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    drawn = threading.Thread(target=lambda: tqdm(total=1).close(), daemon=True)
    drawn.start()
    drawn.join(10)
    assert not drawn.is_alive()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_item_that_kills_or_holds_its_process_is_lost_and_all_others_are_done(workers: int) -> None:
    items = [name for number, fault in enumerate(WHY) for name in (f"good {number}", fault)]
    results = dict(isolated(act, items, workers, seconds=1.0))
    assert set(results) == set(items)
    for item, result in results.items():
        if isinstance(result, Lost):
            assert WHY[item] in result.why
        else:
            assert (item[:4], result) == ("good", item.upper())
    assert multiprocessing.active_children() == []


def test_processes_end_with_whoever_reads_their_results() -> None:
    reading = isolated(act, ["good", "hang", "hang"], 2)
    assert next(reading)[1] == "GOOD"
    reading.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_items_made_ahead_are_the_same_items_and_raise_where_they_would() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    seen: list[int] = []
    with pytest.raises(ValueError, match="the sixth"):
        seen.extend(ahead(items()))
    assert seen == [0, 1, 2, 3, 4]
    assert next(ahead(items())) == 0  # and whoever stops early leaves nothing waiting
