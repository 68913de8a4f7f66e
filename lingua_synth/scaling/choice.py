"""Which law do these runs call for? Each is asked to foretell larger runs from smaller ones, inside the data.

Rolling origin: the cheapest 40 % of the runs (by N D, that is by compute) are fitted and the next 10 % predicted, then
the cheapest 50 %, ... so that every run of the upper part is foretold once, from cheaper ones alone. The mean relative
error is the score; it stands beside that of the naive guess (a run has the loss of the largest one fitted) and of the
ensemble that forecasts are made with (`ensemble.py`).

A score on few runs is scatter: the scoreboard says how much (`behind_error`), and laws that cannot be told from the
best are marked as ties. On public tables the law that led such a scoreboard forecast held-out budgets worse than the
ensemble did, so the choice is for reading the runs; `LawChoice.predict` is the ensemble.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.scaling.ensemble import Ensemble, Member, as_members, fit_ensemble, log_compute
from lingua_synth.scaling.fit import ScalingFit, _columns
from lingua_synth.scaling.laws import (
    ArrayLike,
    CrossedLaw,
    DataLaw,
    InteractionLaw,
    JointLaw,
    KaplanLaw,
    Law,
    ModelLaw,
    OffsetKaplanLaw,
    RectifiedLaw,
    RectifiedModelLaw,
    TiedLaw,
)
from lingua_synth.scaling.records import record

ORIGINS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the runs, cheapest first, that are fitted."""
NAIVE, ENSEMBLE = "as the largest run", "ensemble"


def default_candidates(variables: Sequence[str]) -> tuple[Member, ...]:
    """Every form there is for runs in N and D, in N or in D, with the Huber objective. ValueError for other
    variables."""
    forms: dict[tuple[str, ...], tuple[Law, ...]] = {
        ("D", "N"): (JointLaw(), TiedLaw(), InteractionLaw(), CrossedLaw(), KaplanLaw(), OffsetKaplanLaw()),
        ("D",): (DataLaw(), RectifiedLaw()),
        ("N",): (ModelLaw(), RectifiedModelLaw()),
    }
    known = forms.get(tuple(sorted(variables)))
    if known is None:
        raise ValueError(f"there are default laws for N and D, N or D; for {', '.join(variables)} name the candidates")
    return as_members(known)


@dataclass(frozen=True, eq=False)
class Score:
    """How well one candidate foretold larger runs."""

    name: str
    error: float
    """Mean of |predicted - loss| / loss over the runs foretold."""
    bias: float
    """Mean of ln(predicted) - ln(loss): above 0, losses were foretold too high."""
    worst: float
    """Greatest relative error of one run."""
    by_origin: np.ndarray
    """Error at each origin."""
    behind: float = 0.0
    """Error less that of the best candidate."""
    behind_error: float = 0.0
    """Standard error of `behind`, from its scatter over the origins; infinite for one origin."""

    @property
    def tied(self) -> bool:
        """Whether the best candidate is not ahead of this one by more than two standard errors."""
        return self.behind <= 2 * self.behind_error


@dataclass(frozen=True, eq=False)
class LawChoice:
    """The scoreboard, the law that leads it, and the ensemble."""

    scores: tuple[Score, ...]
    """Candidates, best first."""
    ensemble_score: Score
    naive: Score
    best: ScalingFit
    """The leading candidate fitted to all runs."""
    ensemble: Ensemble
    """The members fitted to all runs: what to forecast with."""
    num_foretold: int
    origins: tuple[int, ...]
    """Runs fitted at each origin."""
    left_out: tuple[str, ...]
    """Candidates that did not take part, each with the reason in words."""

    def predict(
        self, N: ArrayLike | None = None, D: ArrayLike | None = None, **variables: ArrayLike | None
    ) -> np.ndarray:
        """Loss as the ensemble foretells it."""
        return self.ensemble.predict(N=N, D=D, **variables)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [*self.scores, self.ensemble_score, self.naive]
        return record(
            {
                "scores": [
                    {
                        "name": row.name,
                        "error": row.error,
                        "bias": row.bias,
                        "worst": row.worst,
                        "by_origin": row.by_origin,
                        "behind": row.behind,
                        "behind_error": row.behind_error,
                        "tied_with_best": row.tied,
                    }
                    for row in rows
                ],
                "num_foretold": self.num_foretold,
                "origins": list(self.origins),
                "left_out": list(self.left_out),
                "best": self.best.to_dict(),
                "ensemble": self.ensemble.to_dict(),
            }
        )

    def __str__(self) -> str:
        rows = [*self.scores, self.ensemble_score, self.naive]
        width = max(len(row.name) for row in rows)
        lines = [
            f"{self.num_foretold} runs foretold from cheaper ones ({len(self.origins)} origins: fitted to the cheapest "
            f"{', '.join(map(str, self.origins))})",
            f"  {'law':<{width}}  {'error %':>8}  {'worst %':>8}  {'bias %':>8}",
        ]
        for row in rows:
            shown = f"{100 * row.error:>8.3g}  {100 * row.worst:>8.3g}  {100 * row.bias:>+8.2g}"
            tie = row in self.scores[1:] and row.tied
            lines.append(f"  {row.name:<{width}}  {shown}{'  tie' if tie else ''}")
        ties = sum(row.tied for row in self.scores) - 1
        lines.append(f"  {self.scores[0].name} leads" + (f"; {ties} more cannot be told from it" if ties else ""))
        lines.append(f"  forecasts: {self.ensemble.formula}")
        if not self.ensemble_score.tied:
            lines.append(f"  note: {self.scores[0].name} foretold these runs better than the ensemble, beyond scatter")
        lines += [f"  not tried: {reason}" for reason in self.left_out]
        return "\n".join(lines)


def choose_law(
    candidates: Sequence[Law | Member] | None = None,
    *,
    members: Sequence[Law | Member] | None = None,
    N: ArrayLike | None = None,
    D: ArrayLike | None = None,
    loss: ArrayLike,
    origins: Sequence[float] = ORIGINS,
    delta: float = 1e-3,
    n_definition: str = "non_embedding",
    **variables: ArrayLike | None,
) -> LawChoice:
    """Score every candidate (None: `default_candidates`) and the ensemble of `members` by rolling origin; fit the best
    candidate and the ensemble to all runs.

    members: None for `default_members`, or the candidates where the law has more variables than N and D.

    origins: shares of the runs to fit, ascending, each of which foretells the runs up to the next share (the last: up
    to all). Runs of equal compute stay together. An origin that leaves a candidate as few runs as it has parameters is
    skipped for all; a candidate is left out, and named, when that is so at half of the origins. Other arguments as in
    `fit`.

    ValueError when there are too few runs for any origin, or all have one compute.
    """
    given = {name: values for name, values in {"N": N, "D": D, **variables}.items() if values is not None}
    asked = default_candidates(tuple(given)) if candidates is None else as_members(candidates)
    columns = _columns(asked[0].law, given, loss)
    losses = columns.pop("loss")
    num = len(losses)
    voices: Sequence[Law | Member] | None = members
    if voices is None and set(columns) - {"N", "D"}:
        voices = asked
    splits = _splits(log_compute(columns), _shares(origins))
    if not splits:
        raise ValueError(f"the {num} runs differ too little in compute to foretell large ones from small ones")
    middle = sorted(int(train.sum()) for train, _ in splits)[len(splits) // 2]
    tried = [member for member in asked if len(member.law.parameters) < middle]
    left_out = [
        f"{member.name}: {len(member.law.parameters)} parameters, too many for the {middle} runs of the middle origin"
        for member in asked
        if member not in tried
    ]
    if not tried:
        raise ValueError(f"{num} runs are too few to compare laws by rolling origin; {'; '.join(left_out)}")
    most = max(len(member.law.parameters) for member in tried)
    splits = [(train, ahead) for train, ahead in splits if train.sum() > most]

    residuals: dict[str, list[np.ndarray]] = {name: [] for name in (*[one.name for one in tried], ENSEMBLE, NAIVE)}
    for train, ahead in splits:
        small: dict[str, Any] = {name: values[train] for name, values in columns.items()}
        point: dict[str, Any] = {name: values[ahead] for name, values in columns.items()}
        observed = np.log(losses[ahead])
        for member in tried:
            one = member.fit(small, losses[train], delta=delta, n_definition=n_definition)
            residuals[member.name].append(np.log(one.predict(**point)) - observed)
        together = fit_ensemble(voices, **small, loss=losses[train], delta=delta, n_definition=n_definition)
        residuals[ENSEMBLE].append(np.log(together.predict(**point)) - observed)
        residuals[NAIVE].append(np.log(naive_loss(small, losses[train])) - observed)

    plain = {name: _score(name, parts) for name, parts in residuals.items()}
    # Of equal scores the first candidate leads.
    lead = min((plain[member.name] for member in tried), key=lambda score: score.error)
    counts = [int(ahead.sum()) for _, ahead in splits]
    scored = {name: _against(score, lead, counts) for name, score in plain.items()}
    by_name = {member.name: member for member in tried}
    everything: dict[str, Any] = dict(columns)
    return LawChoice(
        scores=tuple(sorted((scored[member.name] for member in tried), key=lambda score: score.error)),
        ensemble_score=scored[ENSEMBLE],
        naive=scored[NAIVE],
        best=by_name[lead.name].fit(columns, losses, delta=delta, n_definition=n_definition),
        ensemble=fit_ensemble(voices, **everything, loss=losses, delta=delta, n_definition=n_definition),
        num_foretold=sum(counts),
        origins=tuple(int(train.sum()) for train, _ in splits),
        left_out=tuple(left_out),
    )


def naive_loss(columns: Mapping[str, np.ndarray], loss: np.ndarray) -> float:
    """Loss of the largest of some runs (greatest N D, or N or D where there is only one), seeds averaged."""
    compute = log_compute(columns)
    return float(np.mean(np.sort(loss[compute >= compute.max() - 1e-9])))


def _shares(origins: Sequence[float]) -> np.ndarray:
    shares = np.asarray(list(origins), dtype=np.float64)
    if not len(shares) or not (np.all(shares > 0) and np.all(shares < 1) and np.all(np.diff(shares) > 0)):
        raise ValueError(
            f"origins are ascending shares of the runs between 0 and 1, e.g. {ORIGINS}; got {list(origins)}"
        )
    return shares


def _splits(compute: np.ndarray, shares: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fitted, foretold) of every origin that leaves both some runs; runs of equal compute on one side."""
    ranked = np.sort(compute)
    num = len(ranked)
    # Computes that differ by rounding are equal.
    cuts = [ranked[max(round(share * num), 1) - 1] + 1e-9 for share in [*shares, 1.0]]
    splits = []
    for cut, upto in itertools.pairwise(cuts):
        train, ahead = compute <= cut, (compute > cut) & (compute <= upto)
        if ahead.any():
            splits.append((train, ahead))
    return splits


def _score(name: str, residuals: Sequence[np.ndarray]) -> Score:
    every = np.concatenate(residuals)
    relative = np.abs(np.expm1(every))
    return Score(
        name=name,
        error=float(np.mean(np.sort(relative))),
        bias=float(np.mean(np.sort(every))),
        worst=float(relative.max()),
        by_origin=np.array([np.mean(np.sort(np.abs(np.expm1(part)))) for part in residuals]),
    )


def _against(score: Score, lead: Score, counts: Sequence[int]) -> Score:
    """`score` with the scatter over origins of how far it is behind `lead`."""
    if score is lead:
        return score
    share = np.array(counts) / np.sum(counts)
    behind = score.by_origin - lead.by_origin
    mean = float(share @ behind)
    num = len(counts)
    # Origins are blocks of runs that share a fit; their scatter, not that of single runs, is the score's.
    error = float(np.sqrt(share**2 @ (behind - mean) ** 2 * num / (num - 1))) if num > 1 else float("inf")
    return dataclasses.replace(score, behind=mean, behind_error=error)
