"""`lingua-synth import model=FOLDER out=RUN`: a local Hugging Face Llama as a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from lingua_synth.config import parse_args
from lingua_synth.tokens.args import TokenizerArgs


@dataclass
class ImportArgs:
    """Make a run folder with one checkpoint, of step 0, from a local Hugging Face Llama (safetensors)."""

    model: str = ""
    """Folder with config.json and the weights."""
    out: str = ""
    """Run folder to write; must not exist."""
    dtype: str = "fp32"
    """Type of the stored weights: fp32, or bf16."""
    tokenizer: TokenizerArgs = field(default_factory=lambda: TokenizerArgs(name=""))
    """The vocabulary to record. An empty name looks for it in the model's folder."""


def main(argv: Sequence[str]) -> int:
    """Import, and print what was written and how to use it."""
    args = parse_args(ImportArgs, argv, prog="lingua-synth import")
    if not args.model or not args.out:
        raise ValueError("model and out are needed: lingua-synth import model=hf/x out=runs/x")
    from lingua_synth.files import read_json
    from lingua_synth.model.args import ModelArgs
    from lingua_synth.model.checkpoint import PARAMS, list_checkpoints
    from lingua_synth.model.counts import count_parameters
    from lingua_synth.model.huggingface import import_huggingface

    tokenizer = args.tokenizer if args.tokenizer.name else None
    checkpoint = list_checkpoints(import_huggingface(args.model, args.out, tokenizer=tokenizer, dtype=args.dtype))[0]
    params = read_json(checkpoint / PARAMS)
    model = ModelArgs(**params["model"])
    counts = count_parameters(model)
    print(
        f"{checkpoint}: {counts.total:,} parameters ({counts.non_embedding:,} without vocabulary matrices) in "
        f"{args.dtype}, tokenizer {params['data']['tokenizer']['name']}"
    )
    # Every field that a training config must repeat; the context is data.seq_len's.
    plain = ModelArgs()
    fields = [f.name for f in dataclasses.fields(plain) if f.name not in ("vocab_size", "max_seqlen")]
    shape = [f"model.{name}={getattr(model, name)}" for name in fields if getattr(model, name) != getattr(plain, name)]
    print(f"  train from it: lingua-synth train checkpoint.init_ckpt_path={checkpoint} {' '.join(shape)} ...")
    print(f"  evaluate it: lingua-synth evaluate checkpoint={args.out} domains.news=shards/news")
    if model.rope_scaling_factor != 1:
        print("  its rotary frequencies are scaled, which Meta Lingua does not do: use it in this library's own loop")
    return 0
