"""Penalties in units of their own batch, so that terms of different units and of changing size can be added up.

Nothing is remembered from step to step: a run that is resumed, or judged again, gives the same numbers. The statistics
are those of the batch over *all* processes, so that it makes no difference how many processes share it.
Letters: B clips of this process. K terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.errors import InputError

Normalisation = Literal["scale", "batch_rms", "batch_standard"]
# A spread of less than this share of the root mean square is rounding, and no clip is better than another.
NO_SPREAD = 1e-4


def normalise(penalties: Mapping[str, Float[Tensor, "B"]], how: Mapping[str, Normalisation]) -> dict[str, Tensor]:
    """Penalties of all terms, each normalised in its own way.

    `scale`: as they are. `batch_rms`: over their root mean square r, p / r: no penalty stays 0, and weights say how
    much each term counts. `batch_standard`: (p - mean) / spread: mean 0 and spread 1, for trainers that only compare
    clips; the sum of such rewards over a batch is 0 and shows no progress. Statistics carry no gradient: it is that of
    p, over r or over the spread. With several processes all of them must judge at the same time, since they add up
    their moments.

    Args:
        penalties: by term, NaN where unmeasured (left out of the statistics, and NaN again in the result).
        how: by term.
    Raises:
        InputError: a single clip, whose statistics would say nothing.
    """
    chosen = [name for name in penalties if how[name] != "scale"]
    result = dict(penalties)
    if not chosen:
        return result
    moments = _moments(torch.stack([penalties[name].detach() for name in chosen]))
    for name, (clips, count, total, squares) in zip(chosen, moments, strict=True):
        if clips < 2:
            fix = "Judge several clips together, or use `normalisation: scale`."
            raise InputError("a single clip has no statistics to be normalised by", where=f"terms.{name}", fix=fix)
        size = count.clamp(min=1)
        result[name] = _scaled(penalties[name], total / size, squares / size, how[name])
    return result


def _scaled(penalty: Tensor, mean: Tensor, square: Tensor, how: Normalisation) -> Tensor:
    rms = square.sqrt()
    if how == "batch_rms":
        return penalty / torch.where(rms > 0, rms, torch.ones_like(rms)).to(penalty)
    spread = (square - mean.square()).clamp(min=0).sqrt()
    told = spread > NO_SPREAD * rms
    return (penalty - mean.to(penalty)) * torch.where(told, 1 / spread, torch.zeros_like(spread)).to(penalty)


def _moments(penalties: Float[Tensor, "K B"]) -> Float[Tensor, "K 4"]:
    """Number of clips and of measured ones, sum and sum of squares of these, over all processes."""
    measured = ~penalties.isnan()
    known = torch.where(measured, penalties, torch.zeros_like(penalties)).double()
    clips = torch.full_like(known[:, 0], penalties.shape[1])
    moments = torch.stack([clips, measured.sum(1).double(), known.sum(1), known.square().sum(1)], 1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(moments)
    return moments
