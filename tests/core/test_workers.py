"""Work is spread over processes, and comes back in order, with its errors."""

from __future__ import annotations

import math

import pytest

from newtonrewards.core.workers import each


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
