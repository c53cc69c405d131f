"""Which clips a step sees: a pure function of (seed, step), the same for any number of processes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from newtonrewards.core.clip import Clip, ClipBatch
from newtonrewards.core.errors import InputError
from newtonrewards.core.run import stream


@runtime_checkable
class ClipDataset(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Clip: ...


class Batches:
    """Every epoch visits each clip once, in an order drawn from (seed, epoch).

    Args:
        dataset: map-style, of clips of one size.
        seed: the run's seed.
        rank, world: this process and how many there are; each takes its slice of the global batch.
    """

    def __init__(self, dataset: ClipDataset, seed: int, rank: int = 0, world: int = 1) -> None:
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world
        self._order: tuple[int, list[int]] = (-1, [])

    def at(self, step: int, batch_size: int) -> ClipBatch:
        """This process's part of the batch of a step; `index` counts samples over the whole run.

        Raises:
            InputError: the batch can't be shared evenly by the processes.
        """
        if batch_size % self.world:
            raise InputError(
                f"batch_size {batch_size} can't be shared by {self.world} processes", fix="Make it a multiple."
            )
        part = batch_size // self.world
        first = step * batch_size + self.rank * part
        numbers = range(first, first + part)
        return ClipBatch.stack([self.dataset[self._clip(number)] for number in numbers], numbers)

    def name(self, number: int) -> str:
        """The clip behind a sample's index, in words."""
        clip = self._clip(number)
        names = getattr(self.dataset, "names", None)
        return f"clip {clip}" if names is None else f"clip {clip} ('{names[clip]}')"

    def _clip(self, number: int) -> int:
        epoch, place = divmod(number, len(self.dataset))
        if self._order[0] != epoch:
            order = torch.randperm(len(self.dataset), generator=stream(self.seed, 0, epoch, "epoch"))
            self._order = (epoch, order.tolist())
        return self._order[1][place]
