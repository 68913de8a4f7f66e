"""What is rare: is it predicted worse, and is it still there?

`tail_tests` compares checkpoints by their losses per token type. The tail is one fixed set of types for both models:
those that are rarest in a reference corpus, until they make up a stated share of the evaluated tokens. `support_tests`
compares corpora by their token counts at equal tokens.

Two traps are kept out. A tail that is chosen by a corpus's own counts holds the types that came up short in that corpus
by chance, and any other corpus looks richer there: so what is rare is told by both corpora together, cut to equal
tokens, which favors neither. And tokens come in documents, so counts scatter more than single draws would, by how much
the counts do not tell. So variances are upper ends: that of a number of types is taken as the number itself, that of a
count of tokens times the mean tokens per document, as if a document's rare tokens all went together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from lingua_synth.analysis.coverage import expected_types, subsample, tail_types
from lingua_synth.analysis.verdicts import CollapseTest, Question
from lingua_synth.scaling.verdicts import LEVEL, MANY, Estimate

TAIL_SHARE = 0.05
"""The tail holds so much of the evaluated tokens (of both corpora together, for `tail_mass`)."""
MIN_CHECKPOINTS = 3
"""With so many pairs of checkpoints what trainings scatter by is read off the pairs."""


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """Losses per token type of one trained model on held-out text."""

    counts: np.ndarray
    """Scored tokens of every type, `[vocab]`."""
    nats: np.ndarray
    """Summed loss of every type, `[vocab]`."""
    size: str = ""
    tokens: float = math.nan
    """Training budget; checkpoints of two mixtures pair where size, tokens and seed agree."""
    seed: float = math.nan

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", checked_counts(self.counts, "counts"))
        object.__setattr__(self, "nats", checked_counts(self.nats, "nats"))
        if len(self.counts) != len(self.nats):
            raise ValueError(f"counts and nats stand for the same types; got {len(self.counts)} and {len(self.nats)}")
        if not self.counts.any():
            raise ValueError("an evaluation without scored tokens has no loss")

    @property
    def key(self) -> tuple[str, float, float]:
        """What two checkpoints must share to pair; an unknown number is -1."""
        tokens, seed = (-1.0 if math.isnan(x) else float(x) for x in (self.tokens, self.seed))
        return self.size, tokens, seed


class CorpusCounts(Protocol):
    """Occurrences of every token type in a corpus: a `UnigramCounts`, or anything with its two names."""

    @property
    def counts(self) -> np.ndarray:
        """`[vocab]`."""

    @property
    def num_documents(self) -> int:
        """0: unknown; tokens are then taken as independent, and intervals are too narrow."""


@dataclass(frozen=True, eq=False)
class Tail:
    """The rarest types by a reference."""

    mask: np.ndarray
    """True for types of the tail, `[vocab]`."""
    num_types: int
    """Types of the tail that were evaluated."""
    share: float
    """Of the evaluated tokens that are in it."""


def tail_of(reference: ArrayLike, evaluated: ArrayLike, share: float = TAIL_SHARE) -> Tail:
    """The types that are rarest in `reference`, until they hold `share` of the `evaluated` tokens.

    Types that the reference lacks come first; of equally rare ones the lower id. The share is not passed, unless the
    rarest type alone passes it. ValueError for a share outside (0, 1), arrays of unequal length, nothing evaluated.
    """
    reference, evaluated = checked_counts(reference, "reference"), checked_counts(evaluated, "evaluated")
    if not 0 < share < 1:
        raise ValueError(f"the tail is a share of the evaluated tokens between 0 and 1; got {share}")
    if len(reference) != len(evaluated):
        raise ValueError(f"reference counts are of {len(reference)} types, the evaluation of {len(evaluated)}")
    if not evaluated.any():
        raise ValueError("nothing was evaluated, so there is no tail")
    order = np.argsort(reference, kind="stable")
    order = order[evaluated[order] > 0]
    held = np.cumsum(evaluated[order]) / evaluated.sum()
    chosen = order[: max(1, int(np.searchsorted(held, share, side="right")))]
    mask = np.zeros(len(evaluated), dtype=bool)
    mask[chosen] = True
    return Tail(mask, len(chosen), float(evaluated[chosen].sum() / evaluated.sum()))


def tail_tests(
    mixture: str,
    base: str,
    checkpoints: Sequence[EvaluatedRun],
    base_checkpoints: Sequence[EvaluatedRun],
    *,
    reference: ArrayLike | None = None,
    share: float = TAIL_SHARE,
    margin: float,
    noise: float | None = None,
    level: float = LEVEL,
) -> list[CollapseTest]:
    """Is the loss on rare tokens higher than the base's (`tail_loss`), and by more than on the others (`tail_excess`)?

    `reference`: counts that say what is rare, of the natural corpus say; default: the evaluated tokens themselves. Both
    statistics are logarithms of ratios of losses, 0.01 is 1 %. Their variance has two parts: how the types of the tail
    differ among each other (types as units), and how trainings scatter: read off the pairs of checkpoints where there
    are 3 or more, else from `noise`, the standard deviation of ln loss of one run. Without either the verdict is
    undecided, as two checkpoints differ by chance too. ValueError for checkpoints that count other tokens than each
    other.
    """
    pairs = _paired(checkpoints, base_checkpoints)
    questions = [
        Question(name, claim, "of the loss", margin, words, level)
        for name, claim, words in (
            (
                "tail_loss",
                "tokens that are rare are predicted worse than by a model of natural text alone",
                ("rare tokens are predicted worse", "rare tokens are predicted better"),
            ),
            (
                "tail_excess",
                "rare tokens lose more than common ones",
                ("rare tokens lose more than common ones", "rare tokens lose less than common ones"),
            ),
        )
    ]
    if not pairs:
        found = Estimate(why_not="no checkpoint has one of the base of its size, budget and seed")
        where = f"{len(checkpoints)} and {len(base_checkpoints)} checkpoints"
        return [question.answer(mixture, base, found, where=where, num_pairs=0) for question in questions]
    evaluated = pairs[0][0].counts
    for one in (side for pair in pairs for side in pair):
        if not np.array_equal(one.counts, evaluated):
            raise ValueError(
                f"checkpoints of {mixture!r} and {base!r} were not evaluated on the same tokens; evaluate them alike"
            )
    tail = tail_of(evaluated if reference is None else reference, evaluated, share)
    values = np.array([[_log_ratio(a, b, part) for part in (tail.mask, ~tail.mask)] for a, b in pairs])
    gaps, variances = values[..., 0], values[..., 1]
    where = f"{tail.num_types:,} rare types, {100 * tail.share:.3g} % of the evaluated tokens, {_pairs(len(pairs))}"
    return [
        question.answer(mixture, base, _over_pairs(gap, types, noise), where=where, num_pairs=len(pairs))
        for question, gap, types in zip(
            questions,
            (gaps[:, 0], gaps[:, 0] - gaps[:, 1]),
            (variances[:, 0], variances.sum(axis=1)),
            strict=True,
        )
    ]


def support_tests(
    source: str,
    natural: str,
    corpus: CorpusCounts,
    of_natural: CorpusCounts,
    *,
    margin: float,
    mass_margin: float,
    share: float = TAIL_SHARE,
    seed: int = 0,
    level: float = LEVEL,
) -> list[CollapseTest]:
    """Has a synthetic corpus fewer types at equal tokens (`support`), and do rare ones take up less (`tail_mass`)?

    `support`: 1 - types / types of the natural corpus, both expected in as many tokens as the smaller one has.
    `tail_mass`: 1 - the share that rare types take up / their share in the natural corpus; rare are those that hold the
    last `share` of both corpora, the larger one cut to the tokens of the smaller at random (by `seed`). ValueError for
    corpora of different vocabularies, and of fewer than two tokens.
    """
    if len(corpus.counts) != len(of_natural.counts):
        raise ValueError(
            f"{source!r} counts {len(corpus.counts)} token types and {natural!r} {len(of_natural.counts)}: two "
            "vocabularies cannot be compared; tokenize both alike"
        )
    for name, one in ((source, corpus), (natural, of_natural)):
        if int(one.counts.sum()) < 2:
            raise ValueError(f"{name!r} has {int(one.counts.sum())} tokens; there is nothing to compare")
    unknown = not (corpus.num_documents and of_natural.num_documents)
    remark = "documents unknown: tokens taken as independent" if unknown else ""
    support = Question(
        "support",
        "at equal tokens the text holds fewer token types than natural text",
        "of the types",
        margin,
        ("fewer types", "more types"),
        level,
    )
    mass = Question(
        "tail_mass",
        "rare types take up less of the text than they do of natural text",
        "of the share of rare types",
        mass_margin,
        ("rare types take up less", "rare types take up more"),
        level,
    )
    names = f"corpus {source}", f"corpus {natural}"
    found, where = _lost_types(corpus, of_natural)
    tests = [support.answer(*names, found, where=where, num_pairs=1, remark=remark)]
    found, where = _lost_mass(corpus, of_natural, share, seed)
    return [
        *tests,
        mass.answer(*names, found, where=where, num_pairs=1, remark=remark),
    ]


def _lost_types(corpus: CorpusCounts, of_natural: CorpusCounts) -> tuple[Estimate, str]:
    matched = int(min(corpus.counts.sum(), of_natural.counts.sum()))
    ours, theirs = (expected_types(one.counts, matched) for one in (corpus, of_natural))
    # Each type is there with some probability p: the variance of their number is sum p (1 - p), at most sum p.
    ratio = ours / theirs
    where = f"{ours:,.0f} against {theirs:,.0f} types in {matched:,} tokens"
    return Estimate(1 - ratio, ratio**2 * (1 / ours + 1 / theirs), MANY), where


def _lost_mass(corpus: CorpusCounts, of_natural: CorpusCounts, share: float, seed: int) -> tuple[Estimate, str]:
    matched = int(min(corpus.counts.sum(), of_natural.counts.sum()))
    rng = np.random.default_rng((seed, 7))
    ours, theirs = (subsample(one.counts, matched, rng) for one in (corpus, of_natural))
    rare = tail_types(ours + theirs, 1 - share)
    num, of_base = int(ours[rare].sum()), int(theirs[rare].sum())
    mass, base_mass = num / int(ours.sum()), of_base / int(theirs.sum())
    where = f"{100 * mass:.3g} against {100 * base_mass:.3g} % of the tokens"
    if not of_base:
        return Estimate(why_not="the natural corpus holds none of the rare tokens"), where
    # A corpus without any has an error too: that of one token.
    ratio = max(num, 1) / int(ours.sum()) / base_mass
    relative = _clumping(corpus) / max(num, 1) + _clumping(of_natural) / of_base
    return Estimate(1 - mass / base_mass, ratio**2 * relative, MANY), where


def _clumping(corpus: CorpusCounts) -> float:
    """Mean tokens of a document, the most by which a count's variance exceeds that of single draws."""
    return float(corpus.counts.sum()) / corpus.num_documents if corpus.num_documents else 1.0


def _paired(ours: Sequence[EvaluatedRun], theirs: Sequence[EvaluatedRun]) -> list[tuple[EvaluatedRun, EvaluatedRun]]:
    by_key = {one.key: one for one in theirs}
    if len(by_key) < len(theirs) or len({one.key for one in ours}) < len(ours):
        raise ValueError("two checkpoints of one mixture have the same size, budget and seed; which pairs is not told")
    return [(one, by_key[one.key]) for one in ours if one.key in by_key]


def _log_ratio(one: EvaluatedRun, other: EvaluatedRun, part: np.ndarray) -> tuple[float, float]:
    """(ln of the ratio of summed losses over the types of `part`, its variance with types as units)."""
    rows = part & (one.counts > 0)
    a, b = one.nats[rows], other.nats[rows]
    if not (a.sum() > 0 and b.sum() > 0):
        raise ValueError("the tail, or the rest, holds no loss at all; choose another share")
    moved = a / a.sum() - b / b.sum()
    num = len(moved)
    return math.log(a.sum() / b.sum()), float((moved**2).sum()) * num / (num - 1) if num > 1 else math.inf


def _over_pairs(gap: np.ndarray, types: np.ndarray, noise: float | None) -> Estimate:
    """Mean of `gap` `[pairs]`; `types`: its variance by the types of the evaluation, which all pairs share."""
    num, value = len(gap), float(gap.mean())
    if num >= MIN_CHECKPOINTS:
        return Estimate(value, float(gap.var(ddof=1)) / num + float(types.mean()), num - 1)
    if noise is not None and math.isfinite(noise):
        return Estimate(value, 2 * noise**2 / num + float(types.mean()), MANY)
    return Estimate(
        value,
        why_not=f"{_pairs(num)} do not show how trainings scatter; evaluate other seeds or budgets, or give a runs "
        "table or noise=",
    )


def _pairs(num: int) -> str:
    return f"{num} pair{'s' if num != 1 else ''} of checkpoints"


def checked_counts(values: ArrayLike, what: str) -> np.ndarray:
    """`values` as an array with one number, 0 or more, a token type; ValueError otherwise, naming `what`."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not array.size:
        raise ValueError(f"{what} is one number a token type; got {array.dtype} of shape {array.shape}")
    if not np.all(np.isfinite(array)) or (array < 0).any():
        raise ValueError(f"{what} holds a negative or undefined number")
    return array
