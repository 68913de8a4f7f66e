"""`lingua-synth evaluate checkpoint=RUN domains.<name>=SHARDS ...`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingua_synth.config import parse_args
from lingua_synth.files import write_json


@dataclass
class EvaluateArgs:
    """Held-out loss of a trained model, per domain."""

    checkpoint: str = ""
    """Run folder (its newest checkpoint) or one checkpoint folder."""
    domains: dict[str, str] = field(default_factory=dict)
    """Domain name to the folder of its token shards."""
    seq_len: int = 0
    """Longest window in tokens; 0: the model's own context."""
    max_tokens_per_domain: int | None = None
    """Most tokens scored per domain; null scores all."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: str = "bf16"
    """Compute type: bf16 as in training, or fp32."""
    out: str = ""
    """JSON file for the sums; empty: print only."""


def main(argv: Sequence[str]) -> int:
    """Evaluate and print one line per domain."""
    args = parse_args(EvaluateArgs, argv, prog="lingua-synth evaluate")
    if not args.checkpoint:
        raise ValueError("checkpoint is not set: a run folder or a checkpoint folder")
    if not args.domains:
        raise ValueError("domains is empty: name at least one, e.g. domains.news=shards/news")
    if args.dtype not in ("bf16", "fp32"):
        raise ValueError(f"dtype is bf16 or fp32; got {args.dtype!r}")
    import torch

    from lingua_synth.evaluate import evaluate_domains, summarize
    from lingua_synth.model import load_checkpoint
    from lingua_synth.tokens import TokenSource, build_tokenizer

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no GPU here; use device=cpu")
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model, model_args, tokenizer = load_checkpoint(args.checkpoint, device=args.device, dtype=dtype)
    sources = {name: TokenSource(path) for name, path in args.domains.items()}
    vocabulary = build_tokenizer(tokenizer["name"], tokenizer["path"]).sha256
    for name, source in sources.items():
        if source.manifest["tokenizer"]["sha256"] != vocabulary:
            raise ValueError(
                f"domain {name!r} was tokenized with {source.manifest['tokenizer']['name']}, another vocabulary "
                "than the "
                f"model's ({tokenizer['name']} {tokenizer['path'] or ''}); tokenize it with the model's tokenizer"
            )
    seq_len = args.seq_len or model_args.max_seqlen
    if seq_len > model_args.max_seqlen:
        raise ValueError(f"seq_len {seq_len} is longer than the model's context of {model_args.max_seqlen} tokens")
    sums = evaluate_domains(model, sources, seq_len=seq_len, max_tokens_per_domain=args.max_tokens_per_domain)
    summary = summarize(sums)
    print(f"{'domain':24} {'nats/token':>10} {'bits/byte':>10} {'tokens':>12} {'documents':>10}")
    for name, domain in sums.items():
        print(f"{name:24} {domain.loss:10.4f} {domain.bits_per_byte:10.4f} {domain.tokens:12,} {domain.documents:10,}")
    print("  ".join(f"{key} {value:.4f}" for key, value in summary.items()))
    if args.out:
        write_json(
            Path(args.out),
            {"checkpoint": args.checkpoint, "seq_len": seq_len, "summary": summary}
            | {"domains": {name: dataclasses.asdict(domain) for name, domain in sums.items()}},
        )
    return 0
