"""Every claim of the paper, put to the runs table at hand: supported, rejected or undecided.

The claims are those of Kang et al. 2025, "Demystifying Synthetic Data in LLM Pre-training" (arXiv 2510.01631), in our
words, each with the place where it is made. What a claim says is turned into a number (a difference of losses, a
speed-up, a best ratio) and a *region* that number must lie in for the claim to be true on this table; the verdict
follows from the 95 % interval by the rule of `scaling/verdicts.py`.

So "not shown to differ" never counts for a claim or against it: regions of "no worse" and "about the same" end at a
margin (`Margins`), and an answer either way has to be earned by an interval on the right side of it. A claim about
several mixtures ("all of") is supported when every part is and rejected when one part is; a claim that something *can*
be ("one of") the other way round; intervals of k parts are of level 1 - 0.05/k, so that the chance of a wrong verdict
stays at 5 % for the claim. Places are those of the table ("the largest budget" is its largest), not the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.report import words
from lingua_synth.report.evidence import Evidence
from lingua_synth.scaling.kinds import REPHRASED
from lingua_synth.scaling.records import record
from lingua_synth.scaling.regions import t_quantile
from lingua_synth.scaling.verdicts import (
    LEVEL,
    REJECTED,
    SUPPORTED,
    UNDECIDED,
    VERDICTS,
    Estimate,
    Region,
    above,
    below,
    check_margin,
)

NOT_ASKED = "not asked of this table"
THIRD, TWO_THIRDS = (0.28, 0.40, 1 / 3), (0.60, 0.72, 2 / 3)
"""(least, greatest, wanted) share of what the paper calls 33 % and 67 %."""


@dataclass(frozen=True)
class Margins:
    """The smallest differences that count. Of losses they are shares: 0.003 is 0.3 %."""

    loss: float = 0.003
    """Of the loss: the paper's own laws err by 0.3-0.4 %."""
    notable: float = 0.01
    """Of the loss, for "notably higher"."""
    same: float = 0.005
    """Of the loss, for "similar"."""
    trend: float = 0.001
    """Change of a difference of losses over the sizes or budgets of the table."""
    generator: float = 0.001
    """Of the loss: shares of up to 20 % move it by little."""
    ratio: float = 0.02
    """Change of a best ratio."""
    forecast: float = 0.005
    """Mean error of a law on runs that it did not see."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            check_margin(value, f"margins.{name}")


@dataclass(frozen=True)
class Part:
    """One number of a claim."""

    subject: str
    """Which mixtures, where."""
    unit: str
    """change (of ln loss), factor, ratio or nats."""
    region: Region
    value: float
    low: float
    high: float
    level: float
    how: str
    """By what it was found, or why it was not."""

    @property
    def verdict(self) -> str:
        """Of this part alone."""
        return self.region.verdict(self.low, self.high)

    @property
    def shown(self) -> str:
        """Number and interval in words."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "no number" if math.isnan(self.value) else f"{_shown(self.value, self.unit)} (no interval)"
        digits = _digits(self.low, self.high, self.unit)
        ends = f"{_shown(self.low, self.unit, digits)} to {_shown(self.high, self.unit, digits)}"
        return f"{_shown(self.value, self.unit, digits)} ({ends})"


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict."""

    id: str
    says: str
    """The claim, in our words."""
    place: str
    """Where the paper makes it."""
    rule: str
    """When it is supported, when rejected."""
    verdict: str
    why: str
    parts: tuple[Part, ...]
    figures: tuple[str, ...]
    """Names of the pictures that show it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = [
            {
                "subject": part.subject, "unit": part.unit, "value": part.value, "interval": [part.low, part.high],
                "level": part.level, "region": [part.region.low, part.region.high], "verdict": part.verdict,
                "how": part.how,
            }
            for part in self.parts
        ]  # fmt: skip
        return record({**self.__dict__, "parts": parts, "figures": list(self.figures)})


Shown = tuple[float, float, float, str]
"""(value, low, high, how)."""
Asked = tuple[str, str, Region, Callable[[float], Shown | str]]
"""(subject, unit, region, the number at a level or why there is none)."""


def paper_claims(evidence: Evidence, margins: Margins | None = None) -> list[Claim]:
    """Every claim, in the order of the paper; those that the table cannot answer are undecided and say why."""
    m = margins or Margins()
    return [build(evidence, m) for build in _CLAIMS]


def _claim(
    id: str,
    says: str,
    place: str,
    rule: str,
    asked: Sequence[Asked],
    figures: Sequence[str],
    *,
    missing: str,
    any_of: bool = False,
) -> Claim:
    """Judge. `missing`: what the table would need, where there is nothing to ask."""
    level = 1 - (1 - LEVEL) / max(len(asked), 1)
    parts = []
    for subject, unit, region, number in asked:
        found = number(level)
        value, low, high, how = found if not isinstance(found, str) else (math.nan, math.nan, math.nan, found)
        parts.append(Part(subject, unit, region, value, low, high, level, how))
    verdicts = [part.verdict for part in parts]
    if not parts:
        verdict, why = UNDECIDED, f"{NOT_ASKED}: {missing}"
    else:
        one, every = (SUPPORTED, REJECTED) if any_of else (REJECTED, SUPPORTED)
        verdict = one if one in verdicts else every if set(verdicts) == {every} else UNDECIDED
        why = _why(parts, verdict)
    joined = " One of them is enough." if any_of and len(parts) > 1 else " All of them must." if len(parts) > 1 else ""
    return Claim(id, says, place, rule + joined, verdict, why, tuple(parts), tuple(figures))


def _why(parts: Sequence[Part], verdict: str) -> str:
    counts = [f"{sum(part.verdict == v for part in parts)} {v}" for v in VERDICTS]
    if len(parts) > 1:
        return f"of {len(parts)} parts: {', '.join(c for c in counts if not c.startswith('0 '))}"
    part = parts[0]
    if math.isnan(part.low):
        return part.how
    if verdict != UNDECIDED:
        return f"the whole interval lies {'inside' if verdict == SUPPORTED else 'outside'}"
    return "the interval reaches across the margin"


# --- numbers ---


def _number(found: Estimate | None, why_not: str = "no law of these mixtures and no repeated seeds") -> Callable:
    def at(level: float) -> Shown | str:
        if found is None:
            return why_not
        return (found.value, *found.interval(level), found.how)

    return at


def _where(size: str | None, tokens: float | None) -> str:
    return f"size {size}, {words.short_count(tokens or math.nan)} tokens"


def _third(e: Evidence, source: str) -> str | None:
    return e.mixture(source, *THIRD)


def _two_thirds(e: Evidence, source: str) -> str | None:
    return e.mixture(source, *TWO_THIRDS)


def _gap_at_budget(
    e: Evidence, first: str | None, second: str | None, region: Region, *, last: bool = True
) -> list[Asked]:
    """The gap of two mixtures at the largest (or smallest) budget of the main size that both have; none if absent."""
    if first is None or second is None:
        return []
    budgets = e.budgets(e.main_size, first, second)
    if not budgets:
        return []
    tokens = budgets[-1 if last else 0]
    subject = f"{words.quoted(first)} against {words.quoted(second)}, {_where(e.main_size, tokens)}"
    return [(subject, "change", region, _number(e.gap(first, second, e.main_size, tokens)))]


def _gap_at_size(e: Evidence, first: str | None, second: str | None, region: Region) -> list[Asked]:
    """The gap at the largest model of the budget with most sizes."""
    if first is None or second is None:
        return []
    sizes = e.sizes(e.main_tokens, first, second)
    if len(sizes) < 2:
        return []
    subject = f"{words.quoted(first)} against {words.quoted(second)}, {_where(sizes[-1], e.main_tokens)}"
    return [(subject, "change", region, _number(e.gap(first, second, sizes[-1], e.main_tokens)))]


def _speedups(e: Evidence, region: Region) -> list[Asked]:
    asked: list[Asked] = []
    for source in e.sources(*REPHRASED):
        mixture = _third(e, source)
        budgets = e.budgets(e.main_size, mixture, e.base) if mixture and e.base else []
        if mixture is None or len(budgets) < 2:
            continue
        subject = f"{words.quoted(mixture)}, {_where(e.main_size, budgets[-1])}"
        asked.append((subject, "factor", region, _speedup(e, mixture, budgets[-1])))
    return asked


def _speedup(e: Evidence, mixture: str, tokens: float) -> Callable[[float], Shown | str]:
    def at(level: float) -> Shown | str:
        together = e.joint or e.data
        if together is None or mixture not in together.fits.fits or e.base not in together.fits.fits:
            return "no law of both mixtures that the runs determine"
        assert e.base is not None and e.main_size is not None, "both were found in the table"
        given = {"N": e.size_N[e.main_size]} if "N" in together.fits.law.variables else {}
        found = together.fits.speedup(e.base, mixture, tokens, resamples=together.drawn, level=level, **given)
        assert found.low is not None and found.high is not None, "resamples were given"
        note = {"beyond range": ", read beyond the base's runs", "beyond reach": ", beyond the base's reach"}
        how = together.what + note.get(str(found.state), "")
        return float(found.factor), float(found.low), float(found.high), how

    return at


def _trend(e: Evidence, mixture: str | None, region: Region, *, sizes: bool, falls: bool) -> list[Asked]:
    """How the gap of a mixture to the base changes from the first to the last size (or budget); `falls`: first less
    last, else last less first."""
    if mixture is None or e.base is None:
        return []
    if sizes:
        along: list[Any] = [(size, e.main_tokens) for size in e.sizes(e.main_tokens, mixture, e.base)]
    else:
        along = [(e.main_size, tokens) for tokens in e.budgets(e.main_size, mixture, e.base)]
    if len(along) < 2:
        return []
    sign = 1.0 if falls else -1.0
    terms = [
        (sign, mixture, *along[0]),
        (-sign, e.base, *along[0]),
        (-sign, mixture, *along[-1]),
        (sign, e.base, *along[-1]),
    ]
    ends = [along[0], along[-1]] if falls else [along[-1], along[0]]
    subject = f"gap of {words.quoted(mixture)} at {_where(*ends[0])} less that at {_where(*ends[1])}"
    return [(subject, "change", region, _number(e.contrast(terms)))]


def _constants(e: Evidence, first: str | None, others: Sequence[str], region: Region) -> list[Asked]:
    """E of one mixture less E of others."""
    asked: list[Asked] = []
    for other in others:
        if first is None or e.joint is None or not {first, other} <= set(e.joint.fits.fits):
            continue
        subject = f"E of {words.quoted(first)} less E of {words.quoted(other)}"
        asked.append((subject, "nats", region, _constant(e, first, other)))
    return asked


def _constant(e: Evidence, first: str, other: str) -> Callable[[float], Shown | str]:
    def at(level: float) -> Shown | str:
        assert e.joint is not None, "looked at before"
        fits, name = e.joint.fits.fits, e.joint.fits.law.constant
        low, high = e.joint.drawn.difference(name, first, other, level)
        return fits[first].params[name] - fits[other].params[name], low, high, e.joint.what

    return at


def _best_ratio(e: Evidence, source: str, region: Region, *, last: bool) -> list[Asked]:
    place = _ratio_place(e, source, last)
    if place is None:
        return []
    return [(f"best share of {words.quoted(source)}, {_where(*place)}", "ratio", region, _ratio_at(e, source, place))]


def _ratio_place(e: Evidence, source: str, last: bool) -> tuple[str, float] | None:
    """The largest (or smallest) cell with three ratios of the source."""
    on_axis = [m for m, (names, _) in e.shares.items() if names in ((), (source,))]
    found = [c for c in e.cells if sum(m in c.losses for m in on_axis) >= 3]
    if not found:
        return None
    cell = (max if last else min)(found, key=lambda c: (c.num_parameters, c.tokens))
    return cell.size, cell.tokens


def _ratio_at(e: Evidence, source: str, place: tuple[str, float]) -> Callable[[float], Shown | str]:
    def at(level: float) -> Shown | str:
        law = e.ratio_fits.get(source)
        if law is None or not law.usable:
            return f"no law in the ratio: {law.why_not if law is not None else 'too few ratios'}"
        found = law.at(e.size_N[place[0]], place[1], level)
        low, high = law.interval(found)
        return found.ratio, low, high, "law in the ratio, and its rival"

    return at


def _ratio_change(e: Evidence, source: str, region: Region, *, falls: bool) -> list[Asked]:
    first, last = _ratio_place(e, source, False), _ratio_place(e, source, True)
    if first is None or last is None or first == last:
        return []
    ends = (first, last) if falls else (last, first)

    def at(level: float) -> Shown | str:
        law = e.ratio_fits.get(source)
        if law is None or not law.usable:
            return f"no law in the ratio: {law.why_not if law is not None else 'too few ratios'}"
        points = [law.at(e.size_N[size], tokens, level) for size, tokens in ends]
        values = law.resampled(e.size_N[ends[0][0]], ends[0][1]) - law.resampled(e.size_N[ends[1][0]], ends[1][1])
        low, high = (float(x) for x in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))
        rivals = [points[0].under[name] - points[1].under[name] for name in points[0].under]
        how = "law in the ratio, and its rival"
        return points[0].ratio - points[1].ratio, min(low, *rivals), max(high, *rivals), how

    subject = f"best share of {words.quoted(source)} at {_where(*ends[0])} less that at {_where(*ends[1])}"
    return [(subject, "ratio", region, at)]


def _generators(e: Evidence, role: str | None, large: bool, region: Region) -> list[Asked]:
    """Loss with the largest (or smallest) generator against the one nearest 8B, at equal shares, kind by kind."""
    asked: list[Asked] = []
    kinds = list(dict.fromkeys(one.kind for one in e.kinds.values() if one.generator is not None))
    for kind in kinds:
        mine = [one for one in e.kinds.values() if one.kind == kind and one.generator_size is not None]
        if role is not None:
            mine = [one for one in mine if one.role == role]
        if len(mine) < 2:
            continue
        middle = min(mine, key=lambda one: abs(math.log(float(one.generator_size or 1) / 8e9)))
        ends = [one for one in mine if (one.generator_size or 0) > (middle.generator_size or 0)]
        if not large:
            ends = [one for one in mine if (one.generator_size or 0) < (middle.generator_size or 0)]
        if not ends:
            continue
        other = (max if large else min)(ends, key=lambda one: float(one.generator_size or 0))
        pairs = _equal_shares(e, other.source, middle.source)
        subject = f"{kind} by {other.generator} against {middle.generator}"
        why = "fewer than three shares and places that both were trained at, and no repeated seeds"
        asked.append((subject, "change", region, _number(e.paired(pairs), why)))
    return asked


def _equal_shares(e: Evidence, first: str, second: str) -> list[tuple[str, str]]:
    mine = {round(share, 5): m for m, (names, share) in e.shares.items() if names == (first,)}
    theirs = {round(share, 5): m for m, (names, share) in e.shares.items() if names == (second,)}
    return [(mine[share], theirs[share]) for share in mine if share in theirs]


# --- the claims ---

_NO_REPHRASED = (
    "it takes rephrased text beside natural text, sources that are called so (hq, rephrased, qa ...) or are named "
    "with kinds.SOURCE=hq"
)
_NO_TEXTBOOK = (
    "it takes textbooks beside natural text, a source that is called so or is named with kinds.SOURCE=textbook"
)
_NO_JOINT = "the joint laws of these mixtures are not identifiable together"
_NO_RATIOS = "it takes at least three ratios of such a source in one cell"
_NO_GENERATORS = (
    "it takes sources of one kind by several generators, named KIND-GENERATOR or with generators.SOURCE=NAME"
)
_DATA = ("data_scaling", "data_extrapolation")
_MODEL = ("model_scaling", "model_extrapolation")


def _pct(value: float) -> str:
    return f"{100 * value:g}{words.THIN}%".replace("-", words.MINUS)


def _speedup_large(e: Evidence, m: Margins) -> Claim:
    return _claim(
        "speedup_five",
        "A third of rephrased text in natural text can reach the same loss with a fifth to a tenth of the tokens, at "
        "large budgets.",
        "abstract, sections 1 and 6",
        "Tokens that natural text needs over those of the mixture, for equal loss, at the largest budget: supported "
        "when at least 5.",
        _speedups(e, above(5.0)), ("speedup",), missing=_NO_REPHRASED, any_of=True,
    )  # fmt: skip


def _speedup_any(e: Evidence, m: Margins) -> Claim:
    return _claim(
        "third_rephrased_faster",
        "A third of rephrased text in natural text saves training tokens.",
        "abstract, section 4.1.3",
        "The same number, supported when above 1 and rejected when below.",
        _speedups(e, above(1.0)), ("speedup",), missing=_NO_REPHRASED,
    )  # fmt: skip


def _pure_rephrased(e: Evidence, m: Margins) -> Claim:
    asked = [part for s in e.sources(*REPHRASED) for part in _gap_at_budget(e, e.pure(s), e.base, above(-m.loss))]
    return _claim(
        "pure_rephrased_not_better",
        "Rephrased text alone is no better than natural text alone.",
        "abstract, section 4.1.3",
        f"Change of the loss at the largest budget: supported when the gain is under {_pct(m.loss)} beyond doubt.",
        asked, _DATA, missing=_NO_REPHRASED,
    )  # fmt: skip


def _pure_textbook(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources("textbook")
        for part in _gap_at_budget(e, e.pure(s), e.base, above(m.notable), last=False)
    ]
    return _claim(
        "pure_textbook_worse",
        "Textbooks alone give a notably higher loss than natural text, at small budgets above all.",
        "abstract, section 4.1.3",
        f"Change of the loss at the smallest budget: supported when above {_pct(m.notable)}.",
        asked, _DATA, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _textbook_shrinks(e: Evidence, m: Margins) -> Claim:
    asked = [
        part for s in e.sources("textbook") for part in _trend(e, e.pure(s), above(m.trend), sizes=False, falls=True)
    ]
    return _claim(
        "textbook_gap_shrinks_with_budget",
        "What textbooks alone cost is largest at small budgets.",
        "abstract, section 7",
        f"Gap to natural text at the smallest less that at the largest budget: supported when above {_pct(m.trend)}.",
        asked, _DATA, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _mixtures_beat_pure(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources(*REPHRASED, "textbook")
        for mixture in (_third(e, s), _two_thirds(e, s))
        for part in _gap_at_budget(e, mixture, e.pure(s), below(-m.loss))
    ]
    return _claim(
        "mixtures_beat_pure",
        "Every kind of synthetic text is better mixed with natural text than alone.",
        "section 4.1.3",
        f"Change of the loss from the pure kind to the mixture, largest budget: supported when below {_pct(-m.loss)}.",
        asked, _DATA, missing="it takes synthetic sources of known kinds, alone and mixed with natural text",
    )  # fmt: skip


def _insensitive(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources(*REPHRASED)
        for part in _gap_at_budget(e, _two_thirds(e, s), _third(e, s), Region(-m.same, m.same))
    ]
    return _claim(
        "rephrased_ratio_insensitive",
        "Whether a third or two thirds of the text are rephrased matters little.",
        "section 4.1.3",
        f"Change of the loss from a third to two thirds, largest budget: supported when within ±{_pct(m.same)}, "
        "rejected when outside.",
        asked, _DATA, missing=_NO_REPHRASED,
    )  # fmt: skip


def _textbook_third(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources("textbook")
        for part in _gap_at_budget(e, _third(e, s), _two_thirds(e, s), below(-m.loss))
    ]
    return _claim(
        "textbook_third_better_than_two_thirds",
        "A third of textbooks is clearly better than two thirds.",
        "section 4.1.3",
        f"Change of the loss from two thirds to a third, largest budget: supported when below {_pct(-m.loss)}.",
        asked, _DATA, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _textbook_overtakes(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources("textbook"):
        asked += _gap_at_budget(e, _third(e, s), e.base, above(0.0), last=False)
        asked += _gap_at_budget(e, _third(e, s), e.base, below(0.0))
    return _claim(
        "textbook_third_overtakes",
        "A third of textbooks is behind natural text at small budgets and passes it as budgets grow (the paper: after "
        "some 20B tokens, models of 1B).",
        "section 4.1.3",
        "Gap to natural text: supported when above 0 at the smallest budget of the table and below 0 at the largest.",
        asked, (*_DATA, "speedup"), missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _textbook_two_thirds(e: Evidence, m: Margins) -> Claim:
    asked = [part for s in e.sources("textbook") for part in _gap_at_budget(e, _two_thirds(e, s), e.base, above(0.0))]
    return _claim(
        "textbook_two_thirds_behind",
        "Two thirds of textbooks stay behind natural text at every budget.",
        "section 4.1.3",
        "Gap to natural text at the largest budget: supported when above 0.",
        asked, _DATA, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _textbook_mixture_degrades(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources("textbook")
        for mixture in (_third(e, s), _two_thirds(e, s))
        for part in _gap_at_budget(e, mixture, e.base, above(m.loss), last=False)
    ]
    return _claim(
        "textbook_mixtures_degrade",
        "Mixtures with textbooks raise the loss, at small budgets above all (the pattern of model collapse).",
        "abstract, section 7",
        f"Gap to natural text at the smallest budget: supported when above {_pct(m.loss)}.",
        asked, _DATA, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _no_degradation(e: Evidence, m: Margins) -> Claim:
    asked = [
        part
        for s in e.sources(*REPHRASED)
        for mixture in (_third(e, s), _two_thirds(e, s))
        for part in _gap_at_budget(e, mixture, e.base, below(m.loss))
    ]
    return _claim(
        "rephrased_no_degradation",
        "Rephrased text mixed into natural text does no harm at any scale in sight.",
        "abstract, section 7",
        f"Gap to natural text at the largest budget: supported when below {_pct(m.loss)}.",
        asked, _DATA, missing=_NO_REPHRASED,
    )  # fmt: skip


def _pure_rephrased_large_models(e: Evidence, m: Margins) -> Claim:
    asked = [part for s in e.sources(*REPHRASED) for part in _gap_at_size(e, e.pure(s), e.base, above(0.0))]
    return _claim(
        "pure_rephrased_behind_in_large_models",
        "Large models trained on rephrased text alone are behind those trained on natural text.",
        "section 4.1.4",
        "Gap to natural text at the largest model: supported when above 0.",
        asked, _MODEL, missing=_NO_REPHRASED,
    )  # fmt: skip


def _two_thirds_large_models(e: Evidence, m: Margins) -> Claim:
    asked = [
        part for s in e.sources(*REPHRASED) for part in _gap_at_size(e, _two_thirds(e, s), _third(e, s), above(0.0))
    ]
    return _claim(
        "two_thirds_worse_in_large_models",
        "For large models two thirds of rephrased text are worse than a third.",
        "section 4.1.4",
        "Change of the loss from a third to two thirds at the largest model: supported when above 0.",
        asked, _MODEL, missing=_NO_REPHRASED,
    )  # fmt: skip


def _textbook_gain_shrinks(e: Evidence, m: Margins) -> Claim:
    asked = [
        part for s in e.sources("textbook") for part in _trend(e, _third(e, s), above(m.trend), sizes=True, falls=False)
    ]
    return _claim(
        "textbook_gain_shrinks_with_size",
        "What a third of textbooks gains over natural text shrinks as models grow.",
        "section 4.1.4",
        f"Gap at the largest less that at the smallest model: supported when above {_pct(m.trend)}.",
        asked, _MODEL, missing=_NO_TEXTBOOK,
    )  # fmt: skip


def _lower_floor(e: Evidence, m: Margins) -> Claim:
    pure_qa = {e.pure(s) for s in e.sources("qa")}
    synthetic = [one for one in e.main_mixtures if one != e.base and one not in pure_qa]
    asked = [part for one in synthetic for part in _constants(e, one, [e.base] if e.base else [], below(0.0))]
    return _claim(
        "synthetic_lowers_floor",
        "Every mixture with synthetic text, and every pure kind but question-answer text, has a lower irreducible "
        "loss E than natural text.",
        "section 4.1.5",
        "E of the mixture less E of natural text: supported when below 0, rejected when above.",
        asked, ("irreducible_loss",), missing=_NO_JOINT,
    )  # fmt: skip


def _lowest_floor(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources("hq"):
        third = _third(e, s)
        asked += _constants(e, third, [one for one in e.main_mixtures if one != third], below(0.0))
    return _claim(
        "hq_third_lowest_floor",
        "A third of text rephrased as clear prose has the lowest irreducible loss of all mixtures.",
        "section 4.1.5",
        "E of that mixture less E of every other: supported when below 0, rejected when above.",
        asked, ("irreducible_loss",), missing=f"{_NO_JOINT}, or there is no such mixture",
    )  # fmt: skip


def _pure_qa_floor(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources("qa"):
        pure = e.pure(s)
        asked += _constants(e, pure, [one for one in e.main_mixtures if one not in (pure, e.base)], above(0.0))
    return _claim(
        "pure_qa_high_floor",
        "Question-answer text alone has the highest irreducible loss but that of natural text.",
        "section 4.1.5",
        "E of that text less E of every other mixture: supported when above 0, rejected when below.",
        asked, ("irreducible_loss",), missing=f"{_NO_JOINT}, or there is no such mixture",
    )  # fmt: skip


def _ratio_thirty(e: Evidence, m: Margins) -> Claim:
    asked = [part for s in e.sources(*REPHRASED) for part in _best_ratio(e, s, Region(0.2, 0.4), last=True)]
    return _claim(
        "good_ratio_about_30",
        "The best share of rephrased text settles at about 30 %.",
        "abstract, section 5.1",
        "Best share at the largest model and budget: supported when between 20 % and 40 %, rejected when outside.",
        asked, ("best_ratio",), missing=_NO_RATIOS,
    )  # fmt: skip


def _ratios_below_half(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources(*REPHRASED, "textbook"):
        asked += _best_ratio(e, s, below(0.5), last=False)
        asked += _best_ratio(e, s, below(0.5), last=True)
    return _claim(
        "good_ratios_below_half",
        "The best share of synthetic text is below a half, whatever its kind and the scale.",
        "section 5.1",
        "Best share at the smallest and the largest model and budget: supported when below 50 %.",
        asked, ("best_ratio",), missing=_NO_RATIOS,
    )  # fmt: skip


def _hq_half(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources("hq"):
        place = _ratio_place(e, s, True)
        if place is not None:
            subject = f"30 % against 50 % of {words.quoted(s)}, {_where(*place)}"
            asked.append((subject, "change", below(0.0), _thirty_against_half(e, s, place)))
    return _claim(
        "thirty_beats_half",
        "30 % of text rephrased as clear prose is better than the 50 % that WRAP used.",
        "section 5.1",
        "Change of the loss from 50 % to 30 % at the largest model and budget: supported when below 0.",
        asked, ("best_ratio", "ratio"), missing=_NO_RATIOS,
    )  # fmt: skip


def _thirty_against_half(e: Evidence, source: str, place: tuple[str, float]) -> Callable[[float], Shown | str]:
    def at(level: float) -> Shown | str:
        law = e.ratio_fits.get(source)
        if law is None or not law.usable or law.bootstrap is None:
            return f"no law in the ratio: {law.why_not if law is not None else 'too few ratios'}"
        N, D = e.size_N[place[0]], place[1]
        (own, again), (half, half_again) = law.log_gain(N, D, 0.3), law.log_gain(N, D, 0.5)
        reach = t_quantile(law.bootstrap.freedom, level) * float(np.std(again - half_again, ddof=1))
        return own - half, own - half - reach, own - half + reach, "law in the ratio"

    return at


def _qa_falls(e: Evidence, m: Margins) -> Claim:
    asked = [part for s in e.sources("qa") for part in _ratio_change(e, s, above(m.ratio), falls=True)]
    return _claim(
        "qa_ratio_falls_with_scale",
        "The best share of question-answer text falls as models and budgets grow.",
        "section 5.1",
        f"Best share at the smallest less that at the largest model and budget: supported when above {_pct(m.ratio)}.",
        asked, ("best_ratio",), missing=_NO_RATIOS,
    )  # fmt: skip


def _textbook_grows(e: Evidence, m: Margins) -> Claim:
    asked: list[Asked] = []
    for s in e.sources("textbook"):
        asked += _best_ratio(e, s, below(0.05), last=False)
        asked += _ratio_change(e, s, above(m.ratio), falls=False)
    return _claim(
        "textbook_ratio_grows_with_scale",
        "The best share of textbooks is under 5 % at small scale and grows with it.",
        "section 5.1",
        "Best share at the smallest model and budget, and its change to the largest: supported when under 5 % and "
        f"growing by more than {_pct(m.ratio)}.",
        asked, ("best_ratio",), missing=_NO_RATIOS,
    )  # fmt: skip


def _no_gain(e: Evidence, m: Margins) -> Claim:
    return _claim(
        "larger_generator_no_gain",
        "A generator much larger than some 8B parameters writes no better training text.",
        "abstract, section 5.2",
        "Change of the loss from the generator nearest 8B to the largest, at equal shares: supported when the gain is "
        f"under {_pct(m.generator)} beyond doubt.",
        _generators(e, None, True, above(-m.generator)), ("generators",), missing=_NO_GENERATORS,
    )  # fmt: skip


def _small_generator(e: Evidence, m: Margins) -> Claim:
    return _claim(
        "small_generator_worse",
        "A generator of some 3B parameters writes worse training text than one of 8B.",
        "section 5.2",
        "Change of the loss from the generator nearest 8B to the smallest, at equal shares: supported when above 0.",
        _generators(e, None, False, above(0.0)), ("generators",), missing=_NO_GENERATORS,
    )  # fmt: skip


def _largest_worse(e: Evidence, m: Margins) -> Claim:
    return _claim(
        "largest_generator_worse_hq",
        "For text rephrased as clear prose the largest generator (70B) is worse than one of 8B.",
        "section 5.2",
        "The same change for that kind alone: supported when above 0.",
        _generators(e, "hq", True, above(0.0)), ("generators",), missing=_NO_GENERATORS,
    )  # fmt: skip


_CLAIMS: tuple[Callable[[Evidence, Margins], Claim], ...] = (
    _speedup_large, _speedup_any, _pure_rephrased, _pure_textbook, _textbook_shrinks, _mixtures_beat_pure, _insensitive,
    _textbook_third, _textbook_overtakes, _textbook_two_thirds, _pure_rephrased_large_models, _two_thirds_large_models,
    _textbook_gain_shrinks, _lower_floor, _lowest_floor, _pure_qa_floor, _ratio_thirty, _ratios_below_half, _hq_half,
    _qa_falls, _textbook_grows, _no_gain, _small_generator, _largest_worse, _no_degradation, _textbook_mixture_degrades,
)  # fmt: skip


# --- for the eye ---


def _digits(low: float, high: float, unit: str) -> int:
    scale = 100 if unit in ("change", "ratio") else 1
    ends = [x for x in (low, high) if math.isfinite(x)]
    if len(ends) < 2:
        return 2 if unit == "factor" else 3
    return max(0 if unit == "ratio" else 1, min(4, words.decimals_for(scale * low, scale * high)))


def _shown(value: float, unit: str, digits: int = 2) -> str:
    if unit == "factor":
        return "beyond reach" if math.isinf(value) else f"{words.number(value, digits)}×"
    if unit == "ratio":
        return f"{words.number(100 * value, digits)}{words.THIN}%"
    if unit == "change":
        return f"{words.signed(100 * value, digits)}{words.THIN}%"
    return words.signed(value, digits)
