"""`lingua-synth analyze`: token shards of training and evaluation corpora in, tables of how they differ out.

lingua-synth analyze train.cc=shards/cc train.hq=shards/hq test.wikipedia=shards/wikipedia out=analysis
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lingua_synth.analysis.args import PROG, AnalyzeArgs
from lingua_synth.analysis.run import analyze
from lingua_synth.config import parse_args


def main(argv: Sequence[str]) -> int:
    """Run the verb; ValueError for bad input."""
    args = parse_args(AnalyzeArgs, argv, prog=PROG)
    record = analyze(args)
    print((Path(args.out) / "summary.md").read_text(encoding="utf-8"))
    print(f"{args.out}: {len(record['tables'])} tables, analysis.json, summary.md")
    return 0
