"""Train the embedded optical-flow network on simulated clips, whose flow is known exactly.

Command: `python -m newtonrewards.training.flow --recipe launch/recipes/flow.yaml --out runs/flow`

Everything is a function of the recipe's seed and the step, so a killed run that is started again ends with the same
weights.
Letters: N clips of the pool, P pairs of a batch, H height, W width in px. Flow in px/frame, x right, y down.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save
from torch import Tensor
from torchvision.models.optical_flow import RAFT
from tqdm import tqdm

from newtonrewards.core import recipe as recipes
from newtonrewards.core.clip import Clip
from newtonrewards.core.errors import CheckpointError, Interrupted, NewtonError, RecipeError
from newtonrewards.core.run import append_jsonl, output_folder, provenance, read_jsonl, stream, write_atomic, write_json
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, embedded_network, load_weights
from newtonrewards.rewards.kinematics import object_velocity
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import Scene, sample_scene


class FlowRecipe(recipes.Config):
    """Recipe of `newtonrewards.training.flow`.

    Attributes:
        seed: of clips, initial weights, pairs and augmentation.
        clips: size of the training pool, which is rendered once and kept in memory (0.5 MB each).
        val_clips: clips of the val split that measure the result.
        imperfect: share of clips with wrong physics, since the reward will look at wrong motion.
        steps, batch_size, lr, weight_decay, warmup: AdamW with linear warm-up (share of the steps) and linear decay to
            zero.
        clip_norm: largest gradient norm.
        num_flow_updates: refinement steps; the loss weighs the i-th from last by `gamma` ** i.
        upsample: enlargement of the frames, as in `FlowConfig`.
        object_weight: weight of a pixel of the object in the L1 loss; the background has 1.
        odd_pairs: share of clips shown backwards or with every second frame left out, half each.
        panned: share of pairs whose second frame is shifted as a whole by up to `pan_px`, at the first step; falls to
            zero at the
            last. Without it the network reads everything as still for hundreds of steps, since the object is 3 % of the
            pixels.
        checkpoint_every, log_every: in steps.
    """

    seed: int = 0
    clips: int = Field(default=1500, ge=1)
    val_clips: int = Field(default=100, ge=1)
    imperfect: float = Field(default=0.3, ge=0, le=1)
    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lr: float = Field(default=1.5e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    num_flow_updates: int = Field(default=4, ge=1)
    gamma: float = Field(default=0.8, gt=0, le=1)
    upsample: int = Field(default=2, ge=1)
    object_weight: float = Field(default=9.0, gt=0)
    odd_pairs: float = Field(default=1 / 3, ge=0, le=1)
    panned: float = Field(default=1.0, ge=0, le=1)
    pan_px: float = Field(default=6.0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    log_every: int = Field(default=10, ge=1)


class OddScene(Scene):
    """A scene seen backwards, or with every second frame left out; the renderer then gives the exact flow of that."""

    @property
    def times(self) -> NDArray[Any]:
        forward = super().times
        return forward[::-1].copy() if self.index % 2 else forward[::2].copy()


@dataclass(frozen=True)
class Pool:
    """Pairs of consecutive frames with their flow, as small as they can be kept.

    Attributes:
        first, second: (N, 3, H, W) frames, 8 bits.
        flow: (N, 2, H, W) px/frame from first to second, half precision.
        mask: (N, H, W) object in the first frame, 0 to 255.
    """

    first: UInt8[Tensor, "N 3 H W"]
    second: UInt8[Tensor, "N 3 H W"]
    flow: Float[Tensor, "N 2 H W"]
    mask: UInt8[Tensor, "N H W"]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Pairs:
    """One batch in floating point: `first`, `second` (P, 3, H, W) in [0, 1], `flow` (P, 2, H, W) px/frame, `mask` (P,
    H, W)."""

    first: Float[Tensor, "P 3 H W"]
    second: Float[Tensor, "P 3 H W"]
    flow: Float[Tensor, "P 2 H W"]
    mask: Float[Tensor, "P H W"]


def make_pool(recipe: FlowRecipe) -> Pool:
    """Render the training clips; every clip gives all its pairs."""
    parts: list[tuple[Tensor, ...]] = []
    for index in tqdm(range(recipe.clips), desc="clips", unit="clip"):
        scene = sample_scene(recipe.seed, index, split="train", imperfect=recipe.imperfect)
        if torch.rand((), generator=stream(recipe.seed, 0, index, "flow/odd")).item() < recipe.odd_pairs:
            scene = OddScene(**{field.name: getattr(scene, field.name) for field in fields(scene)})
        clip = render(scene)
        truth, masks = _known(clip)
        frames = (clip.frames * 255).round().byte()
        parts.append((frames[:-1], frames[1:], truth.half(), (masks[:-1] * 255).byte()))
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _known(clip: Clip) -> tuple[Tensor, Tensor]:
    """Exact flow and masks, which `render` always gives."""
    assert clip.truth is not None
    assert clip.truth.flow is not None
    assert clip.masks is not None
    return clip.truth.flow, clip.masks


def draw(pool: Pool, recipe: FlowRecipe, step: int) -> Pairs:
    """The batch of a step, augmented; a pure function of its arguments."""
    generator = stream(recipe.seed, step, 0, "flow/pairs")
    chosen = torch.randint(len(pool), (recipe.batch_size,), generator=generator)
    first, second = (frames[chosen].float() / 255 for frames in (pool.first, pool.second))
    pairs = Pairs(first, second, pool.flow[chosen].float(), pool.mask[chosen].float() / 255)
    share = recipe.panned * (1 - step / recipe.steps)
    return _recoloured(_panned(_turned(pairs, generator), share, recipe.pan_px, generator), generator)


def _panned(pairs: Pairs, share: float, reach: float, generator: torch.Generator) -> Pairs:
    """Shift the whole second frame, as a moving camera would, for a share of the batch."""
    count, _, height, width = pairs.second.shape
    moves = torch.rand(count, 1, generator=generator) < share
    shift = moves * (torch.rand(count, 2, generator=generator) * 2 - 1) * reach
    still = torch.eye(2, 3).expand(count, 2, 3)
    grid = F.affine_grid(still, list(pairs.second.shape), align_corners=False)
    grid = grid - (2 * shift / torch.tensor([width, height]))[:, None, None, :]
    second = F.grid_sample(pairs.second, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return replace(pairs, second=second, flow=pairs.flow + shift[:, :, None, None])


def _turned(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """Mirror left-right, up-down and along the diagonal, each for a random half of the batch."""
    coin = torch.rand(len(pairs.first), 3, generator=generator) < 0.5
    first, second, flow, mask = pairs.first, pairs.second, pairs.flow, pairs.mask
    for axis, sign in ((-1, (-1.0, 1.0)), (-2, (1.0, -1.0))):
        yes = coin[:, axis][:, None, None, None]
        first, second = (torch.where(yes, part.flip(axis), part) for part in (first, second))
        flow = torch.where(yes, flow.flip(axis) * torch.tensor(sign)[:, None, None], flow)
        mask = torch.where(yes[:, 0], mask.flip(axis), mask)
    yes = coin[:, 0][:, None, None, None]
    first, second = (torch.where(yes, part.mT, part) for part in (first, second))
    return Pairs(first, second, torch.where(yes, flow.mT.flip(1), flow), torch.where(yes[:, 0], mask.mT, mask))


def _recoloured(pairs: Pairs, generator: torch.Generator) -> Pairs:
    """Other colours for both frames of a pair, then what generated frames have: blur, noise and flicker, each frame its
    own."""
    size = len(pairs.first)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(size, *shape, 1, 1, generator=generator) * (high - low) + low

    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(size)])
    gain, shift = uniform(0.6, 1.3, 3), uniform(-0.15, 0.15, 3)
    frames = []
    for frame in (pairs.first, pairs.second):
        frame = frame.gather(1, order[:, :, None, None].expand_as(frame)) * gain + shift
        blurred = F.avg_pool2d(F.pad(frame, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        frame = frame + uniform(-1.0, 1.0, 1).clamp(min=0) * (blurred - frame)
        noise = torch.randn(frame.shape, generator=generator) * uniform(-0.02, 0.02, 1).clamp(min=0)
        frames.append((frame * uniform(0.98, 1.02, 1) + noise).clamp(0, 1))
    return Pairs(frames[0], frames[1], pairs.flow, pairs.mask)


def loss_of(network: RAFT, pairs: Pairs, recipe: FlowRecipe) -> Float[Tensor, ""]:
    """Sequence loss: weighted L1 in px of the original size, later updates count more."""
    size = pairs.flow.shape[-2:]
    enlarged = [
        F.interpolate(part * 2 - 1, scale_factor=recipe.upsample, mode="bilinear", align_corners=False)
        for part in (pairs.first, pairs.second)
    ]
    weight = 1 + (recipe.object_weight - 1) * pairs.mask[:, None]
    total = torch.zeros(())
    for age, flow in enumerate(reversed(network(*enlarged, num_flow_updates=recipe.num_flow_updates))):
        small = F.interpolate(flow, size=size, mode="area") / recipe.upsample
        total = total + recipe.gamma**age * (weight * (small - pairs.flow).abs()).mean()
    return total


@torch.no_grad()
def measure(flow: RaftFlow, *, seed: int, clips: int, split: str = "val", shift: str = "id") -> dict[str, float]:
    """End-point error against exact flow on clips that training never saw.

    Returns:
        px/frame, lower is better: `epe_background` and `epe_object` (mean length of the error vector),
        `object_velocity` (mean length of the error of the mean flow over the mask), beside `speed`, the mean length of
        the true one.
    """
    sums = dict.fromkeys(("epe_background", "epe_object", "object_velocity", "speed"), 0.0)
    for index in range(clips):
        clip = render(sample_scene(seed, index, split=split, shift=shift))
        truth, masks = _known(clip)
        inside = (masks[:-1] > 0.5).float()
        found = flow(clip.frames[None])[0]
        error = (found - truth).norm(dim=1)
        measured, true = (object_velocity(field[None], inside[None])[0] for field in (found, truth))
        sums["epe_background"] += ((error * (1 - inside)).sum() / (1 - inside).sum()).item() / clips
        sums["epe_object"] += ((error * inside).sum() / inside.sum()).item() / clips
        sums["object_velocity"] += (measured - true).norm(dim=-1).nanmean().item() / clips
        sums["speed"] += true.norm(dim=-1).nanmean().item() / clips
    return sums


class FlowTraining:
    """One training run in one folder: `metrics.jsonl`, `checkpoint.pt`, at the end `flow.safetensors` and
    `summary.json`."""

    def __init__(self, recipe: FlowRecipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.key = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(recipe.seed, 0, 0, "flow/weights").initial_seed())
            self.network = embedded_network().train()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.step = 0
        self.restore()

    def fit(self, pool: Pool) -> None:
        recipe, started = self.recipe, time.perf_counter()
        for step in tqdm(
            range(self.step, recipe.steps), initial=self.step, total=recipe.steps, desc="flow", unit="step"
        ):
            for group in self.optimiser.param_groups:
                group["lr"] = recipe.lr * _schedule(step / recipe.steps, recipe.warmup)
            loss = loss_of(self.network, draw(pool, recipe, step), recipe)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
            self.optimiser.step()
            self.step = step + 1
            if self.step % recipe.log_every == 0:
                row = {
                    "step": self.step,
                    "loss": loss.item(),
                    "grad_norm": norm.item(),
                    "lr": self.optimiser.param_groups[0]["lr"],
                }
                append_jsonl(self.folder / "metrics.jsonl", {**row, "seconds": time.perf_counter() - started})
            if self.step % recipe.checkpoint_every == 0:
                self.save()

    def save(self) -> None:
        state = {
            "key": self.key,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / "checkpoint.pt", buffer.getvalue())

    def restore(self) -> None:
        """Go on from the folder's checkpoint, if there is one; log rows behind it are dropped, they will be written
        again.

        Raises:
            CheckpointError: the checkpoint was written by another recipe.
        """
        path, log = self.folder / "checkpoint.pt", self.folder / "metrics.jsonl"
        if path.is_file():
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                raise CheckpointError(
                    "this checkpoint belongs to another recipe", where=path, fix="Give another folder with --out."
                )
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]
        if log.is_file():
            rows = [row for row in read_jsonl(log) if row["step"] <= self.step]
            log.unlink()
            for row in rows:
                append_jsonl(log, row)

    def export(self) -> Path:
        """Write the weights in half precision, as they ship."""
        path = self.folder / "flow.safetensors"
        write_atomic(path, save({name: value.half().contiguous() for name, value in self.network.state_dict().items()}))
        return path


def _schedule(done: float, warmup: float) -> float:
    return min(done / warmup if warmup > 0 else 1.0, (1 - done) / (1 - warmup), 1.0)


def run(recipe: FlowRecipe, folder: Path) -> dict[str, Any]:
    """Train, export, measure what was exported on the val split, and write `summary.json`."""
    training = FlowTraining(recipe, output_folder(folder))
    if training.step < recipe.steps:
        try:
            training.fit(make_pool(recipe))
        except KeyboardInterrupt:
            training.save()
            raise Interrupted(
                f"stopped at step {training.step}", where=folder, fix="The same command goes on from there."
            ) from None
        training.save()
    path = training.export()
    network = embedded_network()
    load_weights(network, path)
    flow = RaftFlow(network, FlowConfig(num_flow_updates=recipe.num_flow_updates, upsample=recipe.upsample))
    summary = {
        "val": measure(flow, seed=recipe.seed, clips=recipe.val_clips),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "recipe": recipe.model_dump(),
        "provenance": provenance(),
    }
    write_json(folder / "summary.json", summary)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m newtonrewards.training.flow", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file, for example launch/recipes/flow.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one value of the recipe; repeatable"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/flow"),
        help="run folder; a started run in it goes on (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="validate and print the recipe, then stop")
    arguments = parser.parse_args(argv)
    try:
        recipe = recipes.load(FlowRecipe, arguments.recipe, arguments.set)
        if arguments.dry_run:
            print(recipe.model_dump_json(indent=1))
            return 0
        summary = run(recipe, arguments.out)
    except (NewtonError, KeyboardInterrupt) as error:
        print(str(error) or "interrupted")
        return 2 if isinstance(error, RecipeError) else 130 if isinstance(error, Interrupted | KeyboardInterrupt) else 1
    for name, value in summary["val"].items():
        print(f"{name:>16}  {value:.3f} px/frame")
    print(f"{'weights':>16}  {arguments.out / 'flow.safetensors'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
