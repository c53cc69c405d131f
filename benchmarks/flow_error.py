"""How well does each flow method read an object's velocity, by its radius, speed, texture? Writes docs/flow_error.md.

    .venv/bin/python benchmarks/flow_error.py --out docs/flow_error.md

A disc moves over a still ground by a known vector, in a random direction and at a random fraction of a pixel. Plain:
disc and ground have one colour each; textured: both have a picture of their own, the disc's moves with it. The error is
that of the mean flow over the true disc, as the rewards take it, in percent of the speed; the median over the samples.
Beside that, for the methods that ship, the objects of simulated clips, by what their radius and speed happen to be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pages import page_parser, write_below
from torch import Tensor
from tqdm import tqdm

from newtonrewards.rewards.classical import DisFlow
from newtonrewards.rewards.flow import FlowConfig, FlowEstimator, load_flow
from newtonrewards.rewards.kinematics import object_velocity
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

SIDE, FINE = 80, 3  # px of a frame; drawn so many times larger, then averaged
RADII, SPEEDS, TEXTURES = (3, 6, 12, 20), (0.5, 2.0, 6.0, 12.0), ("plain", "textured")
SEED, SAMPLES, CLIPS = 5, 4, 12
# Borders of the simulated objects' radii and speeds; fewer pairs than this say nothing.
SIZES, PACES, LEAST_PAIRS = (0, 5, 7, 20), (0.5, 1, 2, 4, 12), 8
RAFT_SMALL = "raft_small_princeton.safetensors"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of frames of one kind. velocity: (B, 2) px/frame. mask: (B, 1, H, W) the disc in the first frame."""

    frames: Float[Tensor, "B 2 3 H W"]
    velocity: Float[Tensor, "B 2"]
    mask: Float[Tensor, "B 1 H W"]


def picture(rng: np.random.Generator, side: int, textured: bool) -> Float[Tensor, "3 side side"]:
    """A colour, or smooth noise around it with details of 3 and 8 px of the final frame."""
    colour = torch.from_numpy(rng.uniform(0.2, 0.8, (3, 1, 1))).float()
    if not textured:
        return colour.expand(3, side, side)
    noise = torch.zeros(3, side, side)
    for detail in (3, 8):
        coarse = torch.from_numpy(rng.uniform(-0.25, 0.25, (1, 3, *2 * (side // (detail * FINE) + 3,)))).float()
        noise += F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)[0]
    return (colour + noise).clamp(0, 1)


def sample(rng: np.random.Generator, radius: float, speed: float, textured: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two frames, the velocity in px/frame and the disc's first mask."""
    angle, large = rng.uniform(0, 2 * np.pi), SIDE * FINE
    velocity = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32) * speed
    start = SIDE / 2 - velocity / 2 + torch.from_numpy(rng.uniform(-0.5, 0.5, 2)).float()
    ground, skin = picture(rng, large, textured), picture(rng, large, textured)
    while (ground.mean((1, 2)) - skin.mean((1, 2))).norm() < 0.25:  # what can't be seen can't be read
        skin = picture(rng, large, textured)
    axis = (torch.arange(large) + 0.5) / FINE
    frames, masks = [], []
    for centre in (start, start + velocity):
        x, y = axis[None] - centre[0], axis[:, None] - centre[1]
        disc = (x.square() + y.square() <= radius**2).float()
        grid = torch.stack(torch.broadcast_tensors(x, y), -1)[None] / (SIDE / 2)
        moved = F.grid_sample(skin[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        frames.append(F.avg_pool2d(disc * moved + (1 - disc) * ground, FINE))
        masks.append(F.avg_pool2d(disc[None], FINE)[0])
    return torch.stack(frames).clamp(0, 1), velocity, masks[0]


def pairs(radius: float, speed: float, texture: str, samples: int) -> Pairs:
    """The same ones for every method."""
    rng = np.random.default_rng([SEED, radius, int(10 * speed), TEXTURES.index(texture)])
    made = [sample(rng, radius, speed, texture == "textured") for _ in range(samples)]
    frames, velocity, mask = (torch.stack(part) for part in zip(*made, strict=True))
    return Pairs(frames, velocity, mask[:, None])


@torch.no_grad()
def errors(flow: FlowEstimator, frames: Tensor, masks: Tensor, velocity: Tensor) -> Float[Tensor, "B N"]:
    """Error of each pair's velocity over the masked object, percent of its speed."""
    found = object_velocity(flow(frames), (masks > 0.5).float())
    return (found - velocity).norm(dim=-1) / velocity.norm(dim=-1) * 100


def methods(weights: Path | None) -> dict[str, Callable[[], FlowEstimator]]:
    """Name -> how it is made; published RAFTs where their weights are."""
    made: dict[str, Callable[[], FlowEstimator]] = {
        f"embedded, x{factor}": lambda factor=factor: load_flow(FlowConfig(upsample=factor)) for factor in (1, 2, 4)
    }
    made |= {f"DIS, x{factor}": lambda factor=factor: DisFlow(upsample=factor) for factor in (1, 2, 4)}
    if weights is not None and (weights / RAFT_SMALL).is_file():
        settings = {"network": "raft_small", "weights": weights / RAFT_SMALL, "num_flow_updates": 12}
        for factor in (1, 2, 4):
            config = FlowConfig.model_validate({**settings, "upsample": factor, "pairs_at_once": 4})
            made[f"raft_small, x{factor}"] = lambda config=config: load_flow(config)
    return made


def discs(chosen: dict[str, FlowEstimator], samples: int) -> list[str]:
    """Tables of the moving discs."""
    lines = [f"{samples} pairs of each kind, {SIDE} x {SIDE} px, seed {SEED}; error in percent of the speed."]
    for texture in TEXTURES:
        rows = {}
        for radius, speed in tqdm(list(itertools.product(RADII, SPEEDS)), desc=texture):
            kind = pairs(radius, speed, texture, samples)
            rows[f"{radius} | {speed:g}"] = [
                float(errors(flow, kind.frames, kind.mask, kind.velocity[:, None]).median()) for flow in chosen.values()
            ]
        lines += ["", f"**{texture.capitalize()}**", "", *table(list(chosen), rows)]
    return lines


def simulated(chosen: dict[str, FlowEstimator], clips: int) -> list[str]:
    """Table of the simulator's own clips, by what the object's radius and speed happen to be."""
    made = [render(sample_scene(SEED, index, split="val")) for index in range(clips)]
    frames, masks = (torch.stack([getattr(clip, name) for clip in made]) for name in ("frames", "masks"))
    flow = torch.stack([clip.truth.flow for clip in made if clip.truth is not None and clip.truth.flow is not None])
    masks = masks[:, :-1]
    velocity = object_velocity(flow, (masks > 0.5).float())
    radius, speed = (masks.sum((-2, -1)) / torch.pi).sqrt(), velocity.norm(dim=-1)
    found = [errors(one, frames, masks, velocity) for one in tqdm(chosen.values(), desc="simulated")]
    rows = {}
    for (small, large), (slow, fast) in itertools.product(itertools.pairwise(SIZES), itertools.pairwise(PACES)):
        inside = (radius >= small) & (radius < large) & (speed >= slow) & (speed < fast)
        if inside.sum() >= LEAST_PAIRS:
            name = f"{small:g} to {large:g} | {slow:g} to {fast:g} ({int(inside.sum())})"
            rows[name] = [float(error[inside].nanmedian()) for error in found]
    height = frames.shape[-1]
    head = f"**Simulated**: {clips} clips of the val split, {height} x {height} px; in brackets the number of pairs."
    return ["", head, "", *table(list(chosen), rows)]


def table(methods: Sequence[str], rows: Mapping[str, Sequence[float]]) -> list[str]:
    """Rows `radius | speed`, one column for each method."""
    lines = [f"| radius, px | speed, px/frame | {' | '.join(methods)} |", "|" + "---|" * (2 + len(methods))]
    return lines + [f"| {name} | {' | '.join(f'{value:.0f}' for value in row)} |" for name, row in rows.items()]


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--weights", type=Path, help=f"folder with {RAFT_SMALL}")
    a = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: make() for name, make in methods(a.weights).items()}
    shipped = {name: flow for name, flow in chosen.items() if not name.startswith("raft")}
    lines = discs(chosen, a.samples) + simulated(shipped, a.clips)
    if not any(name.startswith("raft") for name in chosen):
        lines += ["", "RAFT's published weights were absent."]
    write_below(a.out, "flow_error.py", "\n".join(lines))


if __name__ == "__main__":
    main()
