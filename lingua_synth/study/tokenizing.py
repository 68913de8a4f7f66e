"""`lingua-synth study tokenize`: the shards of every tokenizer of a study, from the same documents.

    sources.NAME.documents, domain_documents.NAME -> (an sp that is not there is learned) -> shards under each tokenizer

Shards that are there stay as they are, so the same call goes on after a kill. Documents stand in the same order under
every tokenizer: it depends on the seed and on their place in the input alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingua_synth.study.args import StudyArgs, StudyTokenizerArgs
from lingua_synth.study.vocabularies import domain_paths, shard_paths
from lingua_synth.tokens import build_tokenizer, tokenize, train_sentencepiece
from lingua_synth.tokens.shards import MANIFEST, read_manifest

EVALUATION = ("synth", "evaluation", "domains")


@dataclass(frozen=True)
class MadeShards:
    """One folder of shards, made now or there before."""

    tokenizer: str
    what: str
    """Source or domain by name."""
    folder: str
    documents: int
    tokens: int
    bytes: int
    is_new: bool

    def __str__(self) -> str:
        made = "" if self.is_new else " (there already)"
        return (
            f"{self.folder}: {self.what} under {self.tokenizer}, {self.documents:,} documents, {self.tokens:,} tokens, "
            f"{self.bytes / max(self.tokens, 1):.3f} bytes a token{made}"
        )


def tokenize_study(study: StudyArgs, *, progress: bool = True) -> Iterator[MadeShards]:
    """Make the shards of every source and domain under every tokenizer, one after the other, and yield each.

    ValueError for a study without tokenizers, one of them without a kind, a source or domain without shards whose
    documents are not named, and documents or vocabularies that `tokenize` refuses.
    """
    if not study.tokenizers:
        raise ValueError(
            "the study names no tokenizers: of one vocabulary `lingua-synth tokenize` makes the shards; of several, "
            "name them, tokenizers.NAME.name=bytes, sp or tiktoken"
        )
    domains = _domains(study)
    for name, args in study.tokenizers.items():
        folders = dict(_folders(study, name, domains))
        missing = [what for what, (folder, documents) in folders.items() if not (documents or _is_there(folder))]
        if missing:
            raise ValueError(
                f"there are no shards of {missing[0]!r} in {folders[missing[0]][0]}, and no documents to make them of: "
                "name sources.NAME.documents and domain_documents.NAME"
            )
        if all(_is_there(folder) for folder, _ in folders.values()):
            tokenizer = None
        else:
            tokenizer = build_tokenizer(*_kind(study, name, args))
        for what, (folder, documents) in folders.items():
            is_new = not _is_there(folder)
            if is_new:
                assert tokenizer is not None, "built where a folder is missing"
                manifest = tokenize(documents, folder, tokenizer, progress=progress)
            else:
                manifest = read_manifest(folder)
            documents_made, tokens, num_bytes = (int(manifest[key]) for key in ("documents", "tokens", "bytes"))
            yield MadeShards(name, what, folder, documents_made, tokens, num_bytes, is_new)


def _is_there(folder: str) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def _domains(study: StudyArgs) -> dict[str, str]:
    """Domains of the study's training config, by name."""
    section: Any = study.train
    for key in EVALUATION:
        section = section.get(key, {}) if isinstance(section, Mapping) else {}
    return {str(name): str(path) for name, path in dict(section or {}).items()}


def _folders(study: StudyArgs, name: str, domains: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Source or domain -> (folder of its shards, its documents, empty where they are not named)."""
    for source, folder in shard_paths(study, name).items():
        if not folder:
            raise ValueError(f"source {source!r}: sources.{source}.path is not set: the folder of its token shards")
        yield source, (folder, study.sources[source].documents)
    if unknown := [domain for domain in study.domain_documents if domain not in domains]:
        raise ValueError(
            f"domain_documents names {unknown[0]!r}, which is no domain of train.synth.evaluation.domains "
            f"({', '.join(domains) or 'none'})"
        )
    for domain, folder in domain_paths(study, name, domains).items():
        if domain in study.sources:
            raise ValueError(f"{domain!r} is a source and a domain; name one of them otherwise")
        yield domain, (folder, study.domain_documents.get(domain, ""))


def _kind(study: StudyArgs, name: str, args: StudyTokenizerArgs) -> tuple[str, str | None]:
    """(kind, file) of a tokenizer; an sp whose file is not there is learned first."""
    if not args.name:
        raise ValueError(f"tokenizers.{name}.name is not set: bytes, sp or tiktoken")
    if args.name != "sp" or not args.path or Path(args.path).is_file():
        return args.name, args.path
    if args.vocab_size is None:
        raise ValueError(
            f"tokenizers.{name}.path {args.path} is not there; set tokenizers.{name}.vocab_size, and it is learned"
        )
    with_documents = [source for source, one in study.sources.items() if one.documents]
    source = args.learn_from or next(iter(with_documents), "")
    if source not in with_documents:
        raise ValueError(
            f"tokenizers.{name} is learned from the documents of {source or 'a source'!r}, and they are not named: set "
            f"sources.{source or 'NAME'}.documents (there are those of: {', '.join(with_documents) or 'none'})"
        )
    from lingua_synth.documents import read_documents

    texts = (document.text for document in read_documents(study.sources[source].documents))
    train_sentencepiece(texts, args.path, args.vocab_size)
    return args.name, args.path
