"""Held-out loss per domain, as sums: nats, scored tokens, UTF-8 bytes and documents, never only means.

    domain set + texts ──choose, cut, pack──> windows ──one pass──> sums per domain, document, token id ──> a folder

`run.py` goes the whole way; `texts.py`, `protocol.py` and `scoring.py` are its steps, `results.py` its folder.
"""

from typing import TYPE_CHECKING, Any

from lingua_synth.evaluate.domain_sets import DomainSet, load_domain_set, resolve_domains
from lingua_synth.evaluate.results import Evaluation, TokenLosses, compare_evaluations, read_evaluation
from lingua_synth.evaluate.split import split_domains
from lingua_synth.evaluate.sums import DomainSums, summarize

if TYPE_CHECKING:
    from lingua_synth.evaluate.run import EvaluateArgs, evaluate
    from lingua_synth.evaluate.scoring import Evaluator, evaluate_domains

__all__ = [
    "DomainSet",
    "DomainSums",
    "EvaluateArgs",
    "Evaluation",
    "Evaluator",
    "TokenLosses",
    "compare_evaluations",
    "evaluate",
    "evaluate_domains",
    "load_domain_set",
    "read_evaluation",
    "resolve_domains",
    "split_domains",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name in ("Evaluator", "evaluate_domains"):  # torch is imported only where a model is run
        from lingua_synth.evaluate import scoring

        return getattr(scoring, name)
    if name in ("EvaluateArgs", "evaluate"):
        from lingua_synth.evaluate import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
