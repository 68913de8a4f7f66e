"""Compute-optimal models, equal losses and far predictions: against closed forms and searches of another kind."""

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, SIZES, TRUTH

from lingua_synth.scaling import (
    SIX_ND,
    CrossedLaw,
    DataLaw,
    FlopsRule,
    InteractionLaw,
    JointLaw,
    KaplanLaw,
    bootstrap,
    compute_optimal,
    extrapolate,
    fit,
    fit_mixtures,
    iso_loss,
    preset_flops,
)

C = np.array([1e20, 1e21, 1e24])


def planted(law=None, noise=0.0, seed=0, objective="huber", **changes):
    law = law or JointLaw()
    loss = law.predict(TRUTH | changes, N=GRID_N, D=GRID_D)
    error = noise * np.random.default_rng(seed).standard_normal(len(loss))
    return fit(law, N=GRID_N, D=GRID_D, loss=loss * np.exp(error), objective=objective)


def searched(found, budget, per_token=lambda N: 6 * N, **fixed):
    from scipy.optimize import minimize_scalar

    def loss(log_N):
        N = np.exp(log_N)
        return float(found.predict(N=N, D=budget / per_token(N), **fixed))

    return np.exp(
        minimize_scalar(loss, bounds=(np.log(1e5), np.log(1e14)), options={"xatol": 1e-9}, method="bounded").x
    )


# --- the best split ---


def test_the_frontier_of_the_joint_law_is_the_published_closed_form():
    found = planted()
    result = compute_optimal(found, C)
    p = found.params
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    a = p["beta"] / (p["alpha"] + p["beta"])
    assert np.array(result.N) == pytest.approx(G * (C / 6) ** a, rel=1e-9)
    assert np.array(result.D) == pytest.approx((C / 6) ** (1 - a) / G, rel=1e-9)
    assert result.exponent == pytest.approx(a, rel=1e-12)
    assert np.array(6 * result.N * result.D) == pytest.approx(C, rel=1e-12)
    assert result.loss == pytest.approx(found.predict(N=result.N, D=result.D), rel=1e-14)
    assert result.extrapolation_factor[2] == pytest.approx(found.extrapolation_factor(N=result.N[2], D=result.D[2]))
    assert "C = 6 N D, N: non_embedding" in str(result) and "times beyond the runs" in str(result)
    assert result.to_dict()["N"] == result.N.tolist()


@pytest.mark.parametrize(
    ("law", "changes"),
    [(InteractionLaw(), {"c": 0.03, "B": 2500.0}), (CrossedLaw(), {"c": 0.03, "d": -0.02, "B": 2500.0, "A": 300.0})],
)
def test_the_frontier_of_laws_whose_terms_mix_is_where_a_search_finds_it(law, changes):
    found = planted(law, **changes)
    result = compute_optimal(found, C)
    assert np.array(result.N) == pytest.approx([searched(found, budget) for budget in C], rel=1e-5)
    assert result.exponent == pytest.approx(np.log(result.N[1] / result.N[0]) / np.log(10), rel=1e-9)


def test_other_laws_and_other_counts_of_flops_are_searched_for():
    law = KaplanLaw()
    truth = {"A": 25.0, "B": 90.0, "alpha": 0.12, "beta": 0.14}
    kaplan = fit(law, N=GRID_N, D=GRID_D, loss=law.predict(truth, N=GRID_N, D=GRID_D))
    result = compute_optimal(kaplan, C)
    assert np.array(result.N) == pytest.approx([searched(kaplan, budget) for budget in C], rel=1e-4)
    assert result.exponent is None
    # The same count of FLOPs given as a table of models: the same answer.
    found = planted()
    models = np.geomspace(1e7, 1e10, 5)
    table = FlopsRule.through("by a table", models, 6 * models)
    assert table.per_token([1e3, 1e9, 1e14]) == pytest.approx([6e3, 6e9, 6e14], rel=1e-9)
    assert np.array(compute_optimal(found, C, flops=table).N) == pytest.approx(compute_optimal(found, C).N, rel=1e-5)


def test_the_presets_cost_what_the_model_room_counts():
    from lingua_synth.model import count_parameters, flops_per_token, preset

    rule = preset_flops(4096)
    for name in ("200M", "1B", "3B", "30B"):
        model = preset(name)
        N = count_parameters(model).non_embedding
        assert rule.per_token(N) == pytest.approx(flops_per_token(model, 4096), rel=0.04)
    assert rule.per_token(1e8) > 1.5 * SIX_ND.per_token(1e8)  # a small model's FLOPs are in its output matrix
    found = planted()
    result = compute_optimal(found, C, flops=rule)
    assert np.array(result.N) == pytest.approx([searched(found, one, rule.per_token) for one in C], rel=1e-4)
    assert result.D * rule.per_token(result.N) == pytest.approx(C)
    assert "at 4096 tokens a sequence" in str(result)
    with pytest.raises(ValueError, match="counted for total N, the fit's N is non_embedding"):
        compute_optimal(found, C, flops=preset_flops(4096, "total"))
    with pytest.raises(ValueError, match="at least 3 different sizes"):
        FlopsRule.through("two", [1e8, 1e9], [6e8, 6e9])
    with pytest.raises(ValueError, match="N is defined as one of"):
        preset_flops(4096, "everything")


def test_no_best_size_is_said():
    law = InteractionLaw()
    # A data term that falls faster with N than it rises along the line: larger is always better.
    params = TRUTH | {"c": 0.4}
    found = fit(law, N=GRID_N, D=GRID_D, loss=law.predict(params, N=GRID_N, D=GRID_D))
    result = compute_optimal(found, C)
    assert np.isnan(result.N).all() and np.isnan(result.loss).all()
    assert "no best size" in str(result)
    assert result.to_dict()["N"] == [None, None, None]


def test_bands_of_the_frontier_follow_the_noise():
    widths = {}
    for noise in (1e-3, 1e-4):
        found = planted(noise=noise, objective="mse")
        result = compute_optimal(found, C, resamples=bootstrap(found, n=300))
        for name, values in (("N", result.N), ("D", result.D), ("loss", result.loss)):
            low, high = result.bands[name]
            assert ((low < values) & (values < high)).all()
        assert result.bands["exponent"][0] < result.exponent < result.bands["exponent"][1]
        assert (result.interior_probability == 1).all()
        widths[noise] = np.log(result.bands["N"][1] / result.bands["N"][0])
    assert widths[1e-3] / widths[1e-4] == pytest.approx(10, rel=0.2)
    assert widths[1e-3][2] > widths[1e-3][0]


# --- equal losses ---


def test_equal_losses_are_equal_and_what_is_out_of_reach_is_said():
    found = planted(noise=5e-4)
    sizes = np.array([1e7, 1e9, 1e11])
    result = iso_loss(found, 2.35, sizes, resamples=bootstrap(found, n=300))
    assert np.isinf(result.D[0]) and np.isinf(result.high[0])
    assert found.predict(N=sizes[1:], D=result.D[1:]) == pytest.approx(2.35, rel=1e-9)
    assert result.C[1] == pytest.approx(6e9 * result.D[1])
    assert result.cheapest == 1
    assert (result.low[1:] < result.D[1:]).all() and (result.D[1:] < result.high[1:]).all()
    assert "beyond reach" in str(result)
    # The size of the frontier is the cheapest of all.
    best = compute_optimal(found, result.C[1])
    finer = iso_loss(found, float(best.loss[0]), best.N * np.array([0.5, 1.0, 2.0]))
    assert finer.cheapest == 1 and finer.C[1] == pytest.approx(result.C[1], rel=1e-6)
    with pytest.raises(ValueError, match="no size of these reaches"):
        _ = iso_loss(found, 1.5, sizes).cheapest


# --- far beyond ---


def test_far_predictions_come_with_bands_and_how_far_they_are():
    found = planted(noise=1e-3)
    result = extrapolate(found, N=[1e9, 4e11], D=[1e11, 8e12], resamples=bootstrap(found, n=300))
    assert result.extrapolation_factor == pytest.approx([1, 4e11 / 3e9], rel=1e-9)
    truth = JointLaw().predict(TRUTH, N=[1e9, 4e11], D=[1e11, 8e12])
    assert ((result.low < truth) & (truth < result.high)).all()
    assert (result.high - result.low)[1] > (result.high - result.low)[0]
    assert (result.run_low < result.loss).all() and (result.loss < result.run_high).all()
    assert result.remaining == pytest.approx(result.loss - found.params["E"])
    assert "133 times beyond the runs" in str(result)
    assert any("the law's form decides" in warning for warning in result.warnings)
    data = fit(DataLaw(), D=BUDGETS, loss=2 + 1500 / BUDGETS**0.33)
    assert extrapolate(data, D=8e12, calibrated=False).loss == pytest.approx(2 + 1500 / 8e12**0.33, rel=1e-6)


def test_parts_of_a_joint_fit_have_frontiers_too():
    loss = JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D)
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(84))
    both = fit_mixtures(
        JointLaw(), N=np.tile(GRID_N, 2), D=np.tile(GRID_D, 2), loss=np.append(loss, 1.02 * loss) * noise,
        mixture=np.repeat(["a", "b"], 42), share="exponents",
    )  # fmt: skip
    drawn = both.bootstrap(100)
    result = compute_optimal(both.fits["a"], C, resamples=drawn.members["a"])
    assert result.exponent == compute_optimal(both.fits["b"], C).exponent
    assert (result.bands["N"][0] < result.N).all()
    far = extrapolate(both.fits["a"], N=4e11, D=8e12, resamples=drawn.members["a"])
    assert far.low < far.loss < far.high
    assert far.run_low is None and "no band for a run" in str(far)


def test_bad_questions_are_refused():
    found = planted()
    data = fit(DataLaw(), D=BUDGETS, loss=2 + 1500 / BUDGETS**0.33)
    with pytest.raises(ValueError, match="has no N"):
        compute_optimal(data, C)
    with pytest.raises(ValueError, match="C must be positive"):
        compute_optimal(found, [1e20, -1])
    with pytest.raises(ValueError, match="one loss"):
        iso_loss(found, [2.0, 2.1], SIZES)
    with pytest.raises(ValueError, match="those of this fit"):
        compute_optimal(found, C, resamples=bootstrap(planted(noise=1e-3), n=20))
    with pytest.raises(ValueError, match="level is a share"):
        compute_optimal(found, C, resamples=bootstrap(planted(), n=20), level=95)


# --- coverage ---


@pytest.mark.slow
def test_bands_cover():
    truth = planted()
    exact, far = compute_optimal(truth, C), truth.predict(N=4e11, D=8e12)
    held = {"N": [], "loss": [], "exponent": [], "far": []}
    for seed in range(200):
        found = planted(noise=2e-3, seed=seed, objective="mse")
        drawn = bootstrap(found, n=250, seed=seed)
        result = compute_optimal(found, C, resamples=drawn)
        for name, value in (("N", exact.N), ("loss", exact.loss), ("exponent", exact.exponent)):
            low, high = result.bands[name]
            held[name].append(np.mean((low <= value) & (value <= high)))
        one = extrapolate(found, N=4e11, D=8e12, resamples=drawn, calibrated=False)
        held["far"].append(bool(one.low[0] <= far <= one.high[0]))
    for name, kept in held.items():
        assert 0.90 <= np.mean(kept) <= 0.985, (name, np.mean(kept))
