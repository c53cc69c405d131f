"""Where the time and memory of a reward step go, beside a plain loop, in one run.

    .venv/bin/python benchmarks/training.py --out docs/memory.md --num-frames 17 33 --size 64 96 --repeats 3

Four arms take the same step (generate, decode, judge, back, update) from the same weights, noise and captions:
- plain: as other scripts write it. Gradient through all sampling steps with everything kept, all frames decoded at once
  by the pipeline's autoencoder, torchvision's RAFT pair by pair with both frames encoded, appearance frame by frame.
- full chain: ours with gradient through all sampling steps; in double its gradient must be the plain one's.
- saving: the same with 8 pairs at once in the flow network, recomputed going back.
- last steps: ours as it is used, with gradient through the last `--grad-steps`.

Arms take turns, and seconds are those of the processor on one thread, so that other work on the machine shifts the
ratios little; with `--device cuda` those of the clock, each phase waited for. The floor is what the arm's convolutions
and matrix products would take at the speed that this machine reaches in large ones.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from pages import page_parser, write_below
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.memory import MemoryTracker
from newtonrewards.models import lora
from newtonrewards.models.base import Condition, draw_noise
from newtonrewards.models.sampling import euler_step, sample, schedule
from newtonrewards.models.tiny_wan import tiny_pipeline
from newtonrewards.models.wan import WanModel
from newtonrewards.models.wan_vae import _statistics
from newtonrewards.rewards.flow import RaftFlow, load_network
from newtonrewards.rewards.observation import Networks
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.training.plan import networks

STEPS = 8  # sampling steps
PHASES = ("sampling", "decode", "flow", "appearance", "terms", "backward", "optimiser")
FLOW: dict[str, object] = {"num_flow_updates": 12}
SAVING: dict[str, object] = {**FLOW, "pairs_at_once": 8, "checkpoint": True}
REWARD = {
    "terms": {
        "kinematic/second_difference": {"weight": 1.0, "support": "motion"},
        "mass/conserved": {"weight": 1.0, "support": "motion"},
    },
}


def now(device: str) -> float:
    """Processor seconds; of a GPU the clock's, once it has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Clock:
    """Seconds by phase; phases may lie inside one another, and the inner one counts."""

    device: str
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        yield
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        at = now(self.device)
        if self._open:
            self.seconds[self._open[-1]] += at - self._since
        self._since = at


class Timed:
    """A frozen network whose calls count as a phase."""

    def __init__(self, network: Callable[[Tensor], Tensor], clock: Clock, name: str) -> None:
        self.network, self.clock, self.name = network, clock, name

    def __call__(self, frames: Tensor) -> Tensor:
        with self.clock.phase(self.name):
            return self.network(frames)


def plain_flow(flow: RaftFlow) -> Callable[[Tensor], Tensor]:
    """torchvision's forward, pair by pair, on frames enlarged as ours are."""
    network = load_network(flow.config).eval().requires_grad_(False)

    def run(frames: Tensor) -> Tensor:
        factor, size = flow.config.upsample, frames.shape[-2:]
        large = F.interpolate(frames.flatten(0, 1) * 2 - 1, scale_factor=factor, mode="bilinear", align_corners=False)
        large = large.unflatten(0, frames.shape[:2])
        updates = flow.config.num_flow_updates
        network.to(frames.device, frames.dtype)
        flows = [
            network(large[:, i], large[:, i + 1], num_flow_updates=updates)[-1] for i in range(frames.shape[1] - 1)
        ]
        return torch.stack([F.interpolate(f, size=size, mode="area") / factor for f in flows], dim=1)

    return run


def plain_appearance(flow: RaftFlow) -> Callable[[Tensor], Tensor]:
    """The same encoder in a pass of its own, frame by frame."""
    return lambda frames: torch.cat([flow.features(frames[:, i : i + 1]) for i in range(frames.shape[1])], dim=1)


class Arm:
    """One way to take the step; `grad_steps` None is the plain loop, which decodes with `vae`."""

    def __init__(
        self,
        name: str,
        model: WanModel,
        vae: AutoencoderKLWan,
        grad_steps: int | None,
        flow_config: dict[str, object],
        clips: ClipBatch,
    ) -> None:
        self.name, self.model, self.vae, self.grad_steps, self.clips = name, model, vae, grad_steps, clips
        self.clock = Clock(clips.frames.device.type)
        config = RewardConfig.model_validate({**REWARD, "flow": flow_config})
        self.reward = Reward(config)
        flow = self.reward.networks.flow
        if grad_steps is None:
            given = Networks(
                Timed(plain_flow(flow), self.clock, "flow"), Timed(plain_appearance(flow), self.clock, "appearance")
            )
            self.judge = Reward(config, given)
        else:
            own = self.reward.networks
            flow.flow_and_features = Timed(flow.flow_and_features, self.clock, "flow")  # appearance comes out of it
            self.judge = Reward(config, own)
        self.trained = [p for p in model.transformer.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=0.0)  # all arms stay at the same weights

    def step(self, noise_scale: float = 1.0) -> Tensor:
        """One step; returns the gradient of everything that trains, as one vector."""
        with torch.no_grad():
            condition = self.model.condition(self.clips.captions, self.clips.frames[:, 0])
        noise = draw_noise(self.model.spec, 0, 0, range(len(self.clips))).to(self.trained[0]) * noise_scale
        with self.clock.phase("sampling"):
            latents = self._latents(condition, noise)
        with self.clock.phase("decode"):
            frames = self._frames(latents, condition)
        with self.clock.phase("terms"):
            loss = -self.judge(self.clips.with_frames(frames)).total.mean()
        with self.clock.phase("backward"):
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in self.trained])
        with self.clock.phase("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()
        return gradient

    def _latents(self, condition: Condition, noise: Tensor) -> Tensor:
        if self.grad_steps is not None:
            return sample(
                self.model, condition, noise, num_inference_steps=STEPS, guidance_scale=1.0, grad_steps=self.grad_steps
            )
        sigmas = schedule(self.model.scheduler, STEPS).to(noise.device)
        for sigma, following in itertools.pairwise(sigmas):
            noise = euler_step(self.model, noise, sigma, following, condition, 1.0)
        return noise

    def _frames(self, latents: Tensor, condition: Condition) -> Tensor:
        if self.grad_steps is not None:
            return self.model.decode(latents, condition)
        mean, spread = _statistics(self.vae, latents)
        return (self.vae.decode(latents * spread + mean).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1)

    def memory(self) -> int:
        """Peak of a step, bytes of tensors."""
        with MemoryTracker(*networks(self.model, self.reward).values()) as tracker:
            self.step()
        return tracker.peak_bytes()


def in_double(made: Sequence[Arm]) -> dict[str, Tensor]:
    """Gradients with every number in double: what asks for float32 on the way gets double too. Ends the arms' use."""
    usual = Tensor.float, torch.nn.Module.float
    torch.set_default_dtype(torch.float64)
    Tensor.float, torch.nn.Module.float = Tensor.double, torch.nn.Module.double  # type: ignore[method-assign]
    for arm in made:
        arm.optimiser.state.clear()
        for module in (*networks(arm.model, arm.reward).values(), arm.vae):
            module.double()
        arm.clips = dataclasses.replace(arm.clips, frames=arm.clips.frames.double())
    gradients = {arm.name: arm.step() for arm in made}
    Tensor.float, torch.nn.Module.float = usual
    torch.set_default_dtype(torch.float32)
    return gradients


def apart(gradients: dict[str, Tensor], of: str) -> str:
    """How far from the plain loop's, relative to its norm."""
    plain = gradients["plain"]
    return f"{((gradients[of] - plain).norm() / plain.norm()).item():.1e}"


def floor(arm: Arm, conv_speed: float, matmul_speed: float) -> tuple[float, float]:
    """Gflop of an arm's step, and the seconds they take at this machine's best."""
    with FlopCounterMode(display=False) as counter:
        arm.step()
    work = counter.get_flop_counts()["Global"]
    conv = sum(flops for op, flops in work.items() if "conv" in str(op)) / 1e9
    rest = sum(work.values()) / 1e9 - conv
    return conv + rest, conv / conv_speed + rest / matmul_speed


def best_speed(function: Callable[[], Tensor], flops: float, device: str) -> float:
    """1e9 operations per second, the best of five."""
    seconds = []
    for _ in range(5):
        started = now(device)
        function()
        seconds.append(now(device) - started)
    return flops / min(seconds) / 1e9


def speeds(device: str) -> tuple[float, float]:
    """What this machine reaches in a large convolution and a large matrix product."""
    side, count = (1024, 4) if device == "cpu" else (8192, 256)
    with torch.no_grad(), torch.device(device):
        a, image, kernel = torch.randn(side, side), torch.randn(count, 64, 128, 128), torch.randn(64, 64, 3, 3)
        conv = best_speed(lambda: F.conv2d(image, kernel, padding=1), 2 * count * 64 * 64 * 9 * 128**2, device)
        return conv, best_speed(lambda: a @ a, 2 * side**3, device)


def arms(grad_steps: int, num_frames: int, size: int, device: str) -> list[Arm]:
    clips = ClipBatch(
        frames=torch.rand(1, num_frames, 3, size, size, generator=torch.Generator().manual_seed(0)),
        fps=torch.tensor([16.0]),
        captions=("an object falls",),
        index=(0,),
    ).to(device)
    made = []
    ways = (
        ("plain", None, FLOW),
        ("full chain", STEPS, FLOW),
        ("saving", STEPS, SAVING),
        ("last steps", grad_steps, FLOW),
    )
    for name, steps, flow_config in ways:
        pipeline = tiny_pipeline("2.1-no-image-encoder")
        pipeline.vae.requires_grad_(False)
        vae = copy.deepcopy(pipeline.vae)  # diffusers' own: a WanModel changes its norms
        model = WanModel(pipeline, num_frames=num_frames, height=size, width=size, fps=16.0)
        lora.add(model, rank=4)
        with torch.no_grad():  # a fresh adapter's B is zero, and so would A's gradient be
            for key, parameter in model.transformer.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(key)))
        made.append(Arm(name, model.to(device), vae.to(device), steps, flow_config, clips))
    return made


def page(made: Sequence[Arm], totals: dict[str, list[float]], gradients: dict[str, Tensor], title: str) -> str:
    conv, matmul = speeds(made[0].clock.device)
    plain = made[0]
    rows = [
        f"{title} Machine's best: {conv:.0f} Gflop/s in convolutions, {matmul:.0f} in matrix products.",
        "",
        "| arm | s a step | "
        + " | ".join(PHASES)
        + " | times faster than plain | peak of tensors | of plain's | floor |",
        "|---" * (len(PHASES) + 6) + "|",
    ]
    memory = {arm.name: arm.memory() for arm in made}
    for arm in made:
        seconds = statistics.median(totals[arm.name])
        whole = sum(arm.clock.seconds.values())
        shares = " | ".join(f"{arm.clock.seconds[phase] / whole:.0%}" for phase in PHASES)
        ratios = sorted(a / b for a, b in zip(totals[plain.name], totals[arm.name], strict=True))
        work, least = floor(arm, conv, matmul)
        rows.append(
            f"| {arm.name} | {seconds:.2f} | {shares} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}) | {memory[arm.name] / 1e6:.0f} MB | {memory[arm.name] / memory[plain.name]:.2f} | "
            f"{work:.0f} Gflop, {least / seconds:.0%} of the time |"
        )
    moved = {"plain": gradients["plain"], "noise": plain.step(noise_scale=1 + 1e-6)}
    cosine = F.cosine_similarity(gradients["plain"], gradients["last steps"], dim=0).item()
    double = in_double(made[:3])
    rows += [
        "",
        "Gradient of `full chain` and `saving` against `plain`, relative to its norm: "
        f"{apart(double, 'full chain')} and {apart(double, 'saving')} apart in double, "
        f"{apart(gradients, 'full chain')} and {apart(gradients, 'saving')} in float32, where that of `plain` moves by "
        f"{apart(moved, 'noise')} when its noise is made larger by 1e-6. Cosine of `last steps` with it: {cosine:.3f}.",
    ]
    return "\n".join(rows)


def compare(grad_steps: int, num_frames: int, size: int, repeats: int, device: str) -> str:
    """All arms at one size of clips, in turns."""
    made = arms(grad_steps, num_frames, size, device)
    gradients = {arm.name: arm.step() for arm in made}  # warm-up too
    for arm in made:
        arm.clock.seconds.clear()
    totals: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeats):
        for arm in made if turn % 2 else made[::-1]:
            started = now(device)
            arm.step()
            totals[arm.name].append(now(device) - started)
    title = (
        f"Tiny Wan 2.1, LoRA of rank 4, {num_frames} frames of {size} px, {STEPS} sampling steps, `last steps` "
        f"with gradient through {grad_steps}, embedded flow network with 12 updates at double size, "
        f"{'one thread' if device == 'cpu' else torch.cuda.get_device_name()}, {repeats} steps of each arm in turns."
    )
    return page(made, totals, gradients, title)


def main() -> None:
    parser: argparse.ArgumentParser = page_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--grad-steps", type=int, default=2)
    parser.add_argument("--num-frames", type=int, nargs="+", default=[17], help="one table for each")
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="px, as many as --num-frames")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(1)
    pages = [compare(a.grad_steps, *clip, a.repeats, a.device) for clip in zip(a.num_frames, a.size, strict=True)]
    mark = "training.py" if a.device == "cpu" else f"training.py --device {a.device}"
    write_below(a.out, mark, "\n\n".join(pages))
    print(a.out.read_text().partition(f"{mark} -->")[2])


if __name__ == "__main__":
    main()
