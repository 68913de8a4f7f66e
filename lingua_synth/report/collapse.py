"""The section of a page about collapse: what was asked, what each statistic says, and by which rule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lingua_synth.report import collapse_figures, words
from lingua_synth.report.blocks import Block, Bullets, Picture, Section, Table, Terms
from lingua_synth.report.collapse_figures import STATISTICS
from lingua_synth.scaling.verdicts import UNDECIDED, VERDICTS

if TYPE_CHECKING:
    from lingua_synth.analysis import CollapseReport, CollapseTest

MOST_ROWS = 45
"""Statistics in one figure; a study with more has one figure a mixture, for the first mixtures."""
MOST_FIGURES = 10


def collapse_section(report: CollapseReport) -> Section:
    """Figures, verdicts in sentences, the table of all tests, the rule, and what was not tested."""
    if not report.tests:
        return Section("Signs of collapse", ["Nothing to compare: " + " ".join(_sentence(n) for n in report.notes)])
    body: list[Block] = [
        "“Model collapse” has been said of several things. Each is asked here by itself, of every mixture "
        f"against {words.quoted(report.base)}: an effect, its {100 * report.level:.3g} % interval, and a verdict that "
        "both ways has to be earned. “Supported” means harm of more than a stated margin is shown, “rejected” that it "
        "is excluded, “undecided” that the data carry neither.",
        Bullets(sentences(report), lead="What the tests say"),
    ]
    if any(t.name == "loss_gap_at_budget" for t in report.tests):
        body.append(
            Picture(
                "collapse_gaps",
                collapse_figures.loss_gaps(report),
                f"Loss beyond that of {words.quoted(report.base)} at each budget, paired runs, mean over sizes; "
                "intervals hold for all budgets of a mixture at once. The grey band is the margin: what lies in it "
                "does not count.",
            )
        )
    body += _verdict_pictures(report)
    body.append(_table(report))
    margins = report.margins
    body.append(
        Terms(
            [
                (
                    "Loss",
                    f"higher by more than {words.percent(margins.loss)}; runs of published tables lie off their laws "
                    "by about as much.",
                ),
                ("Growth", f"of that gap, by more than {words.percent(margins.growth)} per ten times the tokens."),
                (
                    "Small shares",
                    f"{words.percent(margins.slope / 10)} more loss at 10 % synthetic tokens, from p = 0.",
                ),
                ("Irreducible loss", f"the law's E, higher by more than {words.percent(margins.irreducible)}."),
                ("Data exponent", f"the law's beta, smaller by more than {margins.exponent:g}."),
                ("Rare tokens", f"their loss, higher by more than {words.percent(margins.tail)}."),
                (
                    "Corpora",
                    f"more than {words.percent(margins.support)} fewer token types at equal tokens; rare types take up "
                    f"more than {words.percent(margins.tail_mass)} less of the text.",
                ),
            ]
        )
    )
    if report.notes:
        body.append(Bullets([_sentence(note) for note in report.notes], lead="What was not tested"))
    return Section("Signs of collapse", body)


def sentences(report: CollapseReport) -> list[str]:
    """One sentence a mixture (or corpus): which statistics are supported, rejected and undecided."""
    found = []
    for mixture in dict.fromkeys(test.mixture for test in report.tests):
        mine = [t for t in report.select(mixture=mixture) if t.name in STATISTICS]
        parts = [f"{mixture}:"]
        for verdict in VERDICTS:
            names = [_named(t) for t in mine if t.verdict == verdict]
            if names:
                parts.append(f"{verdict} {words.joined(names)};")
        found.append(" ".join(parts)[:-1] + ".")
    return found


def _named(test: CollapseTest) -> str:
    """The statistic; where it is decided, with what its interval says."""
    name = STATISTICS[test.name]
    return name if test.verdict == UNDECIDED else f"{name} ({test.why.split(';')[0]})"


def _verdict_pictures(report: CollapseReport) -> list[Picture]:
    caption = (
        "Effects in units of their own margins: right of the dashed line is harm that counts. An interval wholly right "
        "of it is supported, wholly left of it rejected; arrows point to what lies further."
    )
    shown = [t for t in report.tests if t.name in STATISTICS and math.isfinite(t.low)]
    if len(shown) <= MOST_ROWS:
        return [Picture("collapse_verdicts", collapse_figures.collapse_verdicts(report), caption)]
    return [
        Picture(
            f"collapse_verdicts_{k + 1}",
            collapse_figures.collapse_verdicts(report, mixtures=[mixture]),
            f"{words.quoted(mixture)}. {caption}",
        )
        for k, mixture in enumerate(list(dict.fromkeys(t.mixture for t in shown))[:MOST_FIGURES])
    ]


def _table(report: CollapseReport) -> Table:
    rows: list[list[Any]] = []
    strong = set()
    for test in report.tests:
        if test.verdict != UNDECIDED:
            strong.add((len(rows), 2))
        name = STATISTICS.get(test.name, "loss at one budget")
        effect = words.NOTHING
        if math.isfinite(test.estimate):
            effect = words.with_interval(test.estimate, test.low, test.high)
        rows.append([test.mixture, name, test.verdict, effect, f"{test.margin:.3g}", test.unit, test.where, test.why])
    return Table(
        ["mixture", "statistic", "verdict", "effect", "margin", "unit", "on what", "in words"],
        rows,
        caption=f"Every test against {words.quoted(report.base)}; positive effects are worse, intervals in brackets.",
        strong=frozenset(strong),
    )


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}." if note else note
