"""First-order differences of paired mixtures: against closed forms and the paired bootstrap; refusals."""

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, TRUTH
from scipy import stats

from lingua_synth.scaling import DataLaw, FunctionLaw, JointLaw, fit, paired_bootstrap, paired_differences

LEVEL_LAW = FunctionLaw(
    "level", "L = E", {"E": (0, np.inf)}, ("D",), lambda p, v: p["E"] + 0 * v["D"], linear=("E",), constant="E"
)


def pair(seed=0, objective="huber", noise=0.001, common=0.003):
    rng = np.random.default_rng(seed)
    shared = common * rng.standard_normal(42)
    losses = {
        label: JointLaw().predict({**TRUTH, "E": E}, N=GRID_N, D=GRID_D)
        * np.exp(shared + noise * rng.standard_normal(42))
        for label, E in (("one", 1.9), ("two", 1.95))
    }
    return {k: fit(JointLaw(), N=GRID_N, D=GRID_D, loss=v, objective=objective) for k, v in losses.items()}


def test_two_levels_are_a_paired_t_test():
    rng = np.random.default_rng(0)
    common = 0.01 * rng.standard_normal(20)
    logs = [1 + common + 0.003 * rng.standard_normal(20), 1 + common + 0.003 * rng.standard_normal(20)]
    D = np.geomspace(1e9, 1e11, 20)
    order = rng.permutation(20)
    fits = {
        "a": fit(LEVEL_LAW, D=D, loss=np.exp(logs[0]), objective="mse"),
        "b": fit(LEVEL_LAW, D=D[order], loss=np.exp(logs[1][order]), objective="mse"),
    }
    found = paired_differences(fits)
    expected = stats.ttest_rel(*logs).confidence_interval(0.95)
    low, high = found.predict_difference("a", "b", D=1e9)
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-6)
    assert found.correlation["a", "b"] == pytest.approx(np.corrcoef(*logs)[0, 1], rel=1e-6)
    back = found.difference("E", "b", "a")
    assert found.difference("E", "a", "b") == pytest.approx((-back[1], -back[0]), rel=1e-9)


def test_they_agree_with_the_paired_bootstrap():
    fits = pair(objective="mse")
    first_order, resampled = paired_differences(fits), paired_bootstrap(fits, n=2000)
    for name in ("E", "alpha"):
        ours, theirs = first_order.difference(name, "two", "one"), resampled.difference(name, "two", "one")
        assert np.ptp(ours) == pytest.approx(np.ptp(theirs), rel=0.2)
        assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=1e-6)
    assert first_order.correlation["one", "two"] > 0.8
    text = str(first_order)
    assert "42 cells, errors correlated" in text
    assert first_order.to_dict()["pairs"][0]["num_shared"] == 42


def test_cells_of_one_alone_count_for_it_alone():
    fits = pair()
    half = GRID_N < 1e9
    part = {"one": fits["one"], "two": fit(JointLaw(), N=GRID_N[half], D=GRID_D[half], loss=fits["two"].loss[half])}
    found = paired_differences(part)
    assert found.num_shared["one", "two"] == half.sum()
    assert np.ptp(found.difference("E", "one", "two")) > np.ptp(paired_differences(fits).difference("E", "one", "two"))


def test_what_does_not_pair_is_refused():
    fits = pair()
    with pytest.raises(ValueError, match="a pair takes two fits"):
        paired_differences({"one": fits["one"]})
    elsewhere = fit(JointLaw(), N=GRID_N * 1.1, D=GRID_D, loss=fits["two"].loss)
    with pytest.raises(ValueError, match="have 0 cells in common"):
        paired_differences({"one": fits["one"], "two": elsewhere})
    D = np.repeat(BUDGETS, 2)
    seeds = fit(DataLaw(), D=D, loss=(2.4 + 1500 / D**0.33) * (1 + 0.001 * np.sin(np.arange(14))))
    with pytest.raises(ValueError, match="several runs of one cell"):
        paired_differences({"one": seeds, "two": seeds})
    with pytest.raises(ValueError, match="got 'three'"):
        paired_differences(fits).difference("E", "one", "three")
    with pytest.raises(ValueError, match="twice"):
        paired_differences(fits).difference("E", "one", "one")
    with pytest.raises(ValueError, match="got 'gamma'"):
        paired_differences(fits).difference("gamma", "one", "two")
