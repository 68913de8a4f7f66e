"""What an answer says: the choice, every option beside it, what would change it; prints as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.model.counts import in_words
from lingua_synth.recommend.generators import Generator
from lingua_synth.recommend.planner import Decision, Outcome, Plan, Question
from lingua_synth.scaling.records import record

NATURAL, BUY = "natural text alone", "buy more natural text"


@dataclass(frozen=True)
class Change:
    """One input, and where the answer changes when it alone is moved."""

    name: str
    now: float
    at: float | None
    """Nearest value in this direction at which the answer is another; None: nowhere in `searched`."""
    to: str
    """The answer there; empty with `at` None."""
    equal_at: float | None
    """Where the option compared saves exactly the smallest saving that counts, by the fit: break-even."""
    interval: tuple[float | None, float | None]
    """Of `equal_at`: where the interval of the saving holds the smallest saving. None: open at that end of the range.
    Both are None without `equal_at`."""
    searched: tuple[float, float]
    """Least and greatest value that was tried and where the runs have an answer."""
    compared: bool = True
    """Whether it moves the option compared; False for what another source costs."""

    @property
    def factor(self) -> float:
        """How far away, as a factor of at least 1; infinite where the answer does not change."""
        if self.at is None:
            return math.inf
        if min(self.at, self.now) <= 0:
            return math.inf
        return max(self.at / self.now, self.now / self.at)


@dataclass(frozen=True, eq=False)
class Advice:
    """The answer for one model, budget and set of prices."""

    question: Question
    n_definition: str
    target: str
    base: str
    unit: str
    """Of costs: GPU-hours, or money."""
    decision: Decision | None
    """None: no answer (see `refusal`)."""
    generators: Mapping[str, Generator]
    compared: str
    """The source whose break-evens stand in `changes`: the choice, or what comes nearest to it."""
    changes: tuple[Change, ...]
    """Nearest first."""
    training: str
    """How the cost of training was counted."""
    refusal: str | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def answer(self) -> str:
        """natural, buy, or the source to generate; none without an answer."""
        return "none" if self.decision is None else self.decision.label

    def break_even(self, name: str) -> Change | None:
        """The change of one input, by its name; the nearest where it has two."""
        return next((one for one in self.changes if one.name == name), None)

    def plot(self, ax: Any = None) -> Any:
        """What every kind saves against natural text at equal loss, over its share, with the intervals; returns axes.

        The share of least cost is marked. Shares whose plans lie outside the runs are left out. ValueError without an
        answer.
        """
        from lingua_synth.report.style import BASE_COLOUR, COLOURS, INK, house_style, new_axes

        if self.decision is None:
            raise ValueError(f"there is no answer to draw: {self.refusal}")
        with house_style():
            ax = new_axes(3.6) if ax is None else ax
            ax.axhline(0.0, color=BASE_COLOUR, linewidth=1.0)
            lowest = 0.0
            for colour, one in zip(COLOURS * len(self.decision.kinds), self.decision.kinds, strict=False):
                if one.plan is None or one.curve is None:
                    continue
                shares, *savings = (100 * column for column in one.curve)
                middle, low, high = savings
                ax.fill_between(shares, low, high, color=colour, alpha=0.18, linewidth=0)
                ax.plot(shares, middle, color=colour, label=one.source)
                ax.plot([100 * one.plan.ratio], [100 * one.saving], "o", color=colour, markeredgecolor=INK)
                lowest = min(lowest, 100 * one.saving)
            top = max([100 * one.interval[1] for one in self.decision.kinds if one.plan is not None] or [1.0])
            # What is far dearer than natural text is not what the picture is for.
            ax.set_ylim(min(-max(top, 5.0), 1.2 * lowest), 1.15 * max(top, 1.0))
            ax.set_xlabel("share of synthetic tokens (%)")
            ax.set_ylabel(f"{self.unit} saved at equal loss (%)")
            ax.legend()
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        q = self.question
        return record(
            {
                "answer": self.answer, "refusal": self.refusal, "unit": self.unit, "target": self.target,
                "base": self.base, "n_definition": self.n_definition, "level": q.level,
                "question": dict(q.__dict__) | {"generation": dict(q.generation)},
                "generators": {name: dict(one.__dict__) for name, one in self.generators.items()},
                "training": self.training,
                "loss": None if self.decision is None else self.decision.loss,
                "natural": None if self.decision is None else dict(self.decision.natural.__dict__),
                "options": [_plain(one) for one in _options(self.decision)],
                "tied": [] if self.decision is None else [one.source for one in self.decision.tied],
                "compared": self.compared,
                "changes": [dict(one.__dict__) | {"factor": one.factor} for one in self.changes],
                "notes": list(self.notes),
            }
        )  # fmt: skip

    def __str__(self) -> str:
        q = self.question
        runs = "1 run" if q.num_runs == 1 else f"{q.num_runs:g} runs"
        place = f"N {in_words(round(q.N))} ({self.n_definition}), {_count(q.D)} tokens, {runs}"
        if self.decision is None:
            return "\n".join([f"{place}: no answer. {self.refusal}", *(f"note: {note}" for note in self.notes)])
        lines = [f"{place}: {self._headline()}", *self._reasons(), *self._break_even_size(), "", *self._table(), ""]
        lines += self._changes() if self.changes else []
        lines += ["", f"{self.training}"]
        lines += [f"{one.source}: {_generator(one, self.unit)}" for one in self.generators.values()]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _headline(self) -> str:
        found = self.decision
        assert found is not None, "printed with an answer only"
        if found.choice is None:
            return NATURAL
        plan = found.choice.plan
        assert plan is not None, "a choice has a plan"
        if found.choice.source is None:
            return f"{BUY}, {_count(plan.bought)} tokens, and train on {_count(plan.tokens)}"
        return f"generate {found.choice.source}, {_percent(plan.ratio)} of {_count(plan.tokens)} training tokens"

    def _reasons(self) -> list[str]:
        found, q = self.decision, self.question
        assert found is not None, "printed with an answer only"
        level = f"{100 * q.level:g} % interval"
        lines = []
        if found.choice is None:
            best = next((one for one in found.kinds if one.plan is not None), None)
            if best is not None and best.plan is not None and best.plan.ratio < 1e-6:
                lines.append("  no share of synthetic text saves anything at equal loss")
            elif best is not None:
                lines.append(
                    f"  the cheapest mixture with {best.source} saves {_percent(best.saving)} [{_span(best.interval)}] "
                    f"at equal loss: not shown to save the {_percent(q.min_saving)} that count"
                )
        else:
            bought = found.choice.source is not None and found.bought is not None and found.bought.shown
            beside = "natural text with more bought" if bought else NATURAL
            lines.append(
                f"  reaches the loss of {NATURAL} at {_count(q.D)} tokens ({found.loss:.4f}) for "
                f"{_percent(found.choice.saving)} less than {beside} ({level}: {_span(found.choice.interval)})"
            )
            plan = found.choice.plan
            assert plan is not None, "a choice has a plan"
            lines.append(f"  {_todo(plan)}")
        lines += [
            f"  as good, by these runs: {_percent(one.plan.ratio)} {one.source}" for one in found.tied if one.plan
        ]
        return lines

    def _break_even_size(self) -> list[str]:
        found = self.break_even("model size N")
        if found is None:
            return []
        if found.equal_at is None:
            low, high = (_value(end) for end in found.searched)
            return [f"  {self.compared} breaks even at no size within the runs ({low} to {high})"]
        return [f"  {self.compared} breaks even at N {_equal(found)}"]

    def _table(self) -> list[str]:
        found = self.decision
        assert found is not None, "printed with an answer only"
        head = ("option", "share", "tokens", "written", "bought", self.unit, "saves", "loss at that cost")
        rows = [(NATURAL, *_cells(found.natural), "", f"{found.loss:.4f}")]
        if found.bought is not None and found.bought.plan is not None:
            rows.append((BUY, *_cells(found.bought.plan), _saving(found.bought), ""))
        for one in found.kinds:
            name = one.source or ""
            if one.plan is None:
                rows.append((name, "", "", "", "", "", "", "does not reach this loss inside the runs"))
                continue
            low, high = one.ratio_interval
            share = f"{_percent(one.plan.ratio)}" + ("" if math.isnan(low) else f" [{_span((low, high))}]")
            loss = ""
            if one.at_cost is not None and math.isfinite(one.gain):
                loss = f"{_percent(-one.gain, sign=True)} [{_span((-one.gain_interval[1], -one.gain_interval[0]))}]"
            rows.append((name, share, *_cells(one.plan)[1:], _saving(one), loss))
            if one.fewest is not None:
                rows.append(("  at its share of lowest loss", *_cells(one.fewest), "", ""))
        widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
        return [
            "  ".join(
                cell.ljust(width) if k == 0 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        ]

    def _changes(self) -> list[str]:
        head = ("what would change the answer", "now", "at", "factor", "to", f"{self.compared} breaks even at")
        rows = []
        for one in self.changes:
            where = (
                _value(one.at)
                if one.at is not None
                else f"not in {_value(one.searched[0])} to {_value(one.searched[1])}"
            )
            factor = "" if math.isinf(one.factor) else f"{one.factor:.3g}x"
            rows.append((one.name, _value(one.now), where, factor, one.to, _equal(one)))
        widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        ]


def _options(found: Decision | None) -> list[Outcome]:
    if found is None:
        return []
    return [*([found.bought] if found.bought is not None else []), *found.kinds]


def _plain(one: Outcome) -> dict[str, Any]:
    plans = {"plan": one.plan, "fewest_tokens": one.fewest, "at_equal_cost": one.at_cost}
    return {
        "option": one.source or "buy", "shown": one.shown, "saving": one.saving, "interval": list(one.interval),
        **{name: None if plan is None else dict(plan.__dict__) for name, plan in plans.items()},
        "gain": one.gain, "gain_interval": list(one.gain_interval), "ratio_interval": list(one.ratio_interval),
        "under": {name: {"ratio": ratio, "saving": saving} for name, (ratio, saving) in one.under.items()},
    }  # fmt: skip


def _todo(plan: Plan) -> str:
    parts = []
    if plan.generated:
        reads = "" if plan.passes < 1.05 else f", read {plan.passes:.2g} times"
        parts.append(f"write and keep {_count(plan.generated)} tokens{reads}")
    if plan.bought:
        parts.append(f"buy {_count(plan.bought)} natural tokens")
    if plan.natural_passes > 1.005 and math.isfinite(plan.natural_passes):
        parts.append(f"read natural text {plan.natural_passes:.2g} times")
    return "; ".join(parts)


def _cells(plan: Plan) -> tuple[str, str, str, str, str]:
    share = _percent(plan.ratio) if plan.ratio else ""
    written = _count(plan.generated) if plan.generated else ""
    return share, _count(plan.tokens), written, _count(plan.bought) if plan.bought else "", f"{plan.cost:,.4g}"


def _saving(one: Outcome) -> str:
    return f"{_percent(one.saving)} [{_span(one.interval)}]"


def _generator(one: Generator, unit: str) -> str:
    ratio = "" if one.tokens_ratio == 1 else f", {one.tokens_ratio:.3g} of its tokens a training token"
    return (
        f"{one.per_billion_written:,.4g} {unit} per billion tokens written, {_percent(one.keep_rate)} kept{ratio} "
        f"({one.origin}; taken to be off by {_percent(one.error)}, one standard error)"
    )


def _equal(one: Change) -> str:
    if not one.compared:
        return ""
    if one.equal_at is None:
        return "nowhere in that range"
    low, high = one.interval
    ends = (
        (f"below {_value(one.searched[0])}" if low is None else _value(low)),
        (f"above {_value(one.searched[1])}" if high is None else _value(high)),
    )
    return f"{_value(one.equal_at)} [{ends[0]}, {ends[1]}]"


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _value(value: float) -> str:
    return _count(value) if value >= 1e6 else f"{value:,.4g}" if value >= 1 else f"{value:.3g}"


def _percent(value: float, *, sign: bool = False) -> str:
    if math.isinf(value):
        return "-inf %"
    if abs(value) < 5e-6:
        return "0 %"
    return f"{100 * value:{'+' if sign else ''}.{2 if abs(value) < 0.0995 else 3}g} %"


def _span(pair: tuple[float, float]) -> str:
    return ", ".join(_percent(end).removesuffix(" %") for end in pair)
