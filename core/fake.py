"""A world of tensors that have a shape and no content, in which code that looks at values runs all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Inside, every tensor that is made is fake, and code that asks one for a number gets .5, 1 or true.

    Pixels are checked to lie in [0, 1] and captions have a length; memory doesn't depend on which. Only a single
    integer that is drawn is real, since it names a step or a place and must lie in its range.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _Arrays(), _Numbers(), _plain_conversions():
        yield mode


def empty(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of a module's real ones."""
    _replace_tensors(module, mode.from_tensor)


@contextlib.contextmanager
def _plain_conversions() -> Iterator[None]:
    """`Module.to` puts new parameters in place of the old: torch swaps fake ones, which fails for any that is used."""
    before = nn.Module._apply
    nn.Module._apply = _replace_tensors  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = before  # type: ignore[method-assign]


def _replace_tensors(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    done: dict[int, Tensor] = {}  # a tensor under two names stays one
    for part in module.modules() if recurse else (module,):
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                with torch.no_grad():
                    new = done[id(old)] if id(old) in done else function(old)
                if new is not old and isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter):
                    new = nn.Parameter(new, old.requires_grad)
                done[id(old)] = tensors[name] = new  # type: ignore[assignment]
    return module


class _Numbers(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if not isinstance(args[0], FakeTensor):
                with unset_fake_temporarily():
                    return func(*args)
            kind = args[0].dtype
            return 0.5 if kind.is_floating_point else True if kind is torch.bool else 1
        return func(*args, **(kwargs or {}))


class _Arrays(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.randint and () in args:
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func in (Tensor.numpy, Tensor.tolist):
            array = np.full(tuple(args[0].shape), 1, dtype=_numpy_type(args[0].dtype))
            return array.tolist() if func is Tensor.tolist else array
        if func is Tensor.__deepcopy__:  # schedulers are copied with their noise levels
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _numpy_type(kind: torch.dtype) -> Any:
    return getattr(np, "bool_" if kind is torch.bool else str(kind).removeprefix("torch."))
