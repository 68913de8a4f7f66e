"""From a checkpoint and named texts to an evaluation folder, on one process or on all ranks of torchrun.

open the model -> find the domains of the set -> tokenize what is not token shards yet -> choose, cut and pack the
documents -> one pass -> sums, averages, intervals -> the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.evaluate.domain_sets import DomainSet, load_domain_set, resolve_domains
from lingua_synth.evaluate.intervals import LEVEL, NUM_RESAMPLES, loss_intervals
from lingua_synth.evaluate.protocol import build_protocol
from lingua_synth.evaluate.results import DOCUMENTS, EVALUATION, TOKENS, average_figures, figures, write_evaluation
from lingua_synth.evaluate.sums import DomainSums
from lingua_synth.files import folder_lock
from lingua_synth.tokens import Tokenizer, TokenSource, tokenize
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.tokens.shards import FORMAT as SHARDS_FORMAT
from lingua_synth.tokens.shards import MANIFEST

if TYPE_CHECKING:
    from lingua_synth.evaluate.scoring import Evaluator, Scores
    from lingua_synth.model.distributed import Ranks


@dataclass
class BootstrapArgs:
    """Intervals over documents."""

    resamples: int = NUM_RESAMPLES
    """Resamples; 0: no intervals."""
    level: float = LEVEL
    """Their coverage, in (0, 1)."""
    seed: int = 0
    """Of the resamples."""


@dataclass
class EvaluateArgs:
    """Held-out loss of a trained model, per domain. Other words first: split, compare, tasks, sets."""

    checkpoint: str = ""
    """Run folder (its newest checkpoint), checkpoint folder, Meta Lingua's `consolidated`, or a Hugging Face folder."""
    domain_set: str = "custom"
    """Which domains the figures are about: pile14+wikitext, pile10-open, paloma, custom (those that are named), or a
    .yaml file of your own."""
    data: str = ""
    """Folder of the domains' texts: <domain>.jsonl (.gz, .zst), <domain>.parquet, or a folder <domain>."""
    domains: dict[str, str] = field(default_factory=dict)
    """Domain name to its token shards or documents, where they are not in `data`."""
    out: str = ""
    """Folder for evaluation.json, token_losses.parquet and documents.parquet; empty: print only."""
    overwrite: bool = False
    """Replace an evaluation that is in `out`."""
    protocol: str = "disjoint"
    """Windows: disjoint, sliding (with `stride`), or lingua-compat (Meta Lingua's own figures)."""
    seq_len: int = 0
    """Most tokens the model sees at once; 0: its training context."""
    stride: int = 0
    """sliding: tokens that a window scores."""
    lingua_max_tokens: int = 1024
    """lingua-compat: `generator.max_tokens` of Lingua's evaluation (its default; its configs/eval.yaml has 8192)."""
    max_tokens_per_domain: int | None = None
    """Budget: whole documents, in a fixed order, until so many tokens are reached; null scores all."""
    max_bytes_per_domain: int | None = None
    """The same in UTF-8 bytes of text: it takes the same documents under every tokenizer, so figures compare in bits
    per byte. Instead of max_tokens_per_domain."""
    shards: str = ""
    """Folder for the shards of domains that are documents, kept for the next time; empty: inside `out`."""
    tokenizer: TokenizerArgs = field(default_factory=lambda: TokenizerArgs(name=""))
    """The model's vocabulary, where its checkpoint names none, or its file has moved."""
    bootstrap: BootstrapArgs = field(default_factory=BootstrapArgs)
    """Intervals over documents."""
    batch_tokens: int = 0
    """Places of a batch; 0: 8,192 on a CPU, 65,536 on a GPU. Changes speed and memory alone."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    dtype: str = "auto"
    """Compute type: bf16 or fp32; auto: bf16, with lingua-compat the type of the training."""


@dataclass(frozen=True)
class Result:
    """What `evaluate` gives to every rank: the record of evaluation.json, and the sums."""

    record: dict[str, Any]
    sums: dict[str, DomainSums]


def validate_evaluate_args(args: EvaluateArgs) -> None:
    """ValueError for what cannot be evaluated, before anything is opened."""
    if not args.checkpoint:
        raise ValueError("checkpoint is not set: a run folder, a checkpoint folder, or a Hugging Face folder")
    if not args.domains and not args.data and args.domain_set == "custom":
        raise ValueError("domains is empty: name at least one, e.g. domains.news=shards/news, or a folder: data=FOLDER")
    if not 0 < args.bootstrap.level < 1 or args.bootstrap.resamples < 0:
        raise ValueError(
            f"bootstrap.level is in (0, 1) and bootstrap.resamples at least 0; got {args.bootstrap.level} and "
            f"{args.bootstrap.resamples}"
        )
    if args.batch_tokens < 0:
        raise ValueError(f"batch_tokens must be at least 0, got {args.batch_tokens}")
    if args.out:
        refuse_other_content(Path(args.out), args.overwrite)


def refuse_other_content(out: Path, overwrite: bool) -> None:
    """ValueError for a folder that is not for this evaluation: somebody else's, or with one that must not go."""
    if (out / EVALUATION).is_file():
        if not overwrite:
            raise ValueError(f"{out} holds an evaluation; choose another folder, or set overwrite=true")
        return
    ours = {TOKENS, DOCUMENTS, "shards"}  # left by one that was interrupted
    others = [] if not out.exists() else [p.name for p in ([out] if out.is_file() else sorted(out.iterdir()))]
    others = [name for name in others if name not in ours and not name.startswith(".")]
    if others:
        raise ValueError(
            f"{out} holds something else ({', '.join(others[:5])}); out is the folder of one evaluation, choose another"
        )


def evaluate(args: EvaluateArgs, *, progress: bool = True) -> Result:
    """Evaluate a checkpoint; all ranks of torchrun call it, and rank 0 writes `out`.

    Raises ValueError for a checkpoint or texts that cannot be evaluated, naming what to change; OSError when something
    cannot be written.
    """
    from lingua_synth.evaluate.models import open_model
    from lingua_synth.evaluate.scoring import Evaluator
    from lingua_synth.model.distributed import data_parallel

    validate_evaluate_args(args)
    domain_set = load_domain_set(args.domain_set)
    paths, absent = resolve_domains(domain_set, data=args.data, named=args.domains)
    is_compat = args.protocol == "lingua-compat"
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(data_parallel(args.device))
        if args.out and ranks.is_main:
            stack.enter_context(folder_lock(args.out, "evaluation"))
        opened = open_model(
            args.checkpoint,
            device=ranks.device,
            dtype=args.dtype,
            tokenizer_name=args.tokenizer.name,
            tokenizer_path=args.tokenizer.path,
            as_trained=is_compat,
        )
        seq_len = args.seq_len or (min(opened.context, args.lingua_max_tokens) if is_compat else opened.context)
        protocol = build_protocol(args.protocol, seq_len=seq_len, stride=args.stride, context=opened.context)
        if absent and ranks.is_main:
            warnings.warn(
                f"{len(absent)} of the {len(domain_set.domains)} domains of {domain_set.name} are absent and not "
                f"evaluated: {', '.join(absent)}",
                stacklevel=2,
            )
        sources = open_domains(paths, opened.tokenizer, _shards_folder(args), ranks, progress=progress)
        evaluator = Evaluator(
            sources,
            protocol,
            max_tokens_per_domain=args.max_tokens_per_domain,
            max_bytes_per_domain=args.max_bytes_per_domain,
            batch_tokens=args.batch_tokens,
        )
        if is_compat and opened.dtype == "bf16":
            # Lingua turns the parameters themselves, the norms' too, but not its rotary table.
            for parameter in opened.model.parameters():
                parameter.data = parameter.data.to(opened.model.compute_dtype)
        scores = evaluator.score(opened.model, progress=progress and ranks.is_main)
        if is_compat:
            from lingua_synth.evaluate.lingua_compat import lingua_figures, with_scored_bytes

            scores = with_scored_bytes(evaluator, scores, opened.tokenizer)
        record = {
            "checkpoint": str(opened.folder),
            "dtype": opened.dtype,
            **describe(
                evaluator,
                scores,
                sources,
                domain_set,
                absent,
                args.max_tokens_per_domain,
                args.bootstrap,
                max_bytes_per_domain=args.max_bytes_per_domain,
            ),
        }
        if is_compat:
            theirs = lingua_figures(evaluator, scores, opened.tokenizer, opened.dtype)
            for name, found in theirs.items():
                record["domains"][name]["lingua"] = found
        if args.out and ranks.is_main:
            write_evaluation(args.out, record, scores)
        ranks.barrier()
        return Result(record, scores.sums)


def describe(
    evaluator: Evaluator,
    scores: Scores,
    sources: Mapping[str, TokenSource],
    domain_set: DomainSet,
    absent: list[str],
    max_tokens_per_domain: int | None,
    bootstrap: BootstrapArgs,
    *,
    max_bytes_per_domain: int | None = None,
) -> dict[str, Any]:
    """What an evaluation's record says of its texts, its protocol and its figures."""
    from lingua_synth.evaluate.texts import context_token

    intervals: dict[str, Any] = {}
    if bootstrap.resamples:
        intervals = loss_intervals(
            {name: (found.nats, found.tokens) for name, found in scores.documents.items()},
            seed=bootstrap.seed,
            num_resamples=bootstrap.resamples,
            level=bootstrap.level,
        )
    tokenizer = next(iter(sources.values())).manifest["tokenizer"]
    domains = {}
    for name, sums in scores.sums.items():
        texts = evaluator.domains[name]
        domains[name] = figures(sums, intervals.get(name)) | {
            "tokens_asked": max_tokens_per_domain,
            "tokens_available": texts.tokens_available,
            "documents_available": texts.documents_available,
            "skipped": sources[name].manifest.get("skipped", {}),
            "shards": sources[name].fingerprint,
        }
    asked = list(domain_set.domains) or list(domains)
    return {
        "lingua_synth": _version(),
        "protocol": evaluator.protocol.name,
        "seq_len": evaluator.protocol.seq_len,
        "context_token": context_token(tokenizer),
        "tokenizer": {key: tokenizer[key] for key in ("name", "sha256", "n_words")},
        "domain_set": domain_set.name,
        "coverage": {"of": len(asked), "present": list(domains), "absent": absent},
        "max_tokens_per_domain": max_tokens_per_domain,
        "max_bytes_per_domain": max_bytes_per_domain,
        "averages": average_figures(scores.sums),
        "intervals": {
            **dataclasses.asdict(bootstrap),
            **{key: list(intervals[key]) for key in ("loss_macro", "loss_micro") if intervals.get(key)},
        },
        "domains": domains,
    }


def open_domains(
    paths: Mapping[str, str], tokenizer: Tokenizer, shards: Path | None, ranks: Ranks, *, progress: bool = True
) -> dict[str, TokenSource]:
    """The token shards of each domain; what is documents is tokenized first, by rank 0, into `shards`/<domain>.

    ValueError for shards of another vocabulary than `tokenizer`, and for documents where `shards` is None.
    """
    where = {}
    for name, path in paths.items():
        if is_shards(path):
            where[name] = path
            continue
        if shards is None:
            raise ValueError(
                f"domain {name!r} is documents, which are tokenized first: set out=, or shards= for their token shards"
            )
        where[name] = str(shards / name)
        if ranks.is_main:
            try:
                tokenize(path, where[name], tokenizer, progress=progress)
            except ValueError as error:
                raise ValueError(f"domain {name!r}: {error}") from None
    ranks.barrier()
    sources = {}
    for name, path in where.items():
        try:
            sources[name] = TokenSource(path)
        except ValueError as error:
            raise ValueError(f"domain {name!r}: {error}") from None
        found = sources[name].manifest["tokenizer"]
        if found["sha256"] != tokenizer.sha256:
            raise ValueError(
                f"domain {name!r} was tokenized with {found['name']} ({found['n_words']:,} entries), another "
                f"vocabulary than the model's ({tokenizer.name} {tokenizer.path or ''}, {tokenizer.n_words:,} "
                "entries); tokenize it with the model's tokenizer, or give its documents"
            )
    return sources


def is_shards(path: str) -> bool:
    """Whether `path` is a finished folder of token shards."""
    from lingua_synth.files import read_json

    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        return False
    content = read_json(manifest)
    return isinstance(content, dict) and content.get("format") == SHARDS_FORMAT


def _shards_folder(args: EvaluateArgs) -> Path | None:
    if args.shards:
        return Path(args.shards)
    return Path(args.out) / "shards" if args.out else None


def _version() -> str:
    from lingua_synth import __version__

    return __version__
