"""Make an untrained embedded model: fit its codec on simulated clips, draw its weights, write the folder.

python -m newtonrewards.training.create --clips runs/data/train --out runs/embedded/untrained
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from newtonrewards.core.errors import run_command
from newtonrewards.models.codec import PatchCodec
from newtonrewards.models.embedded import EmbeddedConfig, EmbeddedModel
from newtonrewards.simulation.store import ClipFolder


def create(clips: Path, out: Path, *, components: int, codec_clips: int, seed: int) -> EmbeddedModel:
    """Fit the codec on the first `codec_clips` clips, write the model in float32, and return it."""
    dataset = ClipFolder(clips)
    codec = PatchCodec.fit((dataset[i].frames for i in range(min(codec_clips, len(dataset)))), components=components)
    model = EmbeddedModel.create(EmbeddedConfig(), codec, seed)
    model.save(out, torch.float32)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m newtonrewards.training.create", description=__doc__.splitlines()[0])
    p.add_argument("--clips", type=Path, required=True, help="folder of simulated clips to fit the codec on")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--components", type=int, default=256, help="latent channels (default 256)")
    p.add_argument("--codec-clips", type=int, default=600, help="clips to fit the codec on (default 600)")
    p.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    a = p.parse_args(argv)
    model = create(a.clips, a.out, components=a.components, codec_clips=a.codec_clips, seed=a.seed)
    numbers = sum(weights.numel() for weights in model.transformer.parameters())
    print(f"{a.out}: untrained model, {numbers / 1e6:.1f} million parameters, {a.components} components")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
