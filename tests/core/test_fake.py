"""Tensors without content: an operation that is made again from memory gives what torch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from newtonrewards.core.fake import fake_tensors

OPERATIONS: dict[str, Callable[[Tensor], object]] = {
    "a view": lambda x: x.transpose(1, 2)[:, 1:],
    "several views": lambda x: x.split(2, dim=1),
    "in place": lambda x: x.mul_(2),
    "convolution": lambda x: F.conv1d(x, torch.ones(3, 4, 3)),
    "several outputs": lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5),
    "another type": lambda x: x.to(torch.bfloat16),
    "the same type": lambda x: x.to(torch.float32),
}


def seen(x: Tensor, output: object) -> list[object]:
    """Size, place and type of each output, and whether it shares the input's storage or is the input."""
    outputs = output if isinstance(output, tuple | list) else [output]
    assert all(isinstance(y, Tensor) for y in outputs)
    own = x.untyped_storage()._cdata
    return [
        (y.shape, y.stride(), y.storage_offset(), y.dtype, y.untyped_storage()._cdata == own, y is x) for y in outputs
    ]


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_second_time_is_as_the_first_and_as_real(name: str) -> None:
    operation, real = OPERATIONS[name], torch.ones(2, 4, 6)
    wanted = seen(real, operation(real))
    with fake_tensors():
        for _ in range(3):
            x = torch.ones(2, 4, 6)
            assert seen(x, operation(x)) == wanted


def test_a_mask_is_true_everywhere() -> None:
    with fake_tensors():
        x = torch.zeros(2, 3, 4)
        assert x[x[..., 0] > 1].shape == (6, 4)
        assert (x > 1).nonzero().shape == (24, 3)
