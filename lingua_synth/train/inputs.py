"""Opening what a run reads: the shards of its sources and domains, all of one vocabulary, and its batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from lingua_synth.mixture import Mixture, MixtureLoader, plan_report
from lingua_synth.mixture.args import build_feedback, build_mixture
from lingua_synth.mixture.feedback import Feedback
from lingua_synth.mixture.plan import count_part, count_windows, part_of
from lingua_synth.model.checkpoint import list_checkpoints
from lingua_synth.model.distributed import Ranks
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize
from lingua_synth.tokens.args import TokenizerArgs
from lingua_synth.tokens.shards import MANIFEST
from lingua_synth.train.args import TrainArgs, read_part, tokens_per_step


def open_shards(what: str, paths: Mapping[str, str], ranks: Ranks) -> dict[str, TokenSource]:
    """Open the shards at `paths`, by name; the ranks divide among them which files each compares with the manifests.

    All ranks call it. `what` they are stands in messages: source, domain. ValueError, on all ranks, for shards that are
    not there or not as written; one of the ranks says which.
    """
    import torch

    opened: dict[str, TokenSource] = {}
    problem, num_files = "", 0
    try:
        for name, path in paths.items():
            where = f"{what} {name!r}"
            source = opened[name] = TokenSource(path, check=False)
            source.check_files((ranks.rank - num_files) % ranks.size, ranks.size)
            num_files += len(source.shards)
    except ValueError as error:
        problem = f"{where}: {error}"
    num_problems = int(ranks.sum(torch.tensor(bool(problem), dtype=torch.int64, device=ranks.device)))
    if problem:
        raise ValueError(problem)
    if num_problems:
        raise ValueError(f"another rank found shards of a {what} that are not as written; its message says which")
    return opened


def open_sources(args: TrainArgs, ranks: Ranks) -> dict[str, TokenSource]:
    """Open the shards of every source; rank 0 first tokenizes those that name `documents` and have no shards yet."""
    if not args.dump_dir:
        raise ValueError("dump_dir is not set: give the folder for this run's results, e.g. dump_dir=runs/first")
    if not args.synth.sources:
        raise ValueError(
            "synth.sources is empty: name at least one source, e.g. synth.sources.web.path=shards/web "
            "synth.sources.web.ratio=1"
        )
    for name, source in args.synth.sources.items():
        if not source.path:
            raise ValueError(f"synth.sources.{name}.path is not set: the folder of its token shards")
        if source.documents and ranks.is_main and not (Path(source.path) / MANIFEST).is_file():
            tokenizer = args.data.tokenizer
            if not tokenizer.name:
                raise ValueError(
                    f"synth.sources.{name}.documents is to be tokenized: name the tokenizer, e.g. "
                    "data.tokenizer.name=bytes"
                )
            tokenize(source.documents, source.path, build_tokenizer(tokenizer.name, tokenizer.path, tokenizer.fast))
    ranks.barrier()
    return open_shards("source", {name: source.path for name, source in args.synth.sources.items()}, ranks)


def with_shard_tokenizer(args: TrainArgs, sources: Mapping[str, TokenSource]) -> TrainArgs:
    """The config with the shards' tokenizer written into it; ValueError if it names another vocabulary."""
    in_shards = next(iter(sources.values())).manifest["tokenizer"]
    asked = args.data.tokenizer
    if asked.name:
        tokenizer = build_tokenizer(asked.name, asked.path)
        if tokenizer.sha256 != in_shards["sha256"]:
            raise ValueError(
                f"data.tokenizer {asked.name} {asked.path or ''} is another vocabulary than the shards' "
                f"({in_shards['name']} {in_shards.get('path') or ''}); tokenize again or leave data.tokenizer.name "
                "empty"
            )
        return args
    found = TokenizerArgs(name=in_shards["name"], path=in_shards.get("path"))
    return dataclasses.replace(args, data=dataclasses.replace(args.data, tokenizer=found))


def refuse_other_vocabulary(sources: Mapping[str, TokenSource], domains: Mapping[str, TokenSource]) -> None:
    trained = next(iter(sources.values())).manifest["tokenizer"]
    for name, domain in domains.items():
        found = domain.manifest["tokenizer"]
        if found["sha256"] != trained["sha256"]:
            raise ValueError(
                f"domain {name!r} was tokenized with {found['name']} ({found['n_words']} entries), the sources with "
                f"{trained['name']} ({trained['n_words']} entries); tokenize the domain with the sources' tokenizer"
            )


# What a checkpoint keeps of the chat template of its sources: enough to export the model with it.
_CHAT_KEYS = ("name", "template", "template_sha256", "special_tokens", "bos_token", "eos_token", "system_role")


def chat_of(sources: Mapping[str, TokenSource], seq_len: int) -> dict[str, Any] | None:
    """The chat template that conversations among the sources were written by, with the ids of the tokens that end an
    answer (`end_ids`); None where there are no conversations. ValueError for two templates: a model is asked in one;
    and for conversations packed for windows of another length than `seq_len`.
    """
    found: dict[str, Any] | None = None
    first, ends = "", set()
    for name, source in sources.items():
        if not source.is_masked:
            continue
        window = source.manifest["chat"].get("window_tokens")
        if window is not None and seq_len % window:
            raise ValueError(
                f"source {name!r} is packed for windows of {window:,} tokens (chat_window_tokens), which data.seq_len "
                f"{seq_len:,} would cut: set data.seq_len={window}, or tokenize again for windows of {seq_len}"
            )
        chat = {key: source.manifest["chat"][key] for key in _CHAT_KEYS}
        if found is None:
            found, first = chat, name
        if any(chat[key] != found[key] for key in _CHAT_KEYS if key not in ("name", "template")):
            raise ValueError(
                f"sources {first!r} and {name!r} were written by different chat templates ({found['name']}, "
                f"{chat['name']}), and a model is asked in one: tokenize {name!r} again with the other's chat_template"
            )
        counted = source.manifest.get("conversations", {})
        ends |= {int(what.removeprefix("ends with ")) for what in counted if what.startswith("ends with ")}
    return None if found is None else found | {"end_ids": sorted(ends)}


def refuse_conversations(sources: Mapping[str, TokenSource]) -> None:
    """ValueError if a source holds conversations: Meta Lingua's loop scores every token."""
    named = [name for name, source in sources.items() if source.is_masked]
    if named:
        raise ValueError(
            f"source {', '.join(map(repr, named))} holds conversations, of which only the answers are to be learned; "
            "Meta Lingua's loop scores every token and averages each micro-batch by itself. Use host=native"
        )


def fit_to_sources(args: TrainArgs, sources: Mapping[str, TokenSource], dp_size: int) -> TrainArgs:
    """The resolved config, with fewer steps where synth.on_exhaustion is stop and the sources end before.

    The warm-up keeps its share of the run. Raises ValueError, before the run folder is touched, for a mixture that asks
    a source for more than it may give, and when there is not one step. A run that has begun is judged where it stands.
    """
    mixture = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
    per_step = tokens_per_step(args, dp_size) // args.data.seq_len
    has_begun = bool(list_checkpoints(Path(args.dump_dir)))
    plan = plan_report(
        sources,
        mixture,
        args.steps * per_step,
        args.data.seq_len,
        schedule=args.synth.schedule,
        validate=not has_begun,
        part=read_part(args, args.steps * per_step * args.data.seq_len),
    )
    steps = plan.end // per_step
    if steps >= args.steps:
        return args
    if args.synth.match_repetition is not None:
        raise ValueError(
            f"with synth.match_repetition the sources end after {plan.end:,} of {args.steps * per_step:,} sequences, "
            "as they would in the run that this one stands for; a shorter run would stand for a shorter one: raise "
            "max_epochs, or set synth.on_exhaustion=repeat"
        )
    if not steps:
        raise ValueError(f"the sources end before the first step of {per_step:,} sequences: {plan.notices()[0]}")
    warmup = args.optim.warmup
    if args.synth.warmup_ratio is not None:
        warmup = round(args.synth.warmup_ratio * steps)
    return dataclasses.replace(args, steps=steps, optim=dataclasses.replace(args.optim, warmup=warmup))


def open_feedback(args: TrainArgs, sources: Mapping[str, TokenSource], dp_size: int) -> Feedback | None:
    """The feedback of a run, at its beginning; None for none."""
    mixture = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
    if args.synth.feedback.every_tokens is None:
        build_feedback(args.synth.feedback, {}, args.data.seq_len, args.synth.on_exhaustion)
        return None
    rule = build_feedback(args.synth.feedback, mixture.ratios, args.data.seq_len, args.synth.on_exhaustion)
    assert rule is not None, "an interval is set"
    part = read_part(args, args.steps * tokens_per_step(args, dp_size))
    windows = {
        n: count_part(count_windows(source.num_tokens, args.data.seq_len), part_of(part, n))
        for n, source in sources.items()
    }
    return Feedback(rule, mixture.ratios, sequences_left(mixture, windows, {}))


def sequences_left(mixture: Mixture, num_windows: Mapping[str, int], read: Mapping[str, int]) -> dict[str, int] | None:
    """Sequences that each source may still give within its max_epochs; None where it may go on for ever."""
    if mixture.on_exhaustion == "repeat":
        return None
    return {
        name: max(0, math.floor(num_windows[name] * epochs) - read.get(name, 0))
        for name, epochs in mixture.max_epochs.items()
    }


def mixture_of(args: TrainArgs, feedback: Feedback) -> Mixture:
    """What the feedback's present interval reads, as a mixture of the run's sources."""
    asked = build_mixture(args.synth.sources, {}, args.synth.on_exhaustion)
    ratios = {name: feedback.ratios.get(name, Fraction(0)) for name in asked.names}
    return Mixture(ratios, asked.max_epochs, on_exhaustion=asked.on_exhaustion)


LoaderClass = TypeVar("LoaderClass", bound=MixtureLoader)


def open_loader(
    args: TrainArgs,
    sources: Mapping[str, TokenSource],
    ranks: Ranks,
    data_state: Mapping[str, Any] | None,
    loader_class: type[LoaderClass] = MixtureLoader,  # type: ignore[assignment]
    mixture: Mixture | None = None,
) -> LoaderClass:
    """This rank's batches from where `data_state` stands; ValueError when they end before the run does.

    `mixture`: what holds from there on, instead of the config's.
    """
    global_batch_size = tokens_per_step(args, ranks.size) // args.data.seq_len
    loader = loader_class(
        sources,
        mixture or build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion),
        seq_len=args.data.seq_len,
        batch_size=args.data.batch_size,
        dp_rank=ranks.rank,
        dp_size=ranks.size,
        global_batch_size=global_batch_size,
        seed=args.data.seed,
        num_sequences=args.steps * global_batch_size,
        schedule=args.synth.schedule,
        prefetch=args.synth.prefetch,
        pin_memory=ranks.device.type == "cuda",
        document_boundaries=args.synth.document_masking,
        state=data_state,
        part=read_part(args, args.steps * tokens_per_step(args, ranks.size)),
    )
    if loader.num_sequences != args.steps * global_batch_size:
        raise ValueError(
            f"with what the run has read before, its mixture ends after {loader.num_sequences:,} of "
            f"{args.steps * global_batch_size:,} sequences; raise max_epochs, or set synth.on_exhaustion to repeat or "
            "renormalize"
        )
    return loader
