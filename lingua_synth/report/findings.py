"""What a table of runs says, in plain sentences.

Every number in a sentence is computed from the table or from an identifiable fit when the sentence is made; a sentence
whose numbers do not exist is not made, or says what is missing. Nothing is claimed that the table cannot carry:
with one seed per cell the reader is told that small differences may be chance.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lingua_synth.report import words
from lingua_synth.report.cells import Cell, largest_cell, main_size
from lingua_synth.report.figures import equal_loss_budget
from lingua_synth.report.laws import LEVEL, estimate
from lingua_synth.report.words import joined, percent, plural, quoted, short_count, signed
from lingua_synth.scaling.natural import synthetic_ratios

if TYPE_CHECKING:
    from lingua_synth.scaling import Ranking, Runs, StudyFits


def asked(runs: Runs, base: str | None) -> list[str]:
    """The question of the study, as far as the table shows that it was asked."""
    if len(runs.mixtures) < 2 or base is None:
        return [
            "A study of this kind trains small language models on different mixtures of natural and synthetic text "
            "and asks which mixture teaches most."
        ]
    return [
        "Language models are trained on a fixed number of tokens. If some of the natural text is replaced by text that "
        "another model wrote, does the trained model predict held-out natural text better or worse, by how much, and "
        "does the answer change as models and budgets grow?"
    ]


def done(runs: Runs, all_cells: Sequence[Cell], n_definition: str) -> list[str]:
    """What was trained: mixtures, sizes, budgets, seeds, and which combinations are absent."""
    if not all_cells:
        return ["The table holds no runs, so there is nothing to show yet."]
    sizes = list(dict.fromkeys(cell.size for cell in all_cells))
    budgets = sorted({cell.tokens for cell in all_cells})
    N = [cell.num_parameters for cell in all_cells if math.isfinite(cell.num_parameters)]
    spread = f" ({_range(N)} {words.N_WORDS.get(n_definition, n_definition)})" if N else ""
    sentences = [
        f"The table holds {plural(len(runs), 'training')}: {plural(len(runs.mixtures), 'mixture')} "
        f"({joined(quoted(m) for m in runs.mixtures)}), {plural(len(sizes), 'model size')}{spread} and "
        f"{plural(len(budgets), 'training budget')} ({_range(budgets)} tokens)."
    ]
    seeds = Counter(len(values) for cell in all_cells for values in cell.losses.values())
    present = sum(seeds.values())
    expected = len(sizes) * len(budgets) * len(runs.mixtures)
    once = "Each combination was trained once" if set(seeds) == {1} else f"Each was trained {_range_words(seeds)} times"
    absent = expected - present
    gap = f"; {absent} of the {expected} possible combinations {_are(absent)} absent" if absent else ""
    sentences.append(f"{once}{gap}.")
    return sentences


def largest_cell_findings(runs: Runs, all_cells: Sequence[Cell], base: str | None, target: str) -> list[str]:
    """What each mixture did to the loss where model and budget are largest, against the base mixture."""
    cell = largest_cell(all_cells)
    if cell is None or base is None:
        return []
    unit = words.target_words(target)[1]
    where = f"At the largest model and budget ({cell.words})"
    if base not in cell.losses:
        best = cell.best()
        return [
            f"{where} the base mixture {quoted(base)} was not trained; the lowest held-out loss there is "
            f"{words.number(cell.mean(best))} {unit}, of {quoted(best)}."
        ]
    reference = cell.mean(base)
    if len(cell.losses) == 1:
        return [
            f"{where} the only mixture, {quoted(base)}, reached a held-out loss of {words.number(reference)} {unit}. "
            "With one mixture there is nothing to compare it with."
        ]
    shares = synthetic_ratios(runs, base)
    sentences = []
    for mixture in sorted((m for m in cell.losses if m != base), key=lambda m: shares.get(m, ((), 0.0))[1]):
        value = cell.mean(mixture)
        others, share = shares.get(mixture, ((), 0.0))
        if share > 0:
            amount = "all" if share >= 0.9999 else percent(share)
            what = f"replacing {amount} of the natural tokens with synthetic ones (mixture {quoted(mixture)})"
            if len({o for o, _ in shares.values() if o}) > 1:
                what = f"replacing {amount} of the natural tokens with {joined(others)} (mixture {quoted(mixture)})"
        else:
            what = f"training on {quoted(mixture)} instead of {quoted(base)}"
        digits = 3 if abs(value - reference) >= 0.0015 else 4
        # The difference of what is printed, so that a reader's own subtraction gives the same number.
        shown = round(value, digits) - round(reference, digits)
        sentences.append(
            f"{what} changed the held-out loss from {words.number(reference, digits)} to "
            f"{words.number(value, digits)} {unit} ({signed(shown, digits)}, {_relative(value, reference)})."
        )
    return [f"{where}, {sentences[0]}"] + [f"At the same place, {sentence}" for sentence in sentences[1:]]


def best_mixture_findings(all_cells: Sequence[Cell]) -> list[str]:
    """Which mixture is lowest in how many cells; cells with one mixture do not count."""
    compared = [cell for cell in all_cells if len(cell.losses) > 1]
    if not compared:
        return []
    wins = Counter(cell.best() for cell in compared)
    if len(wins) == 1:
        winner = next(iter(wins))
        many = f"all {len(compared)} cells" if len(compared) > 1 else "the one cell"
        return [
            f"{quoted(winner)} has the lowest loss in {many} (model size and budget) where mixtures can be compared."
        ]
    parts = [f"{quoted(mixture)} in {num}" for mixture, num in wins.most_common()]
    return [f"Of {len(compared)} cells (model size and budget), the lowest loss belongs to {joined(parts)}."]


def monotone_findings(all_cells: Sequence[Cell]) -> list[str]:
    """Whether loss falls with every step to a larger budget, and to a larger model; exceptions by name."""
    mixtures = list(dict.fromkeys(m for cell in all_cells for m in cell.losses))
    sizes = list(dict.fromkeys(cell.size for cell in all_cells))
    budgets = sorted({cell.tokens for cell in all_cells})
    along_d = {
        f"{quoted(m)} at size {size}": [c.mean(m) for c in all_cells if c.size == size and m in c.losses]
        for m in mixtures
        for size in sizes
    }
    along_n = {
        f"{quoted(m)} at {short_count(d)} tokens": [c.mean(m) for c in all_cells if c.tokens == d and m in c.losses]
        for m in mixtures
        for d in budgets
    }
    sentences = []
    for series, step in ((along_d, "larger training budget"), (along_n, "larger model")):
        usable = {name: values for name, values in series.items() if len(values) > 1}
        if not usable:
            continue
        rising = [name for name, values in usable.items() if any(b >= a for a, b in itertools.pairwise(values))]
        if not rising:
            everywhere = f", in all {len(usable)} series" if len(usable) > 1 else ""
            sentences.append(f"Held-out loss falls with every {step}{everywhere}.")
            continue
        listed = joined(rising[:4]) + (f" and {len(rising) - 4} more" if len(rising) > 4 else "")
        sentences.append(
            f"Held-out loss falls with every {step} in {len(usable) - len(rising)} of {len(usable)} series; "
            f"not in {listed}."
        )
    return sentences


def speedup_findings(all_cells: Sequence[Cell], base: str | None) -> list[str]:
    """Per mixture: how many tokens of the base reach the loss it has at the largest budget, read off the runs."""
    size = main_size(all_cells)
    mine = sorted((cell for cell in all_cells if cell.size == size), key=lambda cell: cell.tokens)
    if base is None or not mine:
        return []
    known = [(cell.tokens, cell.mean(base)) for cell in mine if base in cell.losses]
    sentences = []
    for mixture in [m for m in mine[-1].losses if m != base]:
        found = equal_loss_budget(known, mine[-1].mean(mixture))
        if found is None:
            continue
        budget, bound = found
        D = mine[-1].tokens
        factor = budget / D
        after = f"{quoted(mixture)} after {short_count(D)} tokens (size {size})"
        if bound == "at least":
            sentences.append(
                f"{after} is better than {quoted(base)} after its largest budget, {short_count(budget)} tokens; how "
                "many more it would take to catch up lies beyond these runs."
            )
        elif bound == "at most":
            sentences.append(
                f"{after} is worse than {quoted(base)} already was after its smallest budget, "
                f"{short_count(budget)} tokens."
            )
        else:
            ratio = (
                f"{words.number(factor, 2)} times as many"
                if factor >= 1
                else f"{words.number(1 / factor, 2)} times fewer"
            )
            sentences.append(
                f"For the loss of {after}, {quoted(base)} needs {short_count(budget)} tokens, {ratio} "
                "(interpolated between runs)."
            )
    return sentences


def fit_findings(runs: Runs, fits: StudyFits | None) -> list[str]:
    """Which laws are identifiable; the lowest E of the joint laws, and whether the table separates it from the rest."""
    if fits is None or not runs.mixtures:
        return ["No scaling law was fitted to this table."]
    good = [m for m in runs.mixtures if m in fits.joint and fits.joint[m].identifiable]
    bad = [m for m in runs.mixtures if m not in good]
    sentences = []
    if not good:
        sentences.append(
            "The scaling law in model size and tokens together could not be identified for any mixture, so this page "
            "gives no irreducible loss and no exponent from it; the reasons stand in the table of fits."
        )
    elif bad:
        sentences.append(
            f"The scaling law in model size and tokens together is identified for {joined(quoted(m) for m in good)}, "
            f"not for {joined(quoted(m) for m in bad)}."
        )
    ranking = getattr(fits, "ranking", None)
    if ranking is not None and ranking.of == "E":
        sentences.append(_ranked_E(ranking, words.target_words(fits.target)[1]))
    elif good:
        sentences.append(_lowest_E({m: estimate(fits.joint[m], "E") for m in good}, words.target_words(fits.target)[1]))
    for laws, what in ((fits.data, "tokens at one model size"), (fits.model, "model size at one budget")):
        entries = [entry for by_place in laws.values() for entry in by_place.values()]
        num = sum(entry.identifiable for entry in entries)
        if entries:
            sentences.append(
                f"{num} of {plural(len(entries), 'law')} of loss against {what} can be identified."
                if num
                else f"No law of loss against {what} can be identified ({len(entries)} tried)."
            )
    return sentences


def _ranked_E(ranking: Ranking, unit: str) -> str:
    """The lowest E of mixtures that were fitted together, and what is tied with it."""
    lowest = ranking.labels[0]
    stated = words.with_interval(*(float(x[0]) for x in (ranking.values, ranking.low, ranking.high)))
    tied = [m for m in ranking.labels[1:] if not ranking.pair(lowest, m).told_apart]
    apart = (
        f"the table does not tell it from {joined(quoted(m) for m in tied)}"
        if tied
        else "the table tells it from every other"
    )
    return (
        f"Fitted together, the lowest irreducible loss E is estimated for {quoted(lowest)}: {stated} {unit}, interval "
        f"in brackets ({percent(LEVEL)} for all mixtures at once); {apart}."
    )


def _lowest_E(intervals: Mapping[str, tuple[float, float, float]], unit: str) -> str:
    lowest = min(intervals, key=lambda m: intervals[m][0])
    stated = f"{words.with_interval(*intervals[lowest])} {unit}"
    if math.isnan(intervals[lowest][1]):
        stated += "; without intervals this table does not tell whether other mixtures differ"
        return f"The lowest irreducible loss E is estimated for {quoted(lowest)}: {stated}."
    stated += f", {percent(LEVEL)} interval in brackets"
    if len(intervals) == 1:
        return f"The irreducible loss E of {quoted(lowest)} is {stated}."
    # A mixture without an interval (NaN) is not separated either: the comparison is false.
    tied = [m for m in intervals if m != lowest and not intervals[m][1] > intervals[lowest][2]]
    apart = (
        f"its interval overlaps with {joined(quoted(m) for m in tied)}, so the table does not separate them"
        if tied
        else "its interval overlaps with no other"
    )
    return f"The lowest irreducible loss E is estimated for {quoted(lowest)}: {stated}; {apart}."


def noise_findings(all_cells: Sequence[Cell], target: str) -> list[str]:
    """The seed noise the table shows, or that it shows none."""
    groups = [values for cell in all_cells for values in cell.losses.values()]
    repeated = [values for values in groups if len(values) > 1]
    if not groups:
        return []
    if not repeated:
        return [
            "Every combination was trained with one seed, so the table cannot tell how far a loss would move by chance "
            "alone; treat small differences as unproven."
        ]
    freedom = sum(len(values) - 1 for values in repeated)
    pooled = math.sqrt(sum(float(np.sum((values - values.mean()) ** 2)) for values in repeated) / freedom)
    return [
        f"Repeated seeds differ by a standard deviation of {words.number(pooled, 4)} {words.target_words(target)[1]} "
        f"(pooled over {plural(len(repeated), 'combination')}); differences much smaller than twice that may be chance."
    ]


def repetition_findings(runs: Runs) -> list[str]:
    """The most passes any run made over a source, when the table records epochs."""
    most: dict[str, float] = {}
    for column in runs.columns:
        if column.startswith("epochs_") and len(runs):
            values = np.asarray(runs[column], dtype=float)
            if np.isfinite(values).any():
                most[column.removeprefix("epochs_")] = float(np.nanmax(values))
    if not most:
        return []
    repeated = {source: epochs for source, epochs in most.items() if epochs > 1}
    if not repeated:
        return ["No run read a token of any source twice."]
    listed = joined(f"{quoted(source)} up to {words.number(epochs, 1)} times" for source, epochs in repeated.items())
    return [f"Some runs repeat tokens: they read {listed}; there, new text is compared with text read again."]


def _relative(value: float, reference: float) -> str:
    change = 100 * (value / reference - 1)
    return f"{signed(change, 1 if abs(change) >= 0.1 else 2)}{words.THIN}%"


def _range(values: Sequence[float]) -> str:
    low, high = short_count(min(values)), short_count(max(values))
    return low if low == high else f"{low} to {high}"


def _range_words(counts: Counter[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _are(num: int) -> str:
    return "is" if num == 1 else "are"
