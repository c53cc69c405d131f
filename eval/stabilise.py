"""Taking the camera's motion out of a film: every frame is laid over the middle one.

Corners are followed from frame to frame, and the shift, turn and zoom that most of them share is the camera's. What a
frame doesn't show is filled with what others show there, so that the frame keeps its size and its unit, H.
Letters: T frames, H height, W width.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from jaxtyping import Bool, Float

from newtonrewards.eval.segment import ranked

CORNERS, LEAST_CORNERS = 300, 20
# Share of the corners that must agree on one motion, to within so many px.
AGREE, WITHIN = 0.5, 1.0
# A camera that leaves so much of the middle frame out of sight is not followed.
LEAST_SEEN = 0.5


def stabilise(frames: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W 3"] | None:
    """The film as if the camera had stood where it was in the middle frame; None where its motion can't be told.

    Args:
        frames: RGB in [0, 1], of a scene that is far away or flat: parallax isn't undone.
    Source: Shi and Tomasi's corners, Lucas and Kanade's tracking, RANSAC over similarities (OpenCV).
    """
    grey = (frames.mean(-1) * 255).round().clip(0, 255).astype(np.uint8)
    steps = [_step(a, b) for a, b in itertools.pairwise(grey)]
    if any(step is None for step in steps):
        return None
    ways = _to_middle([step for step in steps if step is not None])
    height, width = grey.shape[1:]
    laid, seen = np.empty_like(frames), np.empty(grey.shape, dtype=bool)
    for t, (frame, way) in enumerate(zip(frames, ways, strict=True)):
        laid[t] = cv2.warpAffine(frame, way[:2], (width, height), flags=cv2.INTER_LINEAR)
        seen[t] = cv2.warpAffine(np.ones((height, width), np.float32), way[:2], (width, height)) > 0.999
    if seen.mean(axis=(1, 2)).min() < LEAST_SEEN:
        return None
    return np.where(seen[..., None], laid, _background(laid, seen)[None]).astype(np.float32)


def _step(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """3 x 3 matrix from places in the first frame to those in the second; None where too few corners agree."""
    corners = cv2.goodFeaturesToTrack(first, CORNERS, 0.01, 5)
    if corners is None or len(corners) < LEAST_CORNERS:
        return None
    moved, found, _ = cv2.calcOpticalFlowPyrLK(first, second, corners, None)
    kept = found[:, 0] == 1
    if kept.sum() < LEAST_CORNERS:
        return None
    cv2.setRNGSeed(0)  # RANSAC draws at random: the same film gives the same numbers
    matrix, inside = cv2.estimateAffinePartial2D(
        corners[kept], moved[kept], method=cv2.RANSAC, ransacReprojThreshold=WITHIN
    )
    if matrix is None or inside.mean() < AGREE:
        return None
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def _to_middle(steps: list[np.ndarray]) -> list[np.ndarray]:
    """For each frame the matrix from its places to those of the middle frame."""
    from_first = [np.eye(3)]
    for step in steps:
        from_first.append(step @ from_first[-1])
    middle = from_first[len(from_first) // 2]
    return [middle @ np.linalg.inv(matrix) for matrix in from_first]


def _background(frames: Float[np.ndarray, "T H W 3"], seen: Bool[np.ndarray, "T H W"]) -> Float[np.ndarray, "H W 3"]:
    """Median over the frames that show a place, grey where none does. Over 60 frames at most, as elsewhere."""
    every = slice(None, None, max(1, len(frames) // 60))
    middle = ranked(frames[every], seen[every], (seen[every].sum(axis=0) - 1) // 2)
    return np.where(np.isfinite(middle), middle, 0.5).astype(np.float32)
