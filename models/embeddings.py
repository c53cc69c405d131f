"""Encoded captions and first frames on disk: computed once, read in every later step and run.

One safetensors file for each caption and each first frame, under a folder named after the weights and settings that
made them, so that another model's are never mistaken for these. Files are written whole or not at all; several
processes may fill one folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.core.run import output_folder, write_atomic
from newtonrewards.models.base import Encoded


class Embeddings:
    """A folder of encoded things, each found by what was encoded.

    Attributes:
        folder: where they lie, below the folder that was asked for.
        complete: nothing may be missing any more, since the encoders are gone.
    """

    def __init__(self, root: Path, maker: str) -> None:
        """Args:
        root: folder of all models' embeddings.
        maker: names the encoders and their settings; a hash.
        """
        self.folder = output_folder(root) / maker
        self.folder.mkdir(exist_ok=True)
        self.complete = False

    def captions(self, captions: Sequence[str], encode: Callable[[Sequence[str]], Encoded]) -> Encoded:
        """Encoded captions of a batch; shorter ones are filled up with zeros.

        Raises:
            InputError: a caption that isn't stored, after the encoders were freed.
        """
        return _stack([self._one("caption", text.encode(), partial(encode, [text]), text) for text in captions])

    def first_frames(
        self, frames: Float[Tensor, "B 3 H W"], encode: Callable[[Float[Tensor, "B 3 H W"]], Encoded]
    ) -> Encoded:
        """Encoded first frames of a batch; see `captions`."""
        contents = [frame.cpu().float().numpy().tobytes() for frame in frames]
        return _stack(
            [
                self._one("first_frame", content, partial(encode, frame[None]), "a first frame")
                for content, frame in zip(contents, frames, strict=True)
            ]
        )

    def _one(self, kind: str, content: bytes, encode: Callable[[], Encoded], what: str) -> Encoded:
        path = self.folder / f"{kind}_{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (OSError, SafetensorError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"a damaged file ({reason})", where=path, fix="Delete it.") from None
        if self.complete:
            raise InputError(f"'{what}' is not among the stored embeddings, and the encoders are freed")
        encoded = {name: value[0].cpu().contiguous() for name, value in encode().items()}
        write_atomic(path, save(encoded), durable=False)
        return encoded


def _stack(parts: list[Encoded]) -> Encoded:
    return {name: _stack_padded([part[name] for part in parts]) for name in parts[0]}


def _stack_padded(values: list[Tensor]) -> Tensor:
    longest = max(value.shape[0] for value in values)
    return torch.stack([pad(v, [0, 0] * (v.ndim - 1) + [0, longest - v.shape[0]]) for v in values])
