"""What the tiny random pipelines of all families share: weights from a seed, text encoders, and the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from newtonrewards.core.errors import NewtonError
from newtonrewards.core.run import output_folder, stream_seed
from newtonrewards.models.embedded import BYTE_VOCABULARY

TEXT_DIM = 32


def seeded(build: Callable[[], Any], seed: int, purpose: str) -> Any:
    """What `build` makes with torch's global stream set by the seed; the stream goes on as if nothing happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, 0, 0, purpose))
        return build()


def byte_t5(kind: str = "T5") -> dict[str, Any]:
    """A T5 (or UMT5) encoder of bytes and its tokenizer, which needs no vocabulary file."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=BYTE_VOCABULARY, d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    encoder = getattr(transformers, f"{kind}EncoderModel")(config).eval()
    return {"tokenizer": transformers.ByT5Tokenizer(extra_ids=0), "text_encoder": encoder}


def write_tiny(
    argv: Sequence[str] | None, module: str, description: str, styles: Sequence[str], build: Callable[[str, int], Any]
) -> int:
    """The command of a family's tiny pipelines: `python -m newtonrewards.models.MODULE --out FOLDER`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m newtonrewards.models.{module}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--style", choices=styles, default=styles[0], help="which layout (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    arguments = parser.parse_args(argv)
    try:
        output_folder(arguments.out)
    except NewtonError as error:
        print(f"error: {error}")
        return 2
    pipeline = build(arguments.style, arguments.seed)
    pipeline.save_pretrained(arguments.out)
    print(f"{arguments.out}: {type(pipeline).__name__} ({arguments.style}), tiny and with random weights")
    return 0
