"""What is scored: the documents of each domain that a budget takes, and their windows, packed into batches.

`read_texts` takes whole documents in the order of a hash of their ids until the budget is reached: the same ones for
every model of one vocabulary, whatever the order, number or shuffling of the shards; a budget in bytes takes the same
ones for every vocabulary. `pack` sorts all windows by length and fills
batches of equal work, across domains, so that hardly anything is padding. Both depend on nothing but the data and the
settings: every rank does the same and takes its batches by number.

Of conversations (shards that say which tokens are scored, `is_masked`) the answers alone count, each behind what its
document says before it, with the token that ends it. A budget is then one of scored tokens, and windows that hold none
are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from lingua_synth.evaluate import protocol as protocols

# Another key would take other documents: it is part of what a figure with a budget means.
ORDER_KEY = b"lingua_synth evaluation order 1"


class DocumentSource(Protocol):
    """What evaluation needs of token shards (`lingua_synth.tokens.TokenSource`)."""

    num_documents: int
    manifest: dict[str, Any]

    @property
    def document_lengths(self) -> npt.NDArray[np.int64]: ...
    @property
    def document_num_bytes(self) -> npt.NDArray[np.int64]: ...
    def document(self, i: int) -> npt.NDArray[Any]: ...
    def document_id(self, i: int) -> str: ...


class MaskedSource(DocumentSource, Protocol):
    """Token shards of conversations."""

    @property
    def document_num_scored(self) -> npt.NDArray[np.int64]: ...
    def document_scored(self, i: int) -> npt.NDArray[np.bool_]: ...


@dataclass(frozen=True)
class DomainTexts:
    """The documents of one domain that are scored, in the order of its shards."""

    documents: npt.NDArray[np.int64]
    """Index of each in the shards."""
    num_tokens: npt.NDArray[np.int64]
    """Tokens of its text."""
    num_bytes: npt.NDArray[np.int64]
    """UTF-8 bytes of its text, of a conversation those of its answers."""
    tokens_available: int
    """Tokens of text of the whole domain, of conversations those of answers."""
    documents_available: int
    """Documents of the whole domain that have such a token."""


@dataclass(frozen=True)
class Texts:
    """All domains: their documents, and their tokens one after the other, each document behind its context token."""

    domains: dict[str, DomainTexts]
    tokens: npt.NDArray[Any]
    """Of the shards' type. Document d of all is `tokens[starts[d]:starts[d + 1]]`."""
    starts: npt.NDArray[np.int64]
    num_words: int
    """Entries of the vocabulary."""
    scored: npt.NDArray[np.bool_] | None = None
    """Which of `tokens` count when they are asked for, where a domain holds conversations; None: all texts."""

    @cached_property
    def num_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of text of each document, all domains after each other."""
        return np.concatenate([domain.num_tokens for domain in self.domains.values()])

    @cached_property
    def domain_of(self) -> npt.NDArray[np.int64]:
        """The domain, by number, of each document."""
        return np.repeat(np.arange(len(self.domains)), [len(d.documents) for d in self.domains.values()])

    def by_domain(self) -> Iterator[tuple[str, slice]]:
        """Each domain's name and its documents among all."""
        start = 0
        for name, domain in self.domains.items():
            yield name, slice(start, start + len(domain.documents))
            start += len(domain.documents)


def context_token(tokenizer: Mapping[str, Any]) -> int:
    """The id that stands before a document: BOS, or EOS where the vocabulary has no BOS; ValueError without either."""
    for key in ("bos_id", "eos_id"):
        if tokenizer[key] >= 0:
            return int(tokenizer[key])
    raise ValueError(
        "the vocabulary has neither BOS nor EOS, so there is nothing to put before a document's first token"
    )


def read_texts(
    sources: Mapping[str, DocumentSource], max_tokens_per_domain: int | None, max_bytes_per_domain: int | None = None
) -> Texts:
    """The documents that the budget takes of each domain; memory is that of their tokens.

    Whole documents until `max_tokens_per_domain` tokens, or `max_bytes_per_domain` bytes of text, are reached, so the
    last may go past it; None takes all. A domain with fewer gives them all. ValueError for a domain without a token to
    score, a budget below 1, both budgets, and domains of different vocabularies.
    """
    for key, budget in (
        ("max_tokens_per_domain", max_tokens_per_domain),
        ("max_bytes_per_domain", max_bytes_per_domain),
    ):
        if budget is not None and budget < 1:
            raise ValueError(f"{key} must be at least 1, or null for all; got {budget}")
    if max_tokens_per_domain is not None and max_bytes_per_domain is not None:
        raise ValueError(
            f"max_tokens_per_domain {max_tokens_per_domain:,} and max_bytes_per_domain {max_bytes_per_domain:,} are "
            "two budgets of one text: keep one of them"
        )
    tokenizers = {name: source.manifest["tokenizer"] for name, source in sources.items()}
    _refuse_other_vocabularies(tokenizers)
    tokenizer = next(iter(tokenizers.values()))
    context = context_token(tokenizer)
    domains, parts, lengths = {}, [], []
    masks: list[npt.NDArray[np.bool_]] = []
    any_masked = any(map(_is_masked, sources.values()))
    for name, source in sources.items():
        domain = _choose(name, source, max_tokens_per_domain, max_bytes_per_domain)
        domains[name] = domain
        lengths.append(domain.num_tokens + 1)
        masked = _is_masked(source)
        first = int(source.manifest["add_bos"])
        scored = np.ones(int(lengths[-1].sum()) if any_masked else 0, dtype=bool)
        flat = np.empty(int(lengths[-1].sum()), dtype=source.manifest.get("dtype", "uint32"))
        at = 0
        for index, count in zip(domain.documents.tolist(), domain.num_tokens.tolist(), strict=True):
            document = source.document(index)
            if masked is not None:
                first = len(document) - count
                scored[at + 1 : at + 1 + count] = masked.document_scored(index)[first:]
            flat[at] = context
            flat[at + 1 : at + 1 + count] = document[first : first + count]
            at += 1 + count
        parts.append(flat)
        masks.append(scored)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    mask = np.concatenate(masks) if any_masked else None
    return Texts(domains, np.concatenate(parts), starts, int(tokenizer["n_words"]), mask)


def _is_masked(source: DocumentSource) -> MaskedSource | None:
    """The source, where it says which tokens are scored."""
    return cast(MaskedSource, source) if getattr(source, "is_masked", False) else None


def _refuse_other_vocabularies(tokenizers: Mapping[str, Mapping[str, Any]]) -> None:
    first, *others = tokenizers
    for name in others:
        a, b = tokenizers[first], tokenizers[name]
        if a["sha256"] != b["sha256"]:
            raise ValueError(
                f"domain {name!r} was tokenized with {b['name']} ({b['n_words']:,} entries), domain {first!r} with "
                f"{a['name']} ({a['n_words']:,} entries); tokenize both with the model's tokenizer"
            )


def _choose(name: str, source: DocumentSource, max_tokens: int | None, max_bytes: int | None) -> DomainTexts:
    marks = int(source.manifest["add_bos"]) + int(source.manifest["add_eos"])
    masked = _is_masked(source)
    if masked is None:
        lengths = counts = np.maximum(np.asarray(source.document_lengths, dtype=np.int64) - marks, 0)
    else:
        # All but a BOS in front is text, EOS too; who put BOS there, the template or the setting, shows in the tokens.
        begins = int(
            len(source.document(0)) > 0 and source.document(0)[0] == context_token(source.manifest["tokenizer"])
        )
        lengths = np.asarray(source.document_lengths, dtype=np.int64) - begins
        counts = masked.document_num_scored
    chosen = np.flatnonzero(counts)
    if not len(chosen):
        raise ValueError(f"domain {name!r} has no token to score in {source.num_documents} documents")
    num_bytes = np.asarray(source.document_num_bytes, dtype=np.int64)
    spent, budget = (counts, max_tokens) if max_bytes is None else (num_bytes, max_bytes)
    if budget is not None and budget < int(spent[chosen].sum()):
        keys = np.fromiter((_order(source.document_id(i)) for i in chosen.tolist()), np.uint64, len(chosen))
        ordered = chosen[np.argsort(keys, kind="stable")]
        enough = int(np.searchsorted(np.cumsum(spent[ordered]), budget)) + 1
        documents = np.sort(ordered[:enough])
    else:
        documents = chosen
    return DomainTexts(documents, lengths[documents], num_bytes[documents], int(counts.sum()), len(chosen))


def _order(document_id: str) -> int:
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8, key=ORDER_KEY).digest()
    return int.from_bytes(digest)


@dataclass(frozen=True)
class Batch:
    """Some windows, padded to the longest of them; `rows` are their numbers."""

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    """[rows, longest]: what the model reads. Behind a row's end any token, which a causal model's past cannot see."""
    labels: npt.NDArray[np.int64]
    """[rows, longest]: what it is asked for; -100 where nothing is scored."""


# A batch of shorter and shorter windows ends where padding passes this share of it, unless it is smaller than this
# share of a whole one (a call of the model costs something too).
MOST_PADDING = 0.05
LEAST_FILLED = 1 / 8


def _cut(lengths: npt.NDArray[np.int64], batch_tokens: int) -> list[int]:
    """Where the batches of windows begin, and the last ends; `lengths`: decreasing."""
    cuts = [0]
    while cuts[-1] < len(lengths):
        start, longest = cuts[-1], max(1, int(lengths[cuts[-1]]))
        rows = lengths[start : start + max(1, batch_tokens // longest)]
        is_dense = np.cumsum(rows) >= (1 - MOST_PADDING) * longest * np.arange(1, len(rows) + 1)
        least = min(len(rows), -int(-LEAST_FILLED * batch_tokens // longest))
        cuts.append(start + max(1, int(is_dense.sum()), least))
    return cuts


def _count(tokens: npt.NDArray[Any], num_words: int) -> npt.NDArray[np.int64]:
    """How often each id occurs; in stretches, as `bincount` first makes each of its numbers 8 bytes."""
    counts = np.zeros(num_words, dtype=np.int64)
    for start in range(0, len(tokens), 1 << 22):
        counts += np.bincount(tokens[start : start + (1 << 22)], minlength=num_words)
    return counts


class Packing:
    """The windows of texts under a protocol, in batches of at most `batch_tokens` places (at least one window)."""

    def __init__(self, texts: Texts, protocol: protocols.Protocol, batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self._texts = texts
        if texts.scored is not None and protocol.kind == "lingua-compat":
            raise ValueError(
                "protocol=lingua-compat scores whole documents, and a domain holds conversations, of which only the "
                "answers count; take protocol=disjoint or sliding"
            )
        self.windows = windows = protocol.windows(texts.num_tokens)
        self._num_scored = windows.length - windows.num_context
        if texts.scored is not None:
            before = np.concatenate([[0], np.cumsum(texts.scored)])
            end = texts.starts[windows.document] + 1 + windows.start + windows.length
            self._num_scored = before[end] - before[end - self._num_scored]
            kept = np.flatnonzero(self._num_scored)
            self._num_scored = self._num_scored[kept]
            columns = (windows.document, windows.start, windows.length, windows.num_context)
            self.windows = protocols.Windows(*(column[kept] for column in columns))
        self._first = texts.starts[self.windows.document] + self.windows.start
        lengths = self.windows.length
        self._order = np.lexsort((np.arange(len(lengths)), -lengths))
        self._cuts = _cut(lengths[self._order], batch_tokens)
        self.num_places = sum(
            (stop - start) * int(lengths[self._order[start]])
            for start, stop in zip(self._cuts[:-1], self._cuts[1:], strict=True)
        )
        """Places of all batches, padding included."""

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __getitem__(self, number: int) -> Batch:
        rows = self._order[self._cuts[number] : self._cuts[number + 1]]
        longest = max(1, int(self.windows.length[rows[0]]))
        places = np.arange(longest + 1)
        at = self._first[rows, None] + places
        np.minimum(at, len(self._texts.tokens) - 1, out=at)
        block = self._texts.tokens[at].astype(np.int64)
        scored = (places[:-1] < self.windows.length[rows, None]) & (places[:-1] >= self.windows.num_context[rows, None])
        if self._texts.scored is not None:
            scored &= self._texts.scored[at[:, 1:]]
        return Batch(rows, block[:, :-1], np.where(scored, block[:, 1:], -100))

    @cached_property
    def num_scored(self) -> npt.NDArray[np.int64]:
        """Scored tokens of each document."""
        found = np.bincount(self.windows.document, self._num_scored, minlength=len(self._texts.num_tokens))
        return found.astype(np.int64)

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """How often each token id is scored, int64 [domains, vocabulary]."""
        counts = np.zeros((len(self._texts.domains), self._texts.num_words), dtype=np.int64)
        ends = self._texts.starts[1:]
        for number, (_, documents) in enumerate(self._texts.by_domain()):
            chosen = self._texts.tokens[self._texts.starts[documents.start] : ends[documents.stop - 1]]
            if self._texts.scored is None and np.array_equal(
                self.num_scored[documents], self._texts.num_tokens[documents]
            ):
                # All but the context token in front of each document.
                counts[number] = _count(chosen, self._texts.num_words)
                counts[number, chosen[0]] -= documents.stop - documents.start
                continue
            # Scored are the last tokens of each document, under lingua-compat a tail, or the answers.
            place = np.arange(self._texts.starts[documents.start], ends[documents.stop - 1])
            sizes = np.diff(self._texts.starts[documents.start : documents.stop + 1])
            if self._texts.scored is None:
                is_scored = place >= np.repeat(ends[documents] - self.num_scored[documents], sizes)
            else:
                is_scored = self._texts.scored[place] & (place > np.repeat(self._texts.starts[:-1][documents], sizes))
            counts[number] = np.bincount(self._texts.tokens[place[is_scored]], minlength=self._texts.num_words)
        return counts
