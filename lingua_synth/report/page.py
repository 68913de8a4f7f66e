"""One self-contained page from a runs table: what was asked, what was done, what was found.

`write_report` draws every figure the table allows, writes each as PNG, SVG and CSV (the numbers drawn), and then, last,
`report.html`: figures inlined, no script, nothing loaded from outside, everything that comes from data escaped. A table
that is empty, or holds one mixture, one size or one ratio, gives a page that says what is missing. The same table
and fits give the same bytes.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingua_synth.files import atomic_file, write_json
from lingua_synth.report import figures, findings, style, words
from lingua_synth.report.blocks import (
    Block,
    Bullets,
    Picture,
    Sample,
    Section,
    Table,
    Terms,
    pictures_of,
)
from lingua_synth.report.canvas import drawn
from lingua_synth.report.cells import Cell, cells, main_mixtures, main_size
from lingua_synth.report.claims_section import (
    PaperQuestions,
    answers_of,
    claims_csv,
    claims_section,
    foretold_section,
    generator_section,
    ratio_blocks,
    recommendation_section,
    validate_questions,
)
from lingua_synth.report.evidence import Evidence
from lingua_synth.report.laws import n_definition_of, reasons, target_of
from lingua_synth.report.page_html import page_html
from lingua_synth.report.tables import cells_table, fits_section, gains_table, runs_section
from lingua_synth.scaling.natural import base_mixture, synthetic_ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lingua_synth.scaling import Runs, StudyFits

__all__ = ["Block", "Bullets", "Picture", "Sample", "Section", "Table", "Terms", "write_report"]

MOST_TOLD = 6
"""Mixtures that are told one by one in sentences; more stand in a table."""
MOST_RATIO_LINES = 12
"""Cells in one ratio figure."""
MOST_JOINT_FIGURES = 12
"""Contour figures on one page; a study with more mixtures draws the rest with `figures.joint_fit`."""


def write_report(
    out_dir: str | Path,
    runs: Runs,
    fits: StudyFits | None,
    *,
    title: str,
    summary: Sequence[str] = (),
    sections_before: Sequence[Section] = (),
    sections_after: Sequence[Section] = (),
    target: str | None = None,
    base: str | None = None,
    questions: PaperQuestions | None = None,
) -> Path:
    """Write `report.html` and `figures/<name>.png`, `.svg`, `.csv` under `out_dir`; returns the path of the page.

    `summary`: sentences of the caller's that stand first among what was done. `sections_before` come between the
    summary and the results (how documents were made, samples of them), `sections_after` behind the results. `target` is
    the column of the runs table that is compared (default: the one that was fitted, else `loss_macro`), `base` the
    mixture all others are compared with (default: natural text alone). With `questions` the page also puts the paper's
    claims to the table, shows what its laws foretell, and recommends what to train on; `claims.csv` and
    `recommendation.json` lie beside it.

    Files are written atomically, the page last. ValueError for a target or base that is not in the table, for
    two pictures of one name, and when the fits were made on another target.
    """
    target = target_of(fits, target)
    if fits is not None and fits.target != target:
        raise ValueError(f"the fits are of {fits.target}, the report is asked for {target}; fit again on {target}")
    base = base_mixture(runs, base)
    n_definition = n_definition_of(fits)
    every_cell = cells(runs, target, n_definition)

    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; out= names a folder for the report")
    sections = [_summary(runs, fits, every_cell, summary, target, n_definition, base), _glossary(target, n_definition)]
    evidence = None
    if questions is not None:
        evidence = Evidence.of(
            runs, fits, base, target, n_definition, questions.roles, questions.generators, questions.noise
        )
        validate_questions(questions, evidence)
    sections += sections_before
    sections += _results(runs, fits, every_cell, target, n_definition, base, evidence, questions)
    sections += sections_after
    sections += [fits_section(runs, fits), runs_section(runs)]
    pictures = pictures_of(sections)
    answers = None
    if evidence is not None and questions is not None and every_cell:
        answers = answers_of(evidence, questions)
        numbers = {picture.name: k + 1 for k, picture in enumerate(pictures)}
        asked = [claims_section(answers.claims, numbers)]
        if answers.recommendation is not None:
            asked.append(recommendation_section(answers.recommendation, evidence, questions))
        sections[1:1] = asked  # behind the summary: no pictures, so the numbers of figures stay

    svgs = {picture.name: write_picture(out_dir / "figures", picture) for picture in pictures}
    if answers is not None:
        with atomic_file(out_dir / "claims.csv") as file:
            file.write(claims_csv(answers.claims))
        if answers.recommendation is not None:
            write_json(out_dir / "recommendation.json", answers.recommendation.to_dict())
    page = page_html(title, sections, svgs)
    path = out_dir / "report.html"
    with atomic_file(path) as file:
        file.write(page)
    return path


# --- what stands on the page ---


def _summary(
    runs: Runs,
    fits: StudyFits | None,
    every_cell: Sequence[Cell],
    summary: Sequence[str],
    target: str,
    n_definition: str,
    base: str | None,
) -> Section:
    many = len(runs.mixtures) > MOST_TOLD
    found = [
        *([] if many else findings.largest_cell_findings(runs, every_cell, base, target)),
        *findings.best_mixture_findings(every_cell),
        *findings.monotone_findings(every_cell),
        *([] if many else findings.speedup_findings(every_cell, base)),
        *findings.fit_findings(runs, fits),
        *findings.noise_findings(every_cell, target),
        *findings.repetition_findings(runs),
    ]
    body: list[Block] = [
        Terms(
            [
                ("What was asked", " ".join(findings.asked(runs, base))),
                ("What was done", " ".join([*summary, *findings.done(runs, every_cell, n_definition)])),
            ]
        )
    ]
    if every_cell:
        body.append(Bullets(found, lead="What was found"))
    if many and base is not None:
        body.append(gains_table(every_cell, base, target))
    missing = _missing(runs, every_cell, base)
    if missing:
        body.append(Bullets(missing, lead="What this table cannot show"))
    return Section("In short", body)


def _missing(runs: Runs, every_cell: Sequence[Cell], base: str | None) -> list[str]:
    """What a reader would look for and this table does not hold."""
    if not every_cell:
        return ["Anything: there are no runs. Train some, collect them into a runs table, and write the report again."]
    lacks = []
    if len(runs.mixtures) < 2:
        lacks.append("Whether one mixture is better than another: all runs have the same mixture.")
    if len({cell.size for cell in every_cell}) < 2:
        lacks.append("How loss falls with model size: all runs have the same size.")
    if len({cell.tokens for cell in every_cell}) < 2:
        lacks.append("How loss falls with the training budget: all runs have the same budget.")
    if len({share for _, share in synthetic_ratios(runs, base).values()}) < 2 and len(runs.mixtures) > 1:
        lacks.append("Which share of synthetic text is best: the mixtures do not differ in it, or no ratios are given.")
    if not runs.domains:
        lacks.append("On which kinds of text the mixtures differ: there is no loss per domain.")
    return lacks


def _glossary(target: str, n_definition: str) -> Section:
    what, unit = words.target_words(target)
    if unit == "nats per token":
        loss = (
            f"How surprised a model is by text it never saw, on average, in {unit} (here: {what}). Lower is better. "
            "One nat less means that, on average, a token was 2.7 times as probable to the model."
        )
    else:
        loss = f"How badly a model predicts text it never saw, in {unit} (here: {what}). Lower is better."
    terms = [
        ("Loss", loss),
        ("Token", "A piece of a word, the unit in which the model reads and in which budgets are counted."),
        ("Mixture, ratio", "Which sources a model was trained on, and the share of its training tokens from each."),
        ("N", f"Model size. On this page: {words.N_WORDS.get(n_definition, n_definition)}."),
        ("D", "Training budget: the number of tokens the model was trained on, repeated ones counted again."),
        ("E", "Irreducible loss: what would remain, by the fitted law, for an endless model and budget."),
        (
            "Identifiable",
            "A fitted law is identifiable when the runs determine its numbers. With few or tiny runs many different "
            "laws fit equally well; such a fit has numbers, but they mean nothing, and this page shows none of them.",
        ),
    ]
    return Section("Words used on this page", [Terms(terms)])


def _results(
    runs: Runs,
    fits: StudyFits | None,
    every_cell: Sequence[Cell],
    target: str,
    n_definition: str,
    base: str | None,
    evidence: Evidence | None,
    questions: PaperQuestions | None,
) -> list[Section]:
    if not every_cell:
        return []
    shown = main_mixtures(runs, base)
    main_runs = runs if len(shown) == len(runs.mixtures) else runs.take(np.isin(runs["mixture"], shown))
    main_cells = every_cell if main_runs is runs else cells(main_runs, target, n_definition)
    size = main_size(main_cells)
    guide = "Where a law is identifiable its curve and 95 % band are drawn; a dashed line only joins the runs."
    sections = [
        Section(
            "Loss against training tokens",
            [
                "Each mark is one training; further right it read more text, further down it predicts better. " + guide,
                *_left_out(runs, main_runs),
                *_each_size(main_runs, fits, main_cells, target, base),
            ],
        )
    ]
    if len({cell.size for cell in main_cells}) > 1:
        sections.append(
            Section(
                "Loss against model size",
                [
                    "The same losses from the other side: models of different size, trained on equally many tokens. "
                    + guide,
                    Picture(
                        "model_scaling",
                        figures.model_scaling(main_runs, fits, target=target, base=base),
                        "Held-out loss against model size N, one colour a mixture, at the budget with most sizes.",
                    ),
                ],
            )
        )
    if evidence is not None and questions is not None:
        foretold = foretold_section(evidence, questions)
        sections += [foretold] if foretold is not None else []
    sections += _comparisons(runs, main_runs, fits, every_cell, target, size, base, evidence)
    if evidence is not None and questions is not None:
        by_generator = generator_section(evidence, questions)
        sections += [by_generator] if by_generator is not None else []
    sections += _laws(main_runs, fits, target, base)
    return sections


def _left_out(runs: Runs, main_runs: Runs) -> list[Block]:
    if len(runs.mixtures) == len(main_runs.mixtures):
        return []
    return [
        f"Of {len(runs.mixtures)} mixtures figures of many show {len(main_runs.mixtures)}: natural text and every kind "
        "of synthetic text by a third, by two thirds and alone, or those of most runs. The others stand in the figures "
        "of ratios and generators and in the tables."
    ]


def _each_size(
    runs: Runs, fits: StudyFits | None, every_cell: Sequence[Cell], target: str, base: str | None
) -> list[Block]:
    """The main size first, then every other size with more than one budget, larger models first."""
    main = main_size(every_cell)
    budgets = Counter(cell.size for cell in every_cell)
    others = [size for size in reversed(budgets) if size != main and budgets[size] > 1]
    return [
        Picture(
            "data_scaling" if k == 0 else f"data_scaling_{k + 1}",
            figures.data_scaling(runs, fits, size, target=target, base=base),
            f"Held-out loss against training tokens D for models of size {size} "
            f"({words.plural(budgets[str(size)], 'budget')}), one colour a mixture.",
        )
        for k, size in enumerate([main, *others])
    ]


def _comparisons(
    runs: Runs,
    main_runs: Runs,
    fits: StudyFits | None,
    every_cell: Sequence[Cell],
    target: str,
    size: str | None,
    base: str | None,
    evidence: Evidence | None,
) -> list[Section]:
    sections: list[Section] = []
    several = len(runs.mixtures) > 1
    ratio_body = _ratio_blocks(runs, fits, every_cell, target, base, evidence) if several else []
    if ratio_body:
        sections.append(Section("Which mixture is best, and where", ratio_body))
    if runs.domains:
        sections.append(
            Section(
                "Loss by kind of text",
                [
                    "A mean over domains hides where a mixture gains and where it pays. Marks of one row belong to the "
                    "same held-out text; the further left, the better the mixture predicts it.",
                    Picture(
                        "domains",
                        figures.domains(main_runs, fits, base=base),
                        "Held-out loss per domain and mixture at the largest model and budget, easiest domain on top.",
                    ),
                ],
            )
        )
    if several:
        sections.append(
            Section(
                "Speed-up: the same loss with fewer tokens",
                [
                    f"How many times more tokens {words.quoted(base or '')} would need to reach the loss another "
                    "mixture has at D. Above 1 the mixture saves training tokens, below 1 it costs tokens; hollow "
                    f"triangles are bounds, where the runs of {words.quoted(base or '')} end before that loss.",
                    Picture(
                        "speedup",
                        figures.speedup(main_runs, fits, base, size=size, target=target),
                        f"Speed-up against training tokens D at size {size}. Marks are interpolated between runs; "
                        "curves come from laws (with 95 % bands where all mixtures were fitted together), are drawn "
                        f"only where these are identifiable, and are thin where the law of {words.quoted(base or '')} "
                        "is read beyond its runs.",
                    ),
                ],
            )
        )
    return sections


def _ratio_blocks(
    runs: Runs,
    fits: StudyFits | None,
    every_cell: Sequence[Cell],
    target: str,
    base: str | None,
    evidence: Evidence | None,
) -> list[Block]:
    shares = synthetic_ratios(runs, base)
    partners = list(dict.fromkeys(others[0] for others, _ in shares.values() if len(others) == 1))
    blocks: list[Block] = [
        "A cell is one model size at one budget; inside a cell only the mixture differs. "
        "The lowest loss of each cell is ringed in the figure and set in bold in the table.",
    ]
    # Beyond a dozen lines one cannot be told from the next: then every size gets a figure of its own.
    many = len(every_cell) > MOST_RATIO_LINES
    sizes: list[str | None] = [*dict.fromkeys(cell.size for cell in reversed(every_cell))] if many else [None]
    maps = ratio_blocks(evidence) if evidence is not None else []
    if many and maps:  # the maps have every size
        sizes = [main_size(every_cell)]
    blocks += maps
    for k, (source, size) in enumerate(itertools.product(partners, sizes)):
        where = f", models of size {size}" if size is not None else ""
        blocks.append(
            Picture(
                "ratio" if k == 0 else f"ratio_{k + 1}",
                figures.ratio(runs, fits, source, size=size, target=target, base=base),
                f"Held-out loss against the share of {words.quoted(source)} tokens{where}; one line a cell, its budget "
                "at the right end, its best ratio ringed.",
            )
        )
    blocks.append(cells_table(runs, every_cell, target))
    return blocks


def _laws(runs: Runs, fits: StudyFits | None, target: str, base: str | None) -> list[Section]:
    if fits is None:
        return []
    drawn = runs.mixtures[:MOST_JOINT_FIGURES]
    body: list[Block] = [
        "One law in model size and tokens together, L = E + A/N^α + B/D^β, is fitted to all runs of a mixture. "
        "Where the runs determine it, E is the loss it tends to; where they do not, words say so instead of a number.",
        Picture(
            "irreducible_loss",
            figures.irreducible_loss(runs, fits, base=base),
            _floor_caption(fits)
            if any(entry.identifiable for entry in fits.joint.values())
            else "Irreducible loss E of the joint law per mixture: identifiable for none, so no number is drawn.",
        ),
    ]
    for k, mixture in enumerate(drawn):
        entry = fits.joint.get(mixture)
        good = entry is not None and entry.identifiable
        if entry is None or entry.fit is None:
            body.append(f"{words.quoted(mixture)}: no joint fit: {reasons(entry)}.")
            continue
        caption = (
            f"Joint law of {words.quoted(mixture)}: lines join sizes and budgets of equal loss, the straight one those "
            "of lowest loss for their compute (95 % band); marks are the runs."
            if good
            else f"{words.quoted(mixture)}: losses the fitted law returns against those observed, on the runs it was "
            "fitted to. The law is not identifiable: closeness to the diagonal says nothing about other runs."
        )
        body.append(
            Picture(f"joint_{k + 1}", figures.joint_fit(runs, fits, mixture, target=target, base=base), caption)
        )
    if len(runs.mixtures) > len(drawn):
        body.append(f"{len(runs.mixtures) - len(drawn)} further mixtures have their joint fit in the table below only.")
    return [Section("The scaling law", body)]


def _floor_caption(fits: StudyFits) -> str:
    if getattr(fits, "ranking", None) is not None:
        return (
            "Irreducible loss E of the joint laws of all mixtures fitted together, lowest first, with 95 % intervals "
            "that hold for all at once. Mixtures with a letter in common are not told apart."
        )
    return (
        "Irreducible loss E of the joint law per mixture with 95 % intervals. Intervals that overlap are no evidence "
        "of a difference."
    )


# --- files ---


def write_picture(folder: Path, picture: Picture) -> str:
    """Write one picture as `folder`/<name>.svg, .png and .csv (the numbers drawn); returns its SVG for the page."""
    figure = picture.ax.get_figure()
    assert figure is not None, "axes belong to a figure"
    root = figure.figure if hasattr(figure, "figure") and figure.figure is not None else figure
    svg = style.figure_svg(root, picture.name)  # type: ignore[arg-type]
    with atomic_file(folder / f"{picture.name}.svg") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n' + svg)
    with atomic_file(folder / f"{picture.name}.png", "wb") as file:
        file.write(style.figure_png(root))  # type: ignore[arg-type]
    with atomic_file(folder / f"{picture.name}.csv") as file:
        file.write(numbers_csv(picture.ax))
    return svg


def numbers_csv(ax: Axes) -> str:
    """The numbers drawn on `ax` as CSV: one row a point, full precision, empty where a column does not apply."""
    rows = drawn(ax)
    header = list(dict.fromkeys(key for row in rows for key in row)) or ["kind"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_csv_cell(row.get(key)) for key in header])
    return buffer.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)
