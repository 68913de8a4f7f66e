"""Held-out loss per domain, as sums: nats, scored tokens, UTF-8 bytes and documents, never only means."""

from typing import Any

from lingua_synth.evaluate.sums import DomainSums, summarize

__all__ = ["DomainSums", "evaluate_domains", "summarize"]


def __getattr__(name: str) -> Any:
    if name == "evaluate_domains":  # torch is imported only where a model is run
        from lingua_synth.evaluate.loop import evaluate_domains

        return evaluate_domains
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
