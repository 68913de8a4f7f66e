"""The tables of the page: losses cell by cell, every fit with its intervals, every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.report import words
from lingua_synth.report.blocks import Block, Bullets, Section, Table
from lingua_synth.report.cells import Cell, largest_cell, main_size
from lingua_synth.report.figures import equal_loss_budget
from lingua_synth.report.laws import estimate, reasons

if TYPE_CHECKING:
    from lingua_synth.scaling import MixtureFit, Runs, StudyFits


def cells_table(runs: Runs, every_cell: Sequence[Cell], target: str) -> Table:
    """Mean loss of every mixture in every cell, the lowest of each cell emphasised."""
    mixtures = runs.mixtures
    rows: list[list[Any]] = []
    strong = set()
    for cell in every_cell:
        if len(cell.losses) > 1:
            strong.add((len(rows), 3 + mixtures.index(cell.best())))
        rows.append([cell.size, _whole(cell.num_parameters), _whole(cell.tokens), *(cell.mean(m) for m in mixtures)])
    what, unit = words.target_words(target)
    seeds = max(len(values) for cell in every_cell for values in cell.losses.values())
    mean = ", mean over seeds" if seeds > 1 else ""
    return Table(
        ["size", "N", "D", *mixtures],
        rows,
        caption=f"{what[0].upper()}{what[1:]} ({unit}) in every cell{mean}; best of each row in bold.",
        strong=frozenset(strong),
    )


def gains_table(every_cell: Sequence[Cell], base: str, target: str) -> Table:
    """Every mixture beside the base: change of the loss in the largest cell, and the tokens that the base needs for the
    loss that it has at the largest budget of the main size, as far as the runs show it."""
    largest, size = largest_cell(every_cell), main_size(every_cell)
    assert largest is not None, "there are cells"
    mine = sorted((cell for cell in every_cell if cell.size == size), key=lambda cell: cell.tokens)
    known = [(cell.tokens, cell.mean(base)) for cell in mine if base in cell.losses]
    rows: list[list[Any]] = []
    for mixture in dict.fromkeys(m for cell in every_cell for m in cell.losses):
        value, reference = largest.mean(mixture), largest.mean(base)
        change = f"{words.signed(100 * (value / reference - 1), 2)}{words.THIN}%" if value / reference > 0 else None
        last = next((cell for cell in reversed(mine) if mixture in cell.losses), None)
        found = equal_loss_budget(known, last.mean(mixture)) if last is not None else None
        needs = words.NOTHING
        if found is not None and last is not None and mixture != base:
            bound = {"at least": "over ", "at most": "under ", "": ""}[found[1]]
            needs = f"{bound}{words.number(found[0] / last.tokens, 2)}× (at {words.short_count(last.tokens)})"
        rows.append([mixture, value, change, needs])
    unit = words.target_words(target)[1]
    header = ["mixture", f"loss ({unit})", "change", f"tokens of {words.quoted(base)} for the same loss, over its own"]
    return Table(
        header,
        rows,
        caption=f"Every mixture against {words.quoted(base)}: loss at {largest.words}; tokens at size {size}, read off "
        "the runs.",
    )


def fits_section(runs: Runs, fits: StudyFits | None) -> Section:
    """Joint, data and model laws of every mixture: numbers where identifiable, reasons where not."""
    if fits is None:
        return Section("Fits", ["No scaling law was fitted to this table."])
    body: list[Block] = [
        "Every fit, with 95 % intervals in brackets. Spread is the root mean square of the relative "
        "residuals. Numbers are shown for identifiable fits only; the reasons stand where they would."
    ]
    joint = [((m,), fits.joint[m]) for m in runs.mixtures if m in fits.joint]
    data = [((m, str(s)), e) for m in runs.mixtures for s, e in fits.data.get(m, {}).items()]
    model = [((m, words.short_count(d)), e) for m in runs.mixtures for d, e in fits.model.get(m, {}).items()]
    for caption, keys, names, entries in (
        ("Joint law, L = E + A/N^α + B/D^β", ["mixture"], ["E", "A", "alpha", "B", "beta"], joint),
        ("Data law at fixed size, L = E_at_N + B/D^β", ["mixture", "size"], ["E_at_N", "B", "beta"], data),
        ("Model law at fixed budget, L = E_at_D + A/N^α", ["mixture", "D"], ["E_at_D", "A", "alpha"], model),
    ):
        if entries:
            body.append(_fit_table(caption, keys, names, entries))
        else:
            body.append(f"{caption}: no fits.")
    return Section("Fits", body)


def _fit_table(
    caption: str, keys: Sequence[str], names: Sequence[str], entries: Sequence[tuple[tuple[str, ...], MixtureFit]]
) -> Block:
    if not any(entry.identifiable for _, entry in entries):
        # A table would repeat the same reasons row by row.
        by_reason: dict[str, list[str]] = {}
        for key, entry in entries:
            by_reason.setdefault(reasons(entry), []).append(" ".join([words.quoted(key[0]), *key[1:]]))
        items = [f"{words.joined(places)}: {why}." for why, places in by_reason.items()]
        return Bullets(items, lead=f"{caption}: not identifiable ({words.plural(len(entries), 'fit')})")
    rows: list[list[Any]] = []
    for key, entry in entries:
        if entry.identifiable and entry.fit is not None:
            values = [words.with_interval(*estimate(entry, name)) for name in names]
            spread = f"{words.number(100 * entry.fit.rms_residual, 2)}{words.THIN}%"
            rows.append([*key, *values, entry.fit.num_points, spread, "; ".join(entry.fit.warnings) or "identifiable"])
        else:
            num = entry.fit.num_points if entry.fit is not None else None
            remark = "not identifiable: " + reasons(entry)
            rows.append([*key, *([words.NOTHING] * len(names)), num, words.NOTHING, remark])
    return Table([*keys, *names, "runs", "spread", "remark"], rows, caption=f"{caption}.")


def runs_section(runs: Runs) -> Section:
    """The whole runs table, rounded for reading."""
    if not len(runs):
        return Section("All runs", ["The runs table is empty."])
    columns = list(runs.columns)
    shown = [_column(runs.columns[name], name) for name in columns]
    rows = [list(row) for row in zip(*shown, strict=True)]
    caption = f"{words.plural(len(runs), 'run')}; losses in nats per token, bpb in bits per byte."
    return Section("All runs", [Table(columns, rows, caption=caption)])


def _column(values: np.ndarray, name: str) -> list[Any]:
    if values.dtype.kind not in "fiu":
        most = 12 if name.endswith("sha256") else 10_000
        return [words.shortened(str(value), most) for value in values]
    finite = values[np.isfinite(values)]
    if name == "seed":
        return [words.NOTHING if math.isnan(v) else f"{v:g}" for v in values]
    if finite.size and bool(np.all(finite == np.round(finite))) and not name.startswith(("loss_", "bpb_")):
        return [_whole(v) for v in values]
    if name.startswith(("loss_", "bpb_")):
        return [float(v) for v in values]
    return [words.NOTHING if math.isnan(v) else f"{v:.4g}" for v in values]


def _whole(value: float) -> int | None:
    return round(float(value)) if math.isfinite(value) else None
