"""Intervals against independent answers: other libraries, closed forms, exact refits; and what is refused."""

import dataclasses

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, SIZES, TRUTH
from scipy import optimize, stats

from lingua_synth.scaling import DataLaw, FunctionLaw, JointLaw, KaplanLaw, ModelLaw, fit
from lingua_synth.scaling import reml as groups_module
from lingua_synth.scaling.intervals import bootstrap_intervals, intervals, profile_intervals, reml_intervals
from lingua_synth.scaling.profile import profile
from lingua_synth.scaling.refits import Tables, parameter_quantity
from lingua_synth.scaling.uncertainty import bootstrap
from lingua_synth.scaling.wald import _moments, scatter, uneven_scatter_test

LEVEL_LAW = FunctionLaw(
    "level", "L = E", {"E": (0, np.inf)}, ("D",), lambda p, v: p["E"] + 0 * v["D"], linear=("E",), constant="E"
)


def losses(rng, noise=0.003, size_noise=0.0):
    shared = size_noise * rng.standard_normal(len(SIZES))[np.searchsorted(SIZES, GRID_N)]
    return JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D) * np.exp(noise * rng.standard_normal(42) + shared)


def joint(loss, **options):
    return fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss, **options)


@pytest.fixture(scope="module")
def loss():
    return losses(np.random.default_rng(0))


# --- first order ---


def test_standard_errors_are_those_of_scipy(loss):
    one = joint(loss, objective="mse")
    start = [one.params["E"], np.log(one.params["A"]), np.log(one.params["B"]), one.params["alpha"], one.params["beta"]]

    def log_loss(_, E, a, b, alpha, beta):
        return np.log(E + np.exp(a) / GRID_N**alpha + np.exp(b) / GRID_D**beta)

    best, covariance = optimize.curve_fit(log_loss, np.arange(42.0), np.log(loss), p0=start)
    half = stats.t.ppf(0.95, 37) * np.sqrt(np.diag(covariance))
    found = intervals(one, "wald", level=0.9)
    for name, k in (("E", 0), ("alpha", 3), ("beta", 4)):
        assert found.interval(name) == pytest.approx((best[k] - half[k], best[k] + half[k]), rel=1e-4)
    for name, k in (("A", 1), ("B", 2)):
        assert np.log(found.interval(name)) == pytest.approx((best[k] - half[k], best[k] + half[k]), rel=1e-4)


@pytest.mark.parametrize(
    ("delta", "factor", "error"), [(1.0, 1.0, 0.02), (1e-5, np.pi / 2, 0.03), (1e-2, None, 0.03)], ids=str
)
def test_scatter_of_gaussian_runs_is_that_of_theory(delta, factor, error):
    D = np.geomspace(1e9, 1e11, 3000)
    rng = np.random.default_rng(0)
    one = fit(LEVEL_LAW, D=D, loss=np.exp(1 + 0.01 * rng.standard_normal(3000)), delta=delta)
    if factor is None:
        # By quadrature: E[psi^2] / E[psi']^2 of a core as wide as the scatter.
        inside = stats.norm.cdf(1) - stats.norm.cdf(-1)
        factor = stats.norm.expect(lambda x: np.clip(x, -1, 1) ** 2) / inside**2
    # 3,000 runs know their own variance to 2.6 %; heavy tails are not what they show.
    s2 = np.var(np.log(one.loss))
    assert scatter(Tables.of(one)).variance[0] == pytest.approx(factor * s2, rel=error)


@pytest.mark.parametrize("shape", [2.0, 3.0, 10.0, np.inf])
@pytest.mark.parametrize("core", [1e-6, 0.3, 2.0, 50.0])
def test_moments_of_a_clipped_variable(shape, core):
    from scipy.integrate import quad

    variable = stats.norm() if np.isinf(shape) else stats.t(shape)
    inside, square = _moments(shape, np.array([core]))
    share = 2 * variable.cdf(core) - 1
    by_quad = 2 * quad(lambda x: x * x * variable.pdf(x), 0, core, epsabs=0, limit=200)[0] + core**2 * (1 - share)
    assert inside[0] == pytest.approx(share, rel=1e-6)
    assert square[0] == pytest.approx(by_quad, rel=1e-4)


def test_heavy_tails_narrow_the_interval_of_the_robust_fit():
    rng = np.random.default_rng(4)
    heavy = JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D) * np.exp(0.0017 * rng.standard_t(2, 42))
    robust, squares = (intervals(joint(heavy, objective=o), "wald").interval("E") for o in ("huber", "mse"))
    assert np.ptp(robust) < 0.8 * np.ptp(squares)


def test_weights_bend_the_fit_and_not_the_scatter(loss):
    """Least squares with weights w where every run scatters alike: s^2 (J'WJ)^-1 J'W^2J (J'WJ)^-1."""
    weights = GRID_D**0.3
    one = joint(loss, objective="mse", weights=weights)
    p = one.law.as_array(one.params)
    J = JointLaw().gradient(p, N=GRID_N, D=GRID_D) / JointLaw().predict(p, N=GRID_N, D=GRID_D)[:, None]
    scale = np.sqrt((J**2).sum(axis=0))
    J = J / scale
    W = np.diag(weights / weights.mean())
    bread = np.linalg.inv(J.T @ W @ J)
    covariance = bread @ J.T @ W @ W @ J @ bread * (one.residuals @ one.residuals) / 37
    half = stats.t.ppf(0.975, 37) * np.sqrt(covariance[0, 0]) / scale[0]
    assert intervals(one, "wald").interval("E") == pytest.approx((p[0] - half, p[0] + half), rel=1e-6)
    assert any("weights" in warning for warning in intervals(one, "reml").warnings)


# --- profiles ---


@pytest.mark.parametrize("objective", ["mse", "huber"])
def test_profile_ends_are_where_the_best_fit_with_that_value_is_so_much_worse(loss, objective):
    one = joint(loss, objective=objective)
    found = profile_intervals(one)
    allowed = scatter(Tables.of(one)).force[0] / 2 * stats.t.ppf(0.975, 37) ** 2
    scale = {"A": np.log, "B": np.log}
    names = ["E", "A", "B", "alpha", "beta"]
    for name in ("E", "A", "beta"):
        rest = [other for other in names if other != name]
        start = [scale.get(other, float)(one.params[other]) for other in rest]
        for end in found.interval(name):

            def residuals(x, rest=rest, name=name, end=end):
                params = {other: np.exp(v) if other in scale else v for other, v in zip(rest, x, strict=True)}
                with np.errstate(invalid="ignore"):  # a trial step of the other solver
                    return np.log(JointLaw().predict({**params, name: end}, N=GRID_N, D=GRID_D) / loss)

            answer = optimize.least_squares(
                residuals, start, x_scale="jac", loss="linear" if objective == "mse" else "huber", f_scale=1e-3,
                xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=5000,
            )  # fmt: skip
            best = answer.cost * (2 if objective == "mse" else 1)
            assert best - one.objective == pytest.approx(allowed, rel=0.01)


def test_an_interval_of_a_prediction_does_not_depend_on_who_asks(loss):
    # The loss at N = D = infinity is E: by its own value held, and as a prediction pinned.
    one = profile_intervals(joint(loss))
    far = one.predict_interval(N=1e60, D=1e60)
    assert far == pytest.approx(one.interval("E"), rel=1e-4)
    by_function = one.function_interval(lambda p: p["alpha"])
    assert by_function == pytest.approx(one.interval("alpha"), rel=1e-4)


def test_a_bound_ends_an_interval_and_openness_is_said():
    falling = ModelLaw().predict({"E_at_D": 0.0, "A": 20.0, "alpha": 0.1}, N=SIZES) - 0.4
    one = fit(ModelLaw(), N=SIZES, loss=falling)
    assert one.params["E_at_D"] == 0
    found = intervals(one)
    low, high = found.interval("E_at_D")
    assert found.method == "profile" and low == 0 and 0.1 < high < 1
    assert any("not identifiable" in warning for warning in found.warnings)
    first_order = intervals(one, "wald")
    assert np.isnan(first_order.interval("E_at_D")).all()
    assert any("method='profile' may give one" in warning for warning in first_order.warnings)
    assert "E_at_D" in str(found)
    assert first_order.to_dict()["intervals"]["E_at_D"] == [None, None]


# --- shared errors ---


def by_hand(groups, values):
    """Balanced one-way analysis of variance: mean squares within and between, and the number of each group."""
    table = values[np.argsort(groups, kind="stable")].reshape(len(np.unique(groups)), -1)
    within = table.var(axis=1, ddof=1).mean()
    between = table.shape[1] * table.mean(axis=1).var(ddof=1)
    return within, between, table.shape[1]


def test_a_mean_over_groups_is_the_analysis_of_variance():
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(6), 5)
    logs = 1 + 0.02 * rng.standard_normal(6)[groups] + 0.01 * rng.standard_normal(30)
    D = np.geomspace(1e9, 1e11, 30)
    order = rng.permutation(30)
    one = fit(LEVEL_LAW, D=D[order], loss=np.exp(logs[order]), objective="mse")
    labels = [f"g{k}" for k in groups[order]]
    found = reml_intervals(one, labels, kind="satterthwaite")
    within, between, size = by_hand(groups, logs)
    facts = found.facts["shared_error"]
    assert facts["run_error"] == pytest.approx(np.sqrt(within), rel=1e-3)
    assert facts["group_error"] == pytest.approx(np.sqrt((between - within) / size), rel=1e-3)
    half = stats.t.ppf(0.975, 5) * np.sqrt(between / 30)
    # First order in E, a hundredth wide: symmetric in E, not in ln E.
    assert found.interval("E") == pytest.approx(
        (np.e ** logs.mean() * (1 - half), np.e ** logs.mean() * (1 + half)), rel=1e-4
    )
    tables = Tables.of(one)
    p = groups_module.shared_error_test(tables, groups_module.Groups(groups))
    assert p[0] == pytest.approx(stats.f_oneway(*logs.reshape(6, 5)).pvalue, rel=1e-3)


def test_averaging_over_the_ratio_is_an_integral():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 3)
    logs = 1 + 0.01 * rng.standard_normal(4)[groups] + 0.01 * rng.standard_normal(12)
    one = fit(LEVEL_LAW, D=np.geomspace(1e9, 1e11, 12), loss=np.exp(logs), objective="mse")
    found = reml_intervals(one, groups)
    # By dense matrices over 4,000 ratios; the mean is the same for all, so the distribution has one centre.
    angles = (np.arange(4000) + 0.5) / 4000 * np.pi / 2
    heights, errors = [], []
    member = (groups[:, None] == groups).astype(float)
    for ratio in (groups_module.SCALE * np.tan(angles)) ** 2:
        V = np.eye(12) + ratio * member
        inverse, ones = np.linalg.inv(V), np.ones(12)
        gram = ones @ inverse @ ones
        rest = logs - logs.mean()
        squares = rest @ inverse @ rest
        heights.append(-0.5 * (np.linalg.slogdet(V)[1] + np.log(gram) + 11 * np.log(squares)))
        errors.append(np.sqrt(squares / 11 / gram))
    weight = np.exp(np.array(heights) - max(heights))
    weight /= weight.sum()

    def missing(x):
        return float(weight @ stats.t.cdf(x / np.array(errors), 11)) - 0.975

    half = optimize.brentq(missing, 0, 1)
    low, high = found.interval("E")
    assert (high - low) / (2 * np.exp(logs.mean())) == pytest.approx(half, rel=0.01)


def test_auto_says_what_it_saw():
    rng = np.random.default_rng(2)
    shared = intervals(joint(losses(rng, 0.002, 0.004)))
    assert shared.method == "reml" and "seem to share an error" in shared.why
    assert shared.facts["shared_error"]["p_value"] < 1e-3
    assert shared.facts["shared_error"]["share_of_variance"] > 0.4
    assert shared.unit == "the runs of one N"
    alone = intervals(joint(losses(np.random.default_rng(5))))
    assert alone.method == "profile" and "say unit='N'" in alone.why
    told = intervals(joint(losses(np.random.default_rng(5))), unit="N")
    assert told.method == "reml" and "as was said" in told.why
    assert np.ptp(told.interval("alpha")) > np.ptp(alone.interval("alpha"))
    curve = DataLaw().predict({"E_at_N": 2.4, "B": 1500.0, "beta": 0.33}, D=BUDGETS)
    one = fit(DataLaw(), D=BUDGETS, loss=curve * np.exp(0.001 * rng.standard_normal(7)))
    assert "no value of a variable repeats" in intervals(one).why


def test_runs_that_scatter_unevenly_are_resampled():
    rng = np.random.default_rng(6)
    curve = JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D)
    found, uneven = None, None
    for _ in range(20):  # until the sizes show no shared error by chance
        uneven = joint(curve * np.exp(0.01 * (1e9 / GRID_D) ** 0.7 * rng.standard_normal(42)))
        found = intervals(uneven, n=200)
        assert found.facts["uneven_scatter"]["p_value"] == uneven_scatter_test(Tables.of(uneven))[0]
        if found.facts.get("shared_error", {"p_value": 0})["p_value"] > 0.25:
            break
    assert found.facts["uneven_scatter"]["p_value"] < 0.01
    assert found.method == "bootstrap" and "do not scatter alike" in found.why
    # Many sizes that share an error and scatter unevenly: whole sizes are drawn.
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 24), BUDGETS[::2]))
    shared = 0.003 * rng.standard_normal(24)[np.unique(N, return_inverse=True)[1]]
    loss = JointLaw().predict(TRUTH, N=N, D=D) * np.exp((5e7 / N) ** 0.5 * (0.003 * rng.standard_normal(96) + shared))
    assert intervals(fit(JointLaw(), N=N, D=D, loss=loss), n=100).method == "cluster"


def test_even_scatter_is_found_even():
    p = [uneven_scatter_test(Tables.of(joint(losses(np.random.default_rng(seed)))))[0] for seed in range(40)]
    assert np.mean(np.array(p) < 0.05) < 0.2 and np.mean(np.array(p) < 0.5) > 0.2


def test_what_is_absent_or_on_a_bound_has_no_interval():
    rising = fit(JointLaw(), N=GRID_N, D=GRID_D, loss=2 + GRID_N / 1e10)
    assert rising.params["A"] == 0
    for method in ("wald", "profile", "reml"):
        found = intervals(rising, method)
        assert np.isnan(found.interval("A")).all()
        assert any("no interval of A" in warning for warning in found.warnings)


# --- promises of all methods ---


@pytest.mark.parametrize("method", ["wald", "profile", "bootstrap", "cluster", "reml", "auto"])
def test_order_and_units_play_no_part(loss, method):
    order = np.random.default_rng(1).permutation(42)
    one = joint(loss)
    two = fit(JointLaw(), N=GRID_N[order], D=GRID_D[order], loss=loss[order])
    three = fit(JointLaw(), N=GRID_N / 1e6, D=GRID_D / 1e9, loss=loss / np.log(2))
    found = [intervals(f, method, n=100) for f in (one, two, three)]
    assert found[0].parameters == found[1].parameters
    scale = {"E": 1 / np.log(2), "alpha": 1.0, "beta": 1.0}
    for name, factor in scale.items():
        expected = factor * np.array(found[0].interval(name))
        assert found[2].interval(name) == pytest.approx(expected, rel=2e-3)
    at = found[0].predict_interval(N=[1e9, 4e11], D=[1e10, 8e12])
    again = found[2].predict_interval(N=[1e3, 4e5], D=[10, 8e3])
    assert np.array(again) * np.log(2) == pytest.approx(np.array(at), rel=2e-3)
    assert found[0].to_dict()["method"] == found[0].method


def test_intervals_nest_and_laws_of_other_shapes_have_them(loss):
    for law in (JointLaw(), KaplanLaw()):
        one = fit(law, N=GRID_N, D=GRID_D, loss=loss)
        inner, outer = profile_intervals(one, 0.5), profile_intervals(one, 0.99)
        for name in law.parameters:
            low, high = inner.interval(name)
            assert outer.interval(name)[0] < low < one.params[name] < high < outer.interval(name)[1]


def test_bootstrap_by_the_one_entry_is_the_bootstrap(loss):
    one = joint(loss)
    result, found = bootstrap(one, n=300), bootstrap_intervals(one, n=300, kind="percentile")
    for name in ("E", "A", "beta"):
        assert found.interval(name) == pytest.approx(result.interval(name), rel=1e-4)  # quantiles of logarithms
    low, high = found.predict_interval(N=[1e9], D=[1e12])
    expected = result.predict_interval(N=[1e9], D=[1e12])
    assert (low[0], high[0]) == pytest.approx((expected[0][0], expected[1][0]), rel=1e-5)
    assert bootstrap(one, n=50, unit="N").freedom == 3
    assert bootstrap(one, n=50).freedom == 37


def test_lad_has_profiles_near_those_of_a_narrow_core(loss):
    ends = []
    for options in ({"objective": "lad"}, {"delta": 1e-5}):
        tables = Tables.of(joint(loss, **options))
        ends.append(np.ravel(profile(tables, parameter_quantity(JointLaw(), tables.points, "E"), 0.95)))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method is one of auto, wald"),
        ({"level": 95}, "between 0 and 1"),
        ({"method": "wald", "unit": "N"}, "takes every run as independent"),
        ({"method": "reml", "unit": ["a"] * 42}, "all runs into one group"),
        ({"method": "reml", "unit": range(42)}, "needs unit="),
        ({"method": "reml", "kind": "percentile"}, "kind is averaged or satterthwaite"),
        ({"method": "profile", "kind": "t"}, "no kind"),
        ({"unit": "U"}, "names a variable of the law"),
    ],
)
def test_bad_questions_are_refused_in_words(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals(joint(loss), **arguments)


def test_what_cannot_be_known_is_refused_or_said(loss):
    with pytest.raises(ValueError, match="nothing is left over"):
        intervals(fit(DataLaw(), D=BUDGETS[:3], loss=[3.0, 2.9, 2.85]))
    leaning = joint(loss, asymmetry=3.0)
    with pytest.raises(ValueError, match="no formula for an asymmetric objective"):
        intervals(leaning, "wald")
    assert intervals(leaning, n=50).method == "bootstrap"
    D = np.repeat(BUDGETS[:3], 3)
    curve = DataLaw().predict({"E_at_N": 2.4, "B": 1500.0, "beta": 0.33}, D=D)
    absorbed = intervals(fit(DataLaw(), D=D, loss=curve * np.exp(0.001 * np.sin(np.arange(9)))), "reml")
    assert any("cannot be told from the law" in warning for warning in absorbed.warnings)
    with pytest.raises(ValueError, match=r"parameters E, A, B, alpha, beta; got 'gamma'"):
        intervals(joint(loss), "wald").interval("gamma")
    with pytest.raises(ValueError, match="not the minimum for these runs alone"):
        intervals(dataclasses.replace(joint(loss), params={**TRUTH}))
    with pytest.raises(ValueError, match="one number for each set"):
        intervals(joint(loss), "wald").function_interval(lambda p: np.zeros(3))
