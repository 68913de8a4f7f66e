"""A study that never ran: a runs table drawn from planted laws, for tests, demonstrations and planning.

The truth is known, so a fit can be judged; the table has the columns of a real one. Losses come from one joint law per
mixture times exp(noise). The planted numbers are invented: plausible in size, evidence for nothing.

In the design "mixtures" the laws of all mixtures come from one rule per kind of synthetic text, `RatioEffect`, so that
the best ratio is known too, and moves with N and D.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingua_synth.files import sha256_json
from lingua_synth.scaling.laws import JointLaw
from lingua_synth.scaling.runs import Runs


@dataclass(frozen=True)
class RatioEffect:
    """What a share r of one kind of synthetic text does to the joint law of natural text.

    `E(r) = E + e1 r + e2 r^2`, `A(r) = A exp(a r)`, and tokens count as `D ((1-r)^gamma + tau r^gamma)^(1/gamma)`:
    with gamma under 1 two sources are worth more than either, by a constant elasticity of substitution.
    """

    e1: float
    e2: float
    a: float
    tau: float
    gamma: float

    def params(self, natural: Mapping[str, float], ratio: float) -> dict[str, float]:
        """Parameters of the `JointLaw` of a mixture with that share, from those of natural text."""
        if not 0 <= ratio <= 1:
            raise ValueError(f"a ratio is a share in [0, 1]; got {ratio}")
        worth = ((1 - ratio) ** self.gamma + self.tau * ratio**self.gamma) ** (1 / self.gamma)
        return {
            **natural,
            "E": natural["E"] + self.e1 * ratio + self.e2 * ratio**2,
            "A": natural["A"] * math.exp(self.a * ratio),
            "B": natural["B"] * worth ** -natural["beta"],
        }

    def best_ratio(self, natural: Mapping[str, float], N: float, D: float) -> float:
        """The share of lowest loss at (N, D), to 1e-4 or better: the lowest of 10,001 shares."""
        shares = np.linspace(0, 1, 10_001)
        worth = ((1 - shares) ** self.gamma + self.tau * shares**self.gamma) ** (1 / self.gamma)
        loss = (
            self.e1 * shares
            + self.e2 * shares**2
            + natural["A"] * np.exp(self.a * shares) / N ** natural["alpha"]
            + natural["B"] / (D * worth) ** natural["beta"]
        )
        return float(shares[np.argmin(loss)])


@dataclass(frozen=True)
class _Design:
    cells: tuple[tuple[str, int], ...]
    """(size, tokens) of every training of a mixture."""
    laws: dict[str, dict[str, float]]
    """Mixture -> parameters of its joint law."""
    seq_len: int
    vocab_size: int
    effects: dict[str, RatioEffect] = dataclasses.field(default_factory=dict)
    """Kind of synthetic text -> what it does; each kind is a source of its own."""


def _cells(sizes: Sequence[str], budgets: Sequence[int]) -> tuple[tuple[str, int], ...]:
    return tuple((size, budget) for size in sizes for budget in budgets)


_BILLION = 1_000_000_000
RATIOS = {"natural": 0.0, "synthetic 33%": 0.33, "synthetic 67%": 0.67, "synthetic": 1.0}
"""Mixture -> share of synthetic tokens in the planted designs."""

MIXTURE_RATIOS = (1 / 3, 2 / 3, 1.0)
"""Shares of each kind in the design "mixtures"."""
NATURAL = {"E": 1.95, "A": 410.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}
"""Planted law of natural text in the designs of the paper's size."""
EFFECTS = {
    # Tokens worth more, and a lower floor in small shares: ahead everywhere up to two thirds.
    "rephrased": RatioEffect(e1=-0.05, e2=0.07, a=0.02, tau=1.15, gamma=0.8),
    # Worth more early, a higher floor: two thirds are ahead at small budgets and behind at large ones.
    "questions": RatioEffect(e1=0.01, e2=0.10, a=0.05, tau=1.25, gamma=0.75),
    # Worth less early, a lower floor in small shares: a third passes natural text at some 16B tokens (1B).
    "textbook": RatioEffect(e1=-0.20, e2=0.30, a=0.02, tau=0.60, gamma=1.0),
}

_PAPER_CELLS = (
    *_cells(["100M", "200M", "500M", "1B", "2B", "3B"], [n * _BILLION for n in (1, 2, 5, 10, 20, 50)]),
    *_cells(["1B"], [n * _BILLION for n in (100, 200)]),
)

DESIGNS = {
    # Six sizes at up to 50B tokens and one size further, as a study that holds out 200B tokens and 3B parameters would.
    "paper": _Design(
        cells=_PAPER_CELLS,
        laws={
            "natural": NATURAL,
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
    # The same cells, natural text and three kinds of synthetic text at three ratios each: ten mixtures.
    "mixtures": _Design(
        cells=_PAPER_CELLS, laws={"natural": NATURAL}, seq_len=4096, vocab_size=128_256, effects=EFFECTS
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
    common_noise: float = 0.0,
    num_seeds: int = 1,
    seed: int = 0,
    laws: Mapping[str, Mapping[str, float]] | None = None,
    ratios: Sequence[float] | None = None,
) -> tuple[Runs, dict[str, dict[str, float]]]:
    """(runs table, truth): every mixture trained on every cell of `design`, with planted losses.

    Designs: "paper" (4 mixtures, 6 sizes), "mixtures" (the same cells; natural text and 3 kinds of synthetic text at
    `ratios`, by default thirds: 10 mixtures), "nano" (what a CPU trains).

    `noise`: standard deviation of the log loss of a run (0.003 is 0.3 %). `size_noise`: of an error that all runs of
    one mixture and size share, as one learning rate per size gives. `common_noise`: of an error that the runs of all
    mixtures share at one cell and seed, as one initialization and data order give: it cancels in paired differences.
    `num_seeds` trainings per cell. `laws`: mixture -> parameters of a `JointLaw` with N non-embedding, in place of the
    design's; a mixture not named in `RATIOS` is natural text. The truth is the planted parameters per mixture. One seed
    gives one table. ValueError for an unknown design, negative noise, num_seeds under 1, parameters that are not the
    law's, ratios outside (0, 1] or for a design whose mixtures are fixed.
    """
    from lingua_synth.model import count_parameters, flops_per_token, preset

    if design not in DESIGNS:
        raise ValueError(f"no design {design!r}; there are {', '.join(DESIGNS)}")
    if not min(noise, size_noise, common_noise) >= 0:
        raise ValueError(
            "noise, size_noise and common_noise are standard deviations, 0 or more; "
            f"got {noise}, {size_noise} and {common_noise}"
        )
    if num_seeds < 1:
        raise ValueError(f"num_seeds is a number of trainings per cell, at least 1; got {num_seeds}")
    plan, law = DESIGNS[design], JointLaw()
    truth, shares = _mixtures(design, plan, laws, ratios)
    for params in truth.values():
        law.as_array(params)
    rng = np.random.default_rng(seed)
    # Drawn apart, so that a table without common noise is the same whatever else is asked for.
    common_rng = np.random.default_rng((seed, 1))
    common = {(cell, k): common_noise * common_rng.standard_normal() for cell in plan.cells for k in range(num_seeds)}
    rows: list[dict[str, Any]] = []
    for mixture, params in truth.items():
        shared = {size: size_noise * rng.standard_normal() for size, _ in plan.cells}
        for size, tokens in plan.cells:
            args = dataclasses.replace(preset(size), vocab_size=plan.vocab_size)
            counts = count_parameters(args)
            for k in range(num_seeds):
                expected = float(law.predict(params, N=counts.non_embedding, D=tokens))
                error = shared[size] + common[(size, tokens), k] + noise * rng.standard_normal()
                loss = expected * float(np.exp(error))
                flops = tokens * flops_per_token(args, plan.seq_len)
                row = {
                    "run_id": f"simulated-{mixture}-{size}-{tokens}-{k}".replace(" ", "-"),
                    "mixture": mixture,
                    **{f"ratio_{source}": share for source, share in shares[mixture].items()},
                    "size": size,
                    "n_non_embedding": counts.non_embedding,
                    "n_total": counts.total,
                    "n_lingua": counts.lingua,
                    "tokens": tokens,
                    **{f"tokens_{source}": round(share * tokens) for source, share in shares[mixture].items()},
                    **{f"unique_tokens_{source}": round(share * tokens) for source, share in shares[mixture].items()},
                    **{f"epochs_{source}": float(share > 0) for source, share in shares[mixture].items()},
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


def _mixtures(
    design: str,
    plan: _Design,
    laws: Mapping[str, Mapping[str, float]] | None,
    ratios: Sequence[float] | None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """(mixture -> planted parameters, mixture -> source -> share)."""
    if ratios is not None and (laws is not None or not plan.effects):
        raise ValueError(f"the mixtures of design {design!r} are fixed; ratios= goes with design='mixtures' alone")
    truth = {mixture: dict(params) for mixture, params in (laws or plan.laws).items()}
    if laws is not None or not plan.effects:
        synthetic = {mixture: RATIOS.get(mixture, 0.0) for mixture in truth}
        return truth, {m: {"natural": 1 - share, "synthetic": share} for m, share in synthetic.items()}
    none = dict.fromkeys(plan.effects, 0.0)
    shares = {"natural": {"natural": 1.0, **none}}
    for kind, effect in plan.effects.items():
        for ratio in MIXTURE_RATIOS if ratios is None else ratios:
            if not 0 < ratio <= 1:
                raise ValueError(f"a ratio is a share of synthetic tokens in (0, 1]; got {ratio}")
            name = kind if ratio == 1 else f"{kind} {100 * ratio:.3g}%" if ratios else f"{kind} {100 * ratio:.0f}%"
            truth[name] = effect.params(truth["natural"], ratio)
            shares[name] = {"natural": 1 - ratio, **none, kind: float(ratio)}
    return truth, shares
