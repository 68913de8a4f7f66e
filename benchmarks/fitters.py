"""One way of fitting L = E + A/N^alpha + B/D^beta, in a process of its own, driven by `measure.Worker`.

`python fitters.py NAME DATA`. Runs with an interpreter that may have nothing but numpy, scipy and one peer: it imports
nothing of the project, except to measure it. All fitters are asked for the same thing, the minimum of the sum over runs
of a Huber function (delta 1e-3) of ln(predicted) - ln(observed); how each goes about it is here, and only here.

Commands, one line of JSON each: fit, bootstrap. `seconds` are of this process, on the clock.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from answering import answer_all, failure, methods_of, silence, take_output

DELTA = 1e-3
PARAMETERS = ("E", "A", "B", "alpha", "beta")
# The values that Hoffmann et al. 2022 give for their approach 3: where the published bootstrap starts.
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
# The published grid of starts: a = ln A, b = ln B, e = ln E, alpha, beta; 6 x 6 x 5 x 5 x 5 = 4500.
PUBLISHED_GRID = {
    "a": np.arange(0, 26, 5.0), "b": np.arange(0, 26, 5.0), "e": np.arange(-1, 1.1, 0.5),
    "alpha": np.arange(0, 2.1, 0.5), "beta": np.arange(0, 2.1, 0.5),
}  # fmt: skip
PACKAGE_GRID = {  # three values a parameter around the usual ones, the size of the grid in the package's own example
    "e": np.linspace(0.2, 0.9, 3), "a": np.linspace(4.0, 9.0, 3), "b": np.linspace(4.0, 9.0, 3),
    "alpha": np.linspace(0.2, 0.6, 3), "beta": np.linspace(0.2, 0.6, 3),
}  # fmt: skip


def objective(params: dict[str, float], N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> float:
    """What everybody is asked to minimize."""
    p = params
    residual = np.log(p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]) - np.log(loss)
    size = np.abs(residual)
    return float(np.sum(np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))))


class Table:
    """The runs that are fitted."""

    def __init__(self, N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> None:
        self.N, self.D, self.loss = N, D, loss


class Fitter(Table, ABC):
    """A fitter of one table."""

    package = "numpy"
    note = ""

    @abstractmethod
    def fit(self, starts: int | None) -> tuple[dict[str, float], float]:
        """(parameters, seconds for the whole procedure); `starts`: time no more than so many and scale up."""

    def bootstrap(self, resamples: np.ndarray) -> tuple[list[dict[str, float]], float]:
        """(parameters of each resample, seconds)."""
        raise RuntimeError("it has no bootstrap")


class Ours(Fitter):
    """This library."""

    package = "lingua-synth"

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__(*arrays)
        from lingua_synth import scaling

        self._scaling = scaling
        self._fit: Any = None

    def fit(self, starts: int | None) -> tuple[dict[str, float], float]:
        begun = time.perf_counter()
        self._fit = self._scaling.fit(self._scaling.JointLaw(), N=self.N, D=self.D, loss=self.loss)
        return dict(self._fit.params), time.perf_counter() - begun

    def bootstrap(self, resamples: np.ndarray) -> tuple[list[dict[str, float]], float]:
        begun = time.perf_counter()
        result = self._scaling.bootstrap(self._fit, resamples=resamples)
        seconds = time.perf_counter() - begun
        return [dict(zip(result.law.parameters, row, strict=True)) for row in result.params.tolist()], seconds


class Exact(Table):
    """The objective and its gradient in (a, b, e, alpha, beta), written by hand."""

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__(*arrays)
        self.log_N, self.log_D, self.log_loss = np.log(self.N), np.log(self.D), np.log(self.loss)

    def value_and_gradient(self, x: np.ndarray, rows: Any = slice(None)) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = x
        log_N, log_D = self.log_N[rows], self.log_D[rows]
        terms = np.stack([a - alpha * log_N, b - beta * log_D, np.full(len(log_N), e)])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        residual = top + np.log(total) - self.log_loss[rows]
        size = np.abs(residual)
        value = np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)).sum()
        pull = np.clip(residual, -DELTA, DELTA) * shares / total
        gradient = np.array([pull[0].sum(), pull[1].sum(), pull[2].sum(), -(pull[0] @ log_N), -(pull[1] @ log_D)])
        return float(value), gradient

    @staticmethod
    def params(x: np.ndarray) -> dict[str, float]:
        a, b, e, alpha, beta = map(float, x)
        return {"E": float(np.exp(e)), "A": float(np.exp(a)), "B": float(np.exp(b)), "alpha": alpha, "beta": beta}

    @staticmethod
    def start(params: dict[str, float]) -> np.ndarray:
        p = params
        return np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])


class MultiStart(Exact, Fitter):
    """SciPy's BFGS with exact gradients: from 243 starts for the fit, from the fit for every resample."""

    package = "scipy"
    note = "exact gradients, 243 starts; resamples start at the fit"

    def fit(self, starts: int | None) -> tuple[dict[str, float], float]:
        from scipy.optimize import minimize

        grid = list(itertools.product(*(PACKAGE_GRID[name] for name in ("a", "b", "e", "alpha", "beta"))))
        taken = grid if starts is None else grid[:: max(len(grid) // starts, 1)]
        begun = time.perf_counter()
        found = [minimize(self.value_and_gradient, x, jac=True, method="BFGS", options={"gtol": 1e-9}) for x in taken]
        seconds = (time.perf_counter() - begun) * len(grid) / len(taken)
        self._best = min(found, key=lambda result: result.fun).x
        return self.params(self._best), seconds

    def bootstrap(self, resamples: np.ndarray) -> tuple[list[dict[str, float]], float]:
        from scipy.optimize import minimize

        begun = time.perf_counter()
        found = [
            minimize(self.value_and_gradient, self._best, args=(rows,), jac=True, method="BFGS", options={"gtol": 1e-9})
            for rows in resamples
        ]
        return [self.params(result.x) for result in found], time.perf_counter() - begun


class Published(Exact, Fitter):
    """The procedure of Besiroglu et al. 2024 by its description: L-BFGS-B with numerical gradients from a grid of 4500
    starts, the best that reports success; each resample by BFGS with automatic gradients from Hoffmann's values."""

    package = "scipy"

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__(*arrays)
        try:
            import autograd.numpy as anp
            from autograd import value_and_grad
            from autograd.scipy.special import logsumexp
        except ImportError:
            self._gradient = None
            self.note = "resamples with gradients by hand, faster than the published automatic ones (no autograd here)"
            return
        self.note = "resamples with autograd's gradients"

        def value(x: Any, rows: np.ndarray) -> Any:
            log_N, log_D = self.log_N[rows], self.log_D[rows]
            terms = anp.stack([x[0] - x[3] * log_N, x[1] - x[4] * log_D, x[2] + 0 * log_N])
            residual = logsumexp(terms, axis=0) - self.log_loss[rows]
            size = anp.abs(residual)
            return anp.sum(anp.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA)))

        self._gradient = value_and_grad(value)

    def fit(self, starts: int | None) -> tuple[dict[str, float], float]:
        from scipy.optimize import minimize

        grid = list(itertools.product(*PUBLISHED_GRID.values()))
        taken = grid if starts is None else grid[:: max(len(grid) // starts, 1)]
        begun = time.perf_counter()
        found = [minimize(lambda x: self.value_and_gradient(x)[0], x, method="L-BFGS-B") for x in taken]
        seconds = (time.perf_counter() - begun) * len(grid) / len(taken)
        solved = [result for result in found if result.success and np.isfinite(result.fun)]
        if not solved:
            raise RuntimeError("no start succeeded")
        return self.params(min(solved, key=lambda result: result.fun).x), seconds

    def bootstrap(self, resamples: np.ndarray) -> tuple[list[dict[str, float]], float]:
        from scipy.optimize import minimize

        gradient = self._gradient or self.value_and_gradient
        begun = time.perf_counter()
        found = [minimize(gradient, self.start(HOFFMANN), args=(rows,), jac=True, method="BFGS") for rows in resamples]
        return [self.params(result.x) for result in found], time.perf_counter() - begun


class Chinchilla(Fitter):
    """The package `chinchilla`: SciPy's BFGS without gradients from a grid of 243 starts, in one process, with its log-
    Huber objective (a mean, which changes what its stopping rule means)."""

    package = "chinchilla"
    note = "its own log_huber, delta 1e-3, 243 starts, one process; no bootstrap"

    def __init__(self, *arrays: np.ndarray) -> None:
        super().__init__(*arrays)
        import chinchilla

        self._module = chinchilla

    def fit(self, starts: int | None) -> tuple[dict[str, float], float]:
        from chinchilla._metrics import log_huber

        grid = dict(PACKAGE_GRID)
        scale = 1.0
        if starts is not None and starts < 243:
            # Fewer values of the coefficients: the package runs every start it is given.
            grid["a"], grid["b"], scale = grid["a"][1:2], grid["b"][1:2], 9.0
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "df.csv"), "w") as file:
                file.write("C,N,D,loss\n")
                for n, d, loss in zip(self.N.tolist(), self.D.tolist(), self.loss.tolist(), strict=True):
                    file.write(f"{6 * n * d!r},{n!r},{d!r},{loss!r}\n")
            model = self._module.Chinchilla(
                folder, param_grid=grid, log_level=100,
                loss_fn=lambda true, predicted: log_huber(true, predicted, delta=DELTA),
            )  # fmt: skip
            # Its picture of the fit is no part of fitting.
            model.visualizer.optim = lambda *args, **kwargs: None
            begun = time.perf_counter()
            model.fit(parallel=False)
            seconds = (time.perf_counter() - begun) * scale
        return {name: float(getattr(model, name)) for name in PARAMETERS}, seconds


FITTERS: dict[str, type[Fitter]] = {
    "lingua_synth": Ours,
    "SciPy BFGS, many starts": MultiStart,
    "published procedure": Published,
    "chinchilla": Chinchilla,
}


class Session:
    """Commands of the parent."""

    def __init__(self, fitter: Fitter) -> None:
        self._fitter = fitter

    def fit(self, starts: int | None) -> dict[str, Any]:
        params, seconds = self._fitter.fit(starts)
        return {"params": params, "seconds": seconds}

    def bootstrap(self, count: int, seed: int, keep: int) -> dict[str, Any]:
        num = len(self._fitter.N)
        resamples = np.random.default_rng(seed).integers(0, num, (count, num))
        params, seconds = self._fitter.bootstrap(resamples)
        return {"params": params[:keep], "seconds": seconds}


def main() -> None:
    """Answer commands until the input ends."""
    name, described = sys.argv[1:]
    say = take_output()
    silence()
    data = json.loads(described)
    try:
        fitter = FITTERS[name](*(np.array(data[key], dtype=np.float64) for key in ("N", "D", "loss")))
        try:
            version = f"{fitter.package} {importlib.metadata.version(fitter.package)}"
        except importlib.metadata.PackageNotFoundError:
            version = fitter.package
        say({"version": version, "note": fitter.note})
    except (ImportError, RuntimeError) as error:
        say(failure(error))
        return
    answer_all(say, methods_of(Session(fitter)))


if __name__ == "__main__":
    main()
