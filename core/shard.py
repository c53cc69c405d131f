"""Part I of N of a list of work: for arrays of jobs, and for the processes of one launcher."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from newtonrewards.core.errors import InputError, NewtonError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: every count-th item from the index-th on.

    Raises:
        InputError: no such part.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(
                f"shard {self.index} of {self.count} doesn't exist", fix="The first is 0/N, the last N-1/N."
            )

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This part's items, in their order."""
        return list(items[self.index :: self.count])

    def part(self, stem: str) -> str:
        """Name of the file of rows that this part alone appends to: `STEM.jsonl`, or `STEM.I-of-N.jsonl`."""
        return f"{stem}.jsonl" if self.count == 1 else f"{stem}.{self.index}-of-{self.count}.jsonl"

    def split(self, index: int, count: int) -> Shard:
        """Part `index` of `count` of this part."""
        return Shard(self.index + self.count * index, self.count * count)


WHOLE = Shard()


def add_shard_option(parser: argparse.ArgumentParser, items: str) -> None:
    """`--shard I/N`; `items` says what is counted."""
    parser.add_argument(
        "--shard",
        type=_shard,
        default=WHOLE,
        metavar="I/N",
        help=f"only each N-th {items} from the I-th on; the last one to end joins all parts",
    )


def of_this_process(shard: Shard) -> Shard:
    """Under torchrun or `accelerate launch` this process's part of the shard; elsewhere all of it."""
    return shard.split(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def _shard(text: str) -> Shard:
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form I/N, such as 0/4")
    try:
        return Shard(int(index), int(count))
    except NewtonError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
