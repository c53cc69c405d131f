"""Tensor memory of a piece of code, counted storage by storage: the same number on every run and every machine.

Torch's `MemTracker` does the counting, for real tensors and for fake ones that have a shape and no content. What is
left out: what the allocator keeps in reserve, the interpreter, libraries, and kernels' own workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.distributed._tools.mod_tracker import ModTracker

_DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class Moment:
    """What is held at one moment, bytes.

    Attributes:
        parameters: of all modules, buffers included.
        gradients: of parameters.
        optimiser: its state, and what its step needs for a moment.
        activations: made by forward passes.
        temporary: made during backward passes, recomputed activations included.
    """

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    temporary: int = 0

    @property
    def kinds(self) -> tuple[int, int, int, int, int]:
        return self.parameters, self.gradients, self.optimiser, self.activations, self.temporary

    @property
    def total(self) -> int:
        return sum(self.kinds)


@dataclass(frozen=True)
class Split:
    """How much of each kind a process keeps when several share the work, as a share of 1.

    Attributes:
        parameters, gradients, optimiser: share of what belongs to the trained modules.
        split_bytes: parameters of the trained modules, bytes; the others are whole in every process.
        extra_bytes: what a strategy needs beside them.
    """

    parameters: float = 1.0
    gradients: float = 1.0
    optimiser: float = 1.0
    split_bytes: int = 0
    extra_bytes: int = 0

    @property
    def weights(self) -> tuple[float, ...]:
        """What of each kind of a moment stays in a process; `beside` is added."""
        return 1.0, self.gradients, self.optimiser, 1.0, 1.0

    @property
    def beside(self) -> float:
        return self.extra_bytes - (1 - self.parameters) * self.split_bytes

    def total(self, moment: Moment) -> float:
        """What a process holds at a moment, bytes."""
        return self.beside + sum(w * kind for w, kind in zip(self.weights, moment.kinds, strict=True))


class MemoryTracker(MemTracker):
    """Finds the moment of the highest tensor memory inside its `with` block, for each of several ways to split it.

    Torch's tracker also keeps a table for each module: hooks that take no frozen module, only one call of each, and a
    pass over all modules for each operation. None of this is wanted here.

    Args:
        modules: all that hold parameters, trained or frozen; nobody else's parameters are counted.
        splits: by name; the plain total is always there under the name "whole".
    """

    def __init__(self, *modules: nn.Module, splits: Mapping[str, Split] | None = None) -> None:
        super().__init__()
        self._mod_tracker = _NoHooks()
        self._ref_class = tuple(_MemRefType)  # type: ignore[assignment]  # torch walks through it for each change
        self._seen: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}  # storages by address, and their size
        self.splits = {"whole": Split(), **(splits or {})}
        self._weights = np.array([split.weights for split in self.splits.values()])
        self._beside = np.array([split.beside for split in self.splits.values()])
        self.forget_peaks()
        for module in modules:
            self._track_module_params_and_buffers(module, install_grad_hooks=False)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    self._hook(parameter)

    def forget_peaks(self) -> None:
        """Start looking for the highest moment anew."""
        self._highest = np.zeros(len(self.splits))
        self._moments = [Moment()] * len(self.splits)

    def peak(self, split: str = "whole") -> Moment:
        """The moment at which that split needs most; its numbers are those before splitting."""
        return self._moments[list(self.splits).index(split)]

    def peak_bytes(self, split: str = "whole") -> int:
        """What a process holds at that moment."""
        return round(self._highest[list(self.splits).index(split)])

    def now(self) -> Moment:
        """What is held at this moment, on all devices together."""
        kinds: dict[Any, int] = {}
        for held in self._curr_mem_snap.values():
            for kind, size in held.items():
                kinds[kind] = kinds.get(kind, 0) + size
        return Moment(
            parameters=kinds.get(_MemRefType.PARAM, 0) + kinds.get(_MemRefType.BUFFER, 0),
            gradients=kinds.get(_MemRefType.GRAD, 0),
            optimiser=kinds.get(_MemRefType.OPT, 0),
            activations=kinds.get(_MemRefType.ACT, 0) + kinds.get(_MemRefType.OTH, 0),
            temporary=kinds.get(_MemRefType.TEMP, 0),
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch's, but most operations make no storage, and then nothing is to be done."""
        if func is _DEVICE:  # more than half of all calls, from inside torch
            return args[0].device
        output = func(*args, **(kwargs or {}))
        outputs = output if isinstance(output, tuple | list) else (output,)
        made = [self._is_new(tensor) for tensor in outputs if isinstance(tensor, torch.Tensor)]
        if any(made):
            self._update_peak_stats(None)
        return output

    def _is_new(self, tensor: torch.Tensor) -> bool:
        """Count the tensor's storage, if it hasn't been or has another size by now."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        known = self._seen.get(place)
        if known is not None and known[1] == size and known[0]() is storage:
            return False
        self._seen[place] = weakref.ref(storage), size
        in_backward = self._mod_tracker.is_bw
        self._track(_MemRefType.OPT if self._in_opt else _MemRefType.TEMP if in_backward else _MemRefType.ACT, tensor)
        return True

    def _hook(self, parameter: nn.Parameter) -> None:
        """Its gradient is counted as one; torch removes the hooks at the end of the `with` block."""

        def kept(owner: torch.Tensor) -> None:
            if owner.grad is not None:
                self._update_and_maybe_create_winfos(owner.grad, _MemRefType.GRAD)

        handle = parameter.register_post_accumulate_grad_hook(kept)
        self._param_to_grad_hook_handles[parameter] = (handle, handle)

    def _update_peak_stats(self, peak_state: Any) -> None:
        moment = self.now()
        totals = self._weights @ np.array(moment.kinds, dtype=np.float64) + self._beside
        for i in np.nonzero(totals > self._highest)[0]:
            self._highest[i], self._moments[i] = totals[i], moment


class _NoHooks(ModTracker):
    """Knows forward from backward, as its base does, and leaves modules alone."""

    def __enter__(self) -> _NoHooks:
        return self

    def __exit__(self, *args: object) -> None: ...


def size_of(module: nn.Module) -> int:
    """Bytes of its parameters and buffers, shared ones once."""
    tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
