"""The cheapest plan of every option for one loss, and the best loss for one cost.

A plan says how many tokens a run reads, which share of them is synthetic, how often the synthetic text is read, and how
many natural tokens are bought. Its cost:

    runs x tokens x cost of training a token
    + tokens x share / passes x cost of a synthetic token        (written once, read by every run)
    + bought tokens x price of a natural token                   (bought once)

The loss that every plan must reach is that of natural text alone at the tokens that were asked for, by the law at
hand: then a resample in which natural text is better asks for more of every option. At the share of least cost, one
more point of it would save as much training as it costs to write: dearer text, a smaller share; free text, the share
that reaches the loss with the fewest tokens.

Plans stay inside what was trained: their tokens lie in the hull of the runs, their shares among those of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lingua_synth.recommend.surface import Surface
from lingua_synth.scaling.ratio import lowest_ratio

POINT, ALL = slice(0, 1), slice(None)
_SHARES = 26
_ZOOMS = 5
"""Each a third as wide; a decision with details takes twice as many. Cost is flat at its lowest."""
_NEAR = 7
EDGE = 2e-3
"""Plans so close (in ln D) to an end of what the runs hold were kept from going further."""
Objective = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Question:
    """What is to be decided, in numbers; every one of them may be moved to see whether the answer moves."""

    N: float
    D: float
    training: float
    """Cost of training this model on a billion tokens."""
    generation: Mapping[str, float]
    """Source -> cost of a billion training tokens of it."""
    num_runs: float = 1.0
    """Trainings of that kind that share the texts."""
    epochs: float = 1.0
    """Most passes over synthetic text within a run."""
    natural_tokens: float | None = None
    """Unique natural tokens in hand; None: more than any run reads."""
    natural_price: float | None = None
    """Cost of a billion more of them; None: there are none to buy."""
    min_saving: float = 0.01
    """Smallest saving, as a share of the cost of natural text alone, that counts."""
    level: float = 0.95


@dataclass(frozen=True)
class Plan:
    """One way to train."""

    tokens: float
    """Of one run."""
    ratio: float
    passes: float
    """How often a run reads its synthetic text."""
    bought: float
    """Natural tokens bought."""
    cost: float
    generated: float
    """Synthetic training tokens to be written and kept."""
    natural_passes: float
    """How often a run reads its natural text; 1 where there is more of it."""
    at_edge: bool = False
    """Its tokens are the least or the most that the runs hold at this size: a cheaper plan may lie beyond."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One option of a decision."""

    source: str | None
    """None: natural text alone."""
    plan: Plan | None
    """The cheapest that reaches the loss; None where none does within the runs."""
    saving: float
    """Share of the cost of natural text that it saves (alone; with more bought, where that is shown to be cheaper);
    below 0 it costs more."""
    savings: np.ndarray
    """The same by the fit and every resample."""
    interval: tuple[float, float]
    """Holds what rival laws say that the runs leave standing."""
    shown: bool
    """The whole interval lies above the smallest saving that counts."""
    fewest: Plan | None = None
    """The plan that reaches the loss with the fewest tokens: the share of lowest loss."""
    at_cost: Plan | None = None
    """The plan of lowest loss for the cost of natural text alone."""
    gain: float = math.nan
    """ln(loss of natural text alone / loss of `at_cost`)."""
    gain_interval: tuple[float, float] = (math.nan, math.nan)
    ratio_interval: tuple[float, float] = (math.nan, math.nan)
    """Of the share of least cost; the same."""
    under: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """(share, saving) by law: this one and its rivals."""
    curve: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    """(shares, savings, low, high) at the plan's passes and purchases, for a figure; NaN outside the runs."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Every option for one question."""

    loss: float
    natural: Plan
    """Natural text alone as asked: in hand, repeated where it runs out (all bought where there is none)."""
    bought: Outcome | None
    """With more natural text bought; None where there is none to buy, or no need."""
    kinds: tuple[Outcome, ...]
    """Cheapest first; without a plan last."""
    choice: Outcome | None
    """None: natural text alone, in hand."""
    tied: tuple[Outcome, ...]
    """Kinds that the runs do not tell from the choice."""

    @property
    def label(self) -> str:
        """natural, buy, or the source to generate."""
        return "natural" if self.choice is None else self.choice.source or "buy"


@dataclass(frozen=True, eq=False)
class Planner:
    """Surfaces of all kinds with the errors of what their text costs."""

    surfaces: Mapping[str, Surface]
    rate_errors: Mapping[str, np.ndarray]
    """Source -> factor on its cost by row; 1 in row 0."""

    def decide(self, question: Question, *, details: bool = False) -> Decision | None:
        """The decision; None where the size or the budget lie outside the runs of every kind. `details`: everything
        of an outcome, not only what the choice needs."""
        q = question
        inside = {name: one for name, one in self.surfaces.items() if _holds(one, q)}
        if not inside:
            return None
        reference = inside[max(inside, key=lambda name: len(self.surfaces[name].found.fit.loss))]  # type: ignore[union-attr]
        natural = self._natural(q)
        bought = self._buying(q, reference, natural)
        base = bought if bought is not None and bought.shown else None
        kinds = [self._kind(q, one, natural, base, details) for one in inside.values()]
        kinds.sort(key=lambda one: -one.saving)
        shown = [one for one in kinds if one.shown and _adds(one, bought, q.min_saving)]
        choice = shown[0] if shown else base
        tied = tuple(one for one in kinds if one is not choice and self._same(one, shown[0], q.level)) if shown else ()
        loss = reference.loss(POINT, q.N, *_columns(natural), _unique(q, natural.bought))[0, 0]
        return Decision(float(loss), natural, bought, tuple(kinds), choice, tied)

    # --- options ---

    def _natural(self, q: Question) -> Plan:
        bought = q.D if q.natural_tokens == 0 else 0.0
        return _plan(q, 0.0, 0.0, 1.0, bought, q.D)

    def _buying(self, q: Question, surface: Surface, natural: Plan) -> Outcome | None:
        if q.natural_price is None or q.natural_tokens is None or q.natural_tokens >= q.D:
            return None
        plan = self._cheapest(q, surface, natural, np.zeros(1), np.ones(1), _buyable(q))
        if plan is None or plan.bought <= 0:
            return None
        target = self._targets(q, surface, ALL, natural)
        costs = self._costs(q, surface, ALL, target, plan)
        return self._judged(q, None, plan, 1 - costs / natural.cost)

    def _kind(self, q: Question, surface: Surface, natural: Plan, base: Outcome | None, details: bool) -> Outcome:
        source = surface.kind.source
        shares, passes = _shares(surface.max_ratio), _passes(q.epochs)
        more, zooms = _buyable(q), 2 * _ZOOMS if details else _ZOOMS
        plan = self._cheapest(q, surface, natural, shares, passes, more, zooms=zooms)
        if plan is None:
            nothing = np.full(len(surface.rows), -np.inf)
            return self._judged(q, source, None, nothing)
        target = self._targets(q, surface, ALL, natural)
        own = self._costs(q, surface, ALL, target, plan)
        beside = np.full_like(own, natural.cost)
        if base is not None and base.plan is not None:
            beside = self._costs(q, surface, ALL, target, base.plan)
        with np.errstate(invalid="ignore"):
            savings = np.where(np.isinf(own), -np.inf, np.where(np.isinf(beside), 1.0, 1 - own / beside))
        alike = q.natural_tokens is None and q.epochs <= 1
        rivals = surface.rivals() if alike else []
        standing = [self._saving_under(q, one, natural, plan, beside[0]) for one, stands in rivals if stands]
        found = self._judged(q, source, plan, savings, standing)
        if not details:
            return found
        budget = natural.cost if base is None or base.plan is None else base.plan.cost
        at_cost, gains = self._best_at(q, surface, natural, budget, shares, passes, more)
        answers = {one.law.name: self._alone(q, one, natural, shares, passes, more, beside[0]) for one, _ in rivals}
        named = [answers[one.law.name][0] for one, stands in rivals if stands]
        (low, high), curve = self._over_shares(q, surface, target, plan, beside)
        named = [share for share in named if math.isfinite(share)]
        return Outcome(
            source, plan, found.saving, savings, found.interval, found.shown,
            fewest=self._cheapest(q, surface, natural, shares, passes[:1], more[:1], by_tokens=True, zooms=zooms),
            at_cost=at_cost,
            gain=float(gains[0]) if len(gains) else math.nan,
            gain_interval=_quantiles(gains[1:], q.level),
            ratio_interval=(min([low, *named]), max([high, *named])),
            under={"mixture": (plan.ratio, found.saving), **answers},
            curve=curve,
        )  # fmt: skip

    def _alone(
        self,
        q: Question,
        rival: Surface,
        natural: Plan,
        shares: np.ndarray,
        passes: np.ndarray,
        more: np.ndarray,
        beside: float,
    ) -> tuple[float, float]:
        plan = self._cheapest(q, rival, natural, shares, passes, more, zooms=2 * _ZOOMS)
        return (math.nan, -math.inf) if plan is None else (plan.ratio, 1 - plan.cost / beside)

    def _saving_under(self, q: Question, rival: Surface, natural: Plan, plan: Plan, beside: float) -> float:
        """What a plan's share saves by another law."""
        target = self._targets(q, rival, POINT, natural)
        cost = float(self._costs(q, rival, POINT, target, plan)[0])
        return -math.inf if math.isinf(cost) else 1 - cost / beside

    def _judged(
        self,
        q: Question,
        source: str | None,
        plan: Plan | None,
        savings: np.ndarray,
        rivals: Sequence[float] = (),
    ) -> Outcome:
        """The outcome of these savings; `rivals` are those of other laws that the interval must hold."""
        low, high = _quantiles(savings[1:], q.level)
        low, high = min([low, *rivals]), max([high, *rivals])
        return Outcome(source, plan, float(savings[0]), savings, (low, high), min(low, savings[0]) > q.min_saving)

    def _same(self, one: Outcome, other: Outcome, level: float) -> bool:
        """Whether the costs of two kinds are not told apart; their laws are taken to err independently."""
        if one.plan is None:
            return False
        num = min(len(one.savings), len(other.savings)) - 1
        mixed = np.random.default_rng(0).permutation(num) + 1
        with np.errstate(invalid="ignore"):
            low, high = _quantiles(other.savings[1 : num + 1] - one.savings[mixed], level)
        return not (low > 0 or high < 0)

    # --- what a plan reaches and costs ---

    def _targets(self, q: Question, surface: Surface, rows: slice, natural: Plan) -> np.ndarray:
        return surface.loss(rows, q.N, *_columns(natural), _unique(q, natural.bought))

    def _costs(self, q: Question, surface: Surface, rows: slice, target: np.ndarray, plan: Plan) -> np.ndarray:
        """Cost `[n]` of a plan's share, passes and purchases at the tokens that each row needs for the loss."""
        r, e, x = (np.array([value]) for value in (plan.ratio, plan.passes, plan.bought))
        tokens = surface.tokens_for(rows, target, q.N, r, e, _unique(q, x))
        return _cost(q, surface.kind.source, tokens, r, e, x, self._factor(surface, rows))[:, 0]

    def _factor(self, surface: Surface, rows: slice) -> np.ndarray:
        errors = self.rate_errors.get(surface.kind.source, np.ones(len(surface.rows)))
        return errors[rows, None][: len(surface.rows[rows])]

    def _cheapest(
        self,
        q: Question,
        surface: Surface,
        natural: Plan,
        shares: np.ndarray,
        passes: np.ndarray,
        more: np.ndarray,
        by_tokens: bool = False,
        zooms: int = _ZOOMS,
    ) -> Plan | None:
        """The plan of least cost (or fewest tokens) that reaches the loss inside the runs, by the fit alone."""
        target = self._targets(q, surface, POINT, natural)
        span = surface.tokens_span(q.N)
        assert span is not None, "only surfaces that hold N are asked"
        one = np.ones((1, 1))

        def objective(r: np.ndarray, e: np.ndarray, x: np.ndarray) -> np.ndarray:
            tokens = surface.tokens_for(POINT, target, q.N, r, e, _unique(q, x))
            with np.errstate(divide="ignore"):
                inside = (np.log(tokens) >= span[0]) & (np.log(tokens) <= span[1])
            value = tokens if by_tokens else _cost(q, surface.kind.source, tokens, r, e, x, one)
            return np.where(inside, value, np.inf)[0]

        best = _search(objective, shares, passes, more, zooms=zooms)
        if best is None:
            return None
        r, e, x = (np.array([value]) for value in best)
        tokens = float(surface.tokens_for(POINT, target, q.N, r, e, _unique(q, x))[0, 0])
        at_edge = min(abs(math.log(tokens) - end) for end in span) < EDGE
        return replace(_plan(q, self._per_billion(q, surface), *best, tokens), at_edge=at_edge)

    def _per_billion(self, q: Question, surface: Surface) -> float:
        return q.generation.get(surface.kind.source, 0.0)

    def _best_at(
        self,
        q: Question,
        surface: Surface,
        natural: Plan,
        budget: float,
        shares: np.ndarray,
        passes: np.ndarray,
        more: np.ndarray,
    ) -> tuple[Plan | None, np.ndarray]:
        """(the plan of lowest loss for `budget`, ln(loss of natural text alone / its loss) by row)."""
        span = surface.tokens_span(q.N)
        assert span is not None, "only surfaces that hold N are asked"

        def affordable(r: np.ndarray, e: np.ndarray, x: np.ndarray, factor: np.ndarray) -> np.ndarray:
            left = budget - x / 1e9 * (q.natural_price or 0.0)
            a_token = (q.num_runs * q.training + r / e * self._per_billion(q, surface) * factor) / 1e9
            return np.maximum(left, 1e-9) / a_token

        def objective(r: np.ndarray, e: np.ndarray, x: np.ndarray) -> np.ndarray:
            tokens = affordable(r, e, x, np.ones((1, 1)))
            inside = (np.log(tokens) >= span[0]) & (np.log(tokens) <= span[1])
            return np.where(inside, surface.loss(POINT, q.N, tokens, r, e, _unique(q, x)), np.inf)[0]

        best = _search(objective, shares, passes, more, zooms=2 * _ZOOMS)
        if best is None:
            return None, np.empty(0)
        r, e, x = (np.array([value]) for value in best)
        tokens = affordable(r, e, x, self._factor(surface, ALL))
        losses = surface.loss(ALL, q.N, tokens, r, e, _unique(q, x))
        gains = np.log(self._targets(q, surface, ALL, natural) / losses)[:, 0]
        return _plan(q, self._per_billion(q, surface), *best, float(tokens[0, 0])), gains

    def _over_shares(
        self, q: Question, surface: Surface, target: np.ndarray, plan: Plan, beside: np.ndarray
    ) -> tuple[tuple[float, float], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(interval of the share of least cost, the saving over shares), at the plan's passes and purchases."""
        nodes = np.linspace(0.0, surface.max_ratio, 101)
        e, x = np.full_like(nodes, plan.passes), np.full_like(nodes, plan.bought)
        tokens = surface.tokens_for(ALL, target, q.N, nodes, e, _unique(q, x))
        costs = _cost(q, surface.kind.source, tokens, nodes, e, x, self._factor(surface, ALL))
        least = lowest_ratio(nodes, np.where(np.isfinite(costs), costs, 1e300)[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            savings = np.nan_to_num(1 - costs / beside[:, None], nan=-np.inf, neginf=-np.inf)
            span = surface.tokens_span(q.N)
            assert span is not None, "only surfaces that hold N are asked"
            inside = (np.log(tokens[0]) >= span[0]) & (np.log(tokens[0]) <= span[1])
        tails = [(1 - q.level) / 2, (1 + q.level) / 2]
        low, high = np.quantile(savings[1:], tails, axis=0, method="nearest")
        middle, low, high = (np.where(inside, one, np.nan) for one in (savings[0], low, high))
        return _quantiles(least, q.level), (nodes, middle, low, high)


# --- arithmetic ---


def _adds(one: Outcome, bought: Outcome | None, least: float) -> bool:
    """Whether a kind saves by its synthetic text, not by the natural text that is bought beside it."""
    if one.plan is None or one.plan.ratio <= 0:
        return False
    if one.plan.bought <= 0 or bought is None or bought.shown:
        return True
    return one.saving - bought.saving > least


def _holds(surface: Surface, q: Question) -> bool:
    span = surface.tokens_span(q.N)
    return span is not None and span[0] <= math.log(q.D) <= span[1]


def _cost(
    q: Question, source: str, tokens: np.ndarray, r: np.ndarray, e: np.ndarray, x: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    a_token = (q.num_runs * q.training + r / e * q.generation.get(source, 0.0) * factor) / 1e9
    with np.errstate(invalid="ignore"):
        spent = np.where(np.isinf(tokens), np.inf, tokens * a_token)
    return spent + x / 1e9 * (q.natural_price or 0.0)


def _plan(q: Question, per_billion: float, ratio: float, passes: float, bought: float, tokens: float) -> Plan:
    generated = tokens * ratio / passes
    cost = q.num_runs * tokens / 1e9 * q.training + generated / 1e9 * per_billion
    cost += bought / 1e9 * (q.natural_price or 0.0)
    unique = math.inf if q.natural_tokens is None else q.natural_tokens + bought
    read = tokens * (1 - ratio)
    again = max(read / unique, 1.0) if unique > 0 else math.inf if read > 0 else 1.0
    return Plan(tokens, ratio, passes, bought, cost, generated, again)


def _columns(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([plan.tokens]), np.array([plan.ratio]), np.array([plan.passes])


def _unique(q: Question, bought: np.ndarray | float) -> np.ndarray:
    more = np.atleast_1d(np.asarray(bought, dtype=float))
    return np.full_like(more, np.inf) if q.natural_tokens is None else q.natural_tokens + more


def _shares(top: float) -> np.ndarray:
    """Shares to look at first: evenly, and closer to 0, where the first tokens of a source may be worth most."""
    return np.unique(np.concatenate([np.linspace(0.0, top, _SHARES), np.geomspace(1e-4, 0.02, 6) * top]))


def _passes(most: float) -> np.ndarray:
    return np.ones(1) if most <= 1 else np.geomspace(1.0, most, 5)


def _buyable(q: Question) -> np.ndarray:
    """Natural tokens that may be bought; to twice what the runs asked for read."""
    if q.natural_price is None or q.natural_tokens is None:
        return np.zeros(1)
    return np.unique(np.linspace(0.0, max(2 * q.D - q.natural_tokens, 0.0), 17))


def _search(objective: Objective, *axes: np.ndarray, zooms: int = _ZOOMS) -> tuple[float, float, float] | None:
    """Where `objective` is least: on a grid, and then on ever closer ones around its lowest node; None where it is
    infinite all over."""
    best: tuple[float, ...] | None = None
    least = math.inf
    for _ in range(zooms + 1):
        grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
        values = objective(*grid)
        at = int(np.argmin(values))
        if not math.isfinite(values[at]):
            break
        if values[at] <= least or best is None:
            best, least = tuple(float(axis[at]) for axis in grid), float(values[at])
        axes = tuple(_near(axis, value) for axis, value in zip(axes, best, strict=True))
    if best is None:
        return None
    return best[0], best[1], best[2]


def _near(axis: np.ndarray, value: float) -> np.ndarray:
    if len(axis) == 1:
        return axis
    at = int(np.argmin(np.abs(axis - value)))
    low, high = axis[max(at - 1, 0)], axis[min(at + 1, len(axis) - 1)]
    return np.unique(np.append(np.linspace(low, high, _NEAR), value))


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """Percentile interval; NaN without values. Infinite values stay what they are."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = (
        float(np.quantile(known, (1 - level) / 2, method="lower")),
        float(np.quantile(known, (1 + level) / 2, method="higher")),
    )
    return low, high
