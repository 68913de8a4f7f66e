"""Files of traces -> a folder with the selection and, beside it, a random control of the same size.

    traces ──read──> table ──pool──> rows that may be taken ──select──> selected.jsonl  selected.chat.jsonl
                                                       └────random────> control.jsonl   control.chat.jsonl

The traces are read twice: once for their annotations, once to write what was chosen; between the two, one thing is
held, the table. The folder appears when it is whole. The same traces, words and seed give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import lingua_synth
from lingua_synth.documents import Document, find_files, read_documents
from lingua_synth.documents.locations import is_url
from lingua_synth.files import atomic_folder, read_json, write_json
from lingua_synth.generate.selection.chat import DIFFICULTY, chat_row, plan_thinking, system_prompt
from lingua_synth.generate.selection.expression import Expression, parse_expression
from lingua_synth.generate.selection.selectors import Selection, random
from lingua_synth.generate.selection.traces import TraceTable, TraceView
from lingua_synth.tokens.tokenizer import Tokenizer

FORMAT = "lingua_synth selection"
VERSION = 1
MANIFEST = "manifest.json"
NAMES = ("selected", "control")
MISSING = ("refuse", "drop")


def select_traces(
    traces: str,
    out: str | Path,
    select: str,
    *,
    pool: str = "",
    seed: int = 0,
    questions: str = "",
    embeddings: str = "",
    tokenizer: Tokenizer | None = None,
    missing: str = "refuse",
    chat: bool = True,
    system2: str | float = 1.0,
    system_prompts: str = "by_mode",
) -> dict[str, Any]:
    """Write the selection `select` of the records at `traces` into the folder `out`; returns its manifest.

    `pool` limits what selection and control are both taken from, e.g. "complete & tokens(max=16384)"; probabilities
    are those within it. `questions`: the documents that the traces were generated from, for records without a question.
    `embeddings`: an .npy with one vector a record, in their order. `tokenizer`: counts reasoning and answer, whatever a
    field num_tokens says. `missing="drop"` leaves records out that lack a column which the words need.
    `selected.jsonl` holds the records with `meta.selection = {inclusion, weight, think}` (null where unknown);
    `*.chat.jsonl` the same as conversations. The control is `random` of the same size out of the same pool.

    Raises ValueError for what the words, the records or `out` do not allow. A former selection in `out` is replaced;
    any other folder is refused.
    """
    chosen, pooled = parse_expression(select), parse_expression(pool) if pool else None
    if missing not in MISSING:
        raise ValueError(f"missing is one of {', '.join(MISSING)}, got {missing!r}")
    system_prompt(True, system_prompts)
    files = [] if is_url(traces) else find_files(traces)
    _check_out(Path(out), [*files, embeddings])

    asked = _read_questions(traces, questions) if questions else {}
    digest = hashlib.sha256()
    table = TraceTable.from_documents(
        _hashed(read_documents(traces), digest),
        embedding=_read_embeddings(embeddings) if embeddings else None,
        questions=asked,
        count_tokens=None if tokenizer is None else lambda text: len(tokenizer.encode(text)),
    )
    rows, dropped = _pool(table, chosen, pooled, missing, seed, system2)
    if not len(rows):
        raise ValueError(
            f"no record is left of {len(table):,} to select from; pool={pool or '(none)'}, dropped: {dropped}"
        )
    within = table.take(rows)
    found = chosen.select(within, seed)
    if not len(found):
        raise ValueError(f"{chosen} keeps none of {len(within):,} records")
    both = {"selected": found, "control": random(within, len(found), seed=seed)}
    think = plan_thinking(within, system2, seed=seed)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "library_version": lingua_synth.__version__,
        "seed": seed,
        "select": str(chosen),
        "pool": str(pooled) if pooled else None,
        "missing": missing,
        "system2": system2,
        "system_prompts": system_prompts,
        "records": {"read": len(table), "dropped": dropped, "pool": len(within), "selected": len(found)},
        "in_both": int((both["selected"].kept & both["control"].kept).sum()),
        "records_sha256": digest.hexdigest(),
        "tokenizer": None if tokenizer is None else tokenizer.describe(),
        "embeddings_sha256": _array_sha256(table.embedding) if embeddings else None,
        "statistics": {"pool": describe(within, np.ones(len(within), dtype=bool), think)}
        | {name: describe(within, one.kept, think) for name, one in both.items()},
        "document_files": ["selected.jsonl"],
    }
    with atomic_folder(out) as folder:
        manifest["files"] = _write(folder, traces, digest.hexdigest(), rows, both, think, asked, chat, system_prompts)
        write_json(folder / MANIFEST, manifest)
    return manifest


def describe(table: TraceTable, kept: NDArray[np.bool_], think: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts and means of the rows `kept`; None where a column has gaps among them."""
    part = table.take(np.flatnonzero(kept))

    def mean(name: str, values: NDArray[Any] | None = None) -> float | None:
        column = getattr(part, name) if values is None else values
        return None if part.gaps(name).any() or not len(part) else float(np.mean(column))

    names, counts = np.unique(part.domain[~part.gaps("domain")].astype(str), return_counts=True)
    return {
        "records": len(part),
        "tokens": None if part.gaps("num_tokens").any() else int(part.num_tokens.sum()),
        "mean_tokens": mean("num_tokens"),
        "disagree_rate": mean("agree", part.agree == 0),
        "mean_strategies": mean("num_strategies"),
        "mean_verbosity": mean("verbosity"),
        "complete_rate": mean("complete"),
        "think_rate": float(think[kept].mean()) if kept.any() else None,
        "domains": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
    }


def _pool(
    table: TraceTable, chosen: Expression, pooled: Expression | None, missing: str, seed: int, system2: str | float
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Rows that may be taken, and how many were left out for want of which column."""
    dropped: dict[str, int] = {}
    whole = np.ones(len(table), dtype=bool)
    if missing == "drop":
        needs = [*(pooled.needs if pooled else ()), *chosen.needs, *(("agree",) if system2 == DIFFICULTY else ())]
        for name in dict.fromkeys(needs):
            gaps = table.gaps(name) & whole
            if gaps.any():
                dropped[name] = int(gaps.sum())
                whole &= ~gaps
    rows = np.flatnonzero(whole)
    if pooled is not None and len(rows):
        rows = rows[pooled.select(table.take(rows), _pool_seed(seed)).kept]
    return rows, dropped


def _pool_seed(seed: int) -> int:
    """Another lot than the selection's own, which would see `random` of the pool drawn already."""
    return int.from_bytes(hashlib.sha256(f"pool\0{seed}".encode()).digest()[:8])


def _check_out(out: Path, inputs: list[str]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        manifest = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{out} exists and is no selection; choose another folder for out=, or empty it")
    for file in inputs:
        if file and not is_url(file) and out.resolve() in Path(file).resolve().parents:
            raise ValueError(f"{file} lies in {out}, which would be replaced; choose another folder for out=")


def _hashed(documents: Iterator[Document], digest: Any) -> Iterator[Document]:
    """The same documents, hashed as they go by."""
    for document in documents:
        value = [document.id, document.text, document.meta]
        digest.update(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        yield document


def _read_questions(traces: str, questions: str) -> dict[str, str]:
    """Text by id of those documents that some trace was made of."""
    wanted = set()
    for document in read_documents(traces):
        synth = document.meta.get("synth")
        if isinstance(synth, dict):
            wanted.add(str(synth.get("source_id")))
    found = {document.id: document.text for document in read_documents(questions) if document.id in wanted}
    if not found:
        raise ValueError(
            f"no trace at {traces} was made of a document at {questions}: no meta.synth.source_id is there"
        )
    return found


def _read_embeddings(path: str) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"no file of embeddings {path}") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy array of numbers ({error}); numpy.save makes one") from None
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} holds several arrays; embeddings= takes an .npy with one")
    return loaded


def _array_sha256(array: NDArray[Any] | None) -> str | None:
    if array is None:
        return None
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for at in range(0, len(array), 4096):
        digest.update(np.ascontiguousarray(array[at : at + 4096]).data)
    return digest.hexdigest()


class _Output:
    """A file that is being written, its lines and its hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.num_rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.file.write(line)
        self.digest.update(line)
        self.num_rows += 1


def _write(
    folder: Path,
    traces: str,
    expected: str,
    rows: NDArray[np.int64],
    both: Mapping[str, Selection],
    think: NDArray[np.bool_],
    questions: Mapping[str, str],
    chat: bool,
    system_prompts: str,
) -> dict[str, dict[str, Any]]:
    """The files of selection and control, in the order of the input; name -> rows and sha256."""
    names = [f"{name}{suffix}" for name in both for suffix in ((".jsonl", ".chat.jsonl") if chat else (".jsonl",))]
    place = {int(row): at for at, row in enumerate(rows)}
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        outputs = {name: _Output(stack.enter_context(open(folder / name, "wb"))) for name in names}
        for row, document in enumerate(_hashed(read_documents(traces), digest)):
            at = place.get(row)
            if at is None:
                continue
            for name, selection in both.items():
                if selection.kept[at]:
                    own = {"inclusion": _known(selection.inclusion[at]), "think": bool(think[at])}
                    own["weight"] = None if own["inclusion"] is None else 1.0 / own["inclusion"]
                    meta = {**document.meta, "selection": own}
                    outputs[f"{name}.jsonl"].write({"id": document.id, "text": document.text, "meta": meta})
                    if chat:
                        view = _view(document, questions)
                        outputs[f"{name}.chat.jsonl"].write(chat_row(view, bool(think[at]), system_prompts))
        if digest.hexdigest() != expected:
            raise ValueError(f"{traces} changed while it was read; run the command again when nothing writes there")
        for output in outputs.values():
            output.file.flush()
            os.fsync(output.file.fileno())
    return {name: {"rows": one.num_rows, "sha256": one.digest.hexdigest()} for name, one in outputs.items()}


def _view(document: Document, questions: Mapping[str, str]) -> TraceView:
    view = TraceView(document)
    return TraceView(document, questions.get(view.source_id or ""))


def _known(probability: float) -> float | None:
    return None if np.isnan(probability) else float(probability)
