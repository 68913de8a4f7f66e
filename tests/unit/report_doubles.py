"""A small runs table with planted laws, and fits whose answers are those laws exactly.

The doubles carry what a report reads of a fit and nothing more, so a figure's numbers are known beforehand and the
choice of identifiable or not is the test's. Real fits are exercised in test_report_page.py.
"""

import csv
import math
from dataclasses import dataclass, field

import numpy as np

SIZES = {"nano-1": 115_000, "nano-2": 460_000, "nano-3": 1_900_000}
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000)
RATIOS = {"natural": 0.0, "mix33": 0.33, "mix67": 0.67, "synthetic": 1.0}
DOMAINS = {"topics": -0.4, "stdlib": 0.1, "readmes": 0.3}


def law_of(ratio):
    """The planted law of a mixture: the more synthetic text, the worse."""
    return {"E": 2.4 + 0.2 * ratio, "A": 90.0, "alpha": 0.42, "B": 400.0 * (1 + 0.2 * ratio), "beta": 0.45}


def planted(ratio, N, D):
    p = law_of(ratio)
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


def rows_of(ratios=None, sizes=None, budgets=BUDGETS, domains=None, seeds=(0,), noise=0.0):
    """Rows of a runs table, mixtures outermost."""
    ratios = RATIOS if ratios is None else ratios
    sizes = SIZES if sizes is None else sizes
    domains = DOMAINS if domains is None else domains
    generator = np.random.default_rng(0)
    rows = []
    for mixture, ratio in ratios.items():
        for size, N in sizes.items():
            for D in budgets:
                for seed in seeds:
                    loss = float(planted(ratio, N, D) * np.exp(noise * generator.normal()))
                    row = {
                        "run_id": f"{mixture}-{size}-{D}-{seed}",
                        "mixture": mixture,
                        "ratio_natural": 1 - ratio,
                        "ratio_generated": ratio,
                        "size": size,
                        "n_non_embedding": N,
                        "n_total": N + 200_000,
                        "n_lingua": N + 100_000,
                        "tokens": D,
                        "epochs_natural": (1 - ratio) * D / 1.6e6,
                        "seed": seed,
                        "loss_macro": loss,
                        "loss_micro": loss + 0.02,
                        "bpb_macro": loss / 3,
                    }
                    row |= {f"loss_{name}": loss + offset for name, offset in domains.items()}
                    rows.append(row)
    return rows


def load(tmp_path, rows):
    """The rows as a `Runs` table, through the library's own reader."""
    from lingua_synth.scaling import load_runs

    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return load_runs(path)


class PlantedFit:
    """A fit whose law is the planted one, at fixed N or D where these are given."""

    def __init__(self, ratio, names, num_points, N=None, D=None):
        p = law_of(ratio)
        self.ratio, self.N, self.D = ratio, N, D
        e = p["E"] + (p["A"] / N ** p["alpha"] if N else 0) + (p["B"] / D ** p["beta"] if D else 0)
        self.params = {"E": e, "E_at_N": e, "E_at_D": e, **{k: p[k] for k in ("A", "alpha", "B", "beta")}}
        self.params = {name: self.params[name] for name in names}
        self.num_points, self.rms_residual, self.warnings = num_points, 0.0021, []

    def predict(self, N=None, D=None):
        N, D = self.N if self.N else N, self.D if self.D else D
        return planted(self.ratio, np.asarray(N, float), np.asarray(D, float))


@dataclass
class PlantedSpeedup:
    """What a report reads of a `Speedup`."""

    factor: np.ndarray
    beyond_reach: np.ndarray
    extrapolation_factor: np.ndarray


def planted_speedup(base, other, D):
    """D_base(L)/D of two planted laws at one size, in closed form."""
    gap = other.predict(D=D) - base.params["E_at_N"]
    beyond = gap <= 0
    D_base = (base.params["B"] / np.where(beyond, 1.0, gap)) ** (1 / base.params["beta"])
    D_base = np.where(beyond, np.inf, D_base)
    return PlantedSpeedup(D_base / D, beyond, np.maximum(np.maximum(D_base / D.max(), D.min() / D_base), 1.0))


class PlantedBootstrap:
    """Limits 1 % below and 2 % above the planted law."""

    def __init__(self, fit):
        self.fit = fit

    def interval(self, name, level=0.95):
        return 0.99 * self.fit.params[name], 1.02 * self.fit.params[name]

    def predict_interval(self, N=None, D=None, level=0.95):
        value = self.fit.predict(N=N, D=D)
        return 0.99 * value, 1.02 * value


@dataclass
class Entry:
    """What a report reads of a `MixtureFit`."""

    fit: object = None
    bootstrap: object = None
    refusal: str | None = None
    identifiable: bool = True
    reasons: list = field(default_factory=list)

    def interval(self, name):
        return self.bootstrap.interval(name) if self.bootstrap is not None else (math.nan, math.nan)


@dataclass
class Fits:
    """What a report reads of `StudyFits`."""

    data: dict
    model: dict
    joint: dict
    target: str = "loss_macro"
    n_definition: str = "non_embedding"


BAD = ["E sits on its bound 0", "the condition number is 3.1e+12."]


def planted_fits(runs, unidentifiable=(), ratios=None):
    """Fits of every mixture, size and budget; those of the mixtures named are not identifiable."""
    ratios = RATIOS if ratios is None else ratios

    def entry(mixture, names, **fixed):
        fit = PlantedFit(ratios[mixture], names, 12, **fixed)
        if mixture in unidentifiable:
            return Entry(fit, None, None, identifiable=False, reasons=list(BAD))
        return Entry(fit, PlantedBootstrap(fit))

    sizes = dict(zip(map(str, runs["size"]), runs["n_non_embedding"], strict=True))
    return Fits(
        data={m: {s: entry(m, ("E_at_N", "B", "beta"), N=float(n)) for s, n in sizes.items()} for m in runs.mixtures},
        model={
            m: {float(d): entry(m, ("E_at_D", "A", "alpha"), D=float(d)) for d in sorted(set(runs["tokens"]))}
            for m in runs.mixtures
        },
        joint={m: entry(m, ("E", "A", "alpha", "B", "beta")) for m in runs.mixtures},
    )
