"""Filters that need all texts of a folder: near-duplicates, overlaps with evaluation texts; and a copy without some.

    documents ──read once──> near_duplicates.jsonl, overlaps.jsonl, filter.json   what was found
                        └──> copy: documents-*.jsonl, dropped-*.jsonl, manifest.json   where asked for

A copy may also leave out what the recipe's filters have marked, so that a run need not be repeated to be stricter.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lingua_synth.documents import Document, read_documents, write_documents
from lingua_synth.documents.unfinished import MARKER, begin_folder, end_folder
from lingua_synth.files import atomic_file, write_json
from lingua_synth.generate.decontamination import EvaluationIndex, Overlap
from lingua_synth.generate.filters import FILTERS
from lingua_synth.generate.near_duplicates import NearDuplicate, NearDuplicates

NEAR_DUPLICATE = "near_duplicate"
OVERLAP = "evaluation_overlap"
FOUND = {NEAR_DUPLICATE: "near_duplicates.jsonl", OVERLAP: "overlaps.jsonl"}
"""File of what was found, by reason."""
RESULT = "filter.json"
FORMAT = "lingua_synth filter"
COPY_ROWS = 10_000
COPY_PATTERNS = ("documents-*.jsonl", "dropped-*.jsonl")


@dataclass(frozen=True)
class FilterSummary:
    """What a pass over documents found."""

    documents: int
    found: dict[str, int]
    """Documents by what was found: near-duplicates, overlaps with evaluation texts."""
    flagged: dict[str, int]
    """Documents by the marks that their recipe's filters had left."""
    evaluation: dict[str, int]
    """Evaluation texts, how many of them are too short to be found, and different n-grams; empty: none were given."""
    kept: int | None = None
    """Documents of the copy; None: none was asked for."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Documents left out of the copy, each under the first reason of `drop` that holds."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = {"documents": f"{self.documents:,}", "found": _in_words(self.found), "marked": _in_words(self.flagged)}
        if self.evaluation:
            known = self.evaluation
            rows["evaluation"] = (
                f"{known['documents']:,} texts, {known['ngrams']:,} n-grams; {known['too_short']:,} texts are too "
                "short to be found"
            )
        if self.kept is not None:
            rows["copy"] = f"{self.kept:,} kept, {sum(self.dropped.values()):,} dropped ({_in_words(self.dropped)})"
        return "\n".join(f"{name:15} {value}" for name, value in rows.items())


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def filter_documents(
    documents: str | Sequence[str],
    out_dir: str | Path,
    *,
    near_duplicates: float | None = 0.8,
    evaluation: Sequence[str] = (),
    ngram_words: int = 13,
    copy_dir: str | Path | None = None,
    drop: Sequence[str] = (NEAR_DUPLICATE, OVERLAP),
) -> FilterSummary:
    """Find near-duplicates and overlaps among `documents` (as `read_documents` takes them); write them to `out_dir`.

    `near_duplicates`: similarity from which a text counts as one (`NearDuplicates`); None: they are not looked for.
    `evaluation`: paths of evaluation texts, an `id` and a `text` each, whose runs of `ngram_words` words are looked for
    (`EvaluationIndex`). `copy_dir`: folder for the documents without those for which one of `drop` holds: what is
    looked for here (`near_duplicate`, `evaluation_overlap`) or the name of a filter that marked them. Documents are not
    changed. Reads them once, in order; memory is that of the two searches. Files of an earlier pass are replaced.

    Raises ValueError for names in `drop` that can never hold, for a copy into the folder of the documents or into one
    with documents of somebody else.
    """
    out_dir, copy_dir = Path(out_dir), None if copy_dir is None else Path(copy_dir)
    looked_for = [NEAR_DUPLICATE] * (near_duplicates is not None) + [OVERLAP] * bool(evaluation)
    _validate_drop(drop, looked_for, copy_dir)
    if copy_dir is not None and any(Path(path).resolve() == copy_dir.resolve() for path in _paths(documents)):
        raise ValueError(f"the copy needs a folder of its own; {copy_dir} is that of the documents")
    searches: dict[str, Callable[[Document], NearDuplicate | Overlap | None]] = {}
    if near_duplicates is not None:
        searches[NEAR_DUPLICATE] = NearDuplicates(near_duplicates).add
    index = EvaluationIndex(read_documents(_paths(evaluation)), ngram_words) if evaluation else None
    if index is not None:
        searches[OVERLAP] = index.overlap
    found: collections.Counter[str] = collections.Counter()
    flagged: collections.Counter[str] = collections.Counter()
    num_documents = 0
    out_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[str]] = {
            name: stack.enter_context(atomic_file(out_dir / FOUND[name])) for name in looked_for
        }
        copy = _Copy(copy_dir, drop) if copy_dir is not None else None
        for document in read_documents(_paths(documents)):
            num_documents += 1
            reasons: dict[str, Any] = dict(document.meta.get("synth", {}).get("flags", {}))
            flagged.update(list(reasons))
            for name, search in searches.items():
                result = search(document)
                if result is not None:
                    found[name] += 1
                    reasons[name] = dataclasses.asdict(result)
                    files[name].write(json.dumps(reasons[name], ensure_ascii=False) + "\n")
            if copy is not None:
                copy.add(document, reasons)
    known = {"documents": 0, "too_short": 0, "ngrams": 0}
    if index is not None:
        known = {"documents": index.num_documents, "too_short": index.num_too_short, "ngrams": index.num_ngrams}
    summary = FilterSummary(
        documents=num_documents,
        found={name: found[name] for name in looked_for},
        flagged=dict(sorted(flagged.items())),
        evaluation=known if index is not None else {},
        kept=copy.num_kept if copy is not None else None,
        dropped=dict(copy.dropped) if copy is not None else {},
    )
    settings = {
        "documents": list(_paths(documents)),
        "near_duplicates": near_duplicates,
        "evaluation": list(evaluation),
        "ngram_words": ngram_words,
        "drop": list(drop) if copy is not None else [],
    }
    content = {"format": FORMAT, "version": 1, "settings": settings, **summary.to_dict()}
    if copy is not None:
        copy.finish(content)
    write_json(out_dir / RESULT, content)
    return summary


def _paths(documents: str | Sequence[str]) -> list[str]:
    return [documents] if isinstance(documents, str) else list(documents)


def _validate_drop(drop: Sequence[str], looked_for: Sequence[str], copy_dir: Path | None) -> None:
    known = (*FOUND, *FILTERS)
    for name in drop:
        if name not in known:
            raise ValueError(f"drop names {name!r}, which nothing finds; there are {', '.join(known)}")
    if copy_dir is not None and not any(name in looked_for or name in FILTERS for name in drop):
        raise ValueError(
            f"the copy would leave nothing out: drop is {', '.join(drop) or 'empty'}, and looked for is "
            f"{', '.join(looked_for) or 'nothing'}. Set near_duplicates, evaluation, or drop"
        )


class _Copy:
    """A folder of the documents that are kept, written as they come."""

    def __init__(self, folder: Path, drop: Sequence[str]) -> None:
        self._folder = folder
        self._drop = drop
        self._rows: list[Document] = []
        self._dropped: list[dict[str, Any]] = []
        self._num_files = 0
        self.num_kept = 0
        self.dropped: dict[str, int] = dict.fromkeys(drop, 0)
        if _is_copy(folder):
            (folder / MARKER).touch()
            (folder / "manifest.json").unlink()
        begin_folder(folder, COPY_PATTERNS)

    def add(self, document: Document, reasons: dict[str, Any]) -> None:
        name = next((name for name in self._drop if name in reasons), None)
        if name is None:
            self.num_kept += 1
            self._rows.append(document)
        else:
            self.dropped[name] += 1
            self._dropped.append({"id": document.id, "text": document.text, "filter": name, "reason": reasons[name]})
        if len(self._rows) + len(self._dropped) >= COPY_ROWS:
            self._write()

    def _write(self) -> None:
        number = f"{self._num_files:05d}"
        write_documents(self._folder / f"documents-{number}.jsonl", self._rows)
        with atomic_file(self._folder / f"dropped-{number}.jsonl") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._dropped)
        self._num_files += 1
        self._rows, self._dropped = [], []

    def finish(self, content: dict[str, Any]) -> None:
        """Write the rest, and last of all the manifest, which says that the copy is whole."""
        if self._rows or self._dropped or not self._num_files:
            self._write()
        write_json(self._folder / "manifest.json", {**content, "document_files": ["documents-*.jsonl"]})
        end_folder(self._folder)


def _is_copy(folder: Path) -> bool:
    """Whether `folder` holds the copy of an earlier pass."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
