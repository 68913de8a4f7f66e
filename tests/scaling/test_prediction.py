"""Intervals for new runs: by hand, refusals, and the held-out budgets of the public tables."""

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, TRUTH
from scipy import stats

from lingua_synth.scaling import (
    DataLaw,
    InteractionLaw,
    JointLaw,
    choose_law,
    fit,
    fit_ensemble,
    prediction_interval,
    rolling_errors,
)


def joint(noise=0.003, seed=0, law=None, order=slice(None)):
    loss = JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(42))
    return fit(law or JointLaw(), N=GRID_N[order], D=GRID_D[order], loss=loss[order])


def test_the_interval_by_hand():
    D = np.geomspace(1e9, 1e11, 10)
    loss = DataLaw().predict({"E_at_N": 2.4, "B": 1500.0, "beta": 0.33}, D=D) * (1 + 0.002 * np.sin(3 * np.arange(10)))
    found = prediction_interval(fit(DataLaw(), D=D, loss=loss), D=[4e11, 3e10], level=0.9)
    scores = []
    for k in (4, 5, 6, 7, 8, 9):
        earlier = fit(DataLaw(), D=D[:k], loss=loss[:k])
        error = np.log(loss[k:] / earlier.predict(D=D[k:])) / (0.2 + np.log(D[k:] / D[k - 1]))
        scores.append(np.mean(error**2))
    full = fit(DataLaw(), D=D, loss=loss)
    half = stats.t.ppf(0.95, 5) * np.sqrt(np.mean(scores)) * (0.2 + np.log(4))
    assert found.half_width[0] == pytest.approx(half, rel=1e-6)
    assert found.low[0] == pytest.approx(full.predict(D=4e11) * np.exp(-half), rel=1e-6)
    assert found.reach.tolist() == pytest.approx([4.0, 1.0])
    noise = np.sqrt(np.sum(full.residuals**2) / 7)
    inside = max(stats.t.ppf(0.95, 5) * np.sqrt(np.mean(scores)) * 0.2, stats.t.ppf(0.95, 7) * noise)
    assert found.half_width[1] == pytest.approx(inside, rel=1e-6)
    assert [origin.num_fitted for origin in found.origins] == [4, 5, 6, 7, 8, 9]
    assert "4 times beyond the runs" in str(found) and found.to_dict()["level"] == 0.9


def test_reach_is_the_farthest_of_size_budget_and_cost():
    found = prediction_interval(joint(), N=[3e9, 6e9, 1e9, 5e7, 6e9], D=[1e11, 1e11, 3e11, 1e10, 2e11])
    assert found.reach == pytest.approx([1, 2, 3, 2, 4])
    assert (np.diff(found.half_width[[0, 1, 2, 4]]) > 0).all()


def test_order_plays_no_part_and_shapes_broadcast():
    order = np.random.default_rng(1).permutation(42)
    one, two = (prediction_interval(joint(order=o), N=[[7e9], [4e11]], D=[1e12, 8e12]) for o in (slice(None), order))
    assert one.predicted.shape == (2, 2)
    assert np.array_equal(one.low, two.low) and np.array_equal(one.high, two.high)
    assert any("extrapolation itself" in warning for warning in one.warnings)


def test_anything_that_predicts_and_refits_is_calibrated():
    class Mean:
        """Losses as their mean."""

        def __init__(self, D, loss):
            self.variables, self.loss = {"D": D}, loss

        def predict(self, D):
            return np.full(np.shape(D), np.exp(np.log(self.loss).mean()))

        def refit(self, rows):
            return Mean(self.variables["D"][rows], self.loss[rows])

    D = np.geomspace(1e9, 1e11, 20)
    rng = np.random.default_rng(0)
    found = prediction_interval(Mean(D, np.exp(1 + 0.01 * rng.standard_normal(20))), D=1e11)
    assert 0.01 < found.half_width < 0.1 and found.low < np.e < found.high


def test_an_ensemble_is_calibrated_as_a_whole():
    one = joint()
    runs = {"N": GRID_N, "D": GRID_D, "loss": one.loss}
    voices = fit_ensemble((JointLaw(), InteractionLaw()), **runs)
    found = prediction_interval(voices, N=[7e9], D=[1e12])
    assert found.predicted == pytest.approx(voices.predict(N=[7e9], D=[1e12]))
    cheapest = np.sort(np.log(GRID_N * GRID_D))[26 - 1] + 1e-9  # 60 %: 26 runs, and those of equal cost
    fitted = np.log(GRID_N * GRID_D) <= cheapest
    origin = next(o for o in found.origins if o.num_fitted == fitted.sum())
    earlier = fit_ensemble((JointLaw(), InteractionLaw()), N=GRID_N[fitted], D=GRID_D[fitted], loss=one.loss[fitted])
    error = np.log(one.loss[~fitted] / earlier.predict(N=GRID_N[~fitted], D=GRID_D[~fitted]))
    assert origin.rms_error == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    choice = choose_law((JointLaw(),), members=(JointLaw(),), **runs)
    assert np.isfinite(prediction_interval(choice, N=7e9, D=1e12).half_width)


def test_runs_that_show_nothing_are_refused():
    with pytest.raises(ValueError, match="only 0 refits of the cheapest runs are possible"):
        rolling_errors(fit(DataLaw(), D=[1e9, 2e9, 5e9], loss=[3.0, 2.9, 2.85]))
    with pytest.raises(ValueError, match="D is needed"):
        rolling_errors(joint()).interval(N=1e9)
    few = rolling_errors(fit(DataLaw(), D=BUDGETS[:6], loss=2.4 + 1500 / BUDGETS[:6] ** 0.33 + 0.001 * np.arange(6)))
    assert any("only 2 refits" in warning for warning in few.interval(D=1e11).warnings)


def test_new_runs_of_the_law_itself_are_covered():
    inside = []
    for seed in range(12):
        rng = np.random.default_rng(1000 + seed)
        found = prediction_interval(joint(seed=seed), N=[1e9, 7e9], D=[1e10, 1e12])
        new = JointLaw().predict(TRUTH, N=[1e9, 7e9], D=[1e10, 1e12]) * np.exp(0.003 * rng.standard_normal(2))
        inside.append((found.low <= new) & (new <= found.high))
    assert np.mean(inside) >= 0.82  # of 24 at 0.95: three standard deviations


# --- public tables ---


def measure(shared_table, names, law, every=1):
    shares, widths, counts = {}, {}, {}
    sets = pytest.importorskip("heldout_sets").SETS
    for name, series in sets.items():
        if names and name not in names:
            continue
        inside, half = [], []
        for _, N, D, loss, test in series(shared_table(name))[::every]:
            try:
                one = fit(law, N=N[~test], D=D[~test], loss=loss[~test])
                found = prediction_interval(one, N=N[test], D=D[test])
            except ValueError:
                continue  # too few runs for this law: no interval is given
            inside.append((found.low <= loss[test]) & (loss[test] <= found.high))
            half.append(found.half_width)
        shares[name], widths[name] = np.mean(np.concatenate(inside)), np.median(np.concatenate(half))
        counts[name] = sum(map(len, inside))
    return shares, widths, counts


def test_held_out_budgets_of_some_tables(shared_table):
    names = ("chinchilla_epoch", "misfitting", "llama3_isoflop_digitised", "kyotakano_llm_example")
    shares, widths, _ = measure(shared_table, names, InteractionLaw())
    assert np.mean(list(shares.values())) >= 0.90 and min(shares.values()) >= 0.70
    assert np.median(list(widths.values())) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("law", [InteractionLaw(), JointLaw()], ids=lambda law: law.name)
def test_held_out_budgets_of_every_table(shared_table, law):
    # Large tables hold many series of one publication; every third stands for them under the second law.
    shares, widths, counts = measure(shared_table, (), law, every=3 if law == JointLaw() else 1)
    for name, share in shares.items():
        print(f"{name:<28}{share:.3f} of {counts[name]:>4}, half-width {100 * widths[name]:.2f} %")
    print("mean", np.mean(list(shares.values())), "median half-width", np.median(list(widths.values())))
    assert np.mean(list(shares.values())) >= 0.90
    assert all(share >= 0.70 for name, share in shares.items() if counts[name] >= 5)
    assert np.median(list(widths.values())) <= 0.06
