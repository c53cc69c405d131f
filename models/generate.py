"""`newtonrewards generate`: clips from captions and first frames, one lossless file each.

The noise of a clip is a function of the seed and of the clip's place in its folder alone, so two models that are given
the same clips start from the same noise and can be compared one by one. The same command goes on where it was stopped.

    newtonrewards generate --model models/weights/fine_tuned --clips runs/data/test --out runs/fine_tuned
    newtonrewards generate --model models/weights/fine_tuned --lora runs/reward/model --clips runs/data/test --out post
    newtonrewards generate --model Wan2.1-I2V --image ball.png --caption "a ball falls" --out runs/ball --num-frames 81
    newtonrewards generate --model Wan2.1-T2V --caption "a ball falls" --out runs/ball
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from newtonrewards.core.errors import InputError, NewtonError, run_command
from newtonrewards.core.recipe import validate
from newtonrewards.core.run import append_jsonl, output_folder
from newtonrewards.core.shard import WHOLE, Shard, add_shard_option, of_this_process
from newtonrewards.core.video import write_video
from newtonrewards.models.base import VideoModel, VideoSpec, draw_noise
from newtonrewards.models.files import fingerprint
from newtonrewards.models.jobs import Job, first_frame, jobs_of_folder, join, parts_of, rows_of, rows_on_disk, same
from newtonrewards.models.load import PIPELINES, ModelConfig, load_video_model
from newtonrewards.models.sampling import sample


@dataclass(frozen=True)
class Sampling:
    """Options of the sampler; see `sample`."""

    seed: int = 0
    num_inference_steps: int = 8
    guidance_scale: float = 1.0
    batch_size: int = 16


@dataclass(frozen=True)
class BestOf:
    """Several clips of each job from other noise, of which the best is kept.

    Attributes:
        count: N; the first of them is the clip that is made without this.
        judge: (jobs, N batches of clips) -> (N, B) rewards, higher is better; the first of equals is kept.
        name: what the rows say of the judge: clips chosen by another one are not the same clips.
    """

    count: int
    judge: Callable[[Sequence[Job], Sequence[Tensor]], Float[Tensor, "N B"]]
    name: str


@dataclass(frozen=True)
class Made:
    """A clip, and what its row says beside the settings."""

    job: Job
    frames: Float[Tensor, "T 3 H W"]
    row: dict[str, Any]


def generate(
    model: VideoModel,
    jobs: Sequence[Job],
    out: Path,
    sampling: Sampling,
    origin: dict[str, Any],
    shard: Shard = WHOLE,
    best_of: BestOf | None = None,
) -> list[str]:
    """Make the clips of a shard that `out` doesn't hold yet.

    Args:
        model: any VideoModel.
        jobs: clips to make, of all shards; batches are cut from this list, so that a resumed run computes the same.
        out: folder for NAME.mp4 and index.jsonl.
        sampling: seed, steps, guidance, batch size.
        origin: what the rows say of the model: `weights` (a hash) and anything else.
        shard: which batches to make; a shard takes whole ones, so that its clips are the same to the bit.
        best_of: keep the best of several clips; the rows then hold the rewards of all of them.
    Returns:
        One line for each clip that could not be made.
    Raises:
        InputError: the folder holds clips made with other settings.
    """
    spec = model.spec
    common = {
        **origin,
        "seed": sampling.seed,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "num_frames": spec.num_frames,
        "height": spec.height,
        "width": spec.width,
        "negative_caption": getattr(model, "negative_caption", ""),
        "fps": spec.fps,
        "playback_fps": spec.playback_fps,
    }
    if best_of is not None:
        common |= {"best_of": best_of.count, "judge": best_of.name}
    done = rows_on_disk(out, common)
    failures: list[str] = []
    batches = shard.of([jobs[i : i + sampling.batch_size] for i in range(0, len(jobs), sampling.batch_size)])
    with tqdm(total=sum(map(len, batches)), desc="generate", unit="clip") as bar:
        for batch in batches:
            rows = rows_of(batch, common, failures)
            if any(not same(done.get(job.name), rows[job.name]) for job in batch if job.name in rows):
                wanted = [job for job in batch if job.name in rows]
                for made in _make_each(wanted, model, sampling, best_of, failures):
                    _write(out, shard, made, rows[made.job.name], done, failures)
            bar.update(len(batch))
    join(out, jobs, common, shard)
    return failures


def _make_each(
    batch: Sequence[Job], model: VideoModel, sampling: Sampling, best_of: BestOf | None, failures: list[str]
) -> list[Made]:
    """The clips of a batch; where something is wrong with one of them, one by one, so that only that one fails."""
    if not batch:
        return []
    try:
        return _make_best(batch, model, sampling, best_of)
    except NewtonError as error:
        if len(batch) == 1:
            failures.append(f"{batch[0].name}: {error}")
            return []
    return [made for job in batch for made in _make_each([job], model, sampling, best_of, failures)]


def _make_best(batch: Sequence[Job], model: VideoModel, sampling: Sampling, best_of: BestOf | None) -> list[Made]:
    if best_of is None:
        return [Made(job, frames, {}) for job, frames in zip(batch, _make(batch, model, sampling), strict=True)]
    candidates = [_make(batch, model, sampling, member) for member in range(best_of.count)]
    rewards = best_of.judge(batch, candidates)
    chosen = rewards.argmax(0).tolist()
    return [
        Made(job, candidates[best][place], {"rewards": rewards[:, place].tolist(), "chosen": best})
        for place, (job, best) in enumerate(zip(batch, chosen, strict=True))
    ]


@torch.no_grad()
def _make(batch: Sequence[Job], model: VideoModel, sampling: Sampling, member: int = 0) -> Float[Tensor, "B T 3 H W"]:
    """Clips of a batch on the CPU; each member of a group has noise of its own."""
    device = next(model.transformer.parameters()).device
    first = torch.stack([first_frame(job, model.spec) for job in batch]).to(device)
    condition = model.condition([job.caption for job in batch], first)
    purpose = f"generate/{member}" if member else "generate"
    noise = draw_noise(model.spec, sampling.seed, 0, [job.index for job in batch], purpose).to(device)
    latents = sample(
        model,
        condition,
        noise,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
    )
    return model.decode(latents, condition).cpu()


def _write(
    out: Path,
    shard: Shard,
    made: Made,
    row: dict[str, Any],
    done: dict[str, dict[str, Any]],
    failures: list[str],
) -> None:
    """The file first, then its row: a clip with a row is whole. What is there already stays."""
    job = made.job
    if same(done.get(job.name), row):
        return
    try:
        write_video(out / f"{job.name}.mp4", made.frames, row["playback_fps"], lossless=True)
    except NewtonError as error:
        failures.append(f"{job.name}: {error}")
        return
    done[job.name] = row | made.row
    append_jsonl(out / shard.part("index"), done[job.name])


def _kind(path: Path) -> str:
    """Which `ModelConfig.name` a folder is of; `embedded` where it doesn't say, whose loader then names the problem."""
    try:
        found = json.loads((path / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return "embedded"
    return next((name for name, pipelines in PIPELINES.items() if found in pipelines), "embedded")


def _config(arguments: argparse.Namespace) -> ModelConfig:
    given = {
        key: getattr(arguments, key) for key in ("num_frames", "height", "width", "fps", "negative_caption", "dtype")
    }
    content = {key: value for key, value in given.items() if value is not None}
    content |= {"name": _kind(arguments.model), "path": arguments.model, "lora": arguments.lora}
    return validate(ModelConfig, content, where="generate")


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    if arguments.clips is not None:
        return jobs_of_folder(arguments.clips, arguments.limit)
    if not arguments.caption:
        raise InputError("no --clips and no --caption", fix="Say what happens, as in --caption 'a ball falls'.")
    name = "clip" if arguments.image is None else arguments.image.stem
    return [Job(name, arguments.caption, 0, arguments.image)]


def _device() -> str:
    """A launcher's processes share the GPUs of their machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="newtonrewards generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", type=Path, required=True, help="folder of an embedded model or a diffusers pipeline")
    p.add_argument("--lora", type=Path, help="adapter to load onto it: a folder or a .safetensors file")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--clips", type=Path, help="folder of clips: their captions and first frames")
    source.add_argument("--image", type=Path, help="one picture or video as the first frame (with --caption)")
    p.add_argument("--caption", help="what happens after --image, or in all of the clip (text to video)")
    p.add_argument("--out", type=Path, required=True, help="folder for NAME.mp4 and index.jsonl")
    p.add_argument("--seed", type=int, default=0, help="the noise is a function of it and a clip's place (default 0)")
    p.add_argument("--num-inference-steps", type=int, default=8, help="Euler steps (default 8)")
    p.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance, 1 is off (default 1)")
    p.add_argument("--batch-size", type=int, default=16, help="clips at a time (default 16)")
    p.add_argument("--limit", type=int, help="only the first so many clips of --clips")
    p.add_argument("--overwrite", action="store_true", help="replace clips made with other settings")
    add_shard_option(p, "batch")
    p.add_argument("--device", default=_device(), help="default: %(default)s")
    size = p.add_argument_group("for diffusers pipelines (default: what the family was trained at; docs/models.md)")
    size.add_argument("--num-frames", type=int, help="4n + 1, for LTX-Video 8n + 1")
    size.add_argument("--height", type=int, help="px")
    size.add_argument("--width", type=int, help="px")
    size.add_argument("--fps", type=float, help="frames per second of physical time")
    size.add_argument("--negative-caption", help="what guidance leads away from")
    size.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights in memory (default float32)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run(parser().parse_args(argv))


def run(arguments: argparse.Namespace, best_of: Callable[[VideoSpec], BestOf] | None = None) -> int:
    """The command, its arguments parsed.

    Args:
        best_of: makes the judge for clips of the loaded model's size; `newtonrewards generate --best-of` has one.
    """
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size is {arguments.batch_size}, it must be at least 1")
    jobs = _jobs(arguments)
    output_folder(arguments.out)
    model = load_video_model(_config(arguments)).to(arguments.device)
    parts = [path for path in (arguments.model, arguments.lora) if path is not None]
    origin = {
        "model": str(arguments.model),
        "lora": None if arguments.lora is None else str(arguments.lora),
        "weights": fingerprint(*parts),
    }
    shard = of_this_process(arguments.shard)
    chooser = None if best_of is None else best_of(model.spec)
    if arguments.overwrite:
        if shard.count > 1:
            raise InputError("--overwrite would take clips from other shards", fix=f"Delete {arguments.out} instead.")
        for part in parts_of(arguments.out):
            part.unlink()  # without its row a clip counts as not made
    sampling = Sampling(arguments.seed, arguments.num_inference_steps, arguments.guidance_scale, arguments.batch_size)
    failures = generate(model, jobs, arguments.out, sampling, origin, shard, chooser)
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    whole = f"{len(jobs) - len(failures)} of {len(jobs)} clips."
    print(f"{arguments.out}: {whole if shard.count == 1 else f'shard {shard.index}/{shard.count} is done.'}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
