"""Metrics: a measured Track against a true one, one number per clip.

Letters: T truth frames, N predicted frames, F compared frames, H height, W width.
`pisa` repeats the published benchmark to 1e-6, oddities included; `strict` repairs them; RMSE_v and RMSE_a judge
motion.
A value that can't be measured is NaN, never a guess.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from newtonrewards.core.errors import ShapeError
from newtonrewards.eval import tracks
from newtonrewards.eval.tracks import Track, fit_constant_acceleration, inside

# Raised whenever a formula below changes a number; stands in every results file.
METRICS_VERSION = 1

Masks = Bool[np.ndarray, "F H W"]
Values = Float[np.ndarray, " F"]
Rate = float | int


# ---- PISA-compatible ------------------------------------------------------------------------------------------------


def pisa(truth: Any, predicted: Any, truth_fps: Rate, predicted_fps: Rate) -> dict[str, float]:
    """L2, Chamfer distance and IoU of PisaBench for one object, equal to the original code to 1e-6.

    Args:
        truth: (T, H, W) boolean masks, numpy or torch.
        predicted: (N, H, W) boolean masks of the generated clip, same height and width.
        truth_fps: frames per second of the truth. predicted_fps: of the generated clip.
    Returns:
        `l2`: mean absolute *coordinate* error of the centroids / (sqrt(2) H), lower is better (not Euclidean: the
        original takes the root of the square element by element). `chamfer`: mean nearest distance one way plus the
        other way / (sqrt(2) H), lower is better. `iou`: higher is better, two empty masks count 1, one empty 0.
        `l2` and `chamfer` skip frames where one mask is empty, so a vanished object goes unpunished, and are NaN
        where no frame is left.
    Raises:
        ShapeError: masks that aren't boolean (T, H, W), differ in size, hold no frame, or a rate that isn't positive.
    Source: vision-x-nyu/pisa-experiments, `utils/metrics.py` and `eval.py` (commit 320aade); re-implemented.
    """
    frames = pisa_frames(truth, predicted, truth_fps, predicted_fps)
    return {name: _nanmean(values) for name, values in frames.items()}


def pisa_frames(truth: Any, predicted: Any, truth_fps: Rate, predicted_fps: Rate) -> dict[str, Values]:
    """The same three numbers for each compared frame (F,); see `pisa`."""
    ours, theirs = _paired(_masks(truth, "truth"), _masks(predicted, "predicted"), truth_fps, predicted_fps)
    scale = np.sqrt(2) * ours.shape[1]
    centres = _pixel_centroid(ours) - _pixel_centroid(theirs)
    return {
        "l2": np.abs(centres).mean(axis=1) / scale,
        "chamfer": np.array([_chamfer(a, b) for a, b in zip(ours, theirs, strict=True)]) / scale,
        "iou": _iou(ours, theirs),
    }


def strict(truth: Any, predicted: Any, truth_fps: Rate, predicted_fps: Rate) -> dict[str, float]:
    """PISA's three numbers without the ways out: Euclidean, and an object that is gone counts as the largest error.

    Returns:
        `l2_strict`: mean Euclidean distance of the centroids / (sqrt(2) H), lower is better. `chamfer_strict` and
        `iou_strict`: as in `pisa`. A frame where the truth has an object and the prediction none counts l2 = chamfer
        = 1 and IoU = 0; a frame where the prediction has one and the truth none counts IoU = 0 and is skipped by the
        distances; a frame where neither has one is skipped. `missing`: share of the frames with a true object in
        which the prediction has none, lower is better. NaN if the truth never has an object.
    Source: ours. Arguments and errors as in `pisa`.
    """
    frames = strict_frames(truth, predicted, truth_fps, predicted_fps)
    return {name: _nanmean(values) for name, values in frames.items()}


def strict_frames(truth: Any, predicted: Any, truth_fps: Rate, predicted_fps: Rate) -> dict[str, Values]:
    """The strict numbers for each compared frame (F,), NaN where skipped; see `strict`."""
    ours, theirs = _paired(_masks(truth, "truth"), _masks(predicted, "predicted"), truth_fps, predicted_fps)
    scale = np.sqrt(2) * ours.shape[1]
    here, there = ours.any(axis=(1, 2)), theirs.any(axis=(1, 2))
    distance = np.linalg.norm(_pixel_centroid(ours) - _pixel_centroid(theirs), axis=1) / scale
    chamfer = np.array([_chamfer(a, b) for a, b in zip(ours, theirs, strict=True)]) / scale
    gone = here & ~there
    return {
        "l2_strict": np.where(gone, 1.0, distance),
        "chamfer_strict": np.where(gone, 1.0, np.minimum(chamfer, 1.0)),
        "iou_strict": np.where(here | there, _iou(ours, theirs), np.nan),
        "missing": np.where(here, gone.astype(np.float64), np.nan),
    }


def matched_frames(num_truth: int, num_predicted: int, truth_fps: Rate, predicted_fps: Rate) -> Int[np.ndarray, " F"]:
    """Truth frame of each predicted frame, int(i (truth_fps / predicted_fps)); those past the truth's end are dropped.

    The ratio comes first: i * truth_fps / predicted_fps rounds differently, for example at 29.97 fps.
    """
    if not (truth_fps > 0 and predicted_fps > 0):
        raise ShapeError(f"frame rates are {truth_fps} and {predicted_fps}, both must be positive")
    ratio = truth_fps / predicted_fps
    index = np.array([int(i * ratio) for i in range(num_predicted)], dtype=np.int64)
    return index[index < num_truth]


def _masks(masks: Any, name: str) -> Bool[np.ndarray, "_ _ _"]:
    array = np.asarray(masks)
    if array.ndim != 3 or array.dtype != np.bool_ or 0 in array.shape:
        raise ShapeError(
            f"{name} masks are {array.dtype} of shape {array.shape}, want bool (T, H, W)",
            fix="Threshold soft masks at .5.",
        )
    return array


def _paired(
    truth: Bool[np.ndarray, "_ _ _"], predicted: Bool[np.ndarray, "_ _ _"], truth_fps: Rate, predicted_fps: Rate
) -> tuple[Masks, Masks]:
    if truth.shape[1:] != predicted.shape[1:]:
        raise ShapeError(
            f"masks differ in size, {truth.shape[1:]} and {predicted.shape[1:]}", fix="Resize one of them."
        )
    index = matched_frames(len(truth), len(predicted), truth_fps, predicted_fps)
    return truth[index], predicted[: len(index)]


def _pixel_centroid(masks: Masks) -> Float[np.ndarray, "F 2"]:
    count = masks.sum(axis=(1, 2)).astype(np.float64)
    safe = np.where(count > 0, count, np.nan)
    x = (masks.sum(axis=1) @ np.arange(masks.shape[2])) / safe
    y = (masks.sum(axis=2) @ np.arange(masks.shape[1])) / safe
    return np.stack([x, y], axis=1)


def _chamfer(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> float:
    points_a, points_b = np.argwhere(a), np.argwhere(b)
    if not len(points_a) or not len(points_b):
        return float("nan")
    to_a = np.mean(cKDTree(points_a).query(points_b)[0])
    to_b = np.mean(cKDTree(points_b).query(points_a)[0])
    return float(to_a + to_b)


def _iou(a: Masks, b: Masks) -> Values:
    both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _nanmean(values: np.ndarray) -> float:
    with warnings.catch_warnings():  # the mean of nothing is NaN, as promised; no need to warn
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(values))


# ---- motion ---------------------------------------------------------------------------------------------------------


def velocity_errors(truth: Track, predicted: Track) -> Values:
    """Length of the velocity error in each predicted frame (N,), H/s; NaN where it isn't defined.

    Both velocities are central differences of centroids. A frame counts if it and both neighbours lie in the truth's
    valid window and show the predicted object; the truth is interpolated to the predicted frame's time.
    """
    return _motion_errors(truth, predicted, tracks.velocity)


def acceleration_errors(truth: Track, predicted: Track) -> Values:
    """Length of the acceleration error in each predicted frame (N,), H/s^2, from second central differences."""
    return _motion_errors(truth, predicted, tracks.acceleration)


def _motion_errors(truth: Track, predicted: Track, derivative: Callable[..., np.ndarray]) -> Values:
    usable = inside(window(truth, predicted) & predicted.present)
    want = _at_times(derivative(truth.position, truth.fps), truth, predicted)
    error = np.linalg.norm(derivative(predicted.position, predicted.fps) - want, axis=1)
    return np.where(usable, error, np.nan)


def window(truth: Track, predicted: Track) -> Bool[np.ndarray, " N"]:
    """Predicted frames (N,) whose time lies inside the truth's valid window."""
    usable = truth.valid & truth.present
    place = predicted.seconds * truth.fps
    low = np.floor(place + 1e-6).astype(int)
    high = np.ceil(place - 1e-6).astype(int)
    within = high < len(truth)
    last = len(truth) - 1
    return within & usable[np.minimum(low, last)] & usable[np.minimum(high, last)]


def _at_times(values: Float[np.ndarray, "T 2"], truth: Track, predicted: Track) -> Float[np.ndarray, "N 2"]:
    """Linear interpolation to the predicted frames' times: exact for velocities under constant acceleration."""
    if len(truth) == len(predicted) and truth.fps == predicted.fps:
        return values
    known = np.isfinite(values).all(axis=1)
    if not known.any():
        return np.full((len(predicted), 2), np.nan)
    result = [np.interp(predicted.seconds, truth.seconds[known], column[known], np.nan, np.nan) for column in values.T]
    return np.stack(result, axis=1)


def rmse_v(truth: Track, predicted: Track) -> float:
    """Root mean square of `velocity_errors`, H/s."""
    return _rms(velocity_errors(truth, predicted))


def rmse_a(truth: Track, predicted: Track) -> float:
    """Root mean square of `acceleration_errors`, H/s^2."""
    return _rms(acceleration_errors(truth, predicted))


def rmse_v_strict(truth: Track, predicted: Track) -> float:
    """RMSE_v in which a frame without the object counts as if it stood still: its error is the true speed."""
    return _rms(_filled(velocity_errors(truth, predicted), truth, predicted, tracks.velocity))


def rmse_a_strict(truth: Track, predicted: Track) -> float:
    """RMSE_a in which a frame without the object counts as if it stood still: its error is the true acceleration."""
    return _rms(_filled(acceleration_errors(truth, predicted), truth, predicted, tracks.acceleration))


def _filled(errors: Values, truth: Track, predicted: Track, derivative: Callable[..., np.ndarray]) -> Values:
    size = np.linalg.norm(_at_times(derivative(truth.position, truth.fps), truth, predicted), axis=1)
    return np.where(np.isnan(errors) & inside(window(truth, predicted)), size, errors)


def _rms(errors: Values) -> float:
    return float(np.sqrt(_nanmean(errors**2)))


def fit_a_error(truth: Track, predicted: Track) -> float:
    """Distance between the fitted and the true constant acceleration, H/s^2: the law, without frame-to-frame noise."""
    ours, theirs = _fits(truth, predicted)
    return (
        float("nan")
        if ours is None or theirs is None
        else float(np.linalg.norm(ours.acceleration - theirs.acceleration))
    )


def fit_residual(truth: Track, predicted: Track) -> float:
    """Root mean square distance of the path from its own best constant acceleration, H: how unsteady the motion is."""
    theirs = _fits(truth, predicted)[1]
    return float("nan") if theirs is None else theirs.residual


def g_eff(truth: Track, predicted: Track) -> float:
    """Fitted acceleration along the true one, over the true one: 1 is right, 0 is no acceleration."""
    ours, theirs = _fits(truth, predicted)
    if ours is None or theirs is None:
        return float("nan")
    size = float(ours.acceleration @ ours.acceleration)
    # Under .05 H/s^2 the truth hardly accelerates and the ratio is noise.
    return float(theirs.acceleration @ ours.acceleration / size) if size > 0.05**2 else float("nan")


def _fits(truth: Track, predicted: Track) -> tuple[tracks.Fit | None, tracks.Fit | None]:
    usable = window(truth, predicted)
    return fit_constant_acceleration(truth), fit_constant_acceleration(predicted, usable)


def area_ratio(truth: Track, predicted: Track) -> float:
    """Mean over the valid frames that show the object of its area over the true one; 1 is right, above 1 it grew."""
    index = matched_frames(len(truth), len(predicted), truth.fps, predicted.fps)
    ours, theirs = truth.area[index], predicted.area[: len(index)]
    usable = truth.valid[index] & (ours > 0) & (theirs > 0)
    return _nanmean(np.where(usable, theirs / np.where(ours > 0, ours, 1.0), np.nan))


def presence(truth: Track, predicted: Track) -> float:
    """Share of the frames with a true object in which the predicted clip has one too."""
    index = matched_frames(len(truth), len(predicted), truth.fps, predicted.fps)
    here, there = truth.present[index], predicted.present[: len(index)]
    return float(there[here].mean()) if here.any() else float("nan")


# ---- the list -------------------------------------------------------------------------------------------------------

Direction = Literal["lower", "higher", "one"]


@dataclass(frozen=True)
class Metric:
    """A function of (truth, predicted) with all that a reader needs to judge its value.

    Attributes:
        fn: one number per clip, NaN if it can't be measured.
        label: short name for tables. unit: of the value, empty for a share or ratio.
        direction: which values are better; `one`: the closer to 1.
        source: paper or code, or "ours".
        says: what it means in one sentence for a reader who hasn't read the paper.
    """

    fn: Callable[[Track, Track], float]
    label: str
    unit: str
    direction: Direction
    source: str
    says: str


def _pisa(name: str) -> Callable[[Track, Track], float]:
    return lambda truth, predicted: pisa(truth.hard, predicted.hard, truth.fps, predicted.fps)[name]


def _strict(name: str) -> Callable[[Track, Track], float]:
    return lambda truth, predicted: strict(truth.hard, predicted.hard, truth.fps, predicted.fps)[name]


PISA = "PISA (vision-x-nyu/pisa-experiments)"
METRICS: dict[str, Metric] = {
    "rmse_v": Metric(
        rmse_v,
        "velocity error",
        "H/s",
        "lower",
        "NewtonRewards; estimator ours",
        "How wrong the object's velocity is from frame to frame.",
    ),
    "rmse_a": Metric(
        rmse_a,
        "acceleration error",
        "H/s²",
        "lower",
        "NewtonRewards; estimator ours",
        "How wrong its acceleration is from frame to frame.",
    ),
    "l2": Metric(_pisa("l2"), "L2", "√2 H", "lower", PISA, "How far from the right place the object is."),
    "chamfer": Metric(_pisa("chamfer"), "Chamfer", "√2 H", "lower", PISA, "How far the silhouettes are apart."),
    "iou": Metric(_pisa("iou"), "IoU", "", "higher", PISA, "How much the silhouettes overlap."),
    "l2_strict": Metric(
        _strict("l2_strict"), "L2, strict", "√2 H", "lower", "ours", "L2, Euclidean; a vanished object counts 1."
    ),
    "chamfer_strict": Metric(
        _strict("chamfer_strict"), "Chamfer, strict", "√2 H", "lower", "ours", "Chamfer; a vanished object counts 1."
    ),
    "iou_strict": Metric(
        _strict("iou_strict"),
        "IoU, strict",
        "",
        "higher",
        "ours",
        "IoU; frames where neither has an object don't count.",
    ),
    "rmse_v_strict": Metric(
        rmse_v_strict, "velocity error, strict", "H/s", "lower", "ours", "A vanished object counts as standing still."
    ),
    "rmse_a_strict": Metric(
        rmse_a_strict,
        "acceleration error, strict",
        "H/s²",
        "lower",
        "ours",
        "A vanished object counts as standing still.",
    ),
    "fit_a_error": Metric(
        fit_a_error,
        "fitted acceleration error",
        "H/s²",
        "lower",
        "ours",
        "How wrong the acceleration over the whole path is.",
    ),
    "fit_residual": Metric(
        fit_residual,
        "unsteadiness",
        "H",
        "lower",
        "ours",
        "How far the path strays from its own constant acceleration.",
    ),
    "g_eff": Metric(g_eff, "effective g", "", "one", "ours", "Fitted acceleration over the true one."),
    "area_ratio": Metric(area_ratio, "area ratio", "", "one", "ours", "Size of the object against the truth."),
    "presence": Metric(presence, "presence", "", "higher", "ours", "Share of frames in which the object is there."),
}


def measure(truth: Track, predicted: Track) -> dict[str, float]:
    """Every metric of one clip by name."""
    values = {
        **pisa(truth.hard, predicted.hard, truth.fps, predicted.fps),
        **strict(truth.hard, predicted.hard, truth.fps, predicted.fps),
    }
    return {name: values[name] if name in values else metric.fn(truth, predicted) for name, metric in METRICS.items()}
