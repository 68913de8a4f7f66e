"""Shares that follow the losses: after every interval of training, the next one's shares by a stated rule.

losses of the interval, by source ──rounded to 1/1024 nat──> excess over a reference ──> targets ──> whole sequences

The rule is that of dynamic batch loading (Xia et al. 2023, "Sheared LLaMA", section 2.2), which applies the update of
DoReMi (Xie et al. 2023, algorithm 1) to the model that is being trained, once an interval:

    target_i  <-  target_i exp(step_size max(loss_i - reference_i, 0)), normalized to sum 1
    target_i  <-  (1 - S min_ratio) target_i + min_ratio, with S sources: DoReMi's smoothing, and a floor

The second line draws the targets to equal shares, by S min_ratio an interval, whatever the losses: DoReMi takes 0.001.

The losses are those of the training tokens of the interval (the papers': held-out text, and single batches). Everything
behind the rounded losses is integers and decimals of 50 digits, the same on every machine: the interval reads
whole sequences in exact shares. Sums of losses over other numbers of ranks differ in their last bits; they can change
a decision only where a loss lies that close to the middle between two multiples of 1/1024 nat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

from lingua_synth.mixture.ratios import plan_sequences

LOSS_STEPS = 1024
"""Losses are rounded to whole multiples of 1/1024 nat per token before anything is decided."""
_EXACT = Context(prec=50)


@dataclass(frozen=True)
class FeedbackRule:
    """How losses set shares."""

    interval: int
    """Sequences of an interval, over all ranks."""
    reference: Mapping[str, Fraction]
    """Loss by source, nats per token, from which an excess counts; its names are the sources that the rule shares
    the stream among."""
    step_size: Fraction
    min_ratio: Fraction

    def update(self, targets: Mapping[str, Decimal], losses: Mapping[str, Fraction | None]) -> dict[str, Decimal]:
        """The targets after an interval with these losses (rounded); a source of which there is none has no excess."""
        excess = {}
        for name in targets:
            loss = losses.get(name)
            excess[name] = Fraction(0) if loss is None else max(loss - self.reference[name], Fraction(0))
        most = max(excess.values())  # a factor that all share: without it, a large step_size would leave the numbers
        grown = {
            name: _EXACT.multiply(target, _EXACT.exp(_decimal(self.step_size * (excess[name] - most))))
            for name, target in targets.items()
        }
        total = sum_of(grown)
        free = _decimal(1 - len(targets) * self.min_ratio)
        floor = _decimal(self.min_ratio)
        return {name: _EXACT.fma(free, _EXACT.divide(value, total), floor) for name, value in grown.items()}

    def sequences(self, targets: Mapping[str, Decimal], left: Mapping[str, int] | None) -> dict[str, int]:
        """Sequences of each source in the next interval: largest remainder of the targets.

        `left`: sequences that each source may still give; one that has fewer than its share gives what it has, and the
        others share the rest in their proportions. None: no limit. Together `interval`, or what all have left.
        """
        total = self.interval if left is None else min(self.interval, sum(left[name] for name in targets))
        shares = {name: Fraction(target) for name, target in targets.items()}
        given: dict[str, int] = {}
        while True:
            whole = sum(shares.values(), Fraction(0))
            plan = plan_sequences(total - sum(given.values()), {name: s / whole for name, s in shares.items()})
            short = [name for name in shares if left is not None and plan[name] > left[name]]
            if left is None or not short:
                return {name: (given | plan)[name] for name in targets}
            given |= {name: left[name] for name in short}
            shares = {name: share for name, share in shares.items() if name not in given}


def rounded_loss(nats: float, tokens: float) -> Fraction | None:
    """Nats per token as a multiple of 1/1024; None of no tokens."""
    return Fraction(round(nats / tokens * LOSS_STEPS), LOSS_STEPS) if tokens else None


def sum_of(values: Mapping[str, Decimal]) -> Decimal:
    """Sum in the rule's precision, in the order of the names: the listing's order has no influence."""
    total = Decimal(0)
    for name in sorted(values):
        total = _EXACT.add(total, values[name])
    return total


def _decimal(value: Fraction | int) -> Decimal:
    exact = Fraction(value)
    return _EXACT.divide(Decimal(exact.numerator), Decimal(exact.denominator))


class Feedback:
    """The state of a run whose shares follow its losses: targets, the present interval's sequences, sums of losses."""

    def __init__(self, rule: FeedbackRule, ratios: Mapping[str, Fraction], left: Mapping[str, int] | None) -> None:
        """Begin with `ratios`, in whole sequences; `left` as in `FeedbackRule.sequences`. ValueError where a source
        would not be read in the first interval: then there would be no loss to go by."""
        self.rule = rule
        self.names = tuple(name for name, ratio in ratios.items() if ratio)
        self.targets = {name: _decimal(ratios[name]) for name in self.names}
        self.sequences = rule.sequences(self.targets, left)
        """Of the present interval, by source."""
        self.losses: dict[str, Fraction | None] = dict.fromkeys(self.names)
        """The newest of each source, rounded, nats per token; None: not read yet."""
        if unread := [name for name, count in self.sequences.items() if not count]:
            raise ValueError(
                f"feedback: an interval of {rule.interval:,} sequences holds none of {', '.join(map(repr, unread))} at "
                "its first ratio; make the interval longer (every_tokens) or the ratio larger"
            )
        self._sums = {name: [0.0, 0.0] for name in self.names}

    @property
    def ratios(self) -> dict[str, Fraction]:
        """Exact shares of the present interval."""
        total = sum(self.sequences.values())
        return {name: Fraction(count, total) for name, count in self.sequences.items()}

    def observe(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Add a step: (summed nats, tokens) by source, over all ranks. Others than the rule's are passed over."""
        for name, own in self._sums.items():
            own[0] += sums[name][0]
            own[1] += sums[name][1]

    def decide(self, left: Mapping[str, int] | None) -> dict[str, Fraction]:
        """End the interval: the exact shares of the next. `left` as in `FeedbackRule.sequences`."""
        for name, (nats, tokens) in self._sums.items():
            loss = rounded_loss(nats, tokens)
            self.losses[name] = self.losses[name] if loss is None else loss
        self._sums = {name: [0.0, 0.0] for name in self.names}
        self.targets = self.rule.update(self.targets, self.losses)
        self.sequences = self.rule.sequences(self.targets, left)
        return self.ratios

    def state_dict(self) -> dict[str, Any]:
        """Plain data, exact, the same on every rank."""
        return {
            "targets": {name: str(target) for name, target in self.targets.items()},
            "sequences": dict(self.sequences),
            "losses": {name: None if loss is None else str(loss) for name, loss in self.losses.items()},
            "sums": {name: list(sums) for name, sums in self._sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; ValueError for what is no such state, or of other sources."""
        try:
            if set(state["targets"]) != set(self.names):
                raise ValueError(f"it shares among {', '.join(state['targets'])}, this run among {self.names}")
            targets = {name: Decimal(state["targets"][name]) for name in self.names}
            sequences = {name: int(state["sequences"][name]) for name in self.names}
            losses = {
                name: None if state["losses"][name] is None else Fraction(state["losses"][name]) for name in self.names
            }
            sums = {name: [float(value) for value in state["sums"][name]] for name in self.names}
        except (KeyError, TypeError, ArithmeticError, ValueError) as error:
            raise ValueError(f"no state of a run with feedback: {error}") from None
        self.targets, self.sequences, self.losses, self._sums = targets, sequences, losses, sums
