"""A world of tensors that have a shape and no content, in which code that looks at values runs all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

# What a remembered operation may take beside tensors and lists: values that say all about themselves.
_PLAIN = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, complex}
)
_DEVICE, _NUMBER, _META = (
    torch.ops.prim.device.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.device("meta"),
)
_INDEXED = frozenset({torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default})
_UNFIT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)


@contextlib.contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Inside, every tensor that is made is fake, and code that asks one for a number gets .5, 1 or true; so are masks.

    Pixels are checked to lie in [0, 1] and captions have a length; memory doesn't depend on which. Only a single
    integer that is drawn is real, since it names a step or a place and must lie in its range.
    """
    with _FakeMode(allow_non_fake_inputs=True) as mode, _Arrays(), _plain_conversions():
        yield mode


def empty(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of a module's real ones."""
    _replace_tensors(module, lambda tensor: tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor))


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


@dataclass(frozen=True, slots=True)
class _Result:
    """How to make one output again.

    Attributes:
        argument: which argument it is, or shares its storage with; None: it has a storage of its own.
        same: it is that argument itself.
        place: storage offset, shape and stride.
        dtype, device, attributes: of the tensor; what else a FakeTensor object holds.
    """

    argument: int | None
    same: bool
    place: tuple[int, torch.Size, tuple[int, ...]] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    attributes: Mapping[str, Any] | None = None


class _Unfit(Exception):
    """This operation can't be remembered."""


class _FakeMode(FakeTensorMode):
    """Torch's mode, which asks it once for each operation and kinds of arguments.

    Torch remembers operations too, but what it does around that takes longer than the rest of a step together, and
    a step of a large model repeats the same few hundred operations a hundred thousand times.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._known: dict[tuple[Any, ...], Any] = {}  # a result or several, None: ask torch each time

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE and type(args[0]) is FakeTensor:  # more than half of all calls
            return _META if self.in_kernel_invocation else args[0].fake_device
        if func is _NUMBER:
            return self._number(args[0])
        if func is torch.ops.aten.nonzero.default:
            return self._everywhere(args[0])
        if func in _INDEXED and any(value is not None and value.dtype is torch.bool for value in args[1]):
            with self:
                return func(args[0], self._places(args[1]), *args[2:], **(kwargs or {}))
        kwargs = kwargs or {}
        key: list[Any] = [func, torch.get_default_dtype()]
        try:
            _describe(args, key)
            for name, value in kwargs.items():
                key.append(name)
                _describe((value,), key)
        except _Unfit:
            return super().__torch_dispatch__(func, types, args, kwargs)
        found = self._known.get(signature := tuple(key), self)
        if found is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if found is not self:
            return self._again(found, args)
        output = super().__torch_dispatch__(func, types, args, kwargs)
        self._known[signature] = None if torch.is_inference_mode_enabled() else _remember(func, args, kwargs, output)
        return output

    def _number(self, tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            with unset_fake_temporarily():
                return _NUMBER(tensor)
        kind = tensor.dtype
        return 0.5 if kind.is_floating_point else True if kind is torch.bool else 1

    def _everywhere(self, mask: Tensor) -> Tensor:
        """Where a mask is true: everywhere, as a number that is asked for is true."""
        with self:
            return torch.zeros(mask.numel(), mask.ndim, dtype=torch.int64, device=mask.device)

    def _places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices with the places of a mask instead of the mask."""
        given: list[Tensor | None] = []
        for index in indices:
            masks = index is not None and index.dtype is torch.bool
            given += self._everywhere(index).unbind(1) if masks and index is not None else (index,)
        return given

    def _again(self, found: Any, args: Sequence[Any]) -> Any:
        if isinstance(found, _Result):
            return self._make(found, args)
        outputs = [None if result is None else self._make(result, args) for result in found]
        return outputs if type(found) is list else tuple(outputs)

    def _make(self, result: _Result, args: Sequence[Any]) -> Tensor:
        if result.same:
            same: Tensor = args[result.argument]  # type: ignore[index]
            return same
        assert result.place is not None and result.device is not None and result.attributes is not None
        offset, shape, stride = result.place
        if result.argument is None:
            inner = torch.empty_strided(shape, stride, dtype=result.dtype, device="meta")
        else:
            inner = torch.empty((), dtype=result.dtype, device="meta")
            inner.set_(args[result.argument].untyped_storage(), offset, shape, stride)
        made = Tensor._make_subclass(
            FakeTensor, inner, False, dispatch_device=True, device_for_backend_keys=result.device
        )
        made.__dict__.update(result.attributes)
        return made


def _describe(values: Sequence[Any], key: list[Any]) -> None:
    """Append all that an operation can see of its arguments beside content."""
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            key += (kind, value)
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            _describe(value, key)
        elif isinstance(value, FakeTensor) and value.constant is None:
            if value.is_conj() or value.is_neg():
                raise _Unfit
            key += (value.dtype, value.shape, value.stride(), value.storage_offset(), value.fake_device)
        else:
            raise _Unfit


def _remember(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
    """How to make the output again, or None where content or more than the described arguments decide about it."""
    tensors = [output] if isinstance(output, Tensor) else output
    if not isinstance(tensors, list | tuple) or any(tag in func.tags for tag in _UNFIT):
        return None
    # an output may be, or share storage with, a tensor that isn't a plain argument; those are left to torch
    hidden = [*kwargs.values(), *(part for value in args if isinstance(value, list | tuple) for part in value)]
    others = {_storage(value) for value in hidden if isinstance(value, Tensor)}
    places = {_storage(value): i for i, value in enumerate(args) if isinstance(value, Tensor)}
    seen: set[int] = set()
    results: list[_Result | None] = []
    for one in tensors:
        if one is None:
            results.append(None)
            continue
        same = next((i for i, value in enumerate(args) if value is one), None)
        if same is not None:
            results.append(_Result(same, True))
            continue
        if type(one) is not FakeTensor or one.constant is not None or one.layout is not torch.strided:
            return None
        if one.is_conj() or one.is_neg() or one.requires_grad or _storage(one) in others:
            return None
        place = places.get(_storage(one))
        if place is None and _storage(one) in seen:
            return None  # outputs that share a storage among themselves
        seen.add(_storage(one))
        where = (int(one.storage_offset()), one.shape, one.stride())
        results.append(_Result(place, False, where, one.dtype, one.fake_device, dict(vars(one))))
    return results[0] if isinstance(output, Tensor) else results if type(output) is list else tuple(results)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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
