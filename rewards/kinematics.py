"""Kinematic arithmetic: from optical flow to velocity in physical units, and how far a motion is from constant
acceleration.

Pure tensors, no networks, any float type. The formulas stand here and nowhere else (physics.md §2, §3).

Letters: B clips, T frames, N = T - 1 velocities (velocity n lies between the frames n and n + 1), H height and W width
    in px, u velocity field and v object velocity in frame heights per second (H/s), x right, y down; w support of the
    object. NaN means "could not be measured": it marks single velocities, and a clip for which nothing is left. It
    never enters a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from newtonrewards.core.errors import ShapeError

# A support smaller than this share of the frame (0.4 px at 64 x 64) says nothing about an object.
MIN_SUPPORT_SHARE = 1e-4
# Below this (H/s^2) an acceleration is no law to compare with, and below this (H/s) a velocity no direction.
MIN_ACCELERATION, MIN_SPEED = 0.05, 0.02
# A line through two points always fits: a residual needs three.
MIN_VELOCITIES = 3


@dataclass(frozen=True)
class LineFit:
    """The least-squares line v_n = start + acceleration * n / fps through the valid velocities of each clip.

    Attributes:
        residual: (B,) mean square of v - line over valid velocities and both axes, (H/s)^2, >= 0.
        acceleration: (B, 2) slope, H/s^2, x right, y down: the measured acceleration.
        start: (B, 2) the line at velocity 0, H/s.
        mean: (B, 2) mean velocity, H/s.
        count: (B,) how many velocities it was fitted to. All of the above are NaN where count < 3.
    """

    residual: Float[Tensor, "B"]
    acceleration: Float[Tensor, "B 2"]
    start: Float[Tensor, "B 2"]
    mean: Float[Tensor, "B 2"]
    count: Float[Tensor, "B"]


def to_heights_per_second(flow: Float[Tensor, "B N 2 H W"], fps: Float[Tensor, "B"]) -> Float[Tensor, "B N 2 H W"]:
    """u = flow * fps / H: a velocity that doesn't change with resolution or frame rate.

    Args:
        flow: px/frame, x right, y down.
        fps: frames per second of physical time.
    Returns:
        H/s, both axes divided by the frame *height*.
    Source: physics.md §2.
    """
    return flow * (fps.to(flow.dtype) / flow.shape[-2])[:, None, None, None, None]


def to_pixels_per_frame(
    velocity: Float[Tensor, "B *rest"], fps: Float[Tensor, "B"], height: int
) -> Float[Tensor, "B *rest"]:
    """The inverse of `to_heights_per_second` for any velocity, for people who debug: H/s to px/frame."""
    scale = height / fps.to(velocity.dtype)
    return velocity * scale.reshape(-1, *[1] * (velocity.ndim - 1))


def object_velocity(field: Float[Tensor, "B N 2 H W"], support: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N 2"]:
    """v = sum(w u) / sum(w): the mean velocity over the object.

    Args:
        field: velocity field u in any unit.
        support: soft weights w in [0, 1] of the object in the first frame of each pair.
    Returns:
        the unit of `field`; NaN where the support covers less than `MIN_SUPPORT_SHARE` of the frame.
    Source: physics.md §2.
    """
    total = support.sum((-2, -1))
    measured = total > MIN_SUPPORT_SHARE * support.shape[-1] * support.shape[-2]
    weighted = torch.einsum("bnhw,bnchw->bnc", support, field)
    velocity = weighted / torch.where(measured, total, torch.ones_like(total))[..., None]
    return torch.where(measured[..., None], velocity, torch.full_like(velocity, torch.nan))


def centroid(masks: Float[Tensor, "B T H W"]) -> Float[Tensor, "B T 2"]:
    """Where a soft mask has its centre of area.

    Args:
        masks: soft masks of the object, in [0, 1].
    Returns:
        H, x right, y down, from the top left corner; NaN where the mask covers less than `MIN_SUPPORT_SHARE`.
    Source: physics.md §2.
    """
    height, width = masks.shape[-2:]
    rows, columns = (torch.arange(n, device=masks.device, dtype=masks.dtype) + 0.5 for n in (height, width))
    moments = torch.stack([masks.sum(-2) @ columns, masks.sum(-1) @ rows], -1) / height
    total = masks.sum((-2, -1))
    measured = total > MIN_SUPPORT_SHARE * height * width
    centre = moments / torch.where(measured, total, torch.ones_like(total))[..., None]
    return torch.where(measured[..., None], centre, torch.full_like(centre, torch.nan))


def step_velocity(position: Float[Tensor, "B T 2"], fps: Float[Tensor, "B"]) -> Float[Tensor, "B T-1 2"]:
    """v_n = (p_(n+1) - p_n) fps: H/s from places in H; NaN beside a place that isn't known."""
    return (position[:, 1:] - position[:, :-1]) * fps.to(position.dtype)[:, None, None]


def valid_velocities(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T-1"]:
    """A velocity counts if both of its frames lie in the valid window."""
    return valid[:, :-1] & valid[:, 1:]


def second_difference(velocity: Float[Tensor, "B N 2"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B"]:
    """Mean square of v[n+2] - 2 v[n+1] + v[n]: zero if and only if acceleration is constant.

    Args:
        velocity: object velocity, H/s, x right, y down; NaN where unmeasured.
        valid: which velocities lie between the same two events; a residual counts if all three of its velocities do.
    Returns:
        (H/s)^2 per clip, mean over residuals and both axes, >= 0; NaN where no three consecutive velocities are valid.
    Raises:
        ShapeError: if `velocity` holds fewer than three time steps.
    Source: physics.md §3, ours. White noise of std s gives 6 s^2. The first difference is the acceleration and is *not*
        penalised.
    """
    _check_length(velocity)
    usable, velocity = _usable(velocity, valid)
    residual = velocity[:, 2:] - 2 * velocity[:, 1:-1] + velocity[:, :-2]
    counted = usable[:, 2:] & usable[:, 1:-1] & usable[:, :-2]
    return _mean_square(residual, counted)


def fit(velocity: Float[Tensor, "B N 2"], valid: Bool[Tensor, "B N"], fps: Float[Tensor, "B"]) -> LineFit:
    """Least-squares line through v over the valid velocities; its residual also sees slow drift, its slope is the
    acceleration.

    Args:
        velocity: object velocity, H/s; NaN where unmeasured.
        valid: which velocities lie between the same two events.
        fps: frames per second of physical time, which turns the slope into H/s^2.
    Returns:
        a `LineFit`; its numbers are NaN where fewer than three velocities are usable.
    Raises:
        ShapeError: if `velocity` holds fewer than three time steps.
    Source: physics.md §3, ours. White noise of std s leaves a residual of s^2 (1 - 2/n).
    """
    _check_length(velocity)
    usable, velocity = _usable(velocity, valid)
    weight = usable.to(velocity.dtype)[..., None]
    count = weight.sum(1)
    enough = count >= MIN_VELOCITIES
    size = torch.where(enough, count, torch.ones_like(count))
    time = torch.arange(velocity.shape[1], dtype=velocity.dtype, device=velocity.device)[None, :, None]
    mean_time = (weight * time).sum(1) / size
    mean_velocity = (weight * velocity).sum(1) / size
    centred = weight * (time - mean_time[:, None])
    spread = centred.square().sum(1)
    slope = (centred * (velocity - mean_velocity[:, None])).sum(1) / torch.where(
        enough, spread, torch.ones_like(spread)
    )
    start = mean_velocity - slope * mean_time
    residual = _mean_square(velocity - start[:, None] - slope[:, None] * time, usable)
    nan = torch.full_like(slope, torch.nan)
    return LineFit(
        residual=torch.where(enough[:, 0], residual, nan[:, 0]),
        acceleration=torch.where(enough, slope * fps.to(velocity.dtype)[:, None], nan),
        start=torch.where(enough, start, nan),
        mean=torch.where(enough, mean_velocity, nan),
        count=count[:, 0],
    )


def acceleration_error(measured: Float[Tensor, "B 2"], expected: Float[Tensor, "B 2"]) -> Float[Tensor, "B"]:
    """|a - a_expected|^2: wrong size and wrong direction of the acceleration, which no residual of constant
    acceleration can see.

    Args:
        measured: fitted acceleration of the clip, H/s^2.
        expected: fitted acceleration of the paired clip, or a known one such as (0, g), H/s^2.
    Returns:
        (H/s^2)^2 per clip, mean over both axes, >= 0; NaN where either is NaN.
    Source: ours. A frozen object has a = 0 and pays the whole a_expected^2 / 2.
    """
    known = (measured.isfinite() & expected.isfinite()).all(-1)
    zero = torch.zeros_like(measured)
    error = torch.where(known[:, None], measured, zero) - torch.where(known[:, None], expected, zero)
    square = error.square().mean(-1)
    return torch.where(known, square, torch.full_like(square, torch.nan))


def gravity_error(measured: Float[Tensor, "B 2"], expected: Float[Tensor, "B 2"]) -> Float[Tensor, "B"]:
    """(g_eff - 1)^2 with g_eff = a . a_expected / |a_expected|^2: the size of the acceleration where the law is known.

    Args:
        measured: fitted acceleration of the clip, H/s^2.
        expected: the law's, for a fall (0, g / metres per frame height), H/s^2; NaN where it isn't known.
    Returns:
        without unit, per clip, >= 0; 1 for an object that isn't accelerated; NaN where either is unknown, or the law's
        acceleration is below `MIN_ACCELERATION`.
    Source: physics.md §6 (`g_eff`), ours.
    """
    square = expected.square().sum(-1)
    known = (measured.isfinite() & expected.isfinite()).all(-1) & (square > MIN_ACCELERATION**2)
    own, law = (torch.where(known[:, None], part, torch.ones_like(part)) for part in (measured, expected))
    ratio = (own * law).sum(-1) / law.square().sum(-1)
    return torch.where(known, (ratio - 1).square(), torch.full_like(ratio, torch.nan))


def downwards_error(measured: Float[Tensor, "B 2"]) -> Float[Tensor, "B"]:
    """What of an acceleration doesn't point down: zero for every fall and throw, whatever the size of gravity.

    A throw keeps its speed across the frame, so a_x = 0, and nothing accelerates upwards, so a_y >= 0.

    Args:
        measured: fitted acceleration of the clip, H/s^2, x right, y down.
    Returns:
        (H/s^2)^2 per clip, mean over both axes, >= 0; NaN where unmeasured.
    Source: physics.md §8, ours. An object without acceleration pays nothing: add a term that knows its size.
    """
    upwards = measured[:, 1].clamp(max=0)
    return (measured[:, 0].square() + upwards.square()) / 2


def across_error(measured: Float[Tensor, "B 2"], velocity: Float[Tensor, "B 2"]) -> Float[Tensor, "B"]:
    """Squared part of an acceleration across the way: zero on a ramp, where the way is straight.

    Args:
        measured: fitted acceleration, H/s^2. velocity: mean velocity over the same time, H/s.
    Returns:
        (H/s^2)^2 per clip, >= 0; NaN where unmeasured, or where the object hardly moves and so has no way.
    Source: physics.md §8, ours.
    """
    speed = velocity.square().sum(-1)
    known = (measured.isfinite() & velocity.isfinite()).all(-1) & (speed > MIN_SPEED**2)
    own, way = (torch.where(known[:, None], part, torch.ones_like(part)) for part in (measured, velocity))
    across = own[:, 0] * way[:, 1] - own[:, 1] * way[:, 0]
    square = across.square() / way.square().sum(-1)
    return torch.where(known, square, torch.full_like(square, torch.nan))


def velocity_error(
    velocity: Float[Tensor, "B N 2"], expected: Float[Tensor, "B N 2"], valid: Bool[Tensor, "B N"]
) -> Float[Tensor, "B"]:
    """Mean square of v - v_expected over valid velocities.

    Args:
        velocity: object velocity, H/s; NaN where unmeasured.
        expected: that of the paired clip, H/s.
        valid: which velocities count.
    Returns:
        (H/s)^2 per clip, mean over time and both axes, >= 0; NaN where no valid velocity is measured in both.
    Source: ours; imitation of the paired clip, unlike the residuals.
    """
    usable, own = _usable(velocity, valid & expected.isfinite().all(-1))
    other = torch.where(usable[..., None], expected, torch.zeros_like(expected))
    return _mean_square(own - other, usable)


def _usable(velocity: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which velocities count, and zeros in place of the others, *before* any arithmetic: 0 * NaN is NaN."""
    usable = valid & velocity.isfinite().all(-1)
    return usable, torch.where(usable[..., None], velocity, torch.zeros_like(velocity))


def _mean_square(residual: Tensor, counted: Tensor) -> Tensor:
    """Mean over counted time steps and both axes, NaN where none is counted."""
    total = (residual.square().mean(-1) * counted).sum(1)
    count = counted.sum(1)
    return torch.where(count > 0, total / count.clamp(min=1), torch.full_like(total, torch.nan))


def _check_length(velocity: Tensor) -> None:
    if velocity.shape[1] < MIN_VELOCITIES:
        raise ShapeError(
            f"{velocity.shape[1]} velocities, a constant-acceleration residual needs {MIN_VELOCITIES}",
            fix=f"Give clips of at least {MIN_VELOCITIES + 1} frames.",
        )
