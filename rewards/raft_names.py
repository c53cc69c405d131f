"""RAFT weights under the names of its authors' code, renamed to torchvision's.

Source of the names: princeton-vl/RAFT `core/raft.py`, `extractor.py`, `update.py`, and torchvision
`models/optical_flow/raft.py`; the same layers in the same order, so that the numbers are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# (pattern, replacement), tried in order on names without the `module.` of DataParallel; the first that fits counts.
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(?P<net>[fc]net)\.conv1\.", r"{net}.convnormrelu.0."),
        (r"^(?P<net>[fc]net)\.norm1\.", r"{net}.convnormrelu.1."),
        (r"^(?P<net>[fc]net)\.conv2\.", r"{net}.conv."),
        (r"^(?P<net>[fc]net)\.(?P<block>layer\d\.\d)\.conv(?P<n>\d)\.", r"{net}.{block}.convnormrelu{n}.0."),
        (r"^(?P<net>[fc]net)\.(?P<block>layer\d\.\d)\.norm(?P<n>\d)\.", r"{net}.{block}.convnormrelu{n}.1."),
        (r"^(?P<net>[fc]net)\.(?P<block>layer\d\.\d)\.downsample\.", r"{net}.{block}.downsample."),
        (r"^update_block\.encoder\.convc(?P<n>\d)\.", r"update_block.motion_encoder.convcorr{n}.0."),
        (r"^update_block\.encoder\.convf(?P<n>\d)\.", r"update_block.motion_encoder.convflow{n}.0."),
        (r"^update_block\.encoder\.conv\.", r"update_block.motion_encoder.conv.0."),
        (r"^update_block\.gru\.conv(?P<gate>[zrq])(?P<n>\d)\.", r"update_block.recurrent_block.convgru{n}.conv{gate}."),
        (r"^update_block\.gru\.conv(?P<gate>[zrq])\.", r"update_block.recurrent_block.convgru1.conv{gate}."),
        (r"^update_block\.flow_head\.", r"update_block.flow_head."),
        (r"^update_block\.mask\.0\.", r"mask_predictor.convrelu.0."),
        (r"^update_block\.mask\.2\.", r"mask_predictor.conv."),
    )
)
NETS = {"fnet": "feature_encoder", "cnet": "context_encoder"}
# The norm of a block's shortcut stands twice in the original, as norm3 or norm4 and as downsample.1.
TWICE = {"norm3": "downsample.1", "norm4": "downsample.1"}


def is_original(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the authors' names."""
    return any(name.removeprefix("module.").startswith(("fnet.", "cnet.")) for name in names)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under torchvision's names.

    Raises:
        KeyError: a name that neither code knows.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {_renamed(name): tensor for name, tensor in plain.items() if not _stands_twice(name, plain)}


def _stands_twice(name: str, state: Mapping[str, Tensor]) -> bool:
    parts = name.split(".")
    return any(
        old in parts and ".".join(new if part == old else part for part in parts) in state for old, new in TWICE.items()
    )


def _renamed(name: str) -> str:
    for pattern, replacement in RULES:
        found = pattern.match(name)
        if found:
            named = {key: NETS.get(value, value) for key, value in found.groupdict().items()}
            return replacement.format(**named) + name[found.end() :]
    raise KeyError(name)
