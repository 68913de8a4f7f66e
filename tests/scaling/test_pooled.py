"""Several mixtures under one law, each answer against one known beforehand or computed another way."""

import itertools

import numpy as np
import pytest
from runs_grid import GRID_D, GRID_N

from lingua_synth.scaling import InteractionLaw, JointLaw, KaplanLaw, fit_mixtures, solver
from lingua_synth.scaling.pooled import _mean_and_spread
from lingua_synth.scaling.pooled_laws import ExponentPrior, SharedExponents
from lingua_synth.scaling.ranking import rank_values

LAW = JointLaw()


def study(num=4, noise=0.0, common=0.0, spread=0.0, seed=0, gap=0.03):
    """(columns of a table of `num` mixtures on one grid, truth per mixture)."""
    rng = np.random.default_rng(seed)
    shared = common * rng.standard_normal(len(GRID_N))
    truth, losses = {}, []
    for k in range(num):
        alpha, beta = 0.34 + spread * rng.standard_normal(), 0.33 + spread * rng.standard_normal()
        truth[f"m{k}"] = {"E": 1.9 + gap * k, "A": 400.0 + 10 * k, "B": 1500.0 - 30 * k, "alpha": alpha, "beta": beta}
        error = shared + noise * rng.standard_normal(len(GRID_N))
        losses.append(LAW.predict(truth[f"m{k}"], N=GRID_N, D=GRID_D) * np.exp(error))
    columns = {
        "N": np.tile(GRID_N, num),
        "D": np.tile(GRID_D, num),
        "loss": np.concatenate(losses),
        "mixture": np.repeat(list(truth), len(GRID_N)),
    }
    return columns, truth


# --- the two laws around a law ---


@pytest.mark.parametrize("base", [JointLaw(), InteractionLaw()])
def test_derivatives_of_the_laws_that_pool(base):
    rng = np.random.default_rng(3)
    num = 12
    logs = {name: rng.normal(0, 1, 2 * num) for name in base.variables}
    own = np.array([[0.6, 0.2, 0.2, 0.3, 0.4, -0.1][: len(base.parameters)]])
    shared = SharedExponents(base, 2)
    joint = np.concatenate([own[:, :3], own[:, :3] * 1.2, own[:, 3:]], axis=1)
    prior = ExponentPrior(base, 1e-3)
    with_centres = np.concatenate([own, own[:, 3:] + 0.2], axis=1)
    k = len(prior.pooled)
    cases = [
        (shared, joint, {**logs, "mixture": np.repeat([0.0, 1.0], num)}, range(joint.shape[1])),
        (
            prior,
            with_centres,
            {name: np.append(v, np.zeros(k)) for name, v in logs.items()}
            | {"prior": np.append(np.zeros(2 * num), np.arange(1.0, k + 1))},
            range(len(base.parameters)),
        ),
    ]
    for law, theta, points, moving in cases:
        value, jacobian = law.value_and_jacobian(theta, points)
        assert np.array_equal(law.value(theta, points), value)
        pull = rng.normal(size=value.shape)
        curvature = law.curvature(theta, points, jacobian, pull)
        for j in moving:
            step = np.zeros_like(theta)
            step[:, j] = 1e-6
            up, down = law.value_and_jacobian(theta + step, points), law.value_and_jacobian(theta - step, points)
            assert jacobian[:, j] == pytest.approx((up[0] - down[0]) / 2e-6, abs=1e-8)
            slope = ((up[1] - down[1]) * pull[:, None, :]).sum(axis=-1) / 2e-6
            assert curvature[:, j, list(moving)] == pytest.approx(slope[:, list(moving)], abs=1e-6)
        # What has no derivative is not moved.
        assert not jacobian[:, [j for j in range(theta.shape[1]) if j not in moving]].any()


# --- fits ---


@pytest.mark.parametrize("share", ["none", "exponents", "partial"])
def test_planted_laws_are_recovered_without_noise(share):
    columns, truth = study()
    found = fit_mixtures(LAW, **columns, share=share)
    assert list(found.fits) == list(truth)
    assert found.identifiable, found.reasons
    for label, params in truth.items():
        assert found.params[label] == pytest.approx(params, rel=1e-3)
    assert (found.num_cells, found.num_shared) == (42, 42)


@pytest.mark.parametrize("share", ["exponents", "partial"])
def test_order_names_and_units_change_nothing(share):
    columns, _ = study(num=3, noise=0.003, spread=0.02)
    first = fit_mixtures(LAW, **columns, share=share)
    order = np.random.default_rng(5).permutation(len(columns["N"]))
    mixed = fit_mixtures(LAW, **{name: values[order] for name, values in columns.items()}, share=share)
    assert mixed.params == first.params
    units = {**columns, "N": columns["N"] / 1e6, "D": columns["D"] / 1e9, "loss": columns["loss"] * 1.7}
    units["mixture"] = np.char.add("z", columns["mixture"])
    other = fit_mixtures(LAW, **units, share=share)
    for label, params in first.params.items():
        there = other.params["z" + label]
        assert there["E"] == pytest.approx(1.7 * params["E"], rel=1e-5)
        assert there["alpha"] == pytest.approx(params["alpha"], rel=1e-5)
        assert there["B"] == pytest.approx(1.7 * params["B"] / 1e9 ** params["beta"], rel=1e-4)


def test_shared_exponents_are_the_minimum_of_the_sum_over_mixtures():
    from scipy.optimize import minimize

    columns, _ = study(num=3, noise=0.003, spread=0.03)
    found = fit_mixtures(LAW, **columns, share="exponents")
    total = sum(one.objective for one in found.fits.values())
    assert len({one.params["alpha"] for one in found.fits.values()}) == 1

    def objective(x):
        params = np.concatenate([np.exp(x[:9]).reshape(3, 3), np.tile(x[9:], (3, 1))], axis=1)
        log_loss = [np.log(LAW.predict(row, N=GRID_N, D=GRID_D)) for row in params]
        return 1e6 * solver.rho(np.concatenate(log_loss) - np.log(columns["loss"]), "huber", 1e-3).sum()

    own = [[one.params[name] for name in ("E", "A", "B")] for one in found.fits.values()]
    start = np.append(np.log(own), [found.mean["alpha"], found.mean["beta"]])
    assert objective(start) == pytest.approx(1e6 * total, rel=1e-9)
    search = minimize(objective, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-9})
    assert search.fun >= 1e6 * total * (1 - 1e-7)


def test_a_pooled_fit_is_the_minimum_of_its_penalized_squares():
    from scipy.optimize import least_squares

    columns, truth = study(num=4, noise=0.004, spread=0.03, seed=2)
    found = fit_mixtures(LAW, **columns, share="partial", objective="mse")
    residuals = np.concatenate([one.residuals for one in found.fits.values()])
    sigma = np.sqrt(np.sum(residuals**2) / (len(residuals) - 4 * 5))
    assert sigma == pytest.approx(0.004, rel=0.2)
    for label, one in found.fits.items():
        rows = columns["mixture"] == label

        def penalized(x, loss=columns["loss"][rows]):
            params = np.append(np.exp(x[:3]), x[3:])
            run = np.log(LAW.predict(params, N=GRID_N, D=GRID_D)) - np.log(loss)
            prior = [(x[3 + j] - found.mean[e]) / found.spread[e] for j, e in enumerate(("alpha", "beta"))]
            return np.append(run / sigma, prior)

        start = np.append(np.log([truth[label][name] for name in ("E", "A", "B")]), [0.34, 0.33])
        search = least_squares(penalized, start, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14)
        # The noise of the last round stands in the fit, that of its end in this check.
        assert search.x[3:] == pytest.approx([one.params["alpha"], one.params["beta"]], abs=2e-4)
        assert np.exp(search.x[0]) == pytest.approx(one.params["E"], rel=1e-3)


def test_mean_and_spread_maximize_the_restricted_likelihood():
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    roots = rng.normal(size=(6, 2, 2))
    variances = 0.001 * roots @ roots.swapaxes(1, 2) + 0.0005 * np.eye(2)
    values = np.array([0.3, 0.4]) + 0.05 * rng.normal(size=(6, 2))
    information = np.linalg.inv(variances)
    mean, spread = _mean_and_spread(information, (information @ values[..., None])[..., 0])

    def lost(log_spread):
        # One multivariate normal of all six, with the mean profiled out by an explicit projection.
        whole = np.zeros((12, 12))
        for k in range(6):
            whole[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = variances[k] + np.diag(np.exp(2 * log_spread))
        design, inverse = np.tile(np.eye(2), (6, 1)), np.linalg.inv(whole)
        inner = design.T @ inverse @ design
        centre = np.linalg.solve(inner, design.T @ inverse @ values.ravel())
        gap = values.ravel() - design @ centre
        return (
            np.linalg.slogdet(whole)[1] + np.linalg.slogdet(inner)[1] + gap @ inverse @ gap - 2 * log_spread.sum()
        ), centre

    best = minimize(lambda x: lost(x)[0], np.log([0.05, 0.05]), method="Nelder-Mead", options={"xatol": 1e-8})
    assert spread == pytest.approx(np.exp(best.x), rel=1e-3)
    assert mean == pytest.approx(lost(best.x)[1], rel=1e-4)


@pytest.mark.parametrize("objective", ["mse", "huber"])
def test_what_a_mixture_alone_would_say_is_read_off_a_shared_fit(objective):
    columns, _ = study(num=4, noise=1e-4, spread=0.01, seed=6)
    options = {"objective": objective, "delta": 0.05}  # so wide that Huber's function is a square here
    shared = fit_mixtures(LAW, **columns, share="exponents", **options)
    alone = fit_mixtures(LAW, **columns, share="none", **options)
    pool = shared._pool
    theta = {
        label: pool.points[label].to_theta(LAW, LAW.as_array(one.params))[None] for label, one in shared.fits.items()
    }
    variance, kappa = pool.noise({label: one[0] for label, one in theta.items()})
    information, moments = pool._linearized(theta, None, variance, kappa)
    read = np.linalg.solve(information[:, 0], moments[:, 0, :, None])[..., 0]
    there = np.array([[one.params[name] for name in ("alpha", "beta")] for one in alone.fits.values()])
    here = np.array([shared.mean["alpha"], shared.mean["beta"]])
    assert np.abs(there - here).max() > 0.005
    assert np.abs(read - there).max() < 0.1 * np.abs(there - here).max()


def test_pooling_goes_as_far_as_the_runs_ask():
    alike = fit_mixtures(LAW, **study(num=6, noise=0.003, seed=4)[0])
    unlike = fit_mixtures(LAW, **study(num=6, noise=0.0005, spread=0.08, seed=4)[0])
    assert max(alike.spread.values()) < 0.02
    assert 0.04 < unlike.spread["beta"] < 0.16
    alone = fit_mixtures(LAW, **study(num=6, noise=0.0005, spread=0.08, seed=4)[0], share="none")
    for label in alone.fits:
        assert unlike.params[label]["beta"] == pytest.approx(alone.params[label]["beta"], abs=0.01)


def test_sharing_narrows_the_differences_of_constants():
    errors = {"none": [], "exponents": [], "partial": []}
    for seed in range(8):
        columns, truth = study(num=4, noise=0.002, common=0.002, seed=seed)
        for share, kept in errors.items():
            found = fit_mixtures(LAW, **columns, share=share).params
            for a, b in itertools.combinations(truth, 2):
                kept.append(found[a]["E"] - found[b]["E"] - (truth[a]["E"] - truth[b]["E"]))
    rms = {share: float(np.sqrt(np.mean(np.square(kept)))) for share, kept in errors.items()}
    assert rms["exponents"] < rms["none"] / 4
    assert rms["partial"] < 0.75 * rms["none"]


# --- resamples ---


@pytest.mark.parametrize(("share", "factor"), [("none", 0.6), ("exponents", 0.6), ("partial", 0.85)])
def test_pairing_cancels_what_mixtures_share(share, factor):
    columns, _ = study(num=3, noise=0.001, common=0.003, seed=1)
    widths = {}
    for paired in (True, False):
        drawn = fit_mixtures(LAW, **columns, share=share, paired=paired).bootstrap(300, seed=2)
        assert drawn.solved.mean() > 0.98
        low, high = drawn.predict_difference("m0", "m1", N=1e9, D=1e12)
        widths[paired] = float(high - low)
    # What a mixture's exponents may differ by is its own, so less cancels where they are pooled.
    assert widths[True] < factor * widths[False]


def test_draws_follow_the_seed_and_not_the_order_of_rows():
    columns, _ = study(num=3, noise=0.003)
    found = fit_mixtures(LAW, **columns)
    order = np.random.default_rng(1).permutation(len(columns["N"]))
    mixed = fit_mixtures(LAW, **{name: values[order] for name, values in columns.items()})
    first, second = found.bootstrap(20, seed=3), mixed.bootstrap(20, seed=3)
    assert np.array_equal(first.members["m1"].params, second.members["m1"].params)
    assert not np.array_equal(first.members["m1"].params, found.bootstrap(20, seed=4).members["m1"].params)
    by_size = found.bootstrap(20, unit="N")
    assert by_size.members["m0"].num_units == 6


def test_a_cell_is_drawn_as_often_in_every_mixture_that_has_it():
    columns, _ = study(num=3, noise=0.002)
    keep = (columns["mixture"] != "m1") | (columns["D"] < 5e10)
    found = fit_mixtures(LAW, **{name: values[keep] for name, values in columns.items()}, share="exponents")
    assert (found.num_cells, found.num_shared) == (42, 30)
    counts = found._pool.draw(50, 0, None, True)
    cells = {}
    for label, points in found._pool.points.items():
        one = found.fits[label]
        cells[label] = list(zip(one.N[points.order].tolist(), one.D[points.order].tolist(), strict=True))
    for k, cell in enumerate(cells["m1"]):
        assert np.array_equal(counts["m1"][:, k], counts["m0"][:, cells["m0"].index(cell)])
    assert np.array_equal(counts["m0"], counts["m2"])
    alone = found._pool.draw(50, 0, None, False)
    assert (alone["m1"].sum(axis=1) == 30).all() and not np.array_equal(alone["m0"], alone["m2"])


def test_seeds_make_twins():
    columns, _ = study(num=2, noise=0.002)
    both = {name: np.concatenate([values, values]) for name, values in columns.items()}
    both["loss"] = both["loss"] * np.exp(0.001 * np.random.default_rng(0).standard_normal(len(both["loss"])))
    found = fit_mixtures(LAW, **both, seed=np.repeat([1, 2], len(columns["N"])), share="exponents")
    assert (found.num_cells, found.num_shared) == (84, 84)


# --- order and ties ---


def test_simultaneous_intervals_are_those_of_the_greatest_of_several_normals():
    from scipy.special import ndtri

    rng = np.random.default_rng(0)
    values = {f"m{k}": 2 + 0.01 * rng.standard_normal(200_000) for k in range(5)}
    ranking = rank_values("E", dict.fromkeys(values, 2.0), values, 10**6, 0.95)
    expected = 0.01 * ndtri((1 + 0.95 ** (1 / 5)) / 2)
    assert ranking.high - ranking.values == pytest.approx(expected, rel=0.01)
    assert ranking.groups == (("m0", "m1", "m2", "m3", "m4"),)
    assert set(ranking.places) == {(1, 5)}


def test_ties_are_sets_that_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    points = {"far": 3.0, "low": 1.0, "middle": 1.03, "high": 1.06}
    values = {label: value + 0.01 * rng.standard_normal(4000) for label, value in points.items()}
    ranking = rank_values("E", points, values, 10**6, 0.95)
    assert ranking.labels == ("low", "middle", "high", "far")
    assert ranking.groups == (("low", "middle"), ("middle", "high"), ("far",))
    assert ranking.places == ((1, 2), (1, 3), (2, 3), (4, 4))
    assert ranking.pair("high", "low").told_apart and ranking.pair("high", "low").difference > 0
    assert ranking.pair("low", "high").low == -ranking.pair("high", "low").high
    assert not ranking.pair("low", "middle").told_apart
    assert "1-2 low" in str(ranking) and "ab" in str(ranking)
    assert ranking.to_dict()["ties"] == [["low", "middle"], ["middle", "high"], ["far"]]


def test_a_study_is_ranked_by_its_constant_or_by_a_loss():
    columns, _ = study(num=4, noise=0.001, common=0.002, gap=0.05)
    found = fit_mixtures(LAW, **columns, share="exponents")
    drawn = found.bootstrap(300)
    ranking = found.rank(drawn)
    assert ranking.labels == ("m0", "m1", "m2", "m3")
    assert ranking.groups == (("m0",), ("m1",), ("m2",), ("m3",))
    early = found.rank(drawn, N=1e9, D=2e9)
    assert early.of == "loss at N 1e+09, D 2e+09"
    assert early.values == pytest.approx([found.fits[label].predict(N=1e9, D=2e9) for label in early.labels])
    assert "4 mixtures, exponents shared by all" in str(found)
    plain = found.to_dict()
    assert plain["mixtures"]["m2"]["params"] == found.params["m2"]


# --- bad input ---


def test_what_cannot_be_pooled_is_refused():
    columns, _ = study(num=2, noise=0.002)
    with pytest.raises(ValueError, match="share is one of"):
        fit_mixtures(LAW, **columns, share="all")
    with pytest.raises(ValueError, match="several mixtures are needed"):
        fit_mixtures(LAW, **{**columns, "mixture": ["a"] * len(columns["N"])})
    with pytest.raises(ValueError, match="no constant plus power-law terms"):
        fit_mixtures(KaplanLaw(), **columns, share="exponents")
    with pytest.raises(ValueError, match="huber or mse"):
        fit_mixtures(LAW, **columns, objective="lad")
    with pytest.raises(ValueError, match="labels of mixtures"):
        fit_mixtures(LAW, **{**columns, "mixture": ["a", "b"]})
    with pytest.raises(ValueError, match="mixture m1: loss must be positive"):
        fit_mixtures(LAW, **{**columns, "loss": np.append(columns["loss"][:-1], np.nan)})
    apart = {**columns, "D": np.where(columns["mixture"] == "m0", columns["D"], 1.1 * columns["D"])}
    with pytest.raises(ValueError, match="no cell in common"):
        fit_mixtures(LAW, **apart)
    assert fit_mixtures(LAW, **apart, paired=False).num_shared == 0
    found = fit_mixtures(LAW, **columns)
    with pytest.raises(ValueError, match="part of a joint fit"):
        found.fits["m0"]._points()
    with pytest.raises(ValueError, match="unit names a variable"):
        found.bootstrap(10, unit="seed")
    assert any("little about the spread" in warning for warning in found.warnings)


@pytest.mark.parametrize("share", ["exponents", "partial"])
def test_a_mixture_of_one_size_is_tied_with_all(share):
    columns, _ = study(num=4, noise=0.001, common=0.001, gap=0.1)
    keep = (columns["mixture"] != "m3") | (columns["N"] == 1e9)
    found = fit_mixtures(LAW, **{name: values[keep] for name, values in columns.items()}, share=share)
    assert [label for label, one in found.fits.items() if not one.identifiable] == ["m3"]
    drawn = found.bootstrap(200)
    ranking = found.rank(drawn)
    assert [group for group in ranking.groups if "m3" in group] == list(ranking.groups)
    assert ranking.pair("m0", "m2").told_apart and not ranking.pair("m0", "m3").told_apart
    assert "not determined" in str(ranking)
    assert ranking.to_dict()["mixtures"][ranking.labels.index("m3")]["interval"] == [None, None]
    # Where it was run, its loss is as good as any.
    at = found.rank(drawn, N=1e9, D=1e10)
    assert at.pair("m0", "m3").told_apart and at.places[at.labels.index("m3")] == (4, 4)


def test_speed_ups_and_crossings_by_label():
    columns, _ = study(num=2, noise=0.001, gap=-0.03)
    found = fit_mixtures(LAW, **columns, share="exponents")
    drawn = found.bootstrap(100)
    result = found.speedup("m0", "m1", [1e10, 1e11], N=1e9, resamples=drawn)
    assert (result.low < result.factor).all() and (result.factor > 1).all()
    assert found.speedup("m0", "m1", 1e10, N=1e9).low is None
    assert found.crossing("m0", "m1", N=1e9, resamples=drawn).names == ("m0", "m1")
    with pytest.raises(ValueError, match="there are mixtures m0, m1; got 'm2'"):
        found.speedup("m0", "m2", 1e10, N=1e9)


def test_a_constant_at_zero_is_named_with_its_mixture():
    columns, _ = study(num=2)
    rows = columns["mixture"] == "m1"
    columns["loss"] = np.where(rows, 30 / columns["N"] ** 0.1 + 30 / columns["D"] ** 0.1, columns["loss"])
    found = fit_mixtures(LAW, **columns, share="none")
    assert not found.identifiable
    assert any(reason.startswith("m1: ") for reason in found.reasons)
    assert "NOT IDENTIFIABLE" in str(found)


# --- public tables ---


def held_out_pairs(N, D, loss, corpus, cell, test, share, law=LAW):
    """(relative errors of the losses, errors of ln of ratios of corpora, rank correlations) on the runs held out."""
    from scipy.stats import spearmanr

    found = fit_mixtures(
        law, N=N[~test], D=D[~test], loss=loss[~test], mixture=corpus[~test], share=share, paired=False
    )
    foretold = np.array([found.fits[str(corpus[k])].predict(N=N[k], D=D[k]) for k in np.flatnonzero(test)])
    observed, keys = loss[test], cell[test]
    pairs, ranks = [], []
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        pairs += [
            abs(np.log(foretold[a] / foretold[b]) - np.log(observed[a] / observed[b]))
            for a, b in itertools.combinations(rows, 2)
        ]
        if len(rows) > 2:
            ranks.append(spearmanr(foretold[rows], observed[rows]).statistic)
    return np.abs(foretold - observed) / observed, pairs, ranks


def errors_of(table, columns, corpus, cell, test, share):
    levels, pairs, ranks = [], [], []
    for column in columns:
        rows = np.isfinite(table[column])
        level, pair, rank = held_out_pairs(
            table["params"][rows],
            table["tokens"][rows],
            table[column][rows],
            corpus[rows],
            cell[rows],
            test[rows],
            share,
        )
        levels, pairs, ranks = levels + level.tolist(), pairs + pair, ranks + rank
    return float(np.mean(levels)), np.array(pairs), float(np.mean(ranks))


def test_differences_of_corpora_are_foretold_at_a_budget_twenty_times_as_large(shared_table):
    table = shared_table("kempner_loss_to_loss")
    test = table["flops"] > 5e19
    errors = {
        share: errors_of(table, ["loss_c4"], table["data"], table["params"], test, share)
        for share in ("none", "partial")
    }
    level, pairs, rank = errors["partial"]
    assert pairs.mean() <= 0.009  # losses themselves err by 2.7 %
    assert pairs.mean() < level / 2.5
    assert rank >= 0.95
    assert pairs.mean() <= errors["none"][1].mean()


@pytest.mark.slow
def test_pooling_is_no_worse_on_any_table_of_several_corpora(shared_table):
    kempner, gadre = shared_table("kempner_loss_to_loss"), shared_table("gadre_overtraining")
    sets = {
        "kempner": (kempner, [c for c in kempner if c.startswith("loss_")] + ["own_val_loss"], kempner["data"],
                    kempner["params"], kempner["flops"] > 5e19),
        "gadre": (gadre, ["loss_openlm", "loss_c4_val", "loss_paloma_c4_en", "loss_paloma_redpajama"],
                  gadre["dataset"], gadre["params"] * 1e4 + gadre["chinchilla_multiplier"], gadre["params"] > 1e9),
    }  # fmt: skip
    for name, (table, columns, corpus, cell, test) in sets.items():
        found = {share: errors_of(table, columns, corpus, cell, test, share) for share in ("none", "partial")}
        for share, (level, pairs, rank) in found.items():
            print(f"{name} {share}: losses {100 * level:.2f} %, differences mean {100 * pairs.mean():.2f} %, "
                  f"median {100 * np.median(pairs):.2f} %, rank {rank:.3f}")  # fmt: skip
        assert found["partial"][1].mean() <= found["none"][1].mean()
        assert np.median(found["partial"][1]) <= {"kempner": 0.009, "gadre": 0.018}[name]
        assert found["partial"][2] >= {"kempner": 0.95, "gadre": 0.9}[name]


# --- coverage ---


@pytest.mark.slow
@pytest.mark.parametrize(("share", "spread"), [("none", 0.0), ("exponents", 0.0), ("partial", 0.02)])
def test_intervals_of_constants_and_their_differences_cover(share, spread):
    one, difference, together, pairs = [], [], [], []
    for seed in range(50):
        columns, truth = study(num=3, noise=0.002, common=0.002, spread=spread, seed=seed)
        found = fit_mixtures(LAW, **columns, share=share)
        drawn = found.bootstrap(200, seed=seed)
        ranking = found.rank(drawn)
        E = {label: params["E"] for label, params in truth.items()}
        for label, member in drawn.members.items():
            low, high = member.interval("E", kind="t")
            one.append(low <= E[label] <= high)
        for a, b in itertools.combinations(E, 2):
            low, high = drawn.difference("E", a, b)
            difference.append(low <= E[a] - E[b] <= high)
        rows = zip(ranking.labels, ranking.low, ranking.high, strict=True)
        together.append(all(low <= E[label] <= high for label, low, high in rows))
        pairs.append(all(pair.low <= E[pair.first] - E[pair.second] <= pair.high for pair in ranking.pairs))
    # 50 studies: 0.95 has a standard error of 0.031 in the last two, and what they say of all at once is one-sided.
    assert 0.91 <= np.mean(one) <= 0.995 and 0.92 <= np.mean(difference) <= 0.995
    assert np.mean(together) >= 0.88 and np.mean(pairs) >= 0.88
