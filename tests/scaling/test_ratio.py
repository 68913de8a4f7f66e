"""The best ratio: found where it was planted, with an interval that holds it, moved by what a source can give."""

import json

import numpy as np
import pytest

from lingua_synth.scaling import (
    JointLaw,
    LogQuadraticLaw,
    MixtureLaw,
    best_ratio,
    best_ratio_in_cell,
    bootstrap,
    fit,
)

SIZES, BUDGETS = np.array([1e8, 2e8, 4e8, 1e9, 2e9, 3e9]), np.array([1e10, 5e10, 2e11])
RATIOS = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.67, 0.8, 1.0])
NOISE = 0.002
TOKENS = MixtureLaw(interaction=False)
PLANTED = {
    "E": 1.9, "e1": -0.02, "e2": 0.12, "A": 410.0, "a": 0.05, "alpha": 0.34, "B": 1500.0, "beta": 0.33, "tau": 0.9,
    "gamma": 0.7,
}  # fmt: skip
SHORT = LogQuadraticLaw(interaction=False)
PLANTED_SHORT = {name: PLANTED[name] for name in ("E", "e1", "e2", "A", "a", "alpha", "B", "beta")} | {
    "b1": -0.75,
    "b2": 0.9,
}
NODES = np.linspace(0, 1, 10_001)


def grid(ratios=RATIOS):
    """One run at every size, budget and ratio: the design of a study with 18 cells."""
    N, D, r = (axis.ravel() for axis in np.meshgrid(SIZES, BUDGETS, ratios, indexing="ij"))
    return {"N": N, "D": D, "r": r}


def noisy(law, params, runs, seed, noise=NOISE):
    return law.predict(params, **runs) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(runs["r"])))


def planted(law, params, N, D):
    return float(NODES[np.argmin(law.predict(params, N=N, D=D, r=NODES))])


@pytest.fixture(scope="module")
def one_fit():
    runs = grid()
    return fit(MixtureLaw(), **runs, loss=noisy(TOKENS, PLANTED, runs, 0), objective="mse")


def test_a_law_without_noise_gives_the_planted_ratio():
    runs = grid()
    fitted = fit(TOKENS, **runs, loss=TOKENS.predict(PLANTED, **runs), objective="mse")
    for N, D in ((1e8, 1e10), (3e9, 2e11), (7e9, 2e12)):
        found = best_ratio(fitted, N, D, n=0)
        assert found.ratio == pytest.approx(planted(TOKENS, PLANTED, N, D), abs=1e-4)
        assert found.loss == pytest.approx(TOKENS.predict(PLANTED, N=N, D=D, r=NODES).min(), rel=1e-9)
        assert found.interval is None and not found.at_edge
    assert found.extrapolation_factor == pytest.approx(10) and found.cell is None
    inside = best_ratio(fitted, 1e9, 5e10, n=0)
    assert inside.extrapolation_factor == 1 and inside.cell.grid_ratio == 0.2
    expected = TOKENS.predict(PLANTED, N=1e9, D=5e10, r=0.2) / inside.loss - 1
    assert inside.cell_regret == pytest.approx(expected, rel=1e-4) == inside.regrets[0.2]


def errors(law, params, candidate, seeds):
    """(errors of the best ratio by the law, by the quadratics and by the lowest runs; the excess losses of each)."""
    runs, off, cost = grid(), [], []
    for seed in seeds:
        fitted = fit(candidate, **runs, loss=noisy(law, params, runs, seed), objective="mse")
        for N in SIZES:
            for D in BUDGETS:
                true = planted(law, params, N, D)
                found = best_ratio(fitted, N, D, n=0, rivals=False)
                chosen = np.array([found.ratio, found.cell.ratio, found.cell.grid_ratio])
                off.append(chosen - true)
                cost.append(law.predict(params, N=N, D=D, r=chosen) / law.predict(params, N=N, D=D, r=true) - 1)
    return np.sqrt(np.mean(np.square(off), axis=0)), np.mean(cost, axis=0)


@pytest.mark.parametrize(
    ("law", "params", "candidate", "limit"),
    [
        (TOKENS, PLANTED, MixtureLaw(), 0.02),
        (SHORT, PLANTED_SHORT, LogQuadraticLaw(), 0.02),
        (TOKENS, PLANTED, LogQuadraticLaw(), 0.055),
        (SHORT, PLANTED_SHORT, MixtureLaw(), 0.055),
    ],
    ids=["right", "right, short", "wrong", "wrong, tokens"],
)
def test_closer_than_the_lowest_run_whatever_the_law(law, params, candidate, limit):
    """180 runs at 0.2 % noise, each cell's best ratio against the planted one."""
    (error, _, lowest_error), (regret, _, lowest_regret) = errors(law, params, candidate, range(2))
    assert error <= limit and error < lowest_error
    assert regret <= 0.0003 and regret <= lowest_regret / 2


@pytest.mark.slow
@pytest.mark.parametrize("ratios", [RATIOS, np.array([0, 0.33, 0.67, 1.0])], ids=["10 ratios", "4 ratios"])
def test_intervals_hold_the_planted_ratio(ratios):
    """120 studies: the 95 % interval of the best ratio, inside the runs and ten times beyond them."""
    runs = grid(ratios)
    places = [(1e8, 1e10), (1e9, 5e10), (3e9, 2e11), (7e9, 2e12)]
    true = [planted(TOKENS, PLANTED, N, D) for N, D in places]
    held, off = np.zeros((120, len(places)), dtype=bool), np.zeros((120, len(places)))
    for seed in range(120):
        fitted = fit(MixtureLaw(), **runs, loss=noisy(TOKENS, PLANTED, runs, seed), objective="mse")
        resamples = bootstrap(fitted, n=200, seed=seed)
        for k, (N, D) in enumerate(places):
            found = best_ratio(fitted, N, D, resamples=resamples, rivals=False)
            held[seed, k] = found.interval[0] <= true[k] <= found.interval[1]
            off[seed, k] = found.ratio - true[k]
    assert ((held.mean(axis=0) >= 0.90) & (held.mean(axis=0) <= 0.98)).all(), held.mean(axis=0)
    assert (np.sqrt(np.mean(off**2, axis=0))[:3] <= 0.02).all()


def test_what_is_flat_and_what_is_known(one_fit):
    found = best_ratio(one_fit, 1e9, 5e10, n=200)
    again = best_ratio(one_fit, 1e9, 5e10, resamples=bootstrap(one_fit, n=200))
    assert again.interval == found.interval and again.ratio == found.ratio, "seeds say everything"
    low, high = found.interval
    assert low < found.ratio < high
    wider = best_ratio(one_fit, 1e9, 5e10, resamples=bootstrap(one_fit, n=200), level=0.99)
    assert wider.interval[0] <= low and high <= wider.interval[1]
    # One run scatters by 0.2 %: the ends of `flat` lose that much, and what is outside more.
    assert found.noise == pytest.approx(NOISE, rel=0.15)
    for end in found.flat:
        assert one_fit.predict(N=1e9, D=5e10, r=end) / found.loss == pytest.approx(np.exp(found.noise), abs=1e-5)
    assert found.flat[1] - found.flat[0] > 5 * (high - low), "runs know the optimum better than one run shows it"
    assert best_ratio(one_fit, 1e9, 5e10, n=0, noise=0.0).flat == (found.ratio, found.ratio)
    assert set(found.under) == {"mixture", "log_quadratic"} and found.under["mixture"] == found.ratio
    assert min(found.regrets, key=found.regrets.get) == 0.2 and list(found.regrets) == RATIOS.tolist()
    told = json.dumps(found.to_dict())
    assert "log_quadratic" in told and "95 % interval" in str(found) and "lowest measured here" in str(found)


def test_a_law_that_follows_the_runs_worse_is_told_so():
    runs = grid()
    for law, params, right, wrong in (
        (SHORT, PLANTED_SHORT, LogQuadraticLaw(), MixtureLaw()),
        (TOKENS, PLANTED, MixtureLaw(), LogQuadraticLaw()),
    ):
        loss = noisy(law, params, runs, 4)
        for objective in ("mse", "huber"):
            good, bad = (
                best_ratio(fit(candidate, **runs, loss=loss, objective=objective), 1e9, 5e10, n=0)
                for candidate in (right, wrong)
            )
            assert not good.warnings
            assert f"{type(right).__name__} follows these runs better" in bad.warnings[0]
            assert bad.under[right.name] == pytest.approx(good.ratio, abs=1e-4)


def test_the_order_of_runs_plays_no_part(one_fit):
    runs, order = grid(), np.random.default_rng(0).permutation(180)
    loss = noisy(TOKENS, PLANTED, runs, 0)
    other = fit(MixtureLaw(), **{k: v[order] for k, v in runs.items()}, loss=loss[order], objective="mse")
    one, two = (best_ratio(f, 2e9, 1e11, n=50).to_dict() for f in (one_fit, other))
    assert one == two


def test_an_optimum_at_the_edge_is_called_that(one_fit):
    found = best_ratio(one_fit, 1e9, 5e10, n=0, within=(0.5, 1.0))
    assert found.at_edge and found.ratio == 0.5 and "at the edge" in str(found)
    params = PLANTED | {"e1": -0.4, "e2": 0.0}
    runs = grid(RATIOS[:6])
    fitted = fit(TOKENS, **runs, loss=TOKENS.predict(params, **runs))
    assert best_ratio(fitted, 1e9, 5e10, n=0).at_edge
    beyond = best_ratio(fitted, 1e9, 5e10, n=0, within=(0, 1))
    assert any("ratios from 0 to 0.4; beyond them" in warning for warning in beyond.warnings)


def capped_best(U, R, N, D):
    """The planted best ratio when sources run out, from the definition."""
    tokens = {"natural": (1 - NODES) * D, "synthetic": NODES * D}
    worth = {}
    for source, used in tokens.items():
        unique = np.minimum(used, U.get(source, np.inf))
        repeats = np.where(used > 0, used / np.where(unique > 0, unique, 1), 1) - 1
        worth[source] = unique * (1 + R * (1 - np.exp(-repeats / R)))
    g, p = PLANTED["gamma"], PLANTED
    total = (worth["natural"] ** g + p["tau"] * worth["synthetic"] ** g) ** (1 / g)
    floor = p["e1"] * NODES + p["e2"] * NODES**2 + p["A"] * np.exp(p["a"] * NODES) / N ** p["alpha"]
    return float(NODES[np.argmin(floor + p["B"] / total ** p["beta"])])


def test_a_corpus_that_runs_out_moves_the_best_ratio():
    runs = grid()
    fitted = fit(TOKENS, **runs, loss=TOKENS.predict(PLANTED, **runs), objective="mse")
    N, D = 3e9, 2e11
    free = best_ratio(fitted, N, D, n=0)
    assert best_ratio(fitted, N, D, n=0, U={"natural": 2e11, "synthetic": 2e11}).ratio == free.ratio
    last = free.ratio
    for U in (5e10, 1e10, 2e9):
        capped = best_ratio(fitted, N, D, n=0, U={"natural": U}, R={"natural": 8.0})
        assert capped.ratio == pytest.approx(capped_best({"natural": U}, 8.0, N, D), abs=2e-4)
        assert capped.ratio > last + 0.01 and not capped.warnings
        last = capped.ratio
    fewer = best_ratio(fitted, N, D, n=0, U={"synthetic": 1e9}, R={"synthetic": 8.0})
    assert fewer.ratio == pytest.approx(capped_best({"synthetic": 1e9}, 8.0, N, D), abs=2e-4)
    assert fewer.ratio < free.ratio - 0.01
    guessed = best_ratio(fitted, N, D, n=0, U={"natural": 1e10})
    assert guessed.R == {"natural": 15.39} and guessed.cell is None
    assert any("R = 15.39" in warning and "4 gives" in warning for warning in guessed.warnings)
    assert "1e+10 unique natural tokens" in str(guessed)
    half = best_ratio(fitted, N, D, n=0, U={"natural": 1e10, "synthetic": 1e9}, R={"natural": 8.0})
    assert half.R == {"natural": 8.0, "synthetic": 15.39} and "of repeats (synthetic)" in half.warnings[0]


def test_repeats_that_the_runs_show():
    """Fitted to runs that repeat natural text, the law needs no R from elsewhere."""
    law = MixtureLaw(interaction=False, repetition=True)
    params = PLANTED | {"R_natural": 8.0, "R_synthetic": 3.0}
    runs = grid()
    rng = np.random.default_rng(0)
    runs |= {"U_natural": 10 ** rng.uniform(9, 11, 180), "U_synthetic": 10 ** rng.uniform(9, 11, 180)}
    fitted = fit(law, **runs, loss=law.predict(params, **runs), objective="mse")
    found = best_ratio(fitted, 3e9, 2e11, n=0, U={"natural": 1e10})
    assert found.ratio == pytest.approx(capped_best({"natural": 1e10}, 8.0, 3e9, 2e11), abs=2e-4)
    assert best_ratio(fitted, 3e9, 2e11, n=0).ratio == pytest.approx(planted(TOKENS, PLANTED, 3e9, 2e11), abs=2e-4)
    with pytest.raises(ValueError, match="its runs say it, so leave it out"):
        best_ratio(fitted, 3e9, 2e11, U={"natural": 1e10}, R={"natural": 8.0})


def test_what_has_no_best_ratio(one_fit):
    joint = fit(JointLaw(), N=SIZES.repeat(3), D=np.tile(BUDGETS, 6), loss=np.linspace(4, 2, 18))
    with pytest.raises(ValueError, match=r"JointLaw .* has no ratio r; fit MixtureLaw"):
        best_ratio(joint, 1e9, 1e10)
    with pytest.raises(ValueError, match="use best_ratio_in_cell"):
        best_ratio([0, 0.5, 1], [3.0, 2.9, 3.1])
    with pytest.raises(ValueError, match="D is needed"):
        best_ratio(one_fit, 1e9)
    with pytest.raises(ValueError, match="one D at a time"):
        best_ratio(one_fit, 1e9, [1e10, 1e11])
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1; got \(0.5, 33\)"):
        best_ratio(one_fit, 1e9, 1e10, within=(0.5, 33))
    with pytest.raises(ValueError, match="given by source"):
        best_ratio(one_fit, 1e9, 1e10, U=1e10)
    with pytest.raises(ValueError, match="without U nothing repeats"):
        best_ratio(one_fit, 1e9, 1e10, R={"natural": 5.0})
    with pytest.raises(ValueError, match="a bootstrap of another fit"):
        best_ratio(one_fit, 1e9, 1e10, resamples=bootstrap(joint, n=20))
    with pytest.raises(ValueError, match="level is a share"):
        best_ratio(one_fit, 1e9, 1e10, level=95)
    runs = grid()
    other = fit(LogQuadraticLaw(), **runs, loss=noisy(TOKENS, PLANTED, runs, 0), objective="mse")
    with pytest.raises(ValueError, match="does not count tokens"):
        best_ratio(other, 1e9, 1e10, U={"natural": 1e10})
    few = grid(np.array([0, 0.5, 1.0]))
    three = fit(SHORT, **few, loss=SHORT.predict(PLANTED_SHORT, **few))
    assert any("only 3 different ratios" in warning for warning in best_ratio(three, 1e9, 1e10, n=0).warnings)


# --- one cell ---


def test_a_score_is_highest_where_its_negative_is_lowest():
    ratio = np.array([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    score = 0.12 - 0.05 * (ratio - 0.7) ** 2
    best = best_ratio_in_cell(ratio, score, maximize=True)
    assert best.ratio == pytest.approx(0.7) and best.loss == pytest.approx(0.12) and best.grid_ratio in (0.6, 0.8)
    assert np.polynomial.Polynomial(best.coefficients)(ratio) == pytest.approx(score)
    mirrored = best_ratio_in_cell(ratio, 1 - score)
    assert mirrored.ratio == pytest.approx(best.ratio) and mirrored.loss == pytest.approx(1 - best.loss)
    assert best.interval == pytest.approx((0.7, 0.7), abs=1e-3), "no scatter, no width"
    assert "score 0.12" in str(best) and best_ratio_in_cell(ratio, -score, maximize=True).at_edge
    assert best_ratio_in_cell(ratio[:3], score[:3], maximize=True).interval is None


def test_intervals_of_a_quadratic_hold_its_optimum():
    """4,000 cells with a planted quadratic: Fieller's interval is exact, up to the ends of the grid."""
    rng = np.random.default_rng(0)
    ratio = np.repeat(RATIOS, 2)
    for vertex in (0.4, 0.8):
        held = 0
        for _ in range(2000):
            loss = 3 + 0.3 * (ratio - vertex) ** 2 + 0.01 * rng.standard_normal(20)
            low, high = best_ratio_in_cell(ratio, loss).interval
            held += low <= vertex <= high
        assert 0.938 <= held / 2000 <= 0.965


def test_noise_alone_has_no_best_ratio():
    rng = np.random.default_rng(1)
    widths = []
    for _ in range(200):
        low, high = best_ratio_in_cell(RATIOS, 3 + 0.01 * rng.standard_normal(10)).interval
        widths.append(high - low)
    assert np.mean(np.array(widths) > 0.9) > 0.8


def test_scores_of_rephrased_text(shared_table):
    """Four styles at nine ratios: scores want far more rephrased text than the loss, and the table says how surely."""
    table = shared_table("finephrase_ratio_sweep")
    expected = {"faq": (0.6, 0.76), "math": (0.8, 0.87), "table": (0.7, 0.85), "tutorial": (0.6, 0.78)}
    natural = table["synthetic_fraction"] == 0
    for style, (grid_ratio, optimum) in expected.items():
        mixed = np.char.startswith(table["synthetic"], style)
        best, with_natural = (
            best_ratio_in_cell(table["synthetic_fraction"][rows], table["agg_score_macro"][rows], maximize=True)
            for rows in (mixed, mixed | natural)
        )
        assert best.grid_ratio == with_natural.grid_ratio == pytest.approx(grid_ratio)
        assert best.ratio == pytest.approx(optimum, abs=0.01) and not best.warnings
        assert 0.5 < best.interval[0] < best.ratio < best.interval[1] <= 0.9
        # The first tenth of rephrased text lifts the score by a quarter: no quadratic goes through that.
        assert with_natural.ratio < 0.7
        if style != "tutorial":
            assert "bends too fast near a ratio of 0" in with_natural.warnings[0]
