"""The sections of the page that answer the paper: its claims on this table, what laws foretell, what to train on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.report import paper_figures, words
from lingua_synth.report.blocks import Block, Bullets, Judgement, Judgements, Picture, Section, Table
from lingua_synth.report.claims import NOT_ASKED, Claim, Margins, paper_claims
from lingua_synth.report.evidence import Evidence
from lingua_synth.scaling.recommendation import Option, Recommendation, recommend
from lingua_synth.scaling.validation import Holdout
from lingua_synth.scaling.verdicts import LEVEL, UNDECIDED, VERDICTS

MOST_PARTS = 12
"""Numbers of one claim on the page; claims.csv has them all."""


@dataclass(frozen=True)
class PaperQuestions:
    """What a report is to answer of the paper's questions, and what the table does not say by itself."""

    parameters: float | None = None
    """N to recommend for, in the report's definition of N; None: the largest size with ratios."""
    tokens: float | None = None
    """D to recommend for; None: the largest budget there."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Synthetic source -> hq, qa, textbook or other, where its name does not say it."""
    generators: Mapping[str, str] = field(default_factory=dict)
    """Synthetic source -> the model that wrote it, where its name does not say it."""
    generation_hours: Mapping[str, float] = field(default_factory=dict)
    """Synthetic source -> GPU-hours to write a billion tokens."""
    to_tokens: float | None = None
    """Where the extrapolation in tokens ends; None: 40 times the largest budget."""
    to_parameters: float | None = None
    """Where the extrapolation in parameters ends; None: 133 times the largest size."""
    margins: Margins = field(default_factory=Margins)
    noise: float | None = None
    """Standard deviation of ln loss of one run, where it is known; None: as the runs show it."""


@dataclass(frozen=True)
class Answers:
    """What was found, for files beside the page."""

    claims: tuple[Claim, ...]
    recommendation: Recommendation | None


def validate_questions(questions: PaperQuestions, evidence: Evidence) -> None:
    """ValueError for sources that are not in the table, ends of axes inside the runs, and numbers that are none."""
    kinds = evidence.kinds
    for source, hours in questions.generation_hours.items():
        if source not in kinds:
            listed = ", ".join(kinds) or "none"
            raise ValueError(f"no synthetic source {source!r} to take GPU-hours; the table has {listed}")
        if not (math.isfinite(hours) and hours > 0):
            raise ValueError(f"GPU-hours per billion tokens are a positive number; got {hours} for {source!r}")
    for name, value in (("n", questions.parameters), ("tokens", questions.tokens)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is a positive number; got {value}")
    sizes = [c.num_parameters for c in evidence.cells if math.isfinite(c.num_parameters)]
    budgets = [c.tokens for c in evidence.cells]
    for name, end, values in (
        ("parameters", questions.to_parameters, sizes),
        ("tokens", questions.to_tokens, budgets),
    ):
        if end is not None and values and not end > max(values):
            raise ValueError(
                f"an extrapolation goes beyond the runs, past {words.short_count(max(values))} {name}; got {end:g}"
            )


# --- figures 1, 2, 4 and 5 ---


def foretold_section(evidence: Evidence, questions: PaperQuestions) -> Section | None:
    """Held-out runs, and laws read beyond the runs; None where there is no law in one variable."""
    body: list[Block] = []
    for variable, what, place, to in (
        ("D", "training tokens", "budget", questions.to_tokens),
        ("N", "model size", "model", questions.to_parameters),
    ):
        name = "data" if variable == "D" else "model"
        checked = paper_figures.validations(evidence.main, variable)
        if not any(isinstance(one, Holdout) for one in checked.values()):
            continue
        end = words.short_count(paper_figures.beyond(evidence.main, variable, to))
        header, rows = paper_figures.validation_rows(checked)
        body += [
            Picture(
                f"{name}_validation",
                paper_figures.validation(evidence.main, variable),
                f"Laws of loss against {what}, fitted without the largest {place}, and the runs there that they "
                "foretell (diamonds).",
            ),
            Table(
                header,
                rows,
                caption=f"Mean relative error on the runs of the largest {place}: of the law, of the guess that they "
                "have the loss of the largest run fitted, and what noise alone would leave the true law.",
                digits=2,
            ),
            Picture(
                f"{name}_extrapolation",
                paper_figures.extrapolation(evidence.main, variable, to),
                f"The laws fitted to all runs, read on to {end}: dashed beyond the runs. Bands are of the law given "
                "its form; far out the form itself errs more than they show.",
            ),
        ]
    if not body:
        return None
    lead = "A law that is to be believed beyond its runs should have foretold the largest of them from the others."
    return Section("What the laws foretell", [lead, *body])


def ratio_blocks(evidence: Evidence) -> list[Block]:
    """One map of best shares per source that was trained at three shares or more in some cell."""
    sources = list(
        dict.fromkeys(
            names[0]
            for names, _ in evidence.shares.values()
            if len(names) == 1 and evidence.kinds[names[0]].generator is None
        )
    )
    found = [source for source in sources if paper_figures.ties_of(evidence, source)]
    if not found:
        return []
    noise = evidence.noise
    how = (
        f"The noise of a run is {100 * noise.sd:.2g}{words.THIN}%, by {noise.source}."
        if noise is not None
        else "Nothing shows the noise of a run, so ties are unknown."
    )
    blocks: list[Block] = [
        "The lowest of several noisy losses is not the best ratio. Each square below gives the share with the lowest "
        "loss, under it every share that the runs do not tell from the best (the truly best of those trained is among "
        f"them with {words.percent(LEVEL)} certainty), and the best share by one law in the ratio through all runs. "
        + how
    ]
    for k, source in enumerate(found):
        blocks.append(
            Picture(
                "best_ratio" if k == 0 else f"best_ratio_{k + 1}",
                paper_figures.best_ratios(evidence, source),
                f"Best share of {words.quoted(source)} tokens in per cent by model size and budget: lowest measured "
                "(large), shares tied with it, best by the law.",
            )
        )
    return blocks


def generator_section(evidence: Evidence, questions: PaperQuestions) -> Section | None:
    """Generators beside each other; None where the table has no two of one kind."""
    body: list[Block] = []
    for kind in paper_figures.generator_kinds(evidence):
        name = "generators" if not body else f"generators_{len(body) + 1}"
        body.append(
            Picture(
                name,
                paper_figures.generators(evidence, kind),
                f"Held-out loss against the share of {words.quoted(kind)} text, one line a generator; bars are 95 % "
                "intervals of a mean where the noise of a run is known.",
            )
        )
        mine = {one.source for one in evidence.kinds.values() if one.kind == kind}
        if mine & set(questions.generation_hours):
            body.append(
                Picture(
                    f"{name}_cost",
                    paper_figures.generators(evidence, kind, hours=questions.generation_hours),
                    f"The same losses against the GPU-hours that writing the {words.quoted(kind)} text of one training "
                    "took: what a larger generator costs for what it gives.",
                )
            )
    if not body:
        return None
    if not questions.generation_hours:
        body.append(
            "What the text cost to write is not in the table; generation_hours.SOURCE=... (GPU-hours per billion "
            "tokens) draws the losses against it."
        )
    return Section("Which generator", ["The same documents, rewritten by generators of different size.", *body])


# --- verdicts ---


def claims_section(claims: Sequence[Claim], numbers: Mapping[str, int]) -> Section:
    """Every claim with its verdict; `numbers`: picture -> number of the figure."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    asked = [claim for claim in claims if claim.parts]
    silent = [claim for claim in claims if not claim.parts]
    body: list[Block] = [
        "Each claim of the paper (Kang et al. 2025, in our words) as a question to this table. A claim is supported or "
        "rejected only when the whole interval of its number lies on one side of the margin that is stated; “not shown "
        "to differ” decides nothing. Places are this table's: its largest budget, not the paper's.",
        f"{counts['supported']} supported, {counts['rejected']} rejected, {counts['undecided']} undecided, of which "
        f"{len(silent)} were not asked of this table.",
        Judgements([_judgement(claim, numbers) for claim in asked]),
    ]
    if silent:
        by_reason: dict[str, list[str]] = {}
        for claim in silent:
            by_reason.setdefault(claim.why.removeprefix(f"{NOT_ASKED}: "), []).append(claim.says)
        lines = [f"{why[0].upper()}{why[1:]}: {' '.join(says)}" for why, says in by_reason.items()]
        body.append(Bullets(lines, lead="Not asked of this table"))
    return Section("The paper's claims on this table", body)


def _judgement(claim: Claim, numbers: Mapping[str, int]) -> Judgement:
    several = len(claim.parts) > 1
    lines = [f"{one.subject}: {one.shown}; {f'{one.verdict}; ' if several else ''}{one.how}." for one in claim.parts]
    shown = lines[:MOST_PARTS]
    if len(lines) > MOST_PARTS:
        shown.append(f"{len(lines) - MOST_PARTS} more in claims.csv.")
    shown_by = [
        number
        for name in claim.figures
        for picture, number in numbers.items()
        if picture == name or (name in ("best_ratio", "generators") and picture.removeprefix(f"{name}_").isdigit())
    ]
    listed = words.joined(str(number) for number in sorted(set(shown_by)))
    seen = f" See figure{'s' if len(set(shown_by)) > 1 else ''} {listed}." if shown_by else ""
    why = f" {claim.why[0].upper()}{claim.why[1:]}." if len(claim.parts) > 1 or claim.verdict == UNDECIDED else ""
    return Judgement(claim.verdict, f"{claim.says} ({claim.place})", [f"{claim.rule}{why}{seen}", *shown])


def claims_csv(claims: Sequence[Claim]) -> str:
    """One row a number: claim, verdict, part, value, interval, region, full precision; empty for what is not."""
    header = [
        "claim", "says", "place", "verdict", "why", "part", "part_verdict", "unit", "value", "low", "high", "level",
        "region_low", "region_high", "how", "rule",
    ]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for claim in claims:
        head = [claim.id, claim.says, claim.place, claim.verdict, claim.why]
        if not claim.parts:
            writer.writerow([*head, *[""] * 10, claim.rule])
        for part in claim.parts:
            numbers = [part.value, part.low, part.high, part.level, part.region.low, part.region.high]
            cells = ["" if math.isnan(x) else repr(float(x)) for x in numbers]
            writer.writerow([*head, part.subject, part.verdict, part.unit, *cells, part.how, claim.rule])
    return buffer.getvalue()


# --- what to train on ---


def recommendation_of(evidence: Evidence, questions: PaperQuestions) -> Recommendation | None:
    """For the size and budget asked, else for the largest that was trained; None for a table with one mixture."""
    if evidence.base is None or len(evidence.runs.mixtures) < 2:
        return None
    largest = max(evidence.cells, key=lambda c: (len(c.losses) > 1, c.num_parameters, c.tokens))
    N = questions.parameters if questions.parameters is not None else largest.num_parameters
    D = questions.tokens if questions.tokens is not None else largest.tokens
    if not math.isfinite(N):
        return None
    return recommend(
        evidence.runs, N, D, target=evidence.target, n_definition=evidence.n_definition, base=evidence.base,
        roles=questions.roles, generators=questions.generators, ratio_fits=evidence.ratio_fits, level=LEVEL,
    )  # fmt: skip


def recommendation_section(found: Recommendation, evidence: Evidence, questions: PaperQuestions) -> Section:
    """The answer for the user's size and budget, or why there is none."""
    counted = words.N_WORDS.get(found.n_definition, found.n_definition)
    place = f"For {words.short_count(found.N)} {counted} and {words.short_count(found.D)} training tokens"
    if questions.parameters is None and questions.tokens is None:
        place += " (the largest that was trained; n= and tokens= ask for another)"
    if found.refusal is not None:
        return Section("What to train on", [f"{place} there is no recommendation. {found.refusal}"])
    body: list[Block] = []
    if found.choice is None:
        body.append(
            f"{place}: natural text alone, {words.quoted(found.base)}. No kind of synthetic text is shown to lower the "
            "loss there."
        )
    else:
        body.append(f"{place}: {_advice(found.choice)}.")
        if found.tied:
            body.append(Bullets([_advice(one) for one in found.tied], lead="As good, as far as these runs tell"))
    if found.options:
        rows: list[list[Any]] = [
            [
                one.kind.kind,
                one.kind.generator or words.NOTHING,
                f"{100 * one.ratio:.0f} ({100 * one.interval[0]:.0f} to {100 * one.interval[1]:.0f})",
                f"{100 * one.best.flat[0]:.0f} to {100 * one.best.flat[1]:.0f}",
                f"{100 * one.gain:.2f} ({100 * one.low:.2f} to {100 * one.high:.2f})",
            ]
            for one in found.options
        ]
        header = ["kind", "generator", "best share (%)", "as good, within noise (%)", "less loss than natural text (%)"]
        body.append(Table(header, rows, caption="Every kind at its best share, with 95 % intervals."))
    if found.notes:
        body.append(Bullets(list(found.notes), lead="To be known"))
    body.append(
        "This is about the loss above, in the range of sizes and budgets that were trained; the best share for another "
        "metric can be another. Between shares that are as good within noise, take the one that is cheaper to write; "
        "lingua-synth recommend counts what text costs, and says from which size on it pays."
    )
    return Section("What to train on", body)


def _advice(one: Option) -> str:
    by = f", written by {one.kind.generator}" if one.kind.generator else ""
    low, high = (words.percent(round(end, 2)) for end in one.best.flat)
    return (
        f"{words.percent(round(one.ratio, 2))} {words.quoted(one.kind.kind)}{by} in natural text, "
        f"{100 * one.gain:.2g}{words.THIN}% ({100 * one.low:.2g} to {100 * one.high:.2g}) less loss than natural text "
        f"alone; shares from {low} to {high} lie within the noise of one run of it"
    )


def answers_of(evidence: Evidence, questions: PaperQuestions) -> Answers:
    """Claims and recommendation; none of either for an empty table."""
    if not evidence.cells:
        return Answers((), None)
    return Answers(tuple(paper_claims(evidence, questions.margins)), recommendation_of(evidence, questions))
