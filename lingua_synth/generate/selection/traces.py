"""Annotated records read back: one view of a record, one table of all.

    records with meta.synth.fields ──TraceView──> named values ──TraceTable──> columns that selectors look at

A trace is a question with a teacher's reasoning and answer, and what was found out about them. `FIELDS` says which
values a recipe's parsers give, under which names; each may come from any step. The texts themselves stay in the files:
a table of a million traces takes some hundred megabytes, whatever their lengths.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingua_synth.documents import Document

FIELDS: dict[str, tuple[Any, str]] = {
    "question": (str, "what was asked"),
    "reasoning": (str, "the teacher's thoughts, without its answer"),
    "answer": (str, "the teacher's final answer"),
    "reference_answer": (str, "the answer of a model that did not think"),
    "agree": (bool, "whether a judge takes both answers for the same"),
    "strategies": (dict, "uses of each reasoning strategy, {name: count}"),
    "verbosity": ((int, float), "how wordy the reasoning is, 0 to 10"),
    "domain": (str, "the question's field"),
    "num_tokens": ((int, float), "tokens of reasoning and answer"),
    "embedding": (list, "a vector of the question"),
}
"""Name -> (type, meaning) of what `meta.synth.fields` of a trace may hold, directly or in the section of one step."""

TEXTS = ("question", "reasoning", "answer", "reference_answer")


class MissingField(ValueError):
    """A record lacks a field, or holds something else under its name."""


class TraceView:
    """One annotated record by field names; a field that is absent or of another type raises MissingField (ValueError).

    `question`: the question, for records without it, whose generator read it as its input document. `count_tokens`: a
    tokenizer's count of reasoning and answer is taken for `num_tokens`, whatever the record says.
    """

    def __init__(
        self, document: Document, question: str | None = None, count_tokens: Callable[[str], int] | None = None
    ) -> None:
        self.document = document
        self._count_tokens = count_tokens
        synth = document.meta.get("synth")
        self._synth: Mapping[str, Any] = synth if isinstance(synth, dict) else {}
        fields = self._synth.get("fields")
        if not isinstance(fields, dict):
            raise MissingField(
                f"record {document.id!a} has no meta.synth.fields: it is no annotated trace. Selection reads what a "
                f"recipe wrote whose parsers give fields ({', '.join(FIELDS)})"
            )
        self._fields: Mapping[str, Any] = fields
        self._question = question

    @property
    def source_id(self) -> str | None:
        """Id of the document that the record was made of."""
        source = self._synth.get("source_id")
        return source if isinstance(source, str) else None

    def get(self, name: str) -> Any:
        """The field `name` of FIELDS, of the type stated there."""
        if name == "num_tokens" and self._count_tokens is not None:
            return sum(self._count_tokens(self.get(text)) for text in ("reasoning", "answer"))
        kind, meaning = FIELDS[name]
        found = self._find(name)
        record = f"of record {self.document.id!a}"
        if found is None:
            raise MissingField(
                f"record {self.document.id!a} has no {name} ({meaning}); its fields are "
                f"{', '.join(self._names()) or 'none'}"
            )
        is_bool = isinstance(found, bool)
        if not isinstance(found, kind) or (is_bool and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise MissingField(f"{name} {record} is {found!a:.60}, not {' or '.join(one.__name__ for one in kinds)}")
        if name in ("verbosity", "num_tokens") and not (math.isfinite(found) and found >= 0):
            raise MissingField(f"{name} {record} is {found!r}; it is 0 or more")
        if name == "strategies":
            for strategy, count in found.items():
                if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                    raise MissingField(
                        f"strategies {record} has {strategy!a}: {count!a:.40}; counts are integers, 0 or more"
                    )
        return found

    @property
    def is_complete(self) -> bool:
        """Whether there are reasoning and answer, and the text was not cut at its greatest length."""
        texts = (self._find("reasoning"), self._find("answer"))
        return all(isinstance(text, str) and text.strip() for text in texts) and not self._is_cut()

    def _is_cut(self) -> bool:
        return self._synth.get("finish_reason") == "length"

    def _names(self) -> list[str]:
        sections = [value for value in self._fields.values() if isinstance(value, dict)]
        return sorted(({*self._fields} | {name for section in sections for name in section}) & {*FIELDS})

    def _find(self, name: str) -> Any:
        """The field itself or in the section of one step; several steps may give it if they give the same."""
        if name in self._fields:
            return self._fields[name]
        steps = {
            step: section[name]
            for step, section in self._fields.items()
            if step not in FIELDS and isinstance(section, dict) and section.get(name) is not None
        }
        values = list(steps.values())
        if any(value != values[0] for value in values[1:]):
            raise MissingField(
                f"record {self.document.id!a} has several {name}, of {', '.join(steps)}; a recipe gives each once"
            )
        if values:
            return values[0]
        if name == "question":
            return self._question
        if name == "num_tokens":
            return self._counted_tokens()
        return None

    def _counted_tokens(self) -> int | None:
        """The generator's count, which is of this very text where the record is the step that thought."""
        own = self._fields.get(str(self._synth.get("step")))
        counted = self._synth.get("output_tokens")
        return counted if isinstance(own, dict) and "reasoning" in own and isinstance(counted, int) else None


@dataclass(frozen=True)
class TraceTable:
    """Annotations of many records, one row each, in numpy columns; what is missing is nan, -1 or None.

    `column(name)` gives a column without gaps, or says which record lacks it.
    """

    ids: NDArray[np.object_]
    """str per row, unique."""
    keys: NDArray[np.uint64]
    """Hash of the id: draws depend on it, not on the place of a row."""
    num_tokens: NDArray[np.float64]
    agree: NDArray[np.int8]
    """1 agree, 0 disagree, -1 missing."""
    num_strategies: NDArray[np.float64]
    """Different strategies used."""
    num_uses: NDArray[np.float64]
    """Uses of all strategies."""
    verbosity: NDArray[np.float64]
    domain: NDArray[np.object_]
    complete: NDArray[np.int8]
    embedding: NDArray[np.floating[Any]] | None = None
    """[rows, dim], or None where there are none."""
    missing: Mapping[str, str] | None = None
    """Column -> the first reason why a row lacks it."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        embedding: NDArray[np.floating[Any]] | None = None,
        questions: Mapping[str, str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> TraceTable:
        """The annotations of `documents`, in their order; constant memory beside the columns.

        `embedding`: one vector a document, in the same order, instead of a field. `questions`: text by source id, for
        records without one. `count_tokens`: as in TraceView. Raises ValueError for a record that is no trace, an id
        that appears twice, vectors of unequal length or number.
        """
        rows = _Rows()
        for document in documents:
            source = document.meta.get("synth", {})
            question = (questions or {}).get(str(source.get("source_id"))) if isinstance(source, dict) else None
            rows.add(TraceView(document, question, count_tokens), with_embedding=embedding is None)
        return rows.table(embedding)

    def column(self, name: str) -> NDArray[Any]:
        """Column `name`, one value for every row; ValueError if a row lacks it."""
        values = getattr(self, name)
        gaps = self.gaps(name)
        if values is None or gaps.any():
            reason = (self.missing or {}).get(name, f"there is no {name}")
            how_many = len(self) if values is None else int(gaps.sum())
            hint = (
                "give embeddings=, an .npy of one vector a record"
                if name == "embedding"
                else "missing=drop leaves such records out"
            )
            raise ValueError(f"{name} is missing in {how_many:,} of {len(self):,} records: {reason}; {hint}")
        return values

    def gaps(self, name: str) -> NDArray[np.bool_]:
        """Which rows lack column `name`."""
        values = getattr(self, name)
        if values is None:
            return np.ones(len(self), dtype=bool)
        if values.dtype == object:
            return np.array([value is None for value in values], dtype=bool)
        if values.dtype.kind == "f":
            return np.isnan(values if values.ndim == 1 else values.sum(axis=1))
        return np.asarray(values < 0) if values.dtype.kind == "i" else np.zeros(len(self), dtype=bool)

    def take(self, indices: NDArray[np.int64]) -> TraceTable:
        """The table of these rows."""
        columns: dict[str, Any] = {
            name: value[indices]
            for name in self.__dataclass_fields__
            if isinstance(value := getattr(self, name), np.ndarray)
        }
        return replace(self, **columns)

    def draws(self, seed: int, salt: str) -> NDArray[np.float64]:
        """One uniform number in [0, 1) for every row, a function of seed, salt and the row's id alone."""
        digest = hashlib.sha256(f"{seed}\0{salt}".encode()).digest()
        mixed = _mix(_mix(self.keys ^ np.uint64(int.from_bytes(digest[:8]))) + np.uint64(int.from_bytes(digest[8:16])))
        return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose outputs look independent."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Rows:
    """Columns while they grow."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._keys: list[int] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in ("num_tokens", "agree", "verbosity")}
        self._num_strategies: list[int | None] = []
        self._num_uses: list[int | None] = []
        self._domains: list[str | None] = []
        self._complete: list[bool] = []
        self._vectors: list[NDArray[np.float32] | None] = []
        self._missing: dict[str, str] = {}

    def add(self, view: TraceView, *, with_embedding: bool) -> None:
        document = view.document
        self._ids.append(document.id)
        self._keys.append(int.from_bytes(hashlib.blake2b(document.id.encode(), digest_size=8).digest()))
        for name, column in self._columns.items():
            column.append(self._get(view, name))
        strategies = self._get(view, "strategies")
        self._num_strategies.append(None if strategies is None else sum(count > 0 for count in strategies.values()))
        self._num_uses.append(None if strategies is None else sum(strategies.values()))
        domain = self._get(view, "domain")
        self._domains.append(None if domain is None else sys.intern(domain))
        self._complete.append(view.is_complete)
        if with_embedding:
            self._vectors.append(self._vector(view))

    def _get(self, view: TraceView, name: str) -> Any:
        try:
            return view.get(name)
        except MissingField as error:
            self._missing.setdefault(name, str(error))
            return None

    def _vector(self, view: TraceView) -> NDArray[np.float32] | None:
        found = self._get(view, "embedding")
        if found is None:
            return None
        try:
            vector = np.asarray(found, dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"embedding of record {view.document.id!a} is no list of numbers") from None
        first = next((one for one in self._vectors if one is not None), vector)
        if vector.ndim != 1 or vector.shape != first.shape or not vector.size:
            raise ValueError(
                f"embedding of record {view.document.id!a} has shape {vector.shape}, the first one {first.shape}; "
                "all have one length"
            )
        return vector

    def table(self, embedding: NDArray[np.floating[Any]] | None) -> TraceTable:
        ids = np.empty(len(self._ids), dtype=object)
        ids[:] = self._ids
        domains = np.empty(len(ids), dtype=object)
        domains[:] = self._domains
        if len(set(self._ids)) != len(ids):
            seen: set[str] = set()
            twice = next(one for one in self._ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise ValueError(
                f"the id {twice!a} appears twice; the same records were given twice, or ids are not unique"
            )
        missing = dict(self._missing)
        if "strategies" in missing:
            missing["num_strategies"] = missing["num_uses"] = missing["strategies"]
        return TraceTable(
            ids=ids,
            keys=np.array(self._keys, dtype=np.uint64),
            num_tokens=_floats(self._columns["num_tokens"]),
            agree=np.array([-1 if one is None else int(one) for one in self._columns["agree"]], dtype=np.int8),
            num_strategies=_floats(self._num_strategies),
            num_uses=_floats(self._num_uses),
            verbosity=_floats(self._columns["verbosity"]),
            domain=domains,
            complete=np.array(self._complete, dtype=np.int8),
            embedding=self._stacked() if embedding is None else _checked(embedding, len(ids)),
            missing=missing,
        )

    def _stacked(self) -> NDArray[np.float32] | None:
        first = next((one for one in self._vectors if one is not None), None)
        if first is None:
            return None
        gap = np.full_like(first, np.nan)
        return np.stack([gap if one is None else one for one in self._vectors])


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if one is None else one for one in values], dtype=np.float64)


def _checked(embedding: NDArray[np.floating[Any]], num_rows: int) -> NDArray[np.floating[Any]]:
    if embedding.ndim != 2 or embedding.shape[0] != num_rows or embedding.dtype.kind != "f" or not embedding.shape[1]:
        raise ValueError(
            f"embeddings are {embedding.dtype} of shape {embedding.shape}; {num_rows:,} records need floats of shape "
            f"({num_rows}, dim), in the order of the records"
        )
    return embedding
