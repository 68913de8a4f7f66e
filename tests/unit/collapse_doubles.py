"""Runs tables, evaluations and corpora in which collapse is planted, or its absence."""

from types import SimpleNamespace

import numpy as np

from lingua_synth.analysis.tails import EvaluatedRun
from lingua_synth.scaling import Runs

NATURAL = {"E": 1.95, "A": 410.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}
SIZES = {"100M": 2.8e7, "200M": 8.5e7, "500M": 3.25e8, "1B": 8.6e8, "3B": 2.7e9}
BUDGETS = (1e9, 2e9, 5e9, 1e10, 2e10, 5e10)


def law(N, D, E, A, B, alpha, beta):
    return E + A / N**alpha + B / D**beta


def table(effects, *, noise=0.0, common=0.0, seeds=(0,), sizes=SIZES, budgets=BUDGETS, natural=NATURAL, seed=0):
    """Natural text and, per entry of `effects`, a mixture: {name: (share, change of ln loss (N, D) or parameters)}."""
    rng = np.random.default_rng(seed)
    shared = {(s, d, k): common * rng.standard_normal() for s in sizes for d in budgets for k in seeds}
    rows = []
    for mixture, (share, effect) in {"natural": (0.0, None), **effects}.items():
        for size, N in sizes.items():
            for D in budgets:
                for k in seeds:
                    params = natural | (effect if isinstance(effect, dict) else {})
                    log_loss = np.log(law(N, D, **params)) + shared[size, D, k] + noise * rng.standard_normal()
                    if callable(effect):
                        log_loss += effect(N, D)
                    rows.append(
                        {
                            "run_id": f"{mixture}-{size}-{D:.0f}-{k}",
                            "mixture": mixture,
                            "ratio_natural": 1 - share,
                            "ratio_synthetic": share,
                            "size": size,
                            "n_non_embedding": N,
                            "tokens": D,
                            "seed": k,
                            "loss_macro": float(np.exp(log_loss)),
                        }
                    )
    return Runs({name: [row[name] for row in rows] for name in rows[0]})


def zipf_counts(vocab=20_000, tokens=2_000_000, exponent=1.1, top_p=1.0, seed=0):
    """Counts of a corpus of independent tokens from a Zipf law, its tail cut off where the top types hold `top_p`."""
    p = 1 / np.arange(1, vocab + 1) ** exponent
    p /= p.sum()
    kept = np.cumsum(p) - p < top_p
    p = np.where(kept, p, 0.0)
    return np.random.default_rng(seed).multinomial(tokens, p / p.sum())


def corpus(counts, tokens_per_document=1):
    return SimpleNamespace(counts=np.asarray(counts), num_documents=int(np.sum(counts)) // tokens_per_document)


def evaluated(tail_factor=1.0, head_factor=1.0, *, noise=0.0, num=1, vocab=3_000, seed=0, budgets=None):
    """Checkpoints whose losses per type are planted: types of frequency rank over half the vocabulary are the tail."""
    text = np.random.default_rng(1)
    p = 1 / np.arange(1, vocab + 1)
    counts = text.multinomial(400_000, p / p.sum())
    of_type = np.log(1 / p) * text.uniform(0.7, 1.3, vocab)
    factor = np.where(np.arange(vocab) >= vocab // 2, tail_factor, head_factor)
    rng = np.random.default_rng((2, seed))
    runs = []
    for k in range(num):
        own = np.exp(noise * rng.standard_normal())
        nats = counts * of_type * factor * own * np.exp(0.05 * rng.standard_normal(vocab))
        runs.append(EvaluatedRun(counts, nats, size="1B", tokens=budgets[k] if budgets else 1e9, seed=float(k)))
    return runs
