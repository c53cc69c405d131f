"""Masks of an object in real footage by SAM 2 of transformers, from one mask or point in one frame. Not differentiable.

For training and for simulated clips `support.object_mask` needs no network. It takes the camera to stand still and the
object to keep its colours; SAM 2 doesn't.
Letters: T frames, H height, W width in px.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from newtonrewards.core.clip import check_frames
from newtonrewards.core.errors import CheckpointError, InputError, MissingExtra

# Parts without which a folder holds another model: transformers would fill them with random numbers.
PARTS = ("vision_encoder.", "mask_decoder.", "memory_attention.", "memory_encoder.")


class Sam2Segmenter:
    """A frozen SAM 2 video model. Not a Module, for the reason given at `flow.RaftFlow`.

    It holds a clip at its own size (1024 x 1024 px, 12 MB for each frame) while it works.

    Args:
        model: a `Sam2VideoModel`; taken over: set to eval, float32, without parameter gradients.
        processor: its `Sam2VideoProcessor`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval().float().requires_grad_(False)
        self.processor = processor

    @torch.no_grad()
    def __call__(
        self,
        frames: Float[Tensor, "T 3 H W"],
        *,
        mask: Bool[Tensor, "h w"] | None = None,
        point: tuple[float, float] | None = None,
        frame: int = 0,
    ) -> Float[Tensor, "T H W"]:
        """Follow an object from one frame to both ends of a clip.

        Args:
            frames: RGB in [0, 1].
            mask: the object in that frame, (H, W). point: a place on it instead, (x, y) in px from the top left corner.
            frame: number of the frame in which it is shown.
        Returns:
            probability that a pixel is the object, in [0, 1]; all 0 where SAM 2 says that it is hidden or gone.
        Raises:
            ShapeError: bad shape or range. InputError: no object shown, or outside the clip.
        """
        check_frames(frames, batched=False)
        shown = _prompt(mask, point, frame, len(frames), (frames.shape[-2], frames.shape[-1]))
        self.model.to(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            video = (frames.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
            session = self.processor.init_video_session(video=video, inference_device=frames.device)
            self.processor.add_inputs_to_inference_session(session, frame_idx=frame, obj_ids=1, **shown)
            self.model(session, frame_idx=frame)
            masks = torch.zeros(len(frames), *frames.shape[-2:], device=frames.device)
            for reverse in (False, True):
                for seen in self.model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse):
                    masks[seen.frame_idx] = self._probability(seen, (frames.shape[-2], frames.shape[-1]))
        return masks

    def _probability(self, seen: Any, size: tuple[int, int]) -> Float[Tensor, "H W"]:
        logits = self.processor.post_process_masks([seen.pred_masks], original_sizes=[list(size)], binarize=False)
        return logits[0][0, 0].float().sigmoid() * (seen.object_score_logits.flatten()[0] > 0)


def load_sam2(name: str) -> Sam2Segmenter:
    """SAM 2 from a local folder or a name on the Hugging Face hub, safetensors only.

    Raises:
        MissingExtra: not there, and no network to fetch it. CheckpointError: a folder of another kind of model.
    """
    from transformers import AutoConfig, Sam2VideoModel, Sam2VideoProcessor

    fix = "Give a local folder with config.json, the processor's files and model.safetensors, or a name that the hub "
    fix += "knows, such as facebook/sam2.1-hiera-tiny."
    try:
        family = str(AutoConfig.from_pretrained(name).model_type)
        if not family.startswith("sam2"):
            raise CheckpointError(
                f"holds a '{family}' model", where=name, fix="Name the folder of a SAM 2 video model."
            )
        model, found = Sam2VideoModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
        processor = Sam2VideoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise MissingExtra(f"can't load SAM 2 ({first})", where=name, fix=fix) from None
    lacking = sorted(key for key in found["missing_keys"] if key.startswith(PARTS))
    if lacking:
        raise CheckpointError(f"lacks {lacking[0]} and {len(lacking) - 1} more weights", where=name, fix=fix)
    return Sam2Segmenter(model, processor)


def _prompt(
    mask: Tensor | None, point: tuple[float, float] | None, frame: int, count: int, size: tuple[int, int]
) -> dict[str, Any]:
    """The object as the processor wants to be told."""
    if (mask is None) == (point is None):
        raise InputError("SAM 2 must be shown the object once", fix="Give either its mask or a point on it.")
    if not 0 <= frame < count:
        raise InputError(f"frame {frame} of a clip of {count} frames", fix="Show the object in a frame of the clip.")
    if point is not None:
        if not (0 <= point[0] < size[1] and 0 <= point[1] < size[0]):
            raise InputError(f"the point {point} lies outside the frame", fix="Give (x, y) in px.")
        return {"input_points": [[[list(map(float, point))]]], "input_labels": [[[1]]]}
    assert mask is not None
    if tuple(mask.shape) != size or not mask.any():
        what = "is empty" if tuple(mask.shape) == size else f"has shape {tuple(mask.shape)}, the frames {size}"
        raise InputError(f"the mask that shows the object {what}", fix="Give its pixels, at the size of the frames.")
    return {"input_masks": mask.float()}
