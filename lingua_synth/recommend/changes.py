"""What would change the answer: every input moved by itself, as far as it can go, until the answer is another one.

The answer is decided anew at each value, with its intervals. Break-even is where one option saves just the smallest
saving that counts; the interval around it are the values at which the interval of the saving holds that smallest one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lingua_synth.recommend.advice import BUY, NATURAL, Change
from lingua_synth.recommend.planner import Decision, Planner, Question

STEP = 3.0
"""Prices and counts are tried at powers of it away from the present."""
FARTHEST = STEP**6
_HALVINGS = 9


@dataclass(frozen=True)
class Input:
    """One number of the question, and how to put another in its place."""

    name: str
    now: float
    values: np.ndarray
    """What is tried, ascending, `now` among them."""
    put: Callable[[float], Question]
    source: str | None = None
    """The source whose cost it is."""
    keep_rate: float | None = None
    """Of the source, whose changes follow from those of its cost: keeping half is as dear as twice the cost."""


@dataclass(frozen=True)
class _State:
    label: str
    saving: tuple[float, float, float]
    """Of the source compared, less the smallest that counts: by the fit, low, high."""


def find_changes(planner: Planner, inputs: list[Input], compared: str) -> Iterator[list[Change]]:
    """The changes of each input, one input after the other: the nearest on either side of the present, or one without.

    Break-evens are those of the source `compared`; of what another source costs, there are none.
    """
    for one in inputs:
        yield _Scan(planner, one, compared).changes()


class _Scan:
    def __init__(self, planner: Planner, one: Input, compared: str) -> None:
        self.planner, self.one, self.compared = planner, one, compared
        self._known: dict[float, _State | None] = {}
        self._reached: frozenset[str | None] = frozenset()

    def state(self, value: float) -> _State | None:
        if value not in self._known:
            question = self.one.put(value)
            found = self.planner.decide(question)
            self._known[value] = None if found is None else self._state(found, question.min_saving)
        return self._known[value]

    def _state(self, found: Decision, least: float) -> _State | None:
        """None where a source that reaches the loss at present does so only outside the runs, or no closer than their
        edge: nothing is known there."""
        reached = frozenset(one.source for one in found.kinds if one.plan is not None)
        if not self._known:
            self._reached = reached
        outcome = next((one for one in found.kinds if one.source == self.compared), None)
        if not self._reached <= reached or outcome is None or outcome.plan is None:
            return None
        if outcome.plan.at_edge and self._known:
            return None
        low, high = outcome.interval
        return _State(found.label, (outcome.saving - least, min(low, outcome.saving) - least, high - least))

    def changes(self) -> list[Change]:
        """The nearest other answer on either side; break-even beside it."""
        values, now = self.one.values, self.one.now
        here = self.state(now)  # the first: what is reached at present
        if here is None:
            return []
        known = [value for value in values.tolist() if self.state(value) is not None]
        searched = (known[0], known[-1])
        mine = self.one.source is None or self.one.source == self.compared
        equal, interval = self._break_even() if mine else (None, (None, None))
        found = []
        for side in (values[values < now][::-1], values[values > now]):
            flip = self._flip(now, here.label, side)
            if flip is not None:
                found.append(Change(self.one.name, now, *flip, equal, interval, searched, mine))
        found = found or [Change(self.one.name, now, None, "", equal, interval, searched, mine)]
        return found if self.one.keep_rate is None else [*found, *_of_keep_rate(found, self.one)]

    def _flip(self, now: float, label: str, side: np.ndarray) -> tuple[float, str] | None:
        last = now
        for value in side.tolist():
            state = self.state(value)
            if state is not None and state.label != label:
                for _ in range(_HALVINGS):
                    middle = _between(last, value)
                    inner = self.state(middle)
                    if inner is None or inner.label == label:
                        last = middle
                    else:
                        value, state = middle, inner
                return value, answer_words(state.label)
            last = value
        return None

    def _break_even(self) -> tuple[float | None, tuple[float | None, float | None]]:
        points = [self._crossings(k) for k in range(3)]
        if not points[0]:
            return None, (None, None)
        now = self.one.now
        equal = min(points[0], key=lambda x: abs(math.log(max(x, 1e-300) / max(now, 1e-300))))
        ends = sorted(x for column in points[1:] for x in column)
        below, above = [x for x in ends if x <= equal], [x for x in ends if x >= equal]
        return equal, (below[-1] if below else None, above[0] if above else None)

    def _crossings(self, column: int) -> list[float]:
        """Values at which the saving passes the smallest that counts: by the fit, or by an end of its interval."""
        states = [(value, self.state(value)) for value in self.one.values.tolist()]
        known = [(value, state.saving[column]) for value, state in states if state is not None]
        found = []
        for (x0, y0), (x1, y1) in itertools.pairwise(known):
            if (y0 > 0) == (y1 > 0):
                continue
            for _ in range(_HALVINGS):
                middle = _between(x0, x1)
                state = self.state(middle)
                if state is None:
                    break
                if (state.saving[column] > 0) == (y0 > 0):
                    x0, y0 = middle, state.saving[column]
                else:
                    x1, y1 = middle, state.saving[column]
            # The last piece is straight.
            part = y0 / (y0 - y1) if math.isfinite(y0) and math.isfinite(y1) and y0 != y1 else 0.5
            found.append(x0 + (x1 - x0) * part)
        return found


def _of_keep_rate(found: list[Change], one: Input) -> list[Change]:
    """The same changes as keep rates: those that a rate of 1 or less can make."""
    assert one.keep_rate is not None, "of a source"
    share = one.keep_rate

    def rate(cost: float | None) -> float | None:
        return None if cost is None or cost <= 0 or share * one.now / cost > 1 else share * one.now / cost

    searched = (share * one.now / found[0].searched[1], 1.0)
    equal, (low, high) = rate(found[0].equal_at), found[0].interval
    ends = (rate(high), rate(low)) if equal is not None else (None, None)
    mapped = [
        Change(f"{one.source}: keep rate", share, rate(change.at), change.to, equal, ends, searched, change.compared)
        for change in found
    ]
    possible = [change for change in mapped if change.at is not None]
    return possible or [Change(f"{one.source}: keep rate", share, None, "", equal, ends, searched, found[0].compared)]


def _between(one: float, other: float) -> float:
    return math.sqrt(one * other) if min(one, other) > 0 else 0.5 * (one + other)


def answer_words(label: str) -> str:
    """What a label of a decision says to do."""
    return {"natural": NATURAL, "buy": BUY}.get(label, f"generate {label}")


def around(now: float, least: float = 0.0, most: float = math.inf) -> np.ndarray:
    """Values to try: powers of `STEP` away from `now`, within [least, most]."""
    steps = np.arange(-6, 7)
    values = now * STEP ** steps.astype(float)
    ends = [end for end in (least, most) if math.isfinite(end) and end > 0 and now / FARTHEST <= end <= now * FARTHEST]
    values = np.unique(np.concatenate([values, ends, [now]]))
    return values[(values >= least) & (values <= most)]


def inputs_of(
    question: Question,
    training_of: Callable[[float], float],
    written: dict[str, float],
    kept: dict[str, float],
    sizes: tuple[float, float],
    budgets: tuple[float, float],
) -> list[Input]:
    """Everything of the question that can be moved. `written`: cost of a billion written tokens by source; `kept`: its
    keep rate; `sizes`, `budgets`: what the runs span at the question's tokens, and at its size."""
    q = question
    found = []
    if sizes[1] > sizes[0] * 1.05:
        tried = np.unique(np.append(np.geomspace(*sizes, 9), q.N))
        found.append(Input("model size N", q.N, tried, lambda v: replace(q, N=v, training=training_of(v))))
    if budgets[1] > budgets[0] * 1.05:
        tried = np.unique(np.append(np.geomspace(*budgets, 9), q.D))
        found.append(Input("training tokens", q.D, tried, lambda v: replace(q, D=v)))
    found.append(
        Input("runs that share the text", q.num_runs, around(q.num_runs, 1.0), lambda v: replace(q, num_runs=v))
    )
    for source, now in written.items():
        if now > 0:

            def at(value: float, source: str = source, now: float = now) -> Question:
                return replace(q, generation={**q.generation, source: q.generation[source] * value / now})

            found.append(Input(f"{source}: cost per billion written", now, around(now), at, source, kept[source]))
    found.append(
        Input("cost of training a billion tokens", q.training, around(q.training), lambda v: replace(q, training=v))
    )
    found.append(
        Input(
            "passes over synthetic text",
            q.epochs,
            around(q.epochs, 1.0, max(32.0, q.epochs)),
            lambda v: replace(q, epochs=v),
        )
    )
    if q.natural_tokens:
        most = max(2 * q.D, q.natural_tokens)
        found.append(
            Input(
                "natural tokens in hand",
                q.natural_tokens,
                around(q.natural_tokens, most=most),
                lambda v: replace(q, natural_tokens=v),
            )
        )
    if q.natural_price:
        found.append(
            Input(
                "cost of a billion natural tokens",
                q.natural_price,
                around(q.natural_price),
                lambda v: replace(q, natural_price=v),
            )
        )
    return found
