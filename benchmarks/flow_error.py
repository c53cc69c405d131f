"""How well does each flow method read an object's velocity, by its radius, speed, texture? Writes docs/flow_error.md.

    .venv/bin/python benchmarks/flow_error.py --out docs/flow_error.md

A disc moves over a still ground by a known vector, in a random direction and at a random fraction of a pixel. Plain:
disc and ground have one colour each; textured: both have a picture of their own, the disc's moves with it. The error is
that of the mean flow over the true disc, as the rewards take it, in percent of the speed; the median over the samples.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
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

SIDE, FINE = 80, 3  # px of a frame; drawn so many times larger, then averaged
RADII, SPEEDS, TEXTURES = (3, 6, 12, 20), (0.5, 2.0, 6.0, 12.0), ("plain", "textured")
SEED, SAMPLES = 5, 4
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
def error(flow: FlowEstimator, kind: Pairs, speed: float) -> float:
    """Median error of the velocity, percent of the speed."""
    found = object_velocity(flow(kind.frames), (kind.mask > 0.5).float())[:, 0]
    return float((found - kind.velocity).norm(dim=1).median()) / speed * 100


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


def tables(a: argparse.Namespace) -> str:
    chosen = {name: make() for name, make in methods(a.weights).items()}
    kinds = list(itertools.product(TEXTURES, RADII, SPEEDS))
    seen: dict[tuple[str, str, float, float], float] = {}
    for texture, radius, speed in tqdm(kinds, unit="kind"):
        kind = pairs(radius, speed, texture, a.samples)
        for name, flow in chosen.items():
            seen[name, texture, radius, speed] = error(flow, kind, speed)
    heads = [f"r {radius}, {speed:g} px" for radius in RADII for speed in SPEEDS]
    lines = [f"{a.samples} pairs of each kind, {SIDE} x {SIDE} px, seed {SEED}; error in percent of the speed."]
    if not any(name.startswith("raft") for name in chosen):
        lines.append("RAFT's published weights were absent.")
    for texture in TEXTURES:
        lines += [
            "",
            f"**{texture.capitalize()}**",
            "",
            f"| method | {' | '.join(heads)} |",
            "|" + "---|" * (1 + len(heads)),
        ]
        for name in chosen:
            cells = [f"{seen[name, texture, radius, speed]:.0f}" for radius in RADII for speed in SPEEDS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--weights", type=Path, help=f"folder with {RAFT_SMALL}")
    a = parser.parse_args()
    torch.set_num_threads(1)
    write_below(a.out, "flow_error.py", tables(a))


if __name__ == "__main__":
    main()
