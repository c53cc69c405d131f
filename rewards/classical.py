"""A second opinion on optical flow that no network can be fooled into sharing: OpenCV's DIS, without any learning.

Letters: B clips, T frames, N = T - 1 pairs, H height, W width in px.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from newtonrewards.core.clip import check_frames

PRESETS = {"fast": cv2.DISOPTICAL_FLOW_PRESET_FAST, "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}


class DisFlow:
    """Dense inverse search (Kroeger et al. 2016) as a `flow.FlowEstimator`; not differentiable, on the CPU.

    Args:
        preset: `fast` or `medium`.
        upsample: frames are enlarged by this first; its patches of 8 px are too coarse for small objects otherwise.
    """

    def __init__(self, preset: str = "medium", upsample: int = 2) -> None:
        self.preset, self.upsample = PRESETS[preset], upsample

    @torch.no_grad()
    def __call__(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B N 2 H W"]:
        """See `flow.FlowEstimator`; without gradient.

        Raises:
            ShapeError: bad shape or range.
        """
        check_frames(frames, batched=True)
        method = cv2.DISOpticalFlow.create(self.preset)
        grey = (frames.detach().float().mean(2).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        flows = [[self._pair(method, a, b) for a, b in itertools.pairwise(clip)] for clip in grey]
        return torch.from_numpy(np.array(flows, dtype=np.float32)).movedim(-1, 2).to(frames.device)

    def _pair(self, method: cv2.DISOpticalFlow, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape
        large = [
            cv2.resize(x, (width * self.upsample, height * self.upsample), interpolation=cv2.INTER_LINEAR)
            for x in (first, second)
        ]
        flow = method.calc(large[0], large[1], None)
        return np.asarray(cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA)) / self.upsample
