"""`lingua-synth generate filter|card key=value ...`: verbs that look at a folder of texts after the fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lingua_synth.config import parse_args
from lingua_synth.files import read_json
from lingua_synth.generate.card import NAME, write_card
from lingua_synth.generate.folder_filters import NEAR_DUPLICATE, OVERLAP, filter_documents


@dataclass
class FilterFolderArgs:
    """Find near-duplicates and overlaps with evaluation texts among documents; copy those that are kept."""

    documents: str = ""
    """Folder of a run, or any documents: a jsonl or parquet file, folder, glob or URL."""
    out: str = ""
    """Folder for near_duplicates.jsonl, overlaps.jsonl and filter.json; empty: that of the run."""
    near_duplicates: float | None = 0.8
    """Similarity of word 5-grams, in (0, 1], from which a text counts as said before; null: not looked for."""
    evaluation: list[str] = field(default_factory=list)
    """Files of evaluation texts, whose runs of words are looked for; empty: not looked for."""
    ngram_words: int = 13
    """Words of such a run."""
    copy: str = ""
    """Folder for the documents that are kept; empty: no copy."""
    drop: list[str] = field(default_factory=lambda: [NEAR_DUPLICATE, OVERLAP])
    """What the copy leaves out: near_duplicate, evaluation_overlap, or filters that marked a record in its run."""


def filter_command(argv: Sequence[str]) -> int:
    """`generate filter`."""
    args = parse_args(FilterFolderArgs, argv, prog="lingua-synth generate filter")
    if not args.documents:
        raise ValueError("documents is not set: the folder of a run, or any documents")
    if args.near_duplicates is None and not args.evaluation and not args.copy:
        raise ValueError("there is nothing to look for; set near_duplicates or evaluation, or copy and drop")
    out = args.out or _folder_of_run(args.documents)
    summary = filter_documents(
        args.documents,
        out,
        near_duplicates=args.near_duplicates,
        evaluation=args.evaluation,
        ngram_words=args.ngram_words,
        copy_dir=args.copy or None,
        drop=args.drop,
    )
    print(f"{summary}\n{'found':15} {out}")
    if args.copy:
        print(f"{'kept':15} {args.copy}")
    return 0


def _folder_of_run(documents: str) -> str:
    """`documents`, if its manifest keeps what is written beside its documents from being read as some."""
    manifest = Path(documents) / "manifest.json"
    if not manifest.is_file() or "document_files" not in read_json(manifest):
        raise ValueError(f"out is not set, and {documents} is no finished run that the findings could stand beside")
    return documents


@dataclass
class CardArgs:
    """Write the dataset card of a finished run again, with a name and a license."""

    out: str = ""
    """The folder of the run."""
    name: str = ""
    """Title of the card; empty: the folder's name."""
    license: str = ""
    """Identifier of the license you give the texts, e.g. cc-by-4.0; empty: left to be filled in."""


def card_command(argv: Sequence[str]) -> int:
    """`generate card`."""
    args = parse_args(CardArgs, argv, prog="lingua-synth generate card")
    if not args.out:
        raise ValueError("card needs out=, the folder of a finished run")
    write_card(args.out, name=args.name, license_id=args.license)
    print(Path(args.out) / NAME)
    return 0
