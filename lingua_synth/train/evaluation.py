"""Held-out loss of a run: its domains chosen and cut once, scored on the way, and at the end written to its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lingua_synth.evaluate import DomainSums
from lingua_synth.evaluate.domain_sets import load_domain_set, resolve_domains
from lingua_synth.evaluate.protocol import build_protocol
from lingua_synth.evaluate.results import write_evaluation
from lingua_synth.evaluate.run import BootstrapArgs, describe
from lingua_synth.evaluate.scoring import Evaluator, Scores
from lingua_synth.model.checkpoint import FOLDER as CHECKPOINTS
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs
from lingua_synth.train.folder import EVALUATION


class HeldOut:
    """The domains of one run, ready to be scored; nothing, where the run has none.

    ValueError, before a step is taken, for a domain without a token to score, and one that is not of the domain set.
    """

    def __init__(self, args: TrainArgs, domains: Mapping[str, TokenSource]) -> None:
        self._args, self._sources = args, domains
        self._evaluator: Evaluator | None = None
        asked = args.synth.evaluation
        self._domain_set = load_domain_set(asked.domain_set)
        if not domains:
            return
        if not self._domain_set.is_open:
            resolve_domains(self._domain_set, named=asked.domains)  # refuses a name that is not of the set
        self._absent = [name for name in self._domain_set.domains if name not in domains]
        protocol = build_protocol("disjoint", seq_len=args.data.seq_len)
        self._evaluator = Evaluator(
            domains,
            protocol,
            max_tokens_per_domain=asked.max_tokens_per_domain,
            max_bytes_per_domain=asked.max_bytes_per_domain,
        )

    def __bool__(self) -> bool:
        return self._evaluator is not None

    def score(self, model: torch.nn.Module) -> Scores | None:
        """Score the domains; None where there are none. All ranks call it."""
        return self._evaluator.score(model) if self._evaluator is not None else None

    def write(self, scores: Scores, step: int) -> None:
        """Write the scores as the evaluation of the run's last step; one rank calls it."""
        assert self._evaluator is not None, "what was scored has domains"
        record: dict[str, Any] = {
            "checkpoint": f"{CHECKPOINTS}/{step:010d}",
            "dtype": self._args.distributed.model_dtype,
            **describe(
                self._evaluator,
                scores,
                self._sources,
                self._domain_set,
                self._absent,
                self._args.synth.evaluation.max_tokens_per_domain,
                BootstrapArgs(),
                max_bytes_per_domain=self._args.synth.evaluation.max_bytes_per_domain,
            ),
        }
        write_evaluation(Path(self._args.dump_dir) / EVALUATION, record, scores)


def sums_of(scores: Scores | None) -> dict[str, DomainSums]:
    """The sums by domain; none where nothing was scored."""
    return {} if scores is None else scores.sums
