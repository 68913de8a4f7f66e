"""`lingua-synth generate select`: choose traces to fine-tune on, with a random control beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.config import parse_args
from lingua_synth.tokens.args import TokenizerArgs


@dataclass
class SelectArgs:
    """Select annotated traces; a random control of the same size is always written beside them."""

    traces: str = ""
    """Records with meta.synth.fields: a file, folder, glob or URL."""
    out: str = ""
    """Folder for selected.jsonl, control.jsonl, their conversations (*.chat.jsonl) and manifest.json."""
    select: str = ""
    """What to take: random(n), long(C, tau), disagree, strategies(min, max, density), clusters(k, n), domains(n),
    quota(domain=n), s1(n), tokens(min, max), verbosity(min, max), complete; with & | ~ ( ), and >> for one after
    another, e.g. select='disagree & strategies(min=4, max=8) >> random(10_000)'."""
    pool: str = ""
    """What selection and control are both taken from, in the same words, e.g. pool='complete & tokens(max=16384)'."""
    seed: int = 0
    """Seed of all draws."""
    questions: str = ""
    """Documents the traces were generated from, where the records hold no question."""
    embeddings: str = ""
    """An .npy with one vector a record, in their order, where the records hold no embedding."""
    tokenizer: TokenizerArgs = field(default_factory=lambda: TokenizerArgs(name=""))
    """Counts the tokens of reasoning and answer; without a name, the records say how many there are."""
    missing: str = "refuse"
    """refuse: stop at a record that lacks a value the words need; drop: leave it out, and count it."""
    chat: bool = True
    """Write conversations for fine-tuning too."""
    system2: str = "1"
    """Rows that show their reasoning: difficulty (where teacher and reference disagree), or a share in [0, 1]."""
    system_prompts: str = "by_mode"
    """by_mode: the system message says whether to think; adaptive: it leaves that open; none: no system message."""


def main(argv: Sequence[str]) -> int:
    """Select, write, and print selection and control side by side."""
    from lingua_synth.generate.selection import select_traces
    from lingua_synth.tokens.tokenizer import build_tokenizer

    args = parse_args(SelectArgs, argv, prog="lingua-synth generate select")
    for key in ("traces", "out", "select"):
        if not getattr(args, key):
            raise ValueError(f"{key} is not set; `lingua-synth generate select --help` lists the keys")
    tokenizer = args.tokenizer
    manifest = select_traces(
        args.traces,
        args.out,
        args.select,
        pool=args.pool,
        seed=args.seed,
        questions=args.questions,
        embeddings=args.embeddings,
        tokenizer=build_tokenizer(tokenizer.name, tokenizer.path, tokenizer.fast) if tokenizer.name else None,
        missing=args.missing,
        chat=args.chat,
        system2=args.system2,
        system_prompts=args.system_prompts,
    )
    print(_table(manifest))
    print(f"{'folder':16} {args.out}")
    return 0


def _table(manifest: Mapping[str, Any]) -> str:
    statistics = manifest["statistics"]
    lines = [f"{'select':16} {manifest['select']}", f"{'pool':16} {manifest['pool'] or 'all records'}"]
    dropped = manifest["records"]["dropped"]
    if dropped:
        lines.append(f"{'left out for':16} " + ", ".join(f"no {name}: {count:,}" for name, count in dropped.items()))
    lines.append(f"{'':16} " + "".join(f"{name:>14}" for name in statistics))
    for name in statistics["pool"]:
        if name != "domains":
            lines.append(f"{name:16} " + "".join(f"{_shown(one[name]):>14}" for one in statistics.values()))
    domains = sorted(statistics["pool"]["domains"], key=lambda one: (-statistics["pool"]["domains"][one], one))
    for domain in domains[:20]:
        counts = [one["domains"].get(domain, 0) for one in statistics.values()]
        lines.append(f"{domain:16.16} " + "".join(f"{count:>14,}" for count in counts))
    lines.append(f"{'in both':16} {manifest['in_both']:,}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
