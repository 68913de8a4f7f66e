"""Planned errors against simulated studies, and the choice of the next run against trying every one."""

import itertools
import math

import numpy as np
import pytest

from lingua_synth.scaling import DataLaw, InteractionLaw, JointLaw, expected_errors, fit, next_runs
from lingua_synth.scaling.design import huber_factor

TRUTH = {"E": 1.95, "A": 410.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33}
N, D = (
    axis.ravel()
    for axis in np.meshgrid([1e8, 2e8, 5e8, 1e9, 2e9, 3e9], [1e9, 2e9, 5e9, 1e10, 2e10, 5e10, 1e11], indexing="ij")
)
TARGETS = {"N": [1e9, 3e9], "D": [2e11, 1e12]}


def simulated(design, count, objective, seed=0):
    """Standard deviations of the parameters and of ln(loss) at the targets, over `count` fits of simulated runs."""
    rng = np.random.default_rng(seed)
    mean = JointLaw().predict(TRUTH, N=N, D=D)
    params, logs = [], []
    for _ in range(count):
        shared = rng.standard_normal(design.groups.max() + 1)[design.groups]
        error = design.noise * rng.standard_normal(len(N)) + design.size_noise * shared
        fitted = fit(JointLaw(), N=N, D=D, loss=mean * np.exp(error), objective=objective)
        params.append(list(fitted.params.values()))
        logs.append(np.log(fitted.predict(**TARGETS)))
    return dict(zip(TRUTH, np.std(params, axis=0, ddof=1), strict=True)), np.std(logs, axis=0, ddof=1)


@pytest.mark.parametrize("objective", ["mse", "huber"])
@pytest.mark.parametrize("size_noise", [0.0, 0.001])
def test_errors_are_those_of_simulated_studies(objective, size_noise):
    # At 0.1 % noise the fit is linear in the errors; 250 studies give a standard deviation to 4.5 %.
    design = expected_errors(
        JointLaw(), TRUTH, N=N, D=D, noise=0.001, size_noise=size_noise, targets=TARGETS, objective=objective
    )
    params, logs = simulated(design, 250, objective)
    for name, expected in design.standard_errors.items():
        # The Huber factor is exact for independent errors only: shared ones widen the residuals it sees.
        assert params[name] == pytest.approx(expected, rel=0.15 if size_noise == 0 else 0.2), name
    assert logs == pytest.approx(design.prediction_errors, rel=0.15 if size_noise == 0 else 0.2)


def test_the_price_of_huber():
    assert huber_factor(0.001, 1.0) == pytest.approx(1.0, abs=1e-12)
    assert huber_factor(0.003, 1e-9) == pytest.approx(math.pi / 2, rel=1e-6)
    values = [huber_factor(0.003, delta) for delta in np.geomspace(1e-8, 1, 60)]
    assert all(a >= b - 1e-4 for a, b in itertools.pairwise(values)), "a wider core is never less efficient"
    # Var of the clipped mean, by quadrature.
    x = np.linspace(-9, 9, 400_001)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    k = 1 / 3
    psi = np.clip(x, -k, k)
    by_hand = np.trapezoid(psi**2 * density, x) / np.trapezoid((np.abs(x) < k) * density, x) ** 2
    assert huber_factor(0.003, 0.001) == pytest.approx(by_hand, rel=1e-4)


def test_units_order_and_repeats():
    one = expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.002, targets=TARGETS)
    shuffled = np.random.default_rng(0).permutation(len(N))
    other = expected_errors(JointLaw(), TRUTH, N=N[shuffled], D=D[shuffled], noise=0.002, targets=TARGETS)
    assert other.covariance == pytest.approx(one.covariance, rel=1e-8)
    billions = {**TRUTH, "A": 410 / 1e9**0.34, "B": 1500 / 1e9**0.33}
    scaled = expected_errors(JointLaw(), billions, N=N / 1e9, D=D / 1e9, noise=0.002)
    for name in ("E", "alpha", "beta"):
        assert scaled.standard_errors[name] == pytest.approx(one.standard_errors[name], rel=1e-7)
    four = expected_errors(JointLaw(), TRUTH, N=np.tile(N, 4), D=np.tile(D, 4), noise=0.002, objective="mse")
    single = expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.002, objective="mse")
    assert four.covariance == pytest.approx(single.covariance / 4, rel=1e-9)
    assert four.half_width("E") < 0.5 * single.half_width("E")


def test_shared_errors_are_not_averaged_away():
    def errors(repeats):
        tiled = {"N": np.tile(N, repeats), "D": np.tile(D, repeats)}
        return expected_errors(JointLaw(), TRUTH, **tiled, noise=0.002, size_noise=0.002).standard_errors

    one, many = errors(1), errors(50)
    assert many["beta"] < 0.2 * one["beta"], "the budgets of one size share its error"
    assert many["E"] > 0.85 * one["E"], "but no number of runs replaces sizes"


def test_other_laws_and_what_is_said():
    data = expected_errors(DataLaw(), {"E_at_N": 2.3, "B": 1500, "beta": 0.33}, D=[1e9, 1e10, 1e11, 4e11], noise=0.001)
    assert list(data.standard_errors) == ["E_at_N", "B", "beta"]
    c = expected_errors(InteractionLaw(), {**TRUTH, "c": 0.0}, N=N, D=D, noise=0.001)
    assert c.standard_errors["E"] > expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.001).standard_errors["E"]
    wide = expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.2, targets={"N": [7e10], "D": [1e12]})
    line = expected_errors(JointLaw(), TRUTH, N=N, D=20 * N, noise=0.002)
    assert any("condition number" in warning for warning in line.warnings)
    said = " ".join(wide.warnings)
    assert "the interval of E will reach 0" in said and "times beyond the runs" in said
    assert "42 planned runs" in str(wide) and "loss at N 7e+10, D 1e+12" in str(wide)
    assert wide.to_dict()["standard_errors"]["E"] == wide.standard_errors["E"]


def test_the_next_run_is_the_one_that_trying_each_finds():
    design = expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.002)
    more_N, more_D = (a.ravel() for a in np.meshgrid([1e8, 1e9, 7e9], [1e9, 3e10, 4e11], indexing="ij"))
    target = {"N": 7e9, "D": 2e12}
    costs = 6 * more_N * more_D / (0.4 * 989e12) / 3600
    for minimize in ("E", "beta", target):

        def error_after(extra, minimize=minimize):
            grown = expected_errors(
                JointLaw(), TRUTH, N=np.append(N, more_N[extra]), D=np.append(D, more_D[extra]), noise=0.002,
                targets={name: [value] for name, value in target.items()},
            )  # fmt: skip
            return grown.prediction_errors[0] if minimize == target else grown.standard_errors[minimize]

        chosen = next_runs(design, N=more_N, D=more_D, k=3, minimize=minimize)
        now, taken = error_after([]), []
        assert chosen.before == pytest.approx(now, rel=1e-9)
        for step in chosen.steps:
            gains = [
                (math.log(now) - math.log(error_after([*taken, k]))) / costs[k] if k not in taken else -1.0
                for k in range(9)
            ]
            assert step.candidate == int(np.argmax(gains))
            taken.append(step.candidate)
            now = error_after(taken)
            assert step.error == pytest.approx(now, rel=1e-9)
            assert step.cost == pytest.approx(costs[step.candidate])
        assert chosen.total_cost == pytest.approx(costs[taken].sum())
    assert "next runs for loss at N 7e+09, D 2e+12 (relative)" in str(chosen)


def test_next_runs_of_a_fit_and_within_a_budget():
    rng = np.random.default_rng(1)
    loss = JointLaw().predict(TRUTH, N=N, D=D) * np.exp(0.002 * rng.standard_normal(len(N)))
    fitted = fit(JointLaw(), N=N, D=D, loss=loss)
    candidates = {"N": [1e9, 3e9, 7e9], "D": [4e11, 4e11, 4e11]}
    chosen = next_runs(fitted, **candidates, cost=[1.0, 3.0, 7.0], k=10, budget=8.0)
    assert chosen.total_cost <= 8 and chosen.cost_unit == "cost"
    assert len({step.candidate for step in chosen.steps}) == len(chosen.steps), "one each unless repeats are allowed"
    repeated = next_runs(fitted, **candidates, cost=1.0, k=6, max_repeats=4, minimize="all")
    assert len(repeated.steps) == 6
    errors = [repeated.before, *(step.error for step in repeated.steps)]
    assert all(a > b for a, b in itertools.pairwise(errors))
    half = next_runs(fitted, **candidates, cost=1.0, noise=0.001)
    assert half.before < next_runs(fitted, **candidates, cost=1.0, noise=0.002).before
    with pytest.raises(ValueError, match=r"within the budget \(0.5\); the cheapest costs 1 cost"):
        next_runs(fitted, **candidates, cost=1.0, budget=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": 0.0}, "noise is a standard deviation"),
        ({"N": N[:4], "D": D[:4]}, "4 runs at these N and D do not determine"),
        ({"N": N * 0 + 1e9}, "do not determine"),
        ({"N": np.tile([1e8, 1e9], 6), "D": np.repeat(np.geomspace(1e9, 1e11, 6), 2)}, "do not determine"),
        ({"objective": "lad"}, "one of huber, mse"),
        ({"groups": ["a"]}, "groups must label every run: 42 runs, 1 labels"),
        ({"params": {**TRUTH, "B": 0.0}}, "B is 0"),
        ({"params": {"E": 1.0}}, "has parameters E, A, B"),
        ({"targets": {"N": [1e9]}}, "D is needed"),
    ],
)
def test_bad_plans(changes, message):
    arguments = {"params": TRUTH, "N": N, "D": D, "noise": 0.002} | changes
    with pytest.raises(ValueError, match=message):
        expected_errors(JointLaw(), arguments.pop("params"), **arguments)


def test_bad_candidates():
    design = expected_errors(JointLaw(), TRUTH, N=N, D=D, noise=0.002)
    with pytest.raises(ValueError, match="need D"):
        next_runs(design, N=[1e9])
    with pytest.raises(ValueError, match="minimize is one of E, A"):
        next_runs(design, N=[1e9], D=[1e9], minimize="gamma")
    with pytest.raises(ValueError, match="cost must be positive"):
        next_runs(design, N=[1e9], D=[1e9], cost=[0.0])
    data = expected_errors(DataLaw(), {"E_at_N": 2.3, "B": 1500, "beta": 0.33}, D=[1e9, 1e10, 1e11], noise=0.001)
    with pytest.raises(ValueError, match="follows from N and D"):
        next_runs(data, D=[1e12])
    assert len(next_runs(data, D=[1e12, 2e12], cost=1.0).steps) == 2
