"""The order of samples, which resume and data parallelism rest on."""

import pytest
import torch

from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import InputError
from newtonrewards.training.batches import Batches


class Numbered:
    """Clip i is grey i/100."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Clip:
        return Clip(torch.full((2, 3, 2, 2), index / 100), fps=8.0, caption=str(index))


def test_an_epoch_visits_each_clip_once_and_the_next_in_another_order() -> None:
    batches = Batches(Numbered(), seed=1)
    order = [name for step in range(10) for name in batches.at(step, 2).captions]
    assert sorted(order[:10]) == sorted(order[10:]) == sorted(str(i) for i in range(10))
    assert order[:10] != order[10:]


def test_processes_share_the_batch_of_one() -> None:
    alone = Batches(Numbered(), seed=1).at(7, 4)
    parts = [Batches(Numbered(), seed=1, rank=rank, world=2).at(7, 4) for rank in range(2)]
    assert [i for part in parts for i in part.index] == list(alone.index)
    assert torch.equal(torch.cat([part.frames for part in parts]), alone.frames)


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    once = Batches(Numbered(), seed=1)
    for step in range(6):
        once.at(step, 4)
    assert once.at(6, 4).captions == Batches(Numbered(), seed=1).at(6, 4).captions


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InputError, match="3 processes"):
        Batches(Numbered(), seed=1, rank=0, world=3).at(0, 4)
