"""What `lingua-synth analyze` is asked: the corpora, how they are compared, and the models that read them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lingua_synth.analysis.distances import SMOOTHING
from lingua_synth.analysis.losses import WINDOW
from lingua_synth.analysis.overlap import NGRAM_TOKENS
from lingua_synth.analysis.tokens_table import PRIOR_TOKENS

PROG = "lingua-synth analyze"


@dataclass
class AnalyzeArgs:
    """Compare training and evaluation corpora by their tokens: shards of one tokenizer in, tables out.

    Killed, the same command goes on. What cannot be computed is skipped and said.
    """

    train: dict[str, str] = field(default_factory=dict)
    """Training corpora: train.NAME=FOLDER of token shards."""
    test: dict[str, str] = field(default_factory=dict)
    """Evaluation corpora: test.NAME=FOLDER of token shards."""
    out: str = ""
    """Folder for the tables, counts and summary; made when absent."""
    base: str = ""
    """Training corpus that the others are mixed with in KL over the ratio; empty: the first one."""
    max_tokens: int | None = None
    """Count the first documents of at most so many tokens of each corpus; null: all."""
    match_tokens: int | None = None
    """Tokens drawn of each corpus to compare at; smaller corpora are left out and named. Null: the smallest size."""
    smoothing: float = SMOOTHING
    """Occurrences added to every word for KL, 0 or more; with 0 a missing token makes KL infinite."""
    num_samples: int = 5
    """Draws behind each distance, at least 1; their spread is reported."""
    tail_share: float = 0.99
    """The tail is what the most frequent tokens that make up this share of the reference leave, in (0, 1)."""
    prior_tokens: float = PRIOR_TOKENS
    """Weight of the prior of the log-odds, in tokens, above 0."""
    num_listed: int = 50
    """Tokens in each list of too few and too many."""
    zipf_first_rank: int = 1
    """First rank that the laws are fitted to."""
    zipf_last_rank: int | None = None
    """Last one; null: the last with 10 occurrences."""
    zipf_simulations: int = 100
    """Samples behind each interval of a law, at least 20; 0 fits none."""
    longer_than: list[int] = field(default_factory=lambda: [2048, 4096])
    """Lengths in tokens beyond which documents are counted: contexts."""
    ngram_sizes: list[int] = field(default_factory=lambda: [5, NGRAM_TOKENS, 50])
    """Sizes in tokens of the n-grams whose repetition is measured; [] for none."""
    overlap_tokens: int = NGRAM_TOKENS
    """Size in tokens of the n-grams that training and evaluation corpora are held against each other by; 0 for none."""
    ngram_max_tokens: int | None = None
    """Look for repetition and overlap in the first documents of at most so many tokens; null: in all. Repeated n-grams
    are always compared at equal tokens: at most as many as the smallest corpus of the kind (train, test) has."""
    tokenizer_path: str | None = None
    """File of the vocabulary, to show tokens as text; null: where the shards say it was."""
    seed: int = 0
    """Of everything drawn."""
    num_threads: int | None = None
    """Threads; null: one a core. The results are the same for any number."""
    progress: bool = True
    """Show progress bars on stderr."""
    runs: str = ""
    """A runs table, or a folder of runs: its losses are held against distances and collapse. Training corpora are then
    called as its sources: ratio_hq is train.hq."""
    evaluations: dict[str, str] = field(default_factory=dict)
    """Evaluated models: evaluations.MIXTURE=FOLDER of an evaluation, of a run, or of runs."""
    base_mixture: str | None = None
    """Mixture that the others are compared with; null: natural text alone."""
    target: str = "loss_macro"
    """Loss of the runs table that is compared: loss_macro, loss_micro or loss_<domain>."""
    n_definition: str = "non_embedding"
    """Which count of parameters the runs table's laws are in: non_embedding, lingua or total."""
    noise: float | None = None
    """Standard deviation of ln loss of one run (0.003 is 0.3 %), where it is known; null: as the runs show it."""
    window: int = WINDOW
    """Token types in the running mean of losses, at least 1."""


def validate_args(args: AnalyzeArgs) -> None:
    """ValueError for what no analysis can be made of: no corpora, no place for it, values out of range."""
    if not args.train and not args.test:
        raise ValueError(f"no corpus: give train.NAME=FOLDER and test.NAME=FOLDER of token shards; `{PROG} --help`")
    if not args.out:
        raise ValueError(f"out= is missing: the folder for the tables; `{PROG} --help` lists the keys")
    for name, path in (*args.train.items(), *args.test.items()):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) or not isinstance(path, str) or not path:
            raise ValueError(
                f"a corpus is train.NAME=FOLDER or test.NAME=FOLDER, its name of letters, digits, - and _; got "
                f"{name!r} and {path!r}"
            )
    if args.base and args.base not in args.train:
        raise ValueError(f"base={args.base} is no training corpus; there are: {', '.join(args.train) or 'none'}")
    ranges: list[tuple[str, float, float]] = [
        ("num_samples", args.num_samples, 1),
        ("smoothing", args.smoothing, 0),
        ("num_listed", args.num_listed, 0),
        ("overlap_tokens", args.overlap_tokens, 0),
        ("window", args.window, 1),
        *((f"ngram_sizes holds {size}: each", size, 1) for size in args.ngram_sizes),
    ]
    for key in ("max_tokens", "match_tokens", "ngram_max_tokens"):
        if getattr(args, key) is not None:
            ranges.append((key, getattr(args, key), 1))
    for key, value, least in ranges:
        if value < least:
            raise ValueError(f"{key} is at least {least}, got {value}")
    if args.zipf_simulations and args.zipf_simulations < 20:
        raise ValueError(f"zipf_simulations is at least 20, or 0 for no fits; got {args.zipf_simulations}")
    if not 0 < args.tail_share < 1:
        raise ValueError(f"tail_share is in (0, 1), got {args.tail_share}")
