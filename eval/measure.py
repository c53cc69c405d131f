"""Measuring one video: two instruments look at it, masks and optical flow, and what they say becomes a record.

Masks are silhouettes against the still background, or the object's colours. Kinematics come from the instrument that
follows a law for longer; how well they agree is the confidence. A video in which nothing moves, or in which the motion
can't be measured, gets the verdict `cannot_tell` and no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from newtonrewards.core.clip import Clip
from newtonrewards.core.given import masks_of, track_of
from newtonrewards.core.video import Stretch, read_stretches, to_8bit
from newtonrewards.core.workers import ahead
from newtonrewards.eval.constancy import area_change, constancy
from newtonrewards.eval.evidence import Evidence
from newtonrewards.eval.find import Found, find_object
from newtonrewards.eval.instruments import MATCHED, Instrument, best_of, good, instruments_of, second
from newtonrewards.eval.laws import LawFit
from newtonrewards.eval.look import Seen, look
from newtonrewards.eval.match import matched
from newtonrewards.eval.pieces import part, shots, stride
from newtonrewards.eval.refine import refine
from newtonrewards.eval.results import finite
from newtonrewards.eval.sam2_masks import sam2_masks
from newtonrewards.eval.scale import NO_SCALE, Scale
from newtonrewards.eval.segment import channels_last
from newtonrewards.eval.stabilise import stabilise
from newtonrewards.eval.tracks import centroid
from newtonrewards.eval.vanish import jumped_at, vanished_at
from newtonrewards.eval.verdict import drifting, judge, within_itself
from newtonrewards.eval.video_score import Motion, Vector, VideoScore
from newtonrewards.rewards import kinematics, sentinels
from newtonrewards.rewards.flow import RaftFlow
from newtonrewards.rewards.window import Window

# A video is made smaller until a frame holds no more pixels than this (320 x 200): silhouettes need no more.
PIXELS = 64_000
# Longer videos are looked at in stretches of so many frames, which overlap by so many: memory doesn't grow with length.
STRETCH, OVERLAP = 300, 60
# Below this (H/s^2) a residual isn't given as a share of the acceleration.
LEAST_ACCELERATION = 0.02
# Residual of perfect clips, px per frame interval cubed, the mean of both sizes in docs/footage.md: below it is noise.
FLOOR_PX = 0.25

Flow = Callable[[], RaftFlow]


@dataclass(frozen=True)
class Options:
    """How videos are read; see `core.video.read_clip`.

    Attributes:
        fps: resample to this physical rate. capture_fps: rate at which the frames were taken (slow motion).
        num_frames: keep the first so many.
        masks: folder with NAME.npz (`masks`, (T, H, W), 0 to 1 or 0 to 255) for videos NAME.*, or None.
        tracks: CSV file with the object's centres (see `given.track_of`), or None.
        motion: what the videos show.
        segmenter: folder or hub name of a SAM 2 that masks the object as well, or None.
        metres_per_height, object_metres: see `scale.Scale`.
    """

    fps: float | None = None
    capture_fps: float | None = None
    num_frames: int | None = None
    masks: Path | None = None
    tracks: Path | None = None
    motion: Motion = "auto"
    segmenter: str | None = None
    metres_per_height: float | None = None
    object_metres: float | None = None

    @property
    def scale(self) -> Scale:
        return Scale(self.metres_per_height, self.object_metres)


def measure_video(path: Path, options: Options, flow: Flow | None) -> Measured:
    """Measure one file; a long one in stretches of `STRETCH` frames, of which the one that shows most counts.

    Args:
        path: the video.
        options: how to read it.
        flow: gives the flow network when it is first needed; None: silhouettes alone.
    Raises:
        InputError: no readable video of at least two frames, or masks that don't fit.
    """
    stretches = read_stretches(
        path,
        length=STRETCH,
        overlap=OVERLAP,
        num_frames=options.num_frames,
        fps=options.fps,
        max_pixels=PIXELS,
        capture_fps=options.capture_fps,
    )
    best: Measured | None = None
    for stretch in ahead(stretches):
        measured = _measured(path, options, flow, stretch)
        if best is None or measured.way > best.way:
            best = measured
    assert best is not None, "every video has a first stretch"
    return best


def _measured(path: Path, options: Options, flow: Flow | None, stretch: Stretch) -> Measured:
    """A function of its own, so that the stretch's floats are gone before the next one's are made."""
    clip = stretch.clip()
    given = _given(path, options, stretch, clip)
    return measure_clip(clip, given, flow, options.motion, stretch.start, options.segmenter, options.scale)


def _given(path: Path, options: Options, stretch: Stretch, clip: Clip) -> Float[np.ndarray, "T H W"] | None:
    """Where the object is in a stretch, if the options tell."""
    if options.masks is not None:
        return masks_of(options.masks / f"{path.stem}.npz", clip, stretch.start)
    if options.tracks is not None:
        return track_of(options.tracks, path, clip, (stretch.height, stretch.width), stretch.start)
    return None


@dataclass(frozen=True, eq=False)
class Measured:
    """A record, and what it was made from.

    Attributes:
        frames: (T, H, W, 3) those that were looked at, in 8 bits. mask: (T, H, W) the object in them. Both only to
            be drawn: the best of many stretches is kept in little memory.
        way: how far the object goes under one law, H, times for how many frames: how much there is to judge.
    """

    score: VideoScore
    frames: UInt8[np.ndarray, "T H W 3"]
    mask: Bool[np.ndarray, "T H W"]
    way: float


def measure_clip(
    clip: Clip,
    masks: Float[np.ndarray, "T H W"] | None,
    flow: Flow | None,
    motion: Motion = "auto",
    start: int = 0,
    segmenter: str | None = None,
    scale: Scale = NO_SCALE,
) -> Measured:
    """Measure a clip in memory: of its shots the one that shows most. See `measure_video`.

    Args:
        masks: where the object is, if that is known. start: number of the clip's first frame in the video.
    """
    measured = []
    for first, shot in shots(clip):
        known = None if masks is None else masks[first : first + shot.num_frames]
        measured.append(_measure_shot(shot, known, flow, motion, start + first, segmenter, scale))
    return max(measured, key=lambda one: one.way)


def _measure_shot(
    clip: Clip,
    masks: Float[np.ndarray, "T H W"] | None,
    flow: Flow | None,
    motion: Motion,
    start: int,
    segmenter: str | None,
    scale: Scale,
) -> Measured:
    if masks is None:
        clip, frames, found = _found(clip)
    else:
        frames, found = channels_last(clip), _known(masks)
    step = stride(found.soft)
    if step > 1:
        clip = part(clip, slice(None, None, step), f"it moves slowly: every {step}th frame, numbered anew")
        frames, found = frames[::step], replace(found, soft=found.soft[::step])
    seen = None if found.reason or flow is None else look(clip, found, flow(), given=masks is not None)
    views = _views(clip, frames, found, seen, segmenter, given=masks is not None)
    groups = [instruments_of(clip, name, soft, seen) for name, soft in views.items()]
    (best, group), patch = best_of(groups), None
    if masks is None and seen is not None and best is not None:
        enough = good(groups, found)
        if not enough or within_itself(*centroid(best.soft), best.window):
            patch = matched(frames, seen)
        if not enough and patch is not None:
            best, group = best_of([*groups, instruments_of(clip, MATCHED, patch, seen)])
    evidence = _evidence(clip, frames, found, seen, best, group, patch, motion, start, scale)
    score = VideoScore(
        file=clip.source.path,
        sha256=clip.source.sha256,
        first_frame=start,
        num_frames=clip.num_frames,
        height=frames.shape[1],
        width=frames.shape[2],
        fps=float(clip.fps),
        playback_fps=clip.source.playback_fps,
        preprocessing=list(clip.source.preprocessing),
        motion=motion,
        **judge(evidence),
        **_numbers(evidence),
        sentinels=_sentinels(clip),
    )
    inside = evidence.velocity[evidence.window.start : evidence.window.stop]
    way = float(np.linalg.norm(inside, axis=1).sum()) / evidence.fps * len(inside)
    return Measured(score, to_8bit(clip.frames), (found.soft if best is None else best.soft) > 0.5, way)


def _views(
    clip: Clip,
    frames: Float[np.ndarray, "T H W 3"],
    found: Found,
    seen: Seen | None,
    segmenter: str | None,
    *,
    given: bool,
) -> dict[str, Float[np.ndarray, "T H W"]]:
    """Masks of the object by their name."""
    views = {} if found.reason else {"mask" if given else "silhouette": found.soft}
    if seen is not None and seen.colour is not None:
        views["colour"] = seen.colour
    if given:
        return views
    fps = float(clip.fps)
    better = {f"refined {name}": refine(frames, soft, fps) for name, soft in views.items()}
    views |= {name: soft for name, soft in better.items() if soft is not None}
    if segmenter is not None and not found.reason:
        views["sam2"] = sam2_masks(segmenter, clip, found.soft)
    return views


def _found(clip: Clip) -> tuple[Clip, Float[np.ndarray, "T H W 3"], Found]:
    """The object in the clip, or, if its camera moves and that can be undone, in the clip without that motion."""
    frames = channels_last(clip)
    found = find_object(frames, float(clip.fps))
    laid = stabilise(frames) if found.camera_moves else None
    if laid is None:
        return clip, frames, found
    done = (*clip.source.preprocessing, "camera motion removed: every frame laid over the middle one")
    still = torch.from_numpy(laid).permute(0, 3, 1, 2).contiguous()
    clip = replace(clip, frames=still, source=replace(clip.source, preprocessing=done))
    return clip, laid, find_object(laid, float(clip.fps))


def _evidence(
    clip: Clip,
    frames: np.ndarray,
    found: Found,
    seen: Seen | None,
    best: Instrument | None,
    instruments: Sequence[Instrument],
    patch: Float[np.ndarray, "T H W"] | None,
    motion: Motion,
    start: int,
    scale: Scale,
) -> Evidence:
    """The best instrument beside the one of the other kind with the same masks; `patch`: masks that know its size."""
    soft = found.soft if best is None else best.soft
    position, area = centroid(soft)
    other = None if best is None or len(instruments) < 2 else second(best, instruments)
    window = Window(0, 0, float("nan")) if best is None else best.window
    features = None if seen is None or best is None else seen.features_over(best.soft)
    constant = constancy(frames, soft, features, window)
    by_patch = None if patch is None else area_change(patch, window)
    nothing = np.full((clip.num_frames - 1, 2), np.nan)
    return Evidence(
        reason=found.reason,
        source="none" if best is None else best.name,
        window=window,
        fit=None if best is None or not len(window) else law_fit(best.velocity, window, float(clip.fps)),
        constancy=constant if by_patch is None else replace(constant, area_change=by_patch),
        sized=by_patch is not None,
        smooth=None if best is None else drifting(best.velocity, window, float(clip.fps), frames.shape[1]),
        motion=motion,
        metres=scale.metres(area[window.start : window.stop + 1] if best is not None and best.outlined else None),
        velocity=nothing if best is None else best.velocity,
        other=None if other is None else other.velocity,
        position=position,
        area=area,
        vanished=vanished_at(frames, soft),
        jumped=jumped_at(frames, soft),
        light=frames.mean(axis=(1, 2, 3)),
        even=clip.source.even,
        others=found.others,
        shimmers=found.shimmers,
        first_frame=start,
        fps=float(clip.fps),
        height=frames.shape[1],
        width=frames.shape[2],
    )


def _known(masks: Float[np.ndarray, "T H W"]) -> Found:
    return Found(masks, "" if masks.max() > 0.5 else "the masks are empty", False, 0)


# ---- numbers --------------------------------------------------------------------------------------------------------


def law_fit(velocity: Float[np.ndarray, "N 2"], window: Window, fps: float) -> LawFit:
    """The line through the velocities of a window; a velocity belongs to the time between its two frames."""
    values, valid = _in_window(velocity, window)
    line = kinematics.fit(values, valid, torch.tensor([fps], dtype=torch.float64))
    acceleration, count = line.acceleration[0].numpy(), len(window)
    rms = float((2 * line.residual[0]).sqrt())
    spread = np.sqrt(count * (count**2 - 1) / 12)  # root of the sum of squared times, in frames
    error = rms / np.sqrt(2) * np.sqrt(count / max(count - 2, 1)) / spread * fps
    start = line.start[0].numpy() + acceleration * (window.start - 0.5) / fps
    return LawFit(start, acceleration, float(error), count / fps, rms)


def _in_window(velocity: Float[np.ndarray, "N 2"], window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.from_numpy(np.nan_to_num(velocity))[None]
    valid = torch.zeros(1, values.shape[1], dtype=torch.bool)
    valid[:, window.start : window.stop] = True
    return values, valid


def _sentinels(clip: Clip) -> dict[str, float | None]:
    frames = clip.frames[None]
    return {
        "saturation": finite(float(sentinels.saturation(frames))),
        "high_frequency": finite(float(sentinels.high_frequency(frames))),
    }


def _numbers(evidence: Evidence) -> dict[str, object]:
    """Kinematics inside the window, as fields of `VideoScore`."""
    fit, fps = evidence.fit, evidence.fps
    if fit is None:
        return {**vars(evidence.constancy)}
    size = float(np.linalg.norm(fit.acceleration))
    # Both axes together, and per frame interval: how much the acceleration changes from frame to frame.
    residual = (
        float((2 * kinematics.second_difference(*_in_window(evidence.velocity, evidence.window))[0]).sqrt()) * fps
    )
    return {
        "acceleration": _vector(fit.acceleration),
        "acceleration_magnitude": size,
        "acceleration_px": size * evidence.height / fps**2,
        "acceleration_error": fit.error,
        "acceleration_metres": None if evidence.metres is None else size * evidence.metres.per_height,
        "metres_per_height": None if evidence.metres is None else evidence.metres.per_height,
        "start_velocity": _vector(fit.start),
        "start_speed": float(np.linalg.norm(fit.start)),
        "kinematic_residual": residual,
        "residual_floor": FLOOR_PX * fps**2 / evidence.height,
        "relative_residual": residual / size if size > LEAST_ACCELERATION else None,
        "fit_rms": fit.rms,
        **vars(evidence.constancy),
    }


def _vector(values: Float[np.ndarray, " 2"]) -> Vector:
    return Vector(x=float(values[0]), y=float(values[1]))
