"""Whole tensors out of whatever a strategy made of them, and back: what makes a checkpoint open under any strategy.

Each function that gathers is a collective: all processes must call it, in the same order.
Letters: a *whole* tensor has the shape that it had before any strategy cut it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

STEP = "step"  # the one state of AdamW that isn't a tensor of its parameter's shape

Named = Mapping[str, nn.Parameter]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; the names are the same before and after a strategy took the module."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """A parameter, or a tensor made from one, whole (collective)."""
    if hasattr(tensor, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        return _present(safe_get_full_fp32_param(tensor)).to(tensor.dtype)
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def averageable(parameter: nn.Parameter) -> nn.Parameter:
    """What of a parameter can be averaged: this process's piece, or the whole where only DeepSpeed can read the pieces
    (collective)."""
    return nn.Parameter(whole(parameter)) if hasattr(parameter, "ds_id") else parameter


def part_like(tensor: Tensor, value: Tensor) -> Tensor:
    """The piece of a whole tensor that this process holds of a parameter or of what was made from it."""
    value = value.to(tensor.device)
    if isinstance(tensor, DTensor):  # every process has the whole: nothing is sent
        return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    return value


def optimiser_keys(optimisers: Sequence[Any]) -> list[str]:
    """Names of what the optimisers remember of each parameter, alike for all processes."""
    states = [state for optimiser in optimisers for state in _base(optimiser).state.values()]
    return sorted({key for state in states for key in state})


def optimiser_state(optimisers: Sequence[Any], named: Named, key: str) -> Iterator[tuple[str, Tensor]]:
    """One thing that the optimisers remember, whole, of each parameter that has it (collective)."""
    for optimiser in optimisers:
        base = _base(optimiser)
        mine = {id(p) for group in base.param_groups for p in group["params"]}
        for name, parameter in named.items():
            if _is_zero(parameter):
                yield name, _zero_state(base, parameter, key)
            elif id(parameter) in mine and key in base.state.get(parameter, {}):
                yield name, whole(base.state[parameter][key])


def restore_optimiser(optimisers: Sequence[Any], named: Named, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the optimisers back what `optimiser_state` read, under this or another strategy.

    Args:
        states: whole tensors by key and name.
    """
    for optimiser in optimisers:
        base = _base(optimiser)
        if any(_is_zero(p) for p in named.values()):
            _restore_zero(optimiser, base, named, states)
            continue
        mine = {id(p) for group in base.param_groups for p in group["params"]}
        for name, parameter in named.items():
            found = {key: values[name] for key, values in states.items() if name in values}
            if id(parameter) in mine and found:
                base.state[parameter] = {
                    key: value.clone() if key == STEP else part_like(parameter, value).clone()
                    for key, value in found.items()
                }


def _base(optimiser: Any) -> Any:
    """torch's optimiser below accelerate's and DeepSpeed's."""
    while hasattr(optimiser, "optimizer"):
        optimiser = optimiser.optimizer
    return optimiser


def _is_zero(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _zero_state(base: Any, parameter: nn.Parameter, key: str) -> Tensor:
    if key == STEP:  # of the flat pieces, which all move at once
        steps = {float(state[STEP]) for state in base.state.values() if STEP in state}
        return torch.tensor(max(steps))
    from deepspeed.utils import safe_get_full_optimizer_state

    return _present(safe_get_full_optimizer_state(parameter, key))


def _restore_zero(optimiser: Any, base: Any, named: Named, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """DeepSpeed keeps state of flat pieces of many parameters; they are made here as its first step would."""
    zero = optimiser.optimizer
    stage3 = any(hasattr(p, "ds_id") for p in named.values())
    flat = zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups
    steps = {float(step) for step in states.get(STEP, {}).values()}
    for piece in flat:
        state = {key: torch.zeros_like(piece) for key in states if key != STEP}
        if steps:
            state[STEP] = torch.tensor(max(steps))
        base.state[piece] = state
    if not stage3:
        zero._lazy_init_hp_params_optimizer_state()
    for key, values in states.items():
        for name, value in values.items():
            if key != STEP:
                _set_zero_state(named[name], value, key, stage3=stage3)


def _set_zero_state(parameter: Any, value: Tensor, key: str, *, stage3: bool) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    value = value.to(parameter.device, torch.float32)
    if not stage3:
        safe_set_full_optimizer_state(parameter, value, key)
        return
    # Its own setter for whole tensors fails where the size isn't a multiple of the processes: pieces are padded.
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * torch.distributed.get_world_size(), device=value.device)
    padded[: value.numel()] = value.flatten()
    first = size * torch.distributed.get_rank()
    safe_set_local_optimizer_state(parameter, padded[first : first + size], key)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("DeepSpeed doesn't hold this parameter")
    return tensor
