"""The tables of an analysis as one page to read: summary.md, with what each number means beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lingua_synth.files import atomic_file

NUM_SHOWN = 8

Rows = Sequence[Mapping[str, Any]]


def write_summary(folder: Path, record: Mapping[str, Any], tables: Mapping[str, Rows]) -> None:
    """Write summary.md, atomically."""
    with atomic_file(folder / "summary.md") as file:
        file.write("\n\n".join(summarize_analysis(record, tables)) + "\n")


def summarize_analysis(record: Mapping[str, Any], tables: Mapping[str, Rows]) -> list[str]:
    """Paragraphs and tables in Markdown; a section for each table that has rows."""
    settings = record["settings"]
    page = ["# Corpora by their tokens", _table(tables["corpora"], _CORPORA)]
    if record["matched_tokens"]:
        left_out = [name for name in record["corpora"] if name not in record["compared"]]
        smallest = [row["corpus"] for row in tables["corpora"] if row["tokens"] == record["matched_tokens"]]
        page.append(
            f"Compared at {record['matched_tokens']:,} tokens of each corpus, drawn without replacement"
            + (f" (all that {smallest[0]} has; match_tokens= sets another number)" if smallest else "")
            + (f"; left out: {', '.join(left_out)}." if left_out else ".")
        )
    for name, write in _SECTIONS.items():
        if tables.get(name):
            page += write(tables[name], settings)
    if record["skipped"]:
        page += ["## Skipped", "\n".join(f"- {reason}" for reason in record["skipped"])]
    return page


def _zipf(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    shown = []
    for row in rows:
        shift = "" if row["shift_low"] is None else _interval(row["shift"], row["shift_low"], row["shift_high"], 2)
        shown.append(
            {
                "corpus": row["corpus"],
                "law": row["law"],
                "exponent": _interval(row["exponent"], row["exponent_low"], row["exponent_high"], 4),
                "shift": shift,
                "ranks": f"{row['first_rank']:,}-{row['last_rank']:,}",
                "nats from the law": f"{row['divergence']:.4f}",
                "p": f"{row['p_value']:.2f}",
            }
        )
    return [
        "## Rank and frequency",
        "Exponents by maximum likelihood with 95 % intervals. Where p is near 0, samples of the law never lie as far "
        "from it as the corpus does: the exponent describes the corpus, it is no parameter of it.",
        _table(shown, {key: key for key in shown[0]}),
    ]


def _support(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    return [
        "## Types at equal tokens",
        "Unseen: expected share of the next tokens whose type was not among these (Good-Turing). Tail: share of tokens "
        f"of the types that the most frequent ones, {settings['tail_share']:.1%} of the tokens of "
        f"{rows[0]['tail_reference']}, leave.",
        _table(
            rows,
            {"corpus": "corpus", "expected_types": "types", "unseen_mass": "unseen", "tail_mass": "tail mass"},
        ),
    ]


def _coverage(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"train": "train", "evaluation": "evaluation", "share_of_tokens": "tokens covered"}
    columns |= {"share_of_types": "types covered", "share_of_tokens_by_all": "tokens covered by the whole corpus"}
    return ["## Coverage of the evaluation corpora, at equal tokens", _table(rows, columns)]


def _distances(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"first": "first", "second": "second", "kl": "KL(first, second)", "kl_reverse": "KL(second, first)"}
    itself = [row for row in rows if row["first"] == row["second"]]
    words = (
        "A corpus with itself is two samples of it: no distance below these figures means anything."
        if itself
        else "No corpus has twice the matched tokens, so how far two samples of one lie apart is not known; lower "
        "match_tokens to see it."
    )
    return [
        "## Distances",
        f"Nats per token; {settings['smoothing']:g} occurrences added to every word for KL, none for Jensen-Shannon "
        f"(at most {math.log(2):.3f}). {words}",
        _table(rows, {**columns, "js": "Jensen-Shannon", "absent": "first's tokens absent in second"}),
    ]


def _minima(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"evaluation": "evaluation", "base": "base", "added": "added", "best_ratio": "nearest at a share of"}
    columns |= {"best_kl": "KL there", "kl_base": "KL of base alone", "kl_added": "KL of added alone"}
    return ["## The mixture nearest to each evaluation corpus, from counts alone", _table(rows, columns)]


def _tokens(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    shown = []
    for (train, evaluation), group in _groups(rows, "train", "evaluation"):
        line = {"train": train, "evaluation": evaluation}
        for kind in ("too few", "too many"):
            listed = [row for row in group if row["list"] == kind and row["by"] == "divergence"][:NUM_SHOWN]
            line[kind] = " ".join(_code(row["text"]) for row in listed)
        shown.append(line)
    columns = {"train": "train", "evaluation": "evaluation", "too few": "too few of", "too many": "too many of"}
    return [
        "## Tokens",
        "By what they add to KL(evaluation, train); counts, log-odds and the lists by log-odds are in tokens.csv.",
        _table(shown, columns),
    ]


def _lengths(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {
        "corpus": "corpus",
        "unit": "unit",
        "documents": "documents",
        "mean": "mean",
        "q05": "5 %",
        "q50": "median",
    }
    return ["## Lengths of documents", _table(rows, {**columns, "q95": "95 %", "max": "longest"})]


def _repetition(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"corpus": "corpus", "size": "n", "num_tokens": "tokens", "share_repeated": "repeated"}
    columns |= {"share_repeated_within": "repeated within a document", "standard_error": "standard error"}
    return ["## Repeated n-grams", _table(rows, columns)]


def _copies(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {
        "corpus": "corpus",
        "num_documents": "documents",
        "share_of_documents": "copies",
        "share_of_tokens": "tokens in copies",
    }
    return ["## Exact copies of documents", _table(rows, columns)]


def _overlap(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"train": "train", "evaluation": "evaluation", "num_documents": "documents", "num_too_short": "too short"}
    columns |= {"num_shared_documents": "share something", "num_mostly_shared_documents": "share half or more"}
    return [
        "## Overlap",
        f"Evaluation documents that share {settings['overlap_tokens']} tokens in a row with the training corpus; they "
        "are listed in overlap_documents.csv, the training documents in overlap_train_documents.csv.",
        _table(rows, {**columns, "share_of_tokens": "tokens shared"}),
    ]


_CORPORA = {
    "corpus": "corpus",
    "documents": "documents",
    "tokens": "tokens",
    "bytes_per_token": "bytes a token",
    "types": "types",
}


def _token_losses(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    shown = []
    for (mixture,), group in _groups(rows, "mixture"):
        for row in group[:NUM_SHOWN]:
            shown.append({**row, "mixture": mixture, "text": _code(row["text"])})
    columns = {"mixture": "mixture", "text": "token", "loss": "loss, nats", "ratio": "test/training share"}
    columns |= {"train_count": "in training (expected)", "excess_nats": "nats beyond an average token's"}
    return ["## Tokens that cost most", _table(shown, columns)]


def _loss_distance(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"mixture": "mixture", "distance": "KL(evaluation, training)", "loss": "ln loss beside the mean"}
    columns |= {"loss_error": "standard error"}
    return [
        "## Loss and distance over mixtures",
        "Nearest first. Correlations with their intervals, and whether the nearest is the best, are in analysis.json.",
        _table(rows, columns),
    ]


def _collapse(rows: Rows, settings: Mapping[str, Any]) -> list[str]:
    columns = {"mixture": "mixture", "name": "statistic", "verdict": "verdict", "estimate": "effect", "low": "low"}
    columns |= {"high": "high", "margin": "margin", "where": "on what", "why": "in words"}
    return [
        "## Model collapse",
        "Positive effects are worse than the base. Supported: the whole interval is above the margin; rejected: wholly "
        "below; else undecided.",
        _table(rows, columns),
    ]


_SECTIONS = {
    "zipf": _zipf,
    "support": _support,
    "coverage": _coverage,
    "distances": _distances,
    "mixture_minima": _minima,
    "tokens": _tokens,
    "lengths": _lengths,
    "repetition": _repetition,
    "copies": _copies,
    "overlap": _overlap,
    "token_losses": _token_losses,
    "loss_distance": _loss_distance,
    "collapse": _collapse,
}


def _groups(rows: Rows, *keys: str) -> list[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _interval(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _table(rows: Rows, columns: Mapping[str, str]) -> str:
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return "infinite" if math.isinf(value) else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")
