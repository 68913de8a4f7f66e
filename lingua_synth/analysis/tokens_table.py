"""Which tokens a corpus has too few or too many of, against another: a table with counts, log-odds and their errors.

The log-odds ratio with a prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", their equations 15 to 22). Both
corpora are given `prior_tokens` tokens more, dealt like the two of them together, so that a token seen once in one of
them is no sensation:

    log-odds   d = log (y + a) / (n + a0 - y - a)   of the corpus, minus the same of the reference
    variance   1 / (y + a) + 1 / (y' + a')          y, y': counts; a = a0 * the token's share of both; a0 = prior_tokens

A token is listed by the end of the interval of d that is nearer to 0: far from the reference *for certain*. Beside it
stands what it adds to KL(reference || corpus), by which frequent tokens count more. Intervals take tokens as
independent; words come in bursts, so that the true ones are wider.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lingua_synth.tokens.tokenizer import Tokenizer

# Monroe, Colaresi and Quinn use a prior of the size of a short text; 1,000 tokens weigh nothing beside a corpus.
PRIOR_TOKENS = 1_000.0
# Two-sided 95 %.
_Z = 1.959963984540054

Order = Literal["log_odds", "divergence"]
ORDERS: tuple[Order, ...] = ("log_odds", "divergence")


@dataclass(frozen=True)
class TokenLogOdds:
    """One value a token of the vocabulary, corpus against reference; arrays of one length."""

    count: npt.NDArray[np.int64]
    reference_count: npt.NDArray[np.int64]
    log_odds: npt.NDArray[np.float64]
    """Above 0: the corpus has more of it."""
    standard_error: npt.NDArray[np.float64]
    """Of the log-odds; nan where neither corpus has the token."""
    divergence: npt.NDArray[np.float64]
    """What the token adds to KL(reference || corpus), nats per token of the reference; prior included."""
    prior_tokens: float

    @property
    def bound(self) -> npt.NDArray[np.float64]:
        """The end of the 95 % interval of the log-odds that is nearer to 0; 0 where the interval holds 0."""
        near = np.maximum(np.abs(self.log_odds) - _Z * self.standard_error, 0.0)
        return np.where(np.isfinite(near), np.sign(self.log_odds) * near, 0.0)


@dataclass(frozen=True)
class TokenRow:
    """One token of the list."""

    token_id: int
    text: str
    """In quotes, as in JSON: "\\n\\n", " hvor"; bytes that are no text as <0xE2>; the id alone without a tokenizer."""
    count: int
    reference_count: int
    per_million: float
    reference_per_million: float
    log_odds: float
    standard_error: float
    bound: float
    divergence: float

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def token_log_odds(
    counts: npt.ArrayLike, reference: npt.ArrayLike, *, prior_tokens: float = PRIOR_TOKENS
) -> TokenLogOdds:
    """Compare the corpus of `counts` with `reference`, token by token; both are counts over one vocabulary.

    Raises ValueError for vocabularies of different sizes, a corpus without tokens, a prior that is not above 0.
    """
    y, z = np.asarray(counts).astype(np.int64), np.asarray(reference).astype(np.int64)
    if y.shape != z.shape:
        raise ValueError(f"the counts are of vocabularies of {y.size:,} and {z.size:,} words; use one tokenizer")
    if not y.sum() or not z.sum():
        raise ValueError("a corpus without tokens cannot be compared token by token; leave it out")
    if not prior_tokens > 0:
        raise ValueError(
            f"prior_tokens is above 0, got {prior_tokens}: without a prior an unseen token is infinitely rare"
        )
    both = y + z
    prior = prior_tokens * both / both.sum()
    seen = both > 0
    y_more, z_more = y + prior, z + prior
    y_total, z_total = y.sum() + prior_tokens, z.sum() + prior_tokens
    log_odds, error, divergence = np.zeros(len(y)), np.full(len(y), np.nan), np.zeros(len(y))
    with np.errstate(divide="ignore", invalid="ignore"):  # a corpus of one token has infinite odds of it, in both
        found = np.log(y_more / (y_total - y_more)) - np.log(z_more / (z_total - z_more))
    log_odds[seen] = np.nan_to_num(found[seen], nan=0.0)
    error[seen] = np.sqrt(1 / y_more[seen] + 1 / z_more[seen])
    p, q = z_more / z_total, y_more / y_total
    divergence[seen] = p[seen] * np.log(p[seen] / q[seen])
    return TokenLogOdds(y, z, log_odds, error, divergence, prior_tokens)


def extreme_tokens(
    comparison: TokenLogOdds,
    tokenizer: Tokenizer | None,
    *,
    num_tokens: int = 50,
    order: Order = "log_odds",
    sign: Literal[-1, 1] = -1,
) -> list[TokenRow]:
    """The `num_tokens` tokens that the corpus has least of, against the reference (`sign=-1`), or most of (1).

    `order`: by `bound`, or by what they add to the divergence (missing tokens raise it). Tokens whose interval holds 0
    are not listed. ValueError for an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"no order {order!r}; there are: {', '.join(ORDERS)}")
    bound = comparison.bound
    value = sign * bound if order == "log_odds" else -sign * comparison.divergence
    (listed,) = np.nonzero((np.sign(bound) == sign) & (value > 0))
    listed = listed[np.argsort(-value[listed], kind="stable")][:num_tokens]
    total, reference_total = comparison.count.sum(), comparison.reference_count.sum()
    return [
        TokenRow(
            token_id=int(i),
            text=f"token {i}" if tokenizer is None else readable_token(tokenizer, int(i)),
            count=int(comparison.count[i]),
            reference_count=int(comparison.reference_count[i]),
            per_million=float(1e6 * comparison.count[i] / total),
            reference_per_million=float(1e6 * comparison.reference_count[i] / reference_total),
            log_odds=float(comparison.log_odds[i]),
            standard_error=float(comparison.standard_error[i]),
            bound=float(bound[i]),
            divergence=float(comparison.divergence[i]),
        )
        for i in listed
    ]


_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")


def readable_token(tokenizer: Tokenizer, token_id: int) -> str:
    """A token in quotes, as JSON writes text: line breaks as \\n, so that white space can be told apart.

    Bytes that are no text on their own stay as <0xE2>.
    """

    def decoded(match: re.Match[str]) -> str:
        data = bytes(int(byte, 16) for byte in match.group().replace("<0x", "").rstrip(">").split(">"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return match.group()

    return json.dumps(_BYTES.sub(decoded, tokenizer.token_text(token_id)), ensure_ascii=False)


def readable_tokens(tokenizer: Tokenizer | None, token_ids: Sequence[int]) -> list[str]:
    """`readable_token` of each; "token 17" without a tokenizer."""
    if tokenizer is None:
        return [f"token {i}" for i in token_ids]
    return [readable_token(tokenizer, int(i)) for i in token_ids]
