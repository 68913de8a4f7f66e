"""A study that never ran: a runs table drawn from planted laws, for tests, demonstrations and planning.

The truth is known, so a fit can be judged; the table has the columns of a real one. Losses come from one joint law per
mixture times exp(noise). The planted numbers are invented: plausible in size, evidence for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.files import sha256_json
from lingua_synth.scaling.laws import JointLaw
from lingua_synth.scaling.runs import Runs


@dataclass(frozen=True)
class _Design:
    cells: tuple[tuple[str, int], ...]
    """(size, tokens) of every training of a mixture."""
    laws: dict[str, dict[str, float]]
    """Mixture -> parameters of its joint law."""
    seq_len: int
    vocab_size: int


def _cells(sizes: Sequence[str], budgets: Sequence[int]) -> tuple[tuple[str, int], ...]:
    return tuple((size, budget) for size in sizes for budget in budgets)


_BILLION = 1_000_000_000
RATIOS = {"natural": 0.0, "synthetic 33%": 0.33, "synthetic 67%": 0.67, "synthetic": 1.0}
"""Mixture -> share of synthetic tokens in the planted designs."""

DESIGNS = {
    # Six sizes at up to 50B tokens and one size further, as a study that holds out 200B tokens and 3B parameters would.
    "paper": _Design(
        cells=(
            *_cells(["100M", "200M", "500M", "1B", "2B", "3B"], [n * _BILLION for n in (1, 2, 5, 10, 20, 50)]),
            *_cells(["1B"], [n * _BILLION for n in (100, 200)]),
        ),
        laws={
            "natural": {"E": 1.95, "A": 410.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33},
            "synthetic 33%": {"E": 1.91, "A": 400.0, "B": 1300.0, "alpha": 0.34, "beta": 0.33},
            "synthetic 67%": {"E": 1.93, "A": 420.0, "B": 1320.0, "alpha": 0.34, "beta": 0.33},
            "synthetic": {"E": 2.02, "A": 450.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33},
        },
        seq_len=4096,
        vocab_size=128_256,
    ),
    "nano": _Design(
        cells=_cells(["nano-27k", "nano-107k", "nano-222k", "nano-332k", "nano-804k"], [2**k for k in range(18, 25)]),
        laws={
            "natural": {"E": 1.6, "A": 30.0, "B": 60.0, "alpha": 0.3, "beta": 0.3},
            "synthetic 33%": {"E": 1.62, "A": 30.0, "B": 57.0, "alpha": 0.3, "beta": 0.3},
            "synthetic 67%": {"E": 1.68, "A": 31.0, "B": 58.0, "alpha": 0.3, "beta": 0.3},
            "synthetic": {"E": 1.8, "A": 33.0, "B": 62.0, "alpha": 0.3, "beta": 0.3},
        },
        seq_len=128,
        vocab_size=4096,
    ),
}

BYTES_PER_TOKEN = 4.2
DOMAIN_FACTORS = {"near": 0.95, "far": 1.05}
"""Loss of a domain over the average; their mean is 1, so `loss_macro` is the planted law's."""


def simulate_study(
    design: str = "paper",
    *,
    noise: float = 0.003,
    size_noise: float = 0.0,
    num_seeds: int = 1,
    seed: int = 0,
    laws: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[Runs, dict[str, dict[str, float]]]:
    """(runs table, truth): every mixture trained on every cell of `design` ("paper" or "nano"), with planted losses.

    `noise`: standard deviation of the log loss of a run (0.003 is 0.3 %). `size_noise`: of an error that all runs of
    one mixture and size share, as one learning rate per size gives. `num_seeds` trainings per cell. `laws`: mixture ->
    parameters of a `JointLaw` with N non-embedding, in place of the design's; a mixture not named in `RATIOS` is
    natural text. The truth is the planted parameters per mixture. One seed gives one table. ValueError for an unknown
    design, negative noise, num_seeds under 1, parameters that are not the law's.
    """
    from lingua_synth.model import count_parameters, flops_per_token, preset

    if design not in DESIGNS:
        raise ValueError(f"no design {design!r}; there are {', '.join(DESIGNS)}")
    if not (noise >= 0 and size_noise >= 0):
        raise ValueError(f"noise and size_noise are standard deviations, 0 or more; got {noise} and {size_noise}")
    if num_seeds < 1:
        raise ValueError(f"num_seeds is a number of trainings per cell, at least 1; got {num_seeds}")
    plan, law = DESIGNS[design], JointLaw()
    truth = {mixture: dict(params) for mixture, params in (laws or plan.laws).items()}
    for params in truth.values():
        law.as_array(params)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for mixture, params in truth.items():
        ratio = RATIOS.get(mixture, 0.0)
        shared = {size: size_noise * rng.standard_normal() for size, _ in plan.cells}
        for size, tokens in plan.cells:
            args = dataclasses.replace(preset(size), vocab_size=plan.vocab_size)
            counts = count_parameters(args)
            for k in range(num_seeds):
                expected = float(law.predict(params, N=counts.non_embedding, D=tokens))
                loss = expected * float(np.exp(shared[size] + noise * rng.standard_normal()))
                flops = tokens * flops_per_token(args, plan.seq_len)
                shares = {"natural": 1 - ratio, "synthetic": ratio}
                row = {
                    "run_id": f"simulated-{mixture}-{size}-{tokens}-{k}".replace(" ", "-"),
                    "mixture": mixture,
                    **{f"ratio_{source}": share for source, share in shares.items()},
                    "size": size,
                    "n_non_embedding": counts.non_embedding,
                    "n_total": counts.total,
                    "n_lingua": counts.lingua,
                    "tokens": tokens,
                    **{f"tokens_{source}": round(share * tokens) for source, share in shares.items()},
                    **{f"unique_tokens_{source}": round(share * tokens) for source, share in shares.items()},
                    **{f"epochs_{source}": float(share > 0) for source, share in shares.items()},
                    "seed": k,
                    "loss_macro": loss,
                    "loss_micro": loss * DOMAIN_FACTORS["near"],
                    **{f"loss_{domain}": loss * factor for domain, factor in DOMAIN_FACTORS.items()},
                    "bpb_macro": loss / (np.log(2) * BYTES_PER_TOKEN),
                    "flops": flops,
                    "gpu_hours": flops / (0.4 * 989e12 * 3600),  # an H100 at 40 % of its dense bf16 peak
                }
                rows.append(row | {"config_sha256": sha256_json({"simulated": row["run_id"], "seed": seed})})
    return Runs({name: [row[name] for row in rows] for name in rows[0]}), truth
