"""The fixed linear autoencoder of the embedded model: fades of frame 0's detail (`fade.py`) and principal components.

The components are those of lapped space-time patches of what else differs from frame 0.

Still backgrounds cost nothing and are exact, decoding is linear but for the final range, and fitting takes seconds.
The patches are *lapped*: before cutting, an orthogonal filter mixes the pixels on both sides of each border, and its
transpose undoes this after decoding, so that basis functions reach over borders at no extra token. PSNR in dB, whole
frame / pixels under the object then or at the start, 100 clips after a fit on 300; without fades, and with finer
textures than the world has now (docs/embedded_model.md has what fades add):

| components | plain       | lapped in y, x | lapped in t, y, x |
|------------|-------------|----------------|-------------------|
| 128        | 32.4 / 20.7 | 32.6 / 20.9    | 32.7 / 21.0       |
| 192        | 33.4 / 21.7 | 33.5 / 21.9    | 33.6 / 22.0       |
| 256        | 34.1 / 22.5 | 34.3 / 22.7    | 34.3 / 22.8       |
| 320        | 34.7 / 23.2 | 34.9 / 23.5    | 35.0 / 23.5       |
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from newtonrewards.core.errors import CheckpointError, InputError
from newtonrewards.models import fade
from newtonrewards.models.base import Latents
from newtonrewards.models.files import save_weights

# A patch whose root mean square change from frame 0 exceeds this (in pixel range [0, 1]) holds something that moves.
ACTIVE_RMS = 0.02
# ... and so does one whose fades exceed this.
ACTIVE_FADE = 0.1
# Component i is scaled by (sd_i / sd_0)^-0.5: halfway between pixel power and white. Measured best among .25, .5, .75.
WHITENING = 0.5


@dataclass(frozen=True, eq=False)
class PatchCodec:
    """Frames (B, T, 3, H, W) in [0, 1] <-> latents (B, c + k, t, h, w).

    Attributes:
        basis: (p, k) orthonormal columns, p = 3 x patch frames x patch height x patch width.
        gain: (c + k,) factor from coefficient to latent: fades, then components.
        num_frames, height, width: the clips' size, frame 0 included.
        patch: frames, height, width of a patch.
    """

    basis: Float[Tensor, "p k"]
    gain: Float[Tensor, "_"]
    num_frames: int
    height: int
    width: int
    patch: tuple[int, int, int]

    @staticmethod
    def fit(
        clips: Iterable[Float[Tensor, "T 3 H W"]], *, components: int = 240, patch: tuple[int, int, int] = (4, 16, 16)
    ) -> PatchCodec:
        """Principal components of the clips' patches (uncentred: no change is the zero latent).

        Args:
            clips: a few hundred clips of one size; read once.
            components: k, numbers kept for each patch.
            patch: frames, height, width; must divide (T - 1, H, W), each side even.
        Raises:
            InputError: no clip, a clip that doesn't move, or a patch that doesn't divide the clips.
        """
        size, rows, fades = _moving_rows(clips, patch)
        power, vectors = torch.linalg.eigh(rows.T @ rows)
        basis = _oriented(vectors.flip(1)[:, :components].contiguous())
        spread = power.flip(0)[:components].clamp(min=1e-12).sqrt()
        gain = (spread / spread[0]) ** -WHITENING
        gain = gain / (rows @ basis * gain).square().mean().sqrt()
        fade_gain = fades.square().mean().clamp(min=1e-6).rsqrt().expand(fades.shape[1])
        return PatchCodec(basis, torch.cat([fade_gain, gain]), *size, patch)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        frames, height, width = self.patch
        return len(self.gain), (self.num_frames - 1) // frames, self.height // height, self.width // width

    @property
    def size(self) -> tuple[int, int, int]:
        return self.num_frames, self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        return fade.NODES * self.height // self.patch[1], fade.NODES * self.width // self.patch[2]

    @property
    def num_fades(self) -> int:
        return len(self.gain) - self.basis.shape[1]

    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Latents:
        """Latents of the difference to frame 0: fades first, then components; unit power on average where it moves."""
        fades, rest = _split(frames, self.grid)
        rows = _rows(rest, self.size, self.patch) @ self.basis
        _, t, h, w = self.latent_shape
        components = rows.view(frames.shape[0], t, h, w, -1).permute(0, 4, 1, 2, 3)
        channels = torch.cat([fade.to_channels(fades, self.patch[0]), components], dim=1)
        return channels * self.gain.view(-1, 1, 1, 1)

    def decode(self, latents: Latents, first_frame: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T 3 H W"]:
        """Frames in [0, 1], frame 0 as given. See `into_range` for the gradient at the ends of the range."""
        channels = latents / self.gain.view(-1, 1, 1, 1)
        rows = channels[:, self.num_fades :].permute(0, 2, 3, 4, 1) @ self.basis.T
        differences = _unlapped(_uncut(rows, self.size, self.patch), self.patch)
        fades = fade.from_channels(channels[:, : self.num_fades], self.patch[0])
        differences = differences + fade.faded(fades, fade.detail(first_frame, self.patch[1]))
        later = into_range(first_frame[:, None] + differences)
        return torch.cat([first_frame[:, None], later], dim=1)

    def image_channels(self, first_frame: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B c h w"]:
        """The first frame in [-1, 1], lapped and cut as the latents are: 3 x patch height x patch width channels."""
        _, height, width = self.patch
        lapped = _spatially(first_frame * 2 - 1, self.patch, inverse=False)
        return _cut_image(lapped, height, width)

    def moving(self, latents: Latents) -> Bool[Tensor, "B 1 t h w"]:
        """Which patches change from frame 0 by more than `ACTIVE_RMS`."""
        channels = latents / self.gain.view(-1, 1, 1, 1)
        power = channels[:, self.num_fades :].square().sum(1, keepdim=True) / self.basis.shape[0]
        fading = channels[:, : self.num_fades].square().mean(1, keepdim=True) > ACTIVE_FADE**2
        return _active(power) | fading

    def to(self, device: torch.device | str) -> PatchCodec:
        return replace(self, basis=self.basis.to(device), gain=self.gain.to(device))

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """One safetensors file; the basis in `dtype`, the gains in float32."""
        shape = {"num_frames": self.num_frames, "height": self.height, "width": self.width, "patch": list(self.patch)}
        tensors = {"basis": self.basis.to("cpu", dtype), "gain": self.gain.cpu()}
        save_weights(tensors, path, {"codec": json.dumps(shape)})

    @staticmethod
    def load(path: Path) -> PatchCodec:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or another kind of file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                shape: dict[str, Any] = json.loads(file.metadata()["codec"])
                basis, gain = file.get_tensor("basis").float(), file.get_tensor("gain")
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            fix = "Give a folder saved by EmbeddedModel."
            raise CheckpointError(f"not a codec file ({error})", where=path, fix=fix) from None
        return PatchCodec(basis, gain, shape["num_frames"], shape["height"], shape["width"], tuple(shape["patch"]))


class _IntoRange(torch.autograd.Function):
    """See `into_range`."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (pixels,) = ctx.saved_tensors
        outwards = ((pixels < 0) & (gradient > 0)) | ((pixels > 1) & (gradient < 0))
        return torch.where(outwards, torch.zeros_like(gradient), gradient)


def into_range(pixels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamp to [0, 1] whose gradient vanishes only where descent would push a pixel further out.

    A plain clamp gives no gradient to any pixel outside, so nothing ever calls it back; the identity lets it drift
    away.
    """
    result: Tensor = _IntoRange.apply(pixels)
    return result


def lapping_filter(size: int) -> Float[Tensor, "size size"]:
    """Orthogonal pre-filter across one block border, P = 1/2 [[I, J], [J, -I]] diag(I, V) [[I, J], [J, -I]].

    V = J C_II^T C_IV J with the orthonormal cosine transforms of types II and IV of half the size.

    Args:
        size: samples it acts on, half of them on each side of the border; even.
    Source: Tran, Liang and Tu 2003, "Lapped transform via time-domain pre- and post-filtering", the type-II fast LOT.
    """
    half = size // 2
    n = torch.arange(half, dtype=torch.float64)
    type_2 = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / (2 * half)) * math.sqrt(2 / half)
    type_2[0] /= math.sqrt(2)
    type_4 = torch.cos(math.pi * (2 * n[None] + 1) * (2 * n[:, None] + 1) / (4 * half)) * math.sqrt(2 / half)
    identity = torch.eye(half, dtype=torch.float64)
    mirror = identity.flip(0)
    butterfly = torch.cat([torch.cat([identity, mirror], 1), torch.cat([mirror, -identity], 1)])
    rotation = torch.block_diag(identity, mirror @ type_2.T @ type_4 @ mirror)
    return (butterfly @ rotation @ butterfly / 2).float()


def _lapping(length: int, block: int, like: Tensor) -> Float[Tensor, "length length"]:
    return _lapping_matrix(length, block).to(like)


@functools.cache
def _lapping_matrix(length: int, block: int) -> Float[Tensor, "length length"]:
    """The pre-filter at every inner block border of an axis; the ends stay as they are."""
    matrix = torch.eye(length)
    piece = lapping_filter(block)
    for border in range(block, length, block):
        span = slice(border - block // 2, border + block // 2)
        matrix[span, span] = piece
    return matrix


def _spatially(images: Tensor, patch: tuple[int, int, int], *, inverse: bool) -> Tensor:
    """Filter the last two axes; `inverse` undoes it."""
    rows = _lapping(images.shape[-2], patch[1], images)
    columns = _lapping(images.shape[-1], patch[2], images)
    return rows.T @ images @ columns if inverse else rows @ images @ columns.T


def _unlapped(differences: Tensor, patch: tuple[int, int, int]) -> Tensor:
    times = _lapping(differences.shape[1], patch[0], differences)
    return _spatially(torch.einsum("st,bschw->btchw", times, differences), patch, inverse=True)


def _rows(differences: Tensor, size: tuple[int, int, int], patch: tuple[int, int, int]) -> Float[Tensor, "n p"]:
    """Lap and cut (B, T-1, 3, H, W) into rows, one for each patch, ordered batch, time, height, width."""
    times = _lapping(differences.shape[1], patch[0], differences)
    lapped = _spatially(torch.einsum("ts,bschw->btchw", times, differences), patch, inverse=False)
    (frames, height, width), (f, p, q) = size, patch
    cut = lapped.reshape(-1, (frames - 1) // f, f, 3, height // p, p, width // q, q)
    return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(-1, f * 3 * p * q)


def _split(frames: Tensor, grid: tuple[int, int]) -> tuple[Float[Tensor, "B N g q"], Float[Tensor, "B N 3 H W"]]:
    """Differences to frame 0 as fades of its detail, and the rest."""
    differences = frames[:, 1:] - frames[:, :1]
    details = fade.detail(frames[:, 0], fade.NODES * frames.shape[-2] // grid[0])
    fades = fade.solve(differences, details, grid)
    return fades, differences - fade.faded(fades, details)


def _moving_rows(
    clips: Iterable[Tensor], patch: tuple[int, int, int]
) -> tuple[tuple[int, int, int], Float[Tensor, "n p"], Float[Tensor, "n c"]]:
    """Size of the clips, and of all patches in which something moves: the rest after fading as rows, and the fades."""
    sizes, moving, fading = set(), [], []
    for clip in clips:
        size = (clip.shape[0], clip.shape[2], clip.shape[3])
        _check_patch(size, patch)
        sizes.add(size)
        fades, rest = _split(clip[None], (fade.NODES * size[1] // patch[1], fade.NODES * size[2] // patch[2]))
        active = _active(_rows(clip[None, 1:] - clip[None, :1], size, patch).square().mean(1))
        moving.append(_rows(rest, size, patch)[active])
        fading.append(fade.to_channels(fades, patch[0]).permute(0, 2, 3, 4, 1).flatten(0, 3)[active])
    count = sum(len(rows) for rows in moving)
    if len(sizes) != 1 or not count:
        raise InputError(
            f"can't fit the codec on clips of sizes {sorted(sizes)} with {count} moving patches",
            fix="Give clips of one size in which something moves.",
        )
    return sizes.pop(), torch.cat(moving), torch.cat(fading)


def _uncut(rows: Tensor, size: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    (frames, height, width), (f, p, q) = size, patch
    cut = rows.reshape(-1, (frames - 1) // f, height // p, width // q, f, 3, p, q)
    return cut.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(-1, frames - 1, 3, height, width)


def _cut_image(image: Tensor, height: int, width: int) -> Tensor:
    b, c, rows, columns = image.shape
    cut = image.reshape(b, c, rows // height, height, columns // width, width)
    return cut.permute(0, 1, 3, 5, 2, 4).reshape(b, c * height * width, rows // height, columns // width)


def _active(mean_square: Tensor) -> Tensor:
    return mean_square > ACTIVE_RMS**2


def _oriented(basis: Tensor) -> Tensor:
    """An eigenvector's sign is free: make its largest entry positive, so that two fits agree."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * largest.sign()


def _check_patch(size: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    frames, height, width = size
    lengths = (frames - 1, height, width)
    if any(length % side or side % 2 for length, side in zip(lengths, patch, strict=True)):
        raise InputError(
            f"patches of {patch} don't divide {frames - 1} x {height} x {width} (later frames, height, width)"
        )
