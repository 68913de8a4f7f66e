"""What the finished rounds show: rounds.csv, collapse.csv and collapse.json, figures, and one self-contained page."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingua_synth.analysis.verdicts import CollapseTest
from lingua_synth.config import to_dict
from lingua_synth.files import atomic_file, write_json
from lingua_synth.generations.args import BUILT_IN_DOCUMENTS, GenerationsArgs, arms_of
from lingua_synth.generations.collapse import STATISTICS, TO_CONTROL, Series, round_tests, statistic_tests
from lingua_synth.generations.figures import over_rounds
from lingua_synth.generations.measure import round_rows, series
from lingua_synth.generations.plan import CONTROL, plan_round, ratios_of, text_name
from lingua_synth.scaling.verdicts import UNDECIDED

if TYPE_CHECKING:
    from lingua_synth.report import Section

ROUNDS, TESTS, TESTS_JSON, REPORT = "rounds.csv", "collapse.csv", "collapse.json", "report.html"
MOST_SAMPLE_CHARS = 500

PICTURES = (
    ("rounds_loss", "loss_macro", "held-out loss\n(nats per token)",
     "Held-out loss of the student, mean over domains."),
    ("rounds_tail_loss", "tail_loss", "held-out loss on rare tokens\n(nats per token)",
     "Held-out loss on tokens of rare types, those that make up the last 5 % by their counts in natural text."),
    ("rounds_types", "text_types", "token types of the text",
     "Different token types that equally many tokens of each round's text show; round 0 is natural text."),
    ("rounds_tail_mass", "text_tail_mass", "share of rare types in the text",
     "Share of the text that rare types take up; round 0 is natural text that did not define which are rare."),
    ("rounds_kl", "text_kl", "KL of natural text from\nthe round's (nats per token)",
     "How far the token frequencies of each round's text lie from natural text, at equal tokens; round 0 is what two "
     "halves of natural text differ by."),
)  # fmt: skip

CONTROLLED = ("loss", "tail_loss")
"""Statistics of the student; the others are of a text, and the control writes none."""

REGIME_WORDS = {
    "replace": "each round trains on the newest text and natural text alone; earlier text is gone (Shumailov et al. "
    "2023)",
    "accumulate": "natural text and every round's text are all kept, and the budget grows with them (Gerstgrasser et "
    "al. 2024)",
    "accumulate_fixed": "the same union in the same proportions, at the budget of round 0 (Kazdan et al. 2024)",
    CONTROL: "natural text alone at the budgets of accumulate; it writes no text",
}


def write_generations_report(args: GenerationsArgs) -> Path:
    """Measure every finished round of `args.out` and write what they show; returns the page, written last.

    ValueError when no round is finished yet.
    """
    from lingua_synth.report.blocks import pictures_of
    from lingua_synth.report.page import write_picture
    from lingua_synth.report.page_html import page_html

    out = Path(args.out)
    rows = round_rows(args)
    if not rows:
        raise ValueError(f"no round of {out} is finished yet; `lingua-synth generations` with its config goes on")
    _write_rows(out / ROUNDS, rows)
    tests, notes = tests_of(args, rows)
    _write_rows(out / TESTS, [test.to_dict() for test in tests], list(CollapseTest.__dataclass_fields__))
    write_json(
        out / TESTS_JSON,
        {
            "version": 1,
            "level": args.level,
            "margins": to_dict(args.margins),
            "regimes": args.regimes,
            "rounds_finished": {regime: _last(rows, regime) for regime in args.regimes},
            "notes": notes,
            "tests": [test.to_dict() for test in tests],
        },
    )
    sections = _sections(args, rows, tests, notes)
    svgs = {picture.name: write_picture(out / "figures", picture) for picture in pictures_of(sections)}
    with atomic_file(out / REPORT) as file:
        file.write(page_html("Generations: models trained on their own text", sections, svgs))
    return out / REPORT


def tests_of(args: GenerationsArgs, rows: Sequence[Mapping[str, Any]]) -> tuple[list[CollapseTest], list[str]]:
    """(every test of collapse over the rounds of `rows`, what could not be tested and why)."""
    tests: list[CollapseTest] = []
    notes: list[str] = []
    for regime in args.regimes:
        for one in STATISTICS:
            values: dict[str, dict[str, Series]] = {regime: {one.name: series(rows, regime, one.column)}}
            try:
                tests += round_tests(values, to_dict(args.margins), args.level)
            except ValueError as error:
                notes.append(f"{regime}: {error}")
    if args.control:
        for one in STATISTICS:
            if one.name not in CONTROLLED:
                continue
            ours, beside = (series(rows, arm, one.column) for arm in ("accumulate", CONTROL))
            margin = to_dict(args.margins)[one.name]
            try:
                tests += statistic_tests(one, "accumulate", ours, margin=margin, level=args.level, control=beside)
            except ValueError as error:
                notes.append(f"accumulate beside the control: {error}")
    return tests, notes


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] = ()) -> None:
    """Full precision; a cell is empty where a number does not exist."""
    names = list(header) or list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name) for name in names]
            writer.writerow(["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in cells])


def _last(rows: Sequence[Mapping[str, Any]], regime: str) -> int:
    return max((int(row["round"]) for row in rows if row["regime"] == regime), default=0)


# --- the page ---


def _sections(
    args: GenerationsArgs, rows: Sequence[Mapping[str, Any]], tests: Sequence[CollapseTest], notes: Sequence[str]
) -> list[Section]:
    from lingua_synth.report import Bullets, Picture, Section, Terms

    pictures = {
        name: Picture(
            name,
            over_rounds(rows, column, label),
            f"{caption} Lines are means over seeds, small marks the seeds.",
        )
        for name, column, label, caption in PICTURES
    }
    source = "the English text of this Python installation" if args.documents == BUILT_IN_DOCUMENTS else args.documents
    margins = to_dict(args.margins)
    return [
        Section("In short", _short(args, rows, tests)),
        Section(
            "What was done",
            [
                f"Round 0 trains a model of size {args.size} on {args.budget:,} tokens of natural text ({source}). "
                f"In every later round the model of the round before ({args.generator or args.size}) writes a new text "
                f"with recipe {args.recipe}, and new models are trained from scratch on what the regime makes of "
                "natural text and the texts so far:",
                Terms([(regime.replace("_", " "), REGIME_WORDS[regime] + ".") for regime in arms_of(args)]),
                "Regimes of one seed share round 0 and the first text. Shares of training tokens are exact.",
                _plan_table(args),
            ],
        ),
        Section("Held-out loss over rounds", [pictures["rounds_loss"], pictures["rounds_tail_loss"]]),
        Section(
            "The text over rounds",
            [
                f"All texts are compared at {int(rows[0]['text_matched_tokens']):,} tokens, the size of the smallest.",
                *(pictures[name] for name in ("rounds_types", "rounds_tail_mass", "rounds_kl")),
            ],
        ),
        Section(
            "Every test",
            [
                "A change is measured from round 0 of the same seed; positive is worse. The interval is Student's over "
                "seeds. Supported: the whole interval lies above the margin; rejected: wholly below; else undecided. "
                "A gap is the change at the last round, a slope what each further round adds; intervals of one round "
                "among several hold for all rounds at once.",
                _tests_table(tests),
                *([Bullets(list(notes), lead="What was not tested")] if notes else []),
                "Margins: " + ", ".join(f"{one.title} {margins[one.name]:g} {one.unit}" for one in STATISTICS) + ".",
            ],
        ),
        Section("What the models wrote", _samples(args, rows)),
        Section("What this page cannot tell", _limits(args)),
        Section("All rounds", [_rows_table(rows)]),
    ]


def _short(args: GenerationsArgs, rows: Sequence[Mapping[str, Any]], tests: Sequence[CollapseTest]) -> list[Any]:
    from lingua_synth.report import words
    from lingua_synth.report.blocks import Judgement, Judgements

    body: list[Any] = []
    done = {regime: _last(rows, regime) for regime in arms_of(args)}
    if any(last < args.rounds for last in done.values()):
        finished = ", ".join(f"{regime.replace('_', ' ')} {last}" for regime, last in done.items())
        body.append(f"Not finished: {args.rounds} rounds were asked for; so far there are {finished}.")
    asked = [t for t in tests if t.name.removesuffix(TO_CONTROL).endswith(("_gap", "_slope"))]
    titles = {one.name: one.title for one in STATISTICS}
    for regime in args.regimes:
        mine = [t for t in asked if t.mixture == regime]
        if not mine:
            continue
        body.append(f"{regime.replace('_', ' ').capitalize()}, after {words.plural(done[regime], 'round')}:")
        items = []
        for test in mine:
            statistic, _, kind = test.name.removesuffix(TO_CONTROL).rpartition("_")
            title = titles[statistic].capitalize()
            says = f"{title} worse than at round 0" if kind == "gap" else f"{title} worse with every further round"
            if test.name.endswith(TO_CONTROL):
                says = says.removesuffix(" than at round 0") + f", beside {test.base}"
            items.append(Judgement(test.verdict, f"{says}: {test.why}.", [f"{_effect(test)}; {test.where}"]))
        body.append(Judgements(items))
    return body or ["Round 0 is finished; there is nothing to compare yet."]


def _effect(test: CollapseTest) -> str:
    from lingua_synth.report import words

    if not math.isfinite(test.estimate):
        return "no number"
    return f"{words.with_interval(test.estimate, test.low, test.high)} {test.unit}, margin {test.margin:.3g}"


def _plan_table(args: GenerationsArgs) -> Any:
    from lingua_synth.report import Table

    ratios = ratios_of(args.ratios, args.rounds)
    rows = []
    for regime in arms_of(args):
        for round_ in range(args.rounds + 1):
            one = plan_round(round_, [regime], args.seeds[:1], args.budget, ratios)[0]
            shares = ", ".join(f"{name} {share}" for name, share in one.ratios.items())
            rows.append([regime.replace("_", " "), round_, one.tokens, shares])
    return Table(["regime", "round", "training tokens", "exact shares"], rows, caption="What each round trains on.")


def _tests_table(tests: Sequence[CollapseTest]) -> Any:
    from lingua_synth.report import Table, words

    strong = frozenset((k, 2) for k, test in enumerate(tests) if test.verdict != UNDECIDED)
    rows = []
    for test in tests:
        effect = words.NOTHING
        if math.isfinite(test.estimate):
            effect = words.with_interval(test.estimate, test.low, test.high)
        name = test.name.replace("_", " ")
        rows.append([test.mixture.replace("_", " "), name, test.verdict, effect, f"{test.margin:.3g}", test.unit,
                     test.where, test.why])  # fmt: skip
    return Table(
        ["regime", "test", "verdict", "change", "margin", "unit", "on what", "in words"],
        rows,
        caption="Every test against round 0; positive changes are worse, intervals in brackets.",
        strong=strong,
    )


def _samples(args: GenerationsArgs, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """One document of the first text, and of each regime's newest, of the first seed."""
    from lingua_synth.documents import read_documents
    from lingua_synth.report import Sample

    seed = args.seeds[0]
    chosen = {}
    for regime in args.regimes:
        last = max((int(r["round"]) for r in rows if r["regime"] == regime and int(r["seed"]) == seed), default=0)
        for round_ in sorted({1, last} - {0}) if last else ():
            label = "round 1" if round_ == 1 else f"{regime.replace('_', ' ')}, round {round_}"
            chosen[text_name(regime, round_, seed)] = label
    body: list[Any] = ["One document each, letter for letter, of the first seed:"] if chosen else ["Nothing yet."]
    for name, label in chosen.items():
        pattern = str(Path(args.out) / "texts" / name / "documents-*.jsonl")
        for document in itertools.islice(read_documents(pattern), 1):
            body.append(Sample(document.text, f"{label}: document {document.id}", most=MOST_SAMPLE_CHARS))
    return body


def _limits(args: GenerationsArgs) -> list[Any]:
    from lingua_synth.report import Bullets

    limits = [
        "The generator is a model that was trained here. Small models write poor text, so a change at round 1 is "
        "mostly the price of a weak generator; what rounds add to it is in the slopes.",
        "Intervals are over seeds of one data set: they say what another seed would show, not what other text would.",
        f"{len(args.seeds)} seed{'s' if len(args.seeds) != 1 else ''}: with few of them intervals are wide, and "
        "verdicts stay undecided rather than wrong.",
    ]
    if args.control:
        limits.append(
            "Accumulate trains on more tokens in every round, so its loss can fall below round 0 for that alone; its "
            "tests beside natural text at the same budget are the comparison. That natural text is new text, of which "
            "a study that accumulates synthetic text may have no more."
        )
    elif "accumulate" in args.regimes:
        limits.append(
            "Accumulate trains on more tokens in every round, so its loss can fall below round 0 for that alone; "
            "accumulate fixed is the comparison at equal budgets, or control: true."
        )
    return [Bullets(limits)]


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    from lingua_synth.report import Table

    left_out = ("run_id", "size", "n_non_embedding", "text_matched_tokens")
    names = [name for name in rows[0] if name not in left_out and not name.startswith("tokens_")]
    return Table(
        [name.replace("_", " ") for name in names],
        [[str(row[name]) if name in ("regime", "seed") else row[name] for name in names] for row in rows],
        caption=f"{ROUNDS}, rounded; losses in nats per token. The file has tokens per source as well.",
    )
