"""Is there model collapse? Each thing that word has been used for, tested on its own, with an interval and a verdict.

After one round of training on synthetic text "collapse" has meant five different things, and a study can show one and
exclude another. So there is one test for each, and no verdict over all of them:

- the loss is higher than on natural text alone, on average and at each budget (`loss_gap`, `loss_gap_at_budget`), and
  the more so the larger the budget (`gap_growth`);
- the first small share of synthetic text hurts (`small_ratio_slope`; the claim of Dohmatob et al. 2024, "Strong model
  collapse");
- the scaling law itself is worse: more loss that no size and budget removes (`irreducible_loss`), or a loss that falls
  more slowly with tokens (`data_exponent`; Dohmatob et al. 2024, "A tale of tails");
- what is rare is predicted worse (`tail_loss`), more so than what is common (`tail_excess`);
- synthetic text itself has lost its tail: fewer types at equal tokens (`support`), rare types taking up less of it
  (`tail_mass`; Shumailov et al. 2023).

Inputs are plain: a runs table, losses per token type of evaluated checkpoints, token counts of corpora; each test takes
what it needs and says so when it is missing. Every verdict follows the rule of `scaling/verdicts.py` with `Margins`.

E: the law's constant. beta: exponent of the training tokens D.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lingua_synth.analysis.gaps import MAX_RATIO, gap_tests, paired_gaps, scatter_of, small_ratio_test
from lingua_synth.analysis.tails import CorpusCounts, EvaluatedRun, support_tests, tail_tests
from lingua_synth.analysis.verdicts import CollapseTest, Question
from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.laws import DataLaw, JointLaw, Law
from lingua_synth.scaling.natural import base_mixture, natural_source, synthetic_ratios
from lingua_synth.scaling.paired import paired_differences
from lingua_synth.scaling.records import record
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.verdicts import LEVEL, REJECTED, SUPPORTED, UNDECIDED, VERDICTS, Estimate, check_margin

OBJECTIVES = ("mse", "huber", "lad")


@dataclass(frozen=True)
class Margins:
    """The smallest effects that count. Shares are of the base's value: 0.005 is half a per cent."""

    loss: float = 0.005
    """Of the loss: about what the runs of published tables lie off their laws by (0.3-0.6 %)."""
    growth: float = 0.005
    """Of the loss, per factor of ten in tokens."""
    slope: float = 0.05
    """Of the loss, per unit of the share: 0.5 % more loss at 10 % synthetic tokens."""
    irreducible: float = 0.005
    """Of the base's irreducible loss."""
    exponent: float = 0.02
    """Of beta, plain: at 0.02 less the part of the loss that data removes falls 13 % less over a thousandfold D."""
    tail: float = 0.02
    """Of the loss on rare tokens; wider than `loss`, as few tokens are rare."""
    support: float = 0.05
    """Of the number of types at equal tokens."""
    tail_mass: float = 0.2
    """Of the share of tokens that rare types take up."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            check_margin(value, f"margins.{name}")


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Every test that the data allow."""

    tests: tuple[CollapseTest, ...]
    base: str
    target: str
    level: float
    margins: Margins
    notes: tuple[str, ...] = ()
    """What was not tested, and why."""
    scatter: dict[str, float] = field(default_factory=dict)
    """Mixture -> standard deviation of ln loss of one run, as its gaps to the base show it; NaN where they do not."""

    def select(self, name: str | None = None, mixture: str | None = None) -> list[CollapseTest]:
        """The tests of one statistic, of one mixture, or both."""
        return [t for t in self.tests if name in (None, t.name) and mixture in (None, t.mixture)]

    def counts(self) -> dict[str, int]:
        """Verdict -> how many tests."""
        return {verdict: sum(t.verdict == verdict for t in self.tests) for verdict in VERDICTS}

    def rows(self) -> list[dict[str, Any]]:
        """One row a test, for a CSV file; numbers that do not exist are NaN."""
        return [dataclasses.asdict(test) for test in self.tests]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return record(
            {
                "version": 1,
                "base": self.base,
                "target": self.target,
                "level": self.level,
                "margins": dataclasses.asdict(self.margins),
                "scatter": self.scatter,
                "verdicts": self.counts(),
                "notes": list(self.notes),
                "tests": [test.to_dict() for test in self.tests],
            }
        )

    def __str__(self) -> str:
        counts = self.counts()
        head = (
            f"collapse against {self.base!r} ({self.target}): {counts[SUPPORTED]} tests supported, "
            f"{counts[REJECTED]} rejected, {counts[UNDECIDED]} undecided; intervals of {100 * self.level:.4g} %"
        )
        lines = [head]
        for mixture in dict.fromkeys(test.mixture for test in self.tests):
            lines += ["", mixture, *(f"  {_line(test)}" for test in self.select(mixture=mixture))]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"note: {note}" for note in self.notes)])


def _line(test: CollapseTest) -> str:
    shown = "no number"
    if math.isfinite(test.estimate):
        shown = f"{test.estimate:+.4f} [{test.low:+.4f}, {test.high:+.4f}], margin {test.margin:.4f}"
    return f"{test.verdict:<9} {test.name:<18} {shown}; {test.where}; {test.why}"


def collapse_tests(
    runs: Runs | None = None,
    *,
    base: str | None = None,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    margins: Margins | None = None,
    noise: float | None = None,
    unit: str = "run",
    objective: str = "mse",
    max_ratio: float = MAX_RATIO,
    level: float = LEVEL,
    evaluations: Mapping[str, Sequence[EvaluatedRun]] | None = None,
    counts: Mapping[str, CorpusCounts] | None = None,
    natural: str | None = None,
) -> CollapseReport:
    """Every test of collapse that a study's data allow.

    `runs`: the runs table; `base` (default: natural text alone) is what the other mixtures are compared with. `noise`:
    standard deviation of ln loss of one run, where it is known better than the runs show it; `unit="size"` counts
    sizes, not runs, as independent in the gaps. `objective`: what the laws are fitted with ("mse" keeps what paired
    runs share; "huber" forgives outlying runs). `max_ratio`: shares up to here are small.

    `evaluations`: mixture -> evaluated checkpoints, paired with the base's by size, budget and seed. `counts`: source
    -> token counts of its corpus; `natural` names the natural one (default: the source the base consists of).

    Needs runs, or evaluations or counts with `base` or `natural` named. ValueError for a base, target or source that is
    not there, margins, noise, levels and objectives that are none, and nothing to test.
    """
    margins = margins or Margins()
    if noise is not None and not (math.isfinite(noise) and noise > 0):
        raise ValueError(f"noise is a standard deviation of ln loss, positive (0.003 is 0.3 %); got {noise}")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is one of {', '.join(OBJECTIVES)}; got {objective!r}")
    if runs is None and not evaluations and not counts:
        raise ValueError("nothing to test: give runs, evaluations of checkpoints, or counts of corpora")
    tests: list[CollapseTest] = []
    notes: list[str] = []
    scatter: dict[str, float] = {}
    if runs is not None:
        if not len(runs):
            raise ValueError("the runs table is empty; there is nothing to test")
        base = base_mixture(runs, base)
        assert base is not None, "a table with runs has a first mixture"
        natural = natural or natural_source(runs, base)
        of_runs, scatter = _tests_of_runs(
            runs, base, target, n_definition, margins, noise, unit, objective, max_ratio, level, notes
        )
        tests += of_runs
    else:
        notes.append("no runs table: gaps, slopes and laws were not tested")
    if evaluations:
        of_base = evaluations.get(base) if base is not None else None
        if base is None or of_base is None:
            raise ValueError(
                f"checkpoints are compared with those of the base, {base!r}; there are evaluations of "
                f"{', '.join(evaluations)}"
            )
        rare_by = counts.get(natural) if counts and natural is not None else None
        reference = rare_by.counts if rare_by is not None else None
        for mixture in evaluations:
            if mixture != base:
                known = noise if noise is not None else scatter.get(mixture)
                tests += tail_tests(
                    mixture,
                    base,
                    evaluations[mixture],
                    of_base,
                    reference=reference,
                    margin=margins.tail,
                    noise=known,
                    level=level,
                )
    else:
        notes.append("no evaluations with losses per token type: the loss on rare tokens was not tested")
    if counts:
        if natural is None or natural not in counts:
            raise ValueError(
                f"counts of the natural corpus are what the others are compared with; natural= names it among "
                f"{', '.join(counts)}, got {natural!r}"
            )
        for source in counts:
            if source != natural:
                tests += support_tests(
                    source,
                    natural,
                    counts[source],
                    counts[natural],
                    margin=margins.support,
                    mass_margin=margins.tail_mass,
                    level=level,
                )
    else:
        notes.append("no token counts of the corpora: their types and rare tokens were not tested")
    return CollapseReport(tuple(tests), base or str(natural), target, level, margins, tuple(notes), scatter)


def _tests_of_runs(
    runs: Runs,
    base: str,
    target: str,
    n_definition: str,
    margins: Margins,
    noise: float | None,
    unit: str,
    objective: str,
    max_ratio: float,
    level: float,
    notes: list[str],
) -> tuple[list[CollapseTest], dict[str, float]]:
    others = [mixture for mixture in runs.mixtures if mixture != base]
    if not others:
        notes.append(f"the table holds one mixture, {base!r}: nothing to compare it with")
    scatter, by_mixture = {}, {}
    for mixture in others:
        gaps = paired_gaps(runs, mixture, base, target)
        found = scatter_of(gaps, noise)
        scatter[mixture] = math.sqrt(found.variance / 2) if found.known else math.nan
        by_mixture[mixture] = gap_tests(
            gaps, margin=margins.loss, growth_margin=margins.growth, noise=noise, unit=unit, level=level
        )
    tables = {mixture: _cell_means(runs, mixture, target, n_definition) for mixture in (base, *others)}
    fitted: dict[tuple[str, str], ScalingFit | str] = {}
    for mixture in others:
        by_mixture[mixture] += _law_tests(tables, mixture, base, margins, objective, n_definition, level, fitted)
    tests = [test for mixture in others for test in by_mixture[mixture]]
    shares = synthetic_ratios(runs, base)
    sources = list(dict.fromkeys(names[0] for names, _ in shares.values() if len(names) == 1))
    if others and not sources:
        notes.append("the mixtures do not differ in the share of one source: no slope at small shares")
    tests += [
        small_ratio_test(
            runs, source, base, target=target, margin=margins.slope, max_ratio=max_ratio, noise=noise, level=level
        )
        for source in sources
    ]
    return tests, scatter


# --- the law ---


@dataclass(frozen=True, eq=False)
class _Cells:
    """One entry a cell: geometric means over seeds, so that cells of two mixtures pair."""

    size: np.ndarray
    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray


def _cell_means(runs: Runs, mixture: str, target: str, n_definition: str) -> _Cells:
    values = runs[target].astype(float)
    good = (runs["mixture"] == mixture) & np.isfinite(values) & (values > 0)
    found: dict[tuple[str, float], list[int]] = {}
    for i in np.flatnonzero(good):
        found.setdefault((str(runs["size"][i]), float(runs["tokens"][i])), []).append(int(i))
    N = runs.N(n_definition)
    return _Cells(
        np.array([size for size, _ in found], dtype=np.str_),
        np.array([float(np.mean(N[rows])) for rows in found.values()]),
        np.array([D for _, D in found]),
        np.array([math.exp(float(np.mean(np.log(values[rows])))) for rows in found.values()]),
    )


def _law_tests(
    tables: Mapping[str, _Cells],
    mixture: str,
    base: str,
    margins: Margins,
    objective: str,
    n_definition: str,
    level: float,
    fitted: dict[tuple[str, str], ScalingFit | str],
) -> list[CollapseTest]:
    """E and beta of both laws compared: the joint law where the runs determine it, else the data law at one size."""
    num, questions = len(tables[mixture].D), _law_questions(margins, level)
    reasons = []
    for law, where, size in _places(tables[mixture], tables[base]):
        fits: dict[str, ScalingFit] = {}
        for name in (mixture, base):
            if (name, where) not in fitted:
                rows = np.ones(len(tables[name].D), dtype=bool) if size is None else tables[name].size == size
                fitted[name, where] = _fit(law, tables[name], rows, objective, n_definition)
            one = fitted[name, where]
            if isinstance(one, str):
                reasons.append(f"{where} of {name}: {one}")
            else:
                fits[name] = one
        if len(fits) < 2:
            continue
        try:
            pair = paired_differences(fits, level)
        except ValueError as error:
            reasons.append(f"{where}: {error}")
            continue
        constant, own, of_base = law.constant, fits[mixture].params, fits[base].params
        E, E_base = own[constant], of_base[constant]
        low, high = pair.difference(constant, mixture, base)
        place = f"{where}, {constant} {E:.4g} against {E_base:.4g}, {fits[mixture].num_points} cells"
        places = (
            place,
            f"{where}, beta {own['beta']:.4g} against {of_base['beta']:.4g}, {fits[mixture].num_points} cells",
        )
        answers = (
            ((E - E_base) / E_base, (low / E_base, high / E_base)),
            (of_base["beta"] - own["beta"], pair.difference("beta", base, mixture)),
        )
        return [
            question.judge(mixture, base, value, ends, where=place, num_pairs=num)
            for question, (value, ends), place in zip(questions, answers, places, strict=True)
        ]
    found = Estimate(why_not="; ".join(reasons))
    return [question.answer(mixture, base, found, where=f"{num} cells", num_pairs=num) for question in questions]


def _law_questions(margins: Margins, level: float) -> tuple[Question, Question]:
    return (
        Question(
            "irreducible_loss",
            "more loss remains that no model size and no budget removes",
            "of the base's irreducible loss",
            margins.irreducible,
            ("a higher floor", "a lower floor"),
            level,
        ),
        Question(
            "data_exponent",
            "the loss falls more slowly with training tokens: a smaller exponent beta",
            "of beta",
            margins.exponent,
            ("slower in tokens", "faster in tokens"),
            level,
        ),
    )


def _places(table: _Cells, of_base: _Cells) -> list[tuple[Law, str, str | None]]:
    """Laws to try in turn: over all cells, then over the budgets of the size at which both have most of them."""
    places: list[tuple[Law, str, str | None]] = [(JointLaw(), "joint law", None)]
    shared = set(zip(table.size.tolist(), table.D.tolist(), strict=True))
    shared &= set(zip(of_base.size.tolist(), of_base.D.tolist(), strict=True))
    if shared:
        num = Counter(size for size, _ in shared)
        size = max(num, key=lambda one: (num[one], float(table.N[table.size == one].mean())))
        places.append((DataLaw(), f"data law at size {size}", size))
    return places


def _fit(law: Law, table: _Cells, rows: np.ndarray, objective: str, n_definition: str) -> ScalingFit | str:
    """The fit, or why its numbers mean nothing."""
    num, needed = int(rows.sum()), len(law.parameters) + 1
    if num < needed:
        return f"{num} cells, and {law.formula} takes at least {needed}"
    given = {"N": table.N[rows]} if "N" in law.variables else {}
    one = fit(law, D=table.D[rows], loss=table.loss[rows], objective=objective, n_definition=n_definition, **given)
    return one if one.identifiable else "; ".join(one.reasons)
