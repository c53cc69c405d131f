"""Frames per second of the flow reward on videos: ours beside a plain loop as other scripts have it, in the same run.

    .venv/bin/python benchmarks/scoring.py                        # the shipped flow network
    .venv/bin/python benchmarks/scoring.py --flow raft_small --flow-weights FILE

The plain loop decodes all frames, then runs torchvision's RAFT pair by pair. Ours encodes each frame once for both of
its pairs, runs pairs together, up-samples only the last estimate, and looks up correlation its own way. Both get the
same weights, clips and number of updates, and both velocities go through the same arithmetic; the scores must agree to
1e-3.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import decord
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.optical_flow import RAFT

from newtonrewards.core.video import read_clip, write_video
from newtonrewards.rewards import kinematics, support
from newtonrewards.rewards.flow import FlowConfig, RaftFlow, load_network
from newtonrewards.simulation.render import render
from newtonrewards.simulation.scene import sample_scene

FPS = 20.0


def residual(flow: Tensor) -> float:
    """Root of the mean square second difference of the velocity over what moves, H/s."""
    field = kinematics.to_heights_per_second(flow, torch.tensor([FPS]))
    velocity = kinematics.object_velocity(field, support.motion(flow))
    return float(kinematics.second_difference(velocity, torch.ones(velocity.shape[:2], dtype=torch.bool)).sqrt())


@torch.no_grad()
def plain(path: Path, network: RAFT, updates: int) -> float:
    """Decode everything, then pair by pair."""
    frames = torch.from_numpy(decord.VideoReader(str(path))[:].asnumpy()).permute(0, 3, 1, 2).float() / 255
    images = frames * 2 - 1
    flows = [network(a[None], b[None], num_flow_updates=updates)[-1] for a, b in itertools.pairwise(images)]
    return residual(torch.cat(flows)[None])


@torch.no_grad()
def ours(path: Path, flow: RaftFlow) -> float:
    return residual(flow(read_clip(path).frames[None]))


def timed(function: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Median seconds, and what the function returned."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), value


def flops(function: Callable[[], float]) -> float:
    """Floating-point operations of convolutions and matrix products, 1e9."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def peak() -> float:
    """What this machine reaches in a large matrix product, 1e9 operations per second."""
    a = torch.randn(1024, 1024)
    seconds, _ = timed(lambda: float((a @ a)[0, 0]), 5)
    return 2 * 1024**3 / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", default="embedded", choices=("embedded", "raft_small", "raft_large"))
    parser.add_argument("--flow-weights", type=Path)
    parser.add_argument("--size", type=int, default=128, help="of the videos, px; a multiple of 8, at least 128")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    config = FlowConfig(network=a.flow, weights=a.flow_weights, num_flow_updates=a.updates, upsample=1)
    flow, network = RaftFlow(load_network(config), config), load_network(config).eval()
    scene = sample_scene(0, 1, split="val")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        frames = torch.nn.functional.interpolate(render(scene).frames, (a.size, a.size), mode="bilinear")
        write_video(path, frames, FPS)
        count = len(frames)
        slow, theirs = timed(lambda: plain(path, network, a.updates), a.repeats)
        fast, mine = timed(lambda: ours(path, flow), a.repeats)
        work = flops(lambda: ours(path, flow))
    print(f"{a.flow}, {a.updates} updates, {count} frames of {a.size} px, {torch.get_num_threads()} threads")
    print(f"plain loop  {count / slow:7.1f} frames/s")
    print(f"ours        {count / fast:7.1f} frames/s   {slow / fast:.2f} times as many")
    print(f"score       {mine:.6f} and {theirs:.6f} H/s, {abs(mine / theirs - 1):.1e} apart")
    print(
        f"floor       {work:.1f} Gflop, at this machine's {peak():.0f} Gflop/s: {work / peak() / fast:.0%} of our time"
    )


if __name__ == "__main__":
    main()
