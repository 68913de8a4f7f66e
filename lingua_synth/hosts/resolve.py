"""Our configuration -> a plain YAML that stock Meta Lingua takes: `python -m apps.main.train config=resolved.yaml`.

Presets, budgets and fractions are written out. What has no place in Lingua is refused where it would change the model
or the schedule, and named in a comment where the run will differ: above all its loader, whose weights count documents
where our ratios count training tokens.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.hosts.plain import ENVIRONMENT, plain_config, refuse_impossible
from lingua_synth.mixture.args import build_mixture
from lingua_synth.tokens import TokenSource, build_tokenizer
from lingua_synth.tokens.shards import MANIFEST
from lingua_synth.train.args import TrainArgs, resolve_args, tokens_per_step
from lingua_synth.train.inputs import refuse_conversations, with_shard_tokenizer

CHUNKS = "*.chunk.*.jsonl"


@dataclass(frozen=True)
class Resolved:
    """A configuration for stock Lingua, and what its reader should know."""

    config: dict[str, Any]
    summary: str
    """Steps and tokens, in one line."""
    notes: list[str]
    """What differs from the run as configured, one sentence each."""

    def to_yaml(self) -> str:
        """The file: summary and notes as comments, then every key."""
        import yaml

        comments = [self.summary, *self.notes]
        body = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        return "".join(f"# {line}\n" for line in comments) + body


def resolve(args: TrainArgs, *, num_ranks: int = 1) -> Resolved:
    """`args` for stock Lingua on `num_ranks` GPUs.

    Vocabulary, BOS/EOS and document lengths come from the sources' token shards where they exist; nothing is tokenized.
    ValueError for what Lingua cannot do, and for a batch that does not divide over the ranks.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    if not args.dump_dir:
        raise ValueError("dump_dir is not set: Lingua refuses a run without one")
    if args.synth.stages:
        raise ValueError(f"synth.stages ({', '.join(args.synth.stages)}): Lingua's weights stay the same all along")
    if not args.synth.sources:
        raise ValueError("synth.sources is empty: name at least one source")
    build_mixture(args.synth.sources)  # ratios that sum to 1
    shards = {
        name: TokenSource(source.path)
        for name, source in args.synth.sources.items()
        if source.path and (Path(source.path) / MANIFEST).is_file()
    }
    refuse_conversations(shards)
    args, vocab_size = _with_vocabulary(args, shards)
    asked = args.model.vocab_size
    if asked not in (-1, vocab_size):
        raise ValueError(f"model.vocab_size {asked}: Lingua's is the tokenizer's, {vocab_size}; leave it at -1")
    args = resolve_args(args, dp_size=num_ranks, vocab_size=vocab_size)
    refuse_impossible(args)
    config = plain_config(args)
    for kind in ("dump", "eval"):
        config["checkpoint"][kind]["every"] = config["checkpoint"][kind]["every"] or args.steps
    data, notes = _data(args, shards, num_ranks)
    config["data"] |= data
    step_tokens = tokens_per_step(args, num_ranks)
    summary = (
        f"{args.steps:,} steps of {step_tokens:,} tokens ({num_ranks} ranks x {args.grad_acc_steps} micro-batches x "
        f"{args.data.batch_size} sequences of {args.data.seq_len}) = {args.steps * step_tokens:,} tokens"
    )
    return Resolved(config, summary, notes + _other_notes(args))


def _with_vocabulary(args: TrainArgs, shards: Mapping[str, TokenSource]) -> tuple[TrainArgs, int]:
    if shards:
        args = with_shard_tokenizer(args, shards)
        return args, int(next(iter(shards.values())).manifest["tokenizer"]["n_words"])
    tokenizer = args.data.tokenizer
    if not tokenizer.name:
        raise ValueError(
            "no source has token shards yet, so nothing names the vocabulary: set data.tokenizer.name, or run "
            "`lingua-synth tokenize` first"
        )
    return args, build_tokenizer(tokenizer.name, tokenizer.path).n_words


def _data(args: TrainArgs, shards: Mapping[str, TokenSource], num_ranks: int) -> tuple[dict[str, Any], list[str]]:
    """root_dir, sources and BOS/EOS for Lingua's loader, with what is to be said about them."""
    folders = {name: _chunk_folder(source.documents) for name, source in args.synth.sources.items()}
    weights, notes = _weights(args, shards)
    data: dict[str, Any] = {}
    missing = [name for name, folder in folders.items() if folder is None]
    if missing:
        notes.append(
            f"MISSING: data.root_dir. Lingua reads folders of {CHUNKS}, and the documents of {', '.join(missing)} are "
            "none: write such under <root_dir>/<source>/, or name such folders in synth.sources.<name>.documents"
        )
        data |= {"root_dir": None, "sources": weights}
    else:
        there = {name: folder for name, folder in folders.items() if folder is not None}
        root = os.path.commonpath([folder.parent for folder in there.values()])
        data |= {
            "root_dir": root,
            "sources": {os.path.relpath(folder, root): weights[name] for name, folder in there.items()},
        }
        for name, folder in there.items():
            count = len(list(folder.glob(CHUNKS)))
            if count > num_ranks:
                notes.append(
                    f"Lingua reads {num_ranks} of the {count} chunks of {name}, one per rank, and drops the rest"
                )
            elif num_ranks % count:
                raise ValueError(
                    f"source {name!r} has {count} chunks, which do not divide {num_ranks} ranks: Lingua refuses that; "
                    "change one of them"
                )
    for key in ("add_bos", "add_eos"):
        found = {source.manifest[key] for source in shards.values()}
        if len(found) == 1:
            data[key] = found.pop()
    notes.append("Lingua repeats a source that ends, without limit: synth.sources.<name>.max_epochs is not kept")
    return data, notes


def _chunk_folder(documents: str) -> Path | None:
    folder = Path(documents)
    return folder.resolve() if documents and folder.is_dir() and any(folder.glob(CHUNKS)) else None


def _weights(args: TrainArgs, shards: Mapping[str, TokenSource]) -> tuple[dict[str, float], list[str]]:
    """Weights by document. A source whose documents are twice as long is drawn half as often for the same tokens."""
    ratios = {name: float(share) for name, share in build_mixture(args.synth.sources).ratios.items()}
    if len(ratios) == 1:
        return dict.fromkeys(ratios, 1.0), []
    asked = ", ".join(f"{name} {ratio:.4g}" for name, ratio in ratios.items())
    if set(shards) != set(ratios):
        return ratios, [
            f"data.sources are weights by DOCUMENT in Lingua, and here the ratios of tokens ({asked}): sources of "
            "longer documents will have more than their share. With token shards of all sources they would be corrected"
        ]
    per_token = {name: ratio * shards[name].num_documents / shards[name].num_tokens for name, ratio in ratios.items()}
    total = sum(per_token.values())
    return {name: weight / total for name, weight in per_token.items()}, [
        f"data.sources are weights by DOCUMENT in Lingua: the ratios of tokens ({asked}) over the mean length of "
        "their documents. The shares of tokens hold on average, not exactly"
    ]


def _other_notes(args: TrainArgs) -> list[str]:
    notes = []
    if args.synth.evaluation.domains:
        notes.append(
            f"not evaluated by Lingua: {', '.join(args.synth.evaluation.domains)} (`lingua-synth evaluate` reads its "
            "checkpoints)"
        )
    if args.synth.attention != "sdpa":
        notes.append(f"synth.attention {args.synth.attention}: stock Lingua trains with sdpa")
    outside = {key: value for key, value in args.env.items() if key not in ENVIRONMENT}
    notes += [
        f"export {key}={value} before the start: Lingua's `env` has no such key" for key, value in outside.items()
    ]
    return notes


def without_resolve_keys(args: TrainArgs) -> TrainArgs:
    """`args`, which may be of a subclass with further keys, as plain TrainArgs."""
    return TrainArgs(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainArgs)})
