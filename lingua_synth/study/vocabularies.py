"""The sources of a study in each of its vocabularies: which shards there are, what they hold, how much text a token is.

A study of one tokenizer has one vocabulary, without a name. With several, `{tokenizer}` in the path of a source or of a
domain stands for the tokenizer's name, and all of them must hold the same documents: the same number, of as many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.mixture.pool import parse_tokens
from lingua_synth.mixture.ratios import parse_ratio
from lingua_synth.study.args import StudyArgs, StudyTokenizerArgs
from lingua_synth.tokens.shards import MANIFEST

PLACE = "{tokenizer}"
"""In paths: the tokenizer's name."""


@dataclass(frozen=True)
class Vocabulary:
    """The study's sources in one tokenizer."""

    name: str
    """Empty in a study that declares none."""
    paths: Mapping[str, str]
    """Source -> folder of its shards."""
    manifests: Mapping[str, dict[str, Any] | None]
    """Source -> the manifest of its shards; None before there are any."""
    available: Mapping[str, int | None]
    """Source -> tokens it holds: its shards', else declared; None where it is not known."""
    rates: Mapping[str, Fraction | None]
    """Source -> UTF-8 bytes of text per token: its shards', exact, else declared; None where it is not known."""
    declared_entries: int | None
    """Entries of the vocabulary, as declared."""

    def origin(self, source: str) -> str:
        """How the length of a source is known: from its shards, declared, or unknown."""
        if self.manifests[source] is not None:
            return "shards"
        return "unknown" if self.available[source] is None else "declared"

    @property
    def tokenizer(self) -> Mapping[str, Any] | None:
        """The tokenizer as its shards describe it; None before there are any."""
        return next((manifest["tokenizer"] for manifest in self.manifests.values() if manifest is not None), None)

    @property
    def num_entries(self) -> int | None:
        """Entries of the vocabulary: its shards', else declared; None where neither says."""
        return int(self.tokenizer["n_words"]) if self.tokenizer is not None else self.declared_entries

    def rate(self, source: str) -> Fraction:
        """UTF-8 bytes of text per token. ValueError where there are no shards and none is declared."""
        found = self.rates[source]
        if found is None:
            raise ValueError(
                f"how much text a token of source {source!r} is under the tokenizer {self.name!r} is not known: make "
                "its shards (`lingua-synth study tokenize`), or declare it to plan with, "
                f"tokenizers.{self.name}.bytes_per_token.{source}=4.2"
            )
        return found

    def num_bytes(self, source: str, tokens: int) -> int | None:
        """Bytes of text behind so many tokens of a source, as `training_bytes_<source>` of the runs table counts
        them; None where it is not known."""
        rate = self.rates[source]
        return None if rate is None else round(tokens * rate)


def refuse_tokenizer_names(study: StudyArgs) -> None:
    """ValueError for a tokenizer whose name cannot stand in the names of runs and in paths."""
    for name in study.tokenizers:
        if not name or any(mark in name for mark in "/\\\0{}") or name.startswith("."):
            raise ValueError(f"a tokenizer is named without / and \\, and begins with no dot; got {name!r}")


def read_vocabularies(study: StudyArgs, draft: bool) -> dict[str, Vocabulary]:
    """The vocabularies by name, in the study's order; {"": ...} for a study that declares none.

    ValueError for shards that are missing (unless `draft`), that are of another vocabulary than the tokenizer's, that
    two tokenizers share, and that hold other documents than those of the first tokenizer.
    """
    if not study.tokenizers:
        if placed := [name for name, source in study.sources.items() if PLACE in source.path]:
            raise ValueError(f"sources.{placed[0]}.path has {PLACE} in it, and the study names no tokenizers")
        return {"": _read(study, "", None, draft, None)}
    found: dict[str, Vocabulary] = {}
    for name, args in study.tokenizers.items():
        for key, named, known in (
            ("sources", args.sources, study.sources),
            ("bytes_per_token", args.bytes_per_token, study.sources),
        ):
            if unknown := [one for one in named if one not in known]:
                raise ValueError(f"tokenizers.{name}.{key} names {unknown[0]!r}; there is {', '.join(known) or 'none'}")
        reference = next(iter(found.values()), None)
        found[name] = _read(study, name, args, draft, reference)
        _refuse_other_vocabulary(found[name], args)
        if reference is not None:
            _refuse_other_documents(reference, found[name])
    _refuse_one_vocabulary_twice(found)
    return found


def shard_paths(study: StudyArgs, name: str) -> dict[str, str]:
    """Source -> folder of its shards under the tokenizer of that name (empty: the study's only one)."""
    asked = study.tokenizers[name].sources if name else {}
    return {source: asked.get(source) or args.path.replace(PLACE, name) for source, args in study.sources.items()}


def domain_paths(study: StudyArgs, name: str, domains: Mapping[str, str]) -> dict[str, str]:
    """Domain -> folder of its shards under the tokenizer of that name, from the training config's `domains`."""
    asked = study.tokenizers[name].domains if name else {}
    placed = {domain: path.replace(PLACE, name) if name else path for domain, path in domains.items()}
    if unknown := [domain for domain in asked if domains and domain not in domains]:
        raise ValueError(
            f"tokenizers.{name}.domains names {unknown[0]!r}, which is no domain of train.synth.evaluation.domains "
            f"({', '.join(domains)})"
        )
    return placed | dict(asked)


def _read(
    study: StudyArgs, name: str, args: StudyTokenizerArgs | None, draft: bool, reference: Vocabulary | None
) -> Vocabulary:
    paths = shard_paths(study, name)
    verb = "lingua-synth study tokenize" if name else "lingua-synth tokenize"
    manifests = {source: _manifest(source, path, draft, verb) for source, path in paths.items()}
    declared = args.bytes_per_token if args is not None else {}
    rates: dict[str, Fraction | None] = {}
    for source, manifest in manifests.items():
        if manifest is not None:
            rates[source] = Fraction(int(manifest["bytes"]), int(manifest["tokens"]) or 1)
        elif source in declared:
            rates[source] = parse_ratio(declared[source])
            if not rates[source]:
                raise ValueError(f"tokenizers.{name}.bytes_per_token.{source} is above 0; got {declared[source]}")
        else:
            rates[source] = None
    available: dict[str, int | None] = {}
    for source, manifest in manifests.items():
        tokens = getattr(study.sources[source], "tokens", None)
        if manifest is not None:
            available[source] = int(manifest["tokens"])
        elif tokens is None:
            available[source] = None
        elif reference is None:
            available[source] = parse_tokens(str(tokens))
        else:  # declared in tokens of the first tokenizer
            theirs, ours = reference.rates[source], rates[source]
            known = theirs is not None and ours is not None
            available[source] = int(parse_tokens(str(tokens)) * theirs / ours) if known else None  # type: ignore[operator]
    entries = args.vocab_size if args is not None and args.vocab_size is not None else study.vocab_size
    return Vocabulary(name, paths, manifests, available, rates, entries)


def _manifest(name: str, folder: str, draft: bool, verb: str) -> dict[str, Any] | None:
    """The manifest of a source's shards; a draft does without those that are not there."""
    path = Path(folder) / MANIFEST
    if draft and (not folder or not path.is_file()):
        return None
    if not folder:
        raise ValueError(f"source {name!r}: sources.{name}.path is not set: the folder of its token shards")
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}; make its shards with `{verb}`") from None


def _refuse_other_vocabulary(vocabulary: Vocabulary, args: StudyTokenizerArgs) -> None:
    first: tuple[str, Mapping[str, Any]] | None = None
    for source, manifest in vocabulary.manifests.items():
        if manifest is None:
            continue
        tokenizer = manifest["tokenizer"]
        first = first or (source, tokenizer)
        if tokenizer["sha256"] != first[1]["sha256"]:
            raise ValueError(
                f"tokenizer {vocabulary.name!r}: the shards of {first[0]!r} are of {first[1]['name']} "
                f"({first[1]['n_words']:,} entries), those of {source!r} of {tokenizer['name']} "
                f"({tokenizer['n_words']:,} entries); tokenize one of them again"
            )
        if args.name and tokenizer["name"] != args.name:
            raise ValueError(
                f"tokenizers.{vocabulary.name}.name is {args.name}, and the shards in {vocabulary.paths[source]} are "
                f"of {tokenizer['name']} ({tokenizer['n_words']:,} entries)"
            )


def _refuse_other_documents(reference: Vocabulary, other: Vocabulary) -> None:
    for source, manifest in other.manifests.items():
        theirs = reference.manifests[source]
        if manifest is not None and theirs is not None:
            _refuse_unequal(f"source {source!r}", (reference.name, theirs), (other.name, manifest))


def refuse_other_domains(study: StudyArgs, domains: Mapping[str, str]) -> None:
    """ValueError where the shards of a domain are of other documents under one tokenizer than under the first: its bits
    per byte would not compare. Shards that are not there yet are not judged. `domains`: the training config's."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in study.tokenizers:
        for domain, folder in domain_paths(study, name, domains).items():
            path = Path(folder) / MANIFEST
            if path.is_file():
                manifest = read_json(path)
                _refuse_unequal(f"domain {domain!r}", first.setdefault(domain, (name, manifest)), (name, manifest))


def _refuse_unequal(what: str, one: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> None:
    (first, theirs), (second, ours) = one, other
    different = [
        f"{key} {theirs[key]:,} and {ours[key]:,}" for key in ("documents", "bytes") if theirs[key] != ours[key]
    ]
    if different:
        raise ValueError(
            f"{what} holds other documents under {first!r} than under {second!r} ({', '.join(different)}); tokenize "
            "the same documents with both (`lingua-synth study tokenize`)"
        )


def _refuse_one_vocabulary_twice(vocabularies: Mapping[str, Vocabulary]) -> None:
    seen: dict[str, str] = {}
    for name, vocabulary in vocabularies.items():
        if vocabulary.tokenizer is None:
            continue
        sha = vocabulary.tokenizer["sha256"]
        if sha in seen:
            raise ValueError(
                f"tokenizers {seen[sha]!r} and {name!r} are one vocabulary: their shards are the same; put {PLACE} "
                f"into the paths of the sources, or name tokenizers.{name}.sources"
            )
        seen[sha] = name


def refuse_shared_settings(args: Any, name: str, own: Mapping[str, Any]) -> None:
    """ValueError for a training config of several tokenizers whose numbers would mean another text under each; `own`:
    the tokenizer's own keys."""
    if args.synth.evaluation.max_tokens_per_domain is not None:
        raise ValueError(
            "synth.evaluation.max_tokens_per_domain scores other documents under each tokenizer, and their bits per "
            "byte do not compare; use max_bytes_per_domain, which takes the same ones"
        )
    if args.synth.match_repetition is not None and "match_repetition" not in own.get("synth", {}):
        raise ValueError(
            "synth.match_repetition counts tokens of one tokenizer; set it for each, "
            f"tokenizers.{name}.train.synth.match_repetition, or read a part of the sources instead"
        )
