"""The second instrument of `score`: optical flow on a cut-out around what moves, and the object's colours.

Flow is measured twice, by the network and by DIS, which learns nothing: docs/flow_error.md says where each fails.

Silhouettes go wrong where an object moves less than its own width, because the background behind it never shows. Flow
shows where it is in the frame in which it moves fastest, and its colours then show where it is in all others.
Letters: T frames, N = T - 1 pairs, H height, W width, C channels; h, w of the cut-out; flow in px/frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from newtonrewards.core.clip import Clip
from newtonrewards.eval.find import Found
from newtonrewards.eval.tracks import PRESENT_PIXELS, box_around
from newtonrewards.rewards import kinematics, mass, support
from newtonrewards.rewards.classical import DisFlow
from newtonrewards.rewards.flow import RaftFlow

# The cut-out has at most so many pixels, and so many frames; it is made smaller, or cut short. Where the frame has room
# it is never narrower than `CUT_SIDE`: of a cut-out just around a small object, flow is a third off instead of a tenth.
CUT_PIXELS, CUT_FRAMES, CUT_MARGIN, CUT_SIDE = 128 * 128, 40, 10, 128
# Flow spills over an object's edge, but more slowly: what has this share of the fastest pixels' speed belongs to it.
FAST_SHARE = 0.6
# A patch of the object's colours with less than this share of its usual area is something else.
LEAST_SHARE = 0.35
# Below this (px/frame) nothing is taken for moving.
LEAST_SPEED = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """What the networks saw in the cut-out.

    Attributes:
        frames: first frame and end of those looked at. box: rows and columns of the cut-out.
        flows: by method, (1, n, 2, h, w) px/frame of the clip's own size. features: (1, n + 1, C, ..) of the encoder.
        colour: (T, H, W) masks by colour from the fastest frame, or None where nothing moved fast enough.
    """

    shape: tuple[int, int, int]
    frames: slice
    box: tuple[slice, slice]
    flows: dict[str, Float[Tensor, "1 n 2 h w"]]
    features: Float[Tensor, "1 m C a b"]
    colour: Float[np.ndarray, "T H W"] | None

    def velocity_under(self, soft: Float[np.ndarray, "T H W"], method: str) -> Float[np.ndarray, "N 2"]:
        """Mean flow over the solid part of masks, px/frame; NaN outside the cut-out and without a mask."""
        flow = self.flows[method]
        solid = (mass.to_grid(self._inside(soft), (flow.shape[-2], flow.shape[-1])) > 0.5).float()[:, :-1]
        velocity = np.full((self.shape[0] - 1, 2), np.nan)
        velocity[self.frames.start : self.frames.stop - 1] = kinematics.object_velocity(flow, solid)[0].numpy()
        return velocity

    def features_over(self, soft: Float[np.ndarray, "T H W"]) -> Float[np.ndarray, "T C"]:
        """Features pooled over the masks; NaN outside the cut-out and without a mask."""
        grid = (self.features.shape[-2], self.features.shape[-1])
        pooled = mass.pool(self.features, mass.to_grid(self._inside(soft), grid))[0].numpy()
        result = np.full((self.shape[0], pooled.shape[1]), np.nan)
        result[self.frames] = pooled
        return result

    def _inside(self, soft: Float[np.ndarray, "T H W"]) -> Float[Tensor, "1 m h w"]:
        return torch.from_numpy(np.ascontiguousarray(soft[self.frames, self.box[0], self.box[1]], dtype=np.float32))[
            None
        ]


@torch.no_grad()
def look(clip: Clip, found: Found, flow: RaftFlow, *, given: bool) -> Seen | None:
    """Flow and colours around a found object; None if it is there for less than two frames.

    Args:
        clip: the whole clip.
        found: its silhouettes, or given masks.
        flow: the network.
        given: masks are known: no need to find the object by its colours.
    """
    there = np.flatnonzero((found.soft > 0.5).any(axis=(1, 2)))
    if len(there) < 2:
        return None
    start, stop = max(0, int(there[0]) - 1), min(clip.num_frames, int(there[-1]) + 2)
    when = slice(start, min(stop, start + CUT_FRAMES))
    around = box_around(found.soft[when] > 0.5, pixels=CUT_MARGIN)
    if around is None:
        return None
    box = (_roomy(around[1], clip.frames.shape[-2]), _roomy(around[2], clip.frames.shape[-1]))
    frames = clip.frames[when, :, box[0], box[1]]
    factor = min(1.0, (CUT_PIXELS / (frames.shape[-2] * frames.shape[-1])) ** 0.5)
    if factor < 1.0:
        size = (round(frames.shape[-2] * factor), round(frames.shape[-1] * factor))
        frames = torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True).clamp(0, 1)
    both = flow.flow_and_features(frames[None])
    colour = None if given else _by_colour(frames, both.flow[0])
    whole = None if colour is None else _whole(colour, clip, when, box)
    shape = (clip.num_frames, clip.frames.shape[-2], clip.frames.shape[-1])
    flows = {"flow": both.flow / factor, "DIS flow": DisFlow()(frames[None]) / factor}
    return Seen(shape, when, box, flows, both.features, whole)


def _roomy(span: slice, size: int) -> slice:
    """The span of pixels, widened to `CUT_SIDE` on both sides alike as far as the frame goes."""
    more = max(0, CUT_SIDE - (min(span.stop, size) - span.start))
    start = min(max(0, span.start - more // 2), max(0, size - CUT_SIDE))
    return slice(start, min(size, max(span.stop, start + CUT_SIDE)))


def _by_colour(frames: Float[Tensor, "n 3 h w"], flow: Float[Tensor, "m 2 h w"]) -> Float[Tensor, "n h w"] | None:
    """Masks of all frames from the colours of the fastest patch of the frame in which it is fastest."""
    speed = (flow - support.camera_motion(flow[None])[0][..., None, None]).norm(dim=1)
    peak = speed.flatten(1).quantile(0.98, dim=1)
    key = int(peak.argmax())
    if float(peak[key]) < LEAST_SPEED:
        return None
    patch = largest((speed[key] > FAST_SHARE * peak[key]).numpy())
    if patch.sum() < PRESENT_PIXELS:
        return None
    order = [key, *range(len(frames))]
    first = torch.from_numpy(patch.astype(np.float32))[None]
    return support.object_mask(frames[None, order], first)[0, 1:]


def largest(hard: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest connected patch of a mask."""
    labels, count = ndimage.label(hard)
    if not count:
        return hard
    return np.asarray(labels == 1 + int(np.argmax(ndimage.sum_labels(hard, labels, np.arange(1, count + 1)))))


def _whole(
    colour: Float[Tensor, "n h w"], clip: Clip, when: slice, box: tuple[slice, slice]
) -> Float[np.ndarray, "T H W"]:
    """Masks of the cut-out put back into the clip; the largest patch of each frame, so that specks don't pull."""
    result = np.zeros((clip.num_frames, clip.frames.shape[-2], clip.frames.shape[-1]), dtype=np.float32)
    target = result[when, box[0], box[1]]
    large = torch.nn.functional.interpolate(colour[None], target.shape[1:], mode="bilinear")[0].numpy()
    patches = [largest(mask > 0.5) for mask in large]
    usual = float(np.median([patch.sum() for patch in patches if patch.any()] or [0.0]))
    for place, mask, patch in zip(target, large, patches, strict=True):
        if patch.sum() >= LEAST_SHARE * usual:
            place[:] = np.where(ndimage.binary_dilation(patch), mask, 0.0)
    return result
