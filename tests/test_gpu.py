"""On a GPU the numbers are those of the CPU: clips, rewards, gradients, runs that were stopped, and planned memory."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.recipe import validate
from newtonrewards.core.run import read_jsonl
from newtonrewards.models import lora
from newtonrewards.models.base import VideoModel, draw_noise
from newtonrewards.models.load import FAMILIES
from newtonrewards.models.sampling import sample
from newtonrewards.models.wan import WanModel
from newtonrewards.models.wan_vae import _statistics
from newtonrewards.rewards import correlation
from newtonrewards.rewards.correlation import Correlation
from newtonrewards.rewards.reward import Reward, RewardConfig
from newtonrewards.simulation.simulate import SimulateRecipe, simulate
from newtonrewards.simulation.store import ClipFolder
from newtonrewards.training.plan import plan_stage
from newtonrewards.training.recipe import TrainRecipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false"),
]

CAPTIONS = ["an object falls", "an object is thrown left at 2.1 m/s"]
SIZE = {"num_frames": 9, "height": 32, "width": 32}
STYLES = [
    *((name, importlib.import_module(f"newtonrewards.models.tiny_{name}").STYLES[0]) for name in FAMILIES),
    ("wan", "2.2"),
    ("wan", "2.2-a14b"),
]
TERMS: dict[str, dict[str, Any]] = {
    "kinematic/second_difference": {"weight": 3.0, "support": "colour"},
    "kinematic/centroid": {"weight": 1.0},
    "mass/conserved": {"weight": 0.2, "support": "advected"},
    "mass/paired": {"weight": 0.2},
    "mass/area": {"weight": 0.05},
    "imitation/flow": {"weight": 1.0},
}
FLOW = {"num_flow_updates": 3, "upsample": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clips")
    simulate(SimulateRecipe(num_clips=8, seed=4, arrays=("masks",)), made, workers=1)
    return made


@pytest.fixture(scope="module")
def batch(folder: Path) -> ClipBatch:
    dataset = ClipFolder(folder)
    return ClipBatch.stack([dataset[i] for i in range(4)])


@pytest.fixture
def exact() -> Iterator[None]:
    """Without TF32, which rounds to 10 bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def model_of(name: str, style: str) -> VideoModel:
    tiny = importlib.import_module(f"newtonrewards.models.tiny_{name}")
    family: Any = FAMILIES[name]
    model: VideoModel = family(tiny.tiny_pipeline(style), **SIZE, fps=16.0)
    return model


def close(found: Tensor, expected: Tensor, share: float) -> None:
    """Norm of the difference within a share of the norm."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= share * expected.norm()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("name", "style"), STYLES)
def test_a_clip_and_the_gradient_to_the_adapter_are_those_of_the_cpu(name: str, style: str) -> None:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for device in ("cpu", "cuda"):
        model = model_of(name, style)
        lora.add(model, rank=2)
        for module in model.trainable.values():
            for key, parameter in module.named_parameters():
                if "lora_B" in key:  # as created it is zero, and nothing of the adapter would be seen
                    torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(key)))
        model.to(device)
        first = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        noise = draw_noise(model.spec, 0, 0, [0, 1]).to(device)
        condition = model.condition(CAPTIONS, first)
        latents = sample(model, condition, noise, num_inference_steps=3, guidance_scale=2.0, grad_steps=2)
        frames = model.decode(latents, condition)
        assert frames.device.type == device
        frames.square().mean().backward()
        trained = [p for m in model.trainable.values() for p in m.parameters() if p.requires_grad]
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
        found[device] = frames, gradient
    close(found["cuda"][0], found["cpu"][0], 1e-4)
    close(found["cuda"][1], found["cpu"][1], 1e-2)


@pytest.mark.usefixtures("exact")
def test_rewards_and_their_gradient_are_those_of_the_cpu(batch: ClipBatch) -> None:
    noise = 0.02 * torch.randn(batch.frames.shape, generator=torch.Generator().manual_seed(0))
    config = RewardConfig.model_validate({"terms": TERMS, "flow": FLOW})
    found = {}
    for device in ("cpu", "cuda"):
        paired = batch.to(device)
        frames = (batch.frames + noise).clamp(0, 1).to(device).requires_grad_()
        output = Reward(config)(paired.with_frames(frames), paired)
        output.total.sum().backward()
        found[device] = output.raw, frames.grad
    for name in TERMS:
        close(found["cuda"][0][name], found["cpu"][0][name], 2e-3)
    assert found["cuda"][1] is not None and found["cpu"][1] is not None
    close(found["cuda"][1], found["cpu"][1], 2e-2)


@pytest.mark.parametrize("spread", [0.0, 2.0, 40.0])
def test_the_lookup_is_that_of_the_compiled_kernels(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 16, 12, 20, generator=generator)
    coords = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(12.0), indexing="xy"))
    coords = coords + spread * torch.randn(3, 2, 12, 20, generator=generator)
    found = {}
    for device in ("cpu", "cuda"):
        first, second = (f.to(device).requires_grad_() for f in features)
        assert correlation.on_cpu(first) == (device == "cpu")
        windows = Correlation(first, second, 3, 3).windows(coords.to(device))
        found[device] = windows, *torch.autograd.grad(windows.sin().sum(), (first, second))
    for ours, plain in zip(found["cuda"], found["cpu"], strict=True):
        close(ours, plain, 1e-5)


@pytest.mark.usefixtures("exact")
def test_decoding_with_nested_checkpoints_is_the_pipelines() -> None:
    model = model_of("wan", "2.1-no-image-encoder").to("cuda")
    assert isinstance(model, WanModel)
    noise = draw_noise(model.spec, 0, 0, [0, 1]).to("cuda")
    mean, spread = _statistics(model.vae, noise)
    condition = model.condition(CAPTIONS, torch.rand(2, 3, 32, 32, device="cuda"))
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: model.decode(x, condition),
        lambda x: (model.vae.decode(x * spread + mean).sample.transpose(1, 2) / 2 + 0.5).clamp(0, 1),
    ]
    found = []
    for way in ways:
        latents = noise.clone().requires_grad_()
        frames = way(latents)
        found.append((frames, torch.autograd.grad(frames.square().sum(), latents)[0]))
    close(found[0][0], found[1][0], 1e-5)
    close(found[0][1], found[1][1], 1e-4)


def recipe(folder: Path, pipeline: Path, **changes: Any) -> dict[str, Any]:
    reward = {"flow": FLOW, "terms": TERMS}
    stages: list[dict[str, Any]] = [
        {"objective": "sft", "steps": 2, "batch_size": 2, "optimiser": {"lr": 1e-3}},
        {
            "objective": "reward",
            "steps": 4,
            "batch_size": 2,
            "sampling": {"num_inference_steps": 3, "grad_steps": 2},
            "reward": reward,
            "optimiser": {"lr": 1e-3},
        },
        {
            "objective": "grpo",
            "steps": 2,
            "batch_size": 2,
            "group_size": 2,
            "updates": 2,
            "rollout": {"num_inference_steps": 3},
            "reward": reward,
            "optimiser": {"lr": 1e-3},
        },
    ]
    model = {"name": "wan", "path": str(pipeline), "lora_rank": 2, "num_frames": 17, "height": 64, "width": 64}
    made = {
        "seed": 5,
        "model": model,
        "data": {"clips": str(folder)},
        "stages": stages,
        "ema": 0.9,
        "checkpoint": {"every": 1, "keep": 9},
    }
    return made | changes


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from newtonrewards.models.tiny_wan import tiny_pipeline

    path = tmp_path_factory.mktemp("models") / "tiny_wan"
    tiny_pipeline("2.1").save_pretrained(path)
    return path


def trained(
    run: Path,
    content: dict[str, Any],
    *,
    launcher: Sequence[str] = (),
    options: Sequence[str] = (),
    hidden: bool = False,
) -> list[float]:
    """Losses of a run in a process of its own; `hidden` hides the GPU from it."""
    path = run.parent / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(content))
    environment = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"} | ({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})
    train = ["-m", "newtonrewards.training.train", "--recipe", path, "--out", run]
    command = [sys.executable, *launcher, *train, *options]
    subprocess.run([str(word) for word in command], check=True, env=environment)
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def weights(run: Path) -> Tensor:
    tensors = load_file(next((run / "model").rglob("*.safetensors")))
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def test_a_run_has_the_losses_of_one_on_the_cpu_and_goes_on_where_it_stopped(
    tmp_path: Path, folder: Path, pipeline: Path
) -> None:
    content = recipe(folder, pipeline)
    on_gpu = trained(tmp_path / "gpu", content)
    on_cpu = trained(tmp_path / "cpu", content, hidden=True)
    alike(on_gpu, on_cpu)
    stopped = tmp_path / "stopped"
    (tmp_path / "gpu").rename(stopped)  # as if killed in its reward stage
    for later in sorted((stopped / "checkpoints").iterdir())[4:]:
        shutil.rmtree(later)
    again = trained(stopped, content)
    assert len(again) == len(on_gpu)
    assert again[:5] == pytest.approx(on_gpu[:5], rel=1e-6)  # the fifth begins from the checkpoint
    assert torch.isfinite(weights(stopped)).all()


def alike(losses: list[float], others: list[float]) -> None:
    """Random weights enlarge rounding from step to step, so only the steps that begin each stage can be compared."""
    assert len(losses) == len(others) and torch.isfinite(torch.tensor(losses)).all()
    assert losses[:2] == pytest.approx(others[:2], rel=1e-3)
    assert losses[2] == pytest.approx(others[2], rel=0.05)


@pytest.mark.parametrize("change", ["bf16", "compile", "fsdp2"])
def test_other_ways_to_run_have_the_same_losses(tmp_path: Path, folder: Path, pipeline: Path, change: str) -> None:
    content = recipe(folder, pipeline)
    content["stages"] = content["stages"][:2]
    plain = trained(tmp_path / "plain", content)
    run = tmp_path / change
    if change == "fsdp2":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
        alike(trained(run, content, launcher=torchrun, options=["--strategy", "fsdp2"]), plain)
    elif change == "compile":
        alike(trained(run, content | {"compile": True}), plain)
    else:
        found = trained(run, content | {"precision": "bf16"})
        assert torch.isfinite(torch.tensor(found)).all()
        assert found[0] == pytest.approx(plain[0], rel=0.05)


def test_planned_memory_is_what_the_allocator_hands_out(tmp_path: Path, folder: Path, pipeline: Path) -> None:
    """Small tensors are rounded up to 512 bytes and the kernels' workspace is not planned, so only within a quarter."""
    content = recipe(folder, pipeline)
    content["model"] |= {"height": 128, "width": 128}
    content["stages"] = content["stages"][1:2]
    made = validate(TrainRecipe, content, where="test_gpu")
    planned = plan_stage(made, 0).bytes
    measured = int(
        subprocess.run([sys.executable, "-c", PEAK, yaml.safe_dump(content)], check=True, capture_output=True).stdout
    )
    assert measured == pytest.approx(planned, rel=0.25)


PEAK = """
import sys, torch, yaml
from newtonrewards.core.recipe import validate
from newtonrewards.models.load import load_video_model
from newtonrewards.training.methods.registry import METHODS
from newtonrewards.training.plan import fake_clips, shortened, step
from newtonrewards.training.recipe import TrainRecipe

class Peak:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def forget_peaks(self): torch.cuda.reset_peak_memory_stats()

recipe = validate(TrainRecipe, yaml.safe_load(sys.argv[1]), where="test_gpu")
model = load_video_model(recipe.model).to("cuda")
stage = shortened(recipe.stages[0])
objective = METHODS[stage.objective].build(model, stage, recipe.seed)
step(objective, recipe, stage, fake_clips(model, stage.batch_size).to("cuda"), Peak(), foreach=True)
print(torch.cuda.max_memory_allocated())
"""
