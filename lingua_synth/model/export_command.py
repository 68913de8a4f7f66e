"""`lingua-synth export checkpoint=RUN out=FOLDER`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lingua_synth.config import parse_args


@dataclass
class ExportArgs:
    """Write a checkpoint as a Hugging Face folder, for transformers, vLLM and lm-evaluation-harness."""

    checkpoint: str = ""
    """Run folder (its newest checkpoint), one checkpoint folder, or Lingua's consolidated folder."""
    out: str = ""
    """Folder to write; must not exist."""
    dtype: str = "bf16"
    """Type of the stored weights: bf16, or fp32 as in training."""
    max_shard_bytes: int = 5_000_000_000
    """Most bytes of weights per file."""
    tokenizer_path: str | None = None
    """Vocabulary file, where it is no longer where the checkpoint says; null: where it says."""


def main(argv: Sequence[str]) -> int:
    """Export, and print what was written and how to use it."""
    args = parse_args(ExportArgs, argv, prog="lingua-synth export")
    if not args.checkpoint or not args.out:
        raise ValueError("checkpoint and out are needed: lingua-synth export checkpoint=runs/x out=hf/x")
    from lingua_synth.model.huggingface import export_huggingface, list_parameters
    from lingua_synth.model.huggingface_config import CONFIG, from_config
    from lingua_synth.model.model_card import USES

    out = export_huggingface(
        args.checkpoint,
        args.out,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_bytes,
        tokenizer_path=args.tokenizer_path,
    )
    from lingua_synth.files import read_json

    model = from_config(read_json(out / CONFIG))
    numbers = sum(math.prod(p.shape) for p in list_parameters(model))
    weights = sorted(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    print(f"{out}: {numbers:,} parameters in {args.dtype}, {size:,} bytes in {len(weights)} file(s)")
    for library, command in USES.items():
        print(f"  {library}: {command.format(folder=out)}")
    return 0
