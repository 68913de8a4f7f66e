"""What a fit carries beside its numbers: what single runs move, E under other laws, what was dropped, ranges."""

import json

import numpy as np
import pytest
from runs_grid import BUDGETS, GRID_D, GRID_N, SIZES, TRUTH

from lingua_synth.scaling import (
    CrossedLaw,
    DataLaw,
    InteractionLaw,
    JointLaw,
    KaplanLaw,
    ModelLaw,
    OffsetKaplanLaw,
    RectifiedModelLaw,
    fit,
    influence,
    solver,
)


@pytest.fixture(scope="module")
def loss():
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(GRID_N)))
    return JointLaw().predict(TRUTH, N=GRID_N, D=GRID_D) * noise


@pytest.mark.parametrize("objective", solver.OBJECTIVES)
def test_without_a_run_is_the_fit_without_it(loss, objective):
    found = influence(fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss, objective=objective))
    assert found.without.shape == (42, 5)
    for row in (*found.rows[:2], 17):
        rest = np.arange(42) != row
        shorter = fit(JointLaw(), N=GRID_N[rest], D=GRID_D[rest], loss=loss[rest], objective=objective)
        # Absolute deviations are smoothed in the refits of all rows.
        exact = {"mse": 1e-6, "huber": 1e-6, "lad": 2e-3}[objective]
        assert found.without[row] == pytest.approx(list(shorter.params.values()), rel=exact)
        assert found.of("E")[row] == pytest.approx(shorter.params["E"] - found.params["E"], abs=5 * exact)


def test_the_runs_that_carry_a_fit_are_named(loss):
    wild = loss.copy()
    wild[40] *= 1.05
    found = fit(JointLaw(), N=GRID_N, D=GRID_D, loss=wild, objective="mse").influence
    assert found.rows[0] == 40
    assert found.worst[0] == 40
    assert len(found.rows) == len(found.worst) == 5
    clean = fit(JointLaw(), N=np.delete(GRID_N, 40), D=np.delete(GRID_D, 40), loss=np.delete(loss, 40), objective="mse")
    assert found.without_worst[0] == pytest.approx(list(clean.params.values()), rel=1e-6)
    two = np.isin(np.arange(42), found.worst[:2], invert=True)
    shorter = fit(JointLaw(), N=GRID_N[two], D=GRID_D[two], loss=wild[two], objective="mse")
    assert found.without_worst[1] == pytest.approx(list(shorter.params.values()), rel=1e-6)
    assert "row 40" in str(found)
    assert found.to_dict()["most_influential"][0]["row"] == 40
    with pytest.raises(ValueError, match="has parameters E, A, B"):
        found.of("K")


def test_influence_follows_the_rows_in_any_order(loss):
    order = np.random.default_rng(1).permutation(42)
    one = fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss).influence
    two = fit(JointLaw(), N=GRID_N[order], D=GRID_D[order], loss=loss[order]).influence
    assert np.array_equal(one.without[order], two.without)
    assert [order[row] for row in two.rows] == list(one.rows)


def test_influence_needs_a_run_to_spare():
    fitted = fit(DataLaw(), D=BUDGETS[:3], loss=2 + 1500 / BUDGETS[:3] ** 0.33)
    assert fitted.influence is None
    assert fitted.to_dict()["influence"] is None
    with pytest.raises(ValueError, match="none can be left out"):
        influence(fitted)
    with pytest.raises(ValueError, match="at least 1"):
        influence(fit(DataLaw(), D=BUDGETS, loss=2 + 1500 / BUDGETS**0.33), top=0)


def test_the_irreducible_loss_stands_beside_that_of_other_laws(loss):
    fitted = fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss, asymmetry=2.0, weights=GRID_N**0.1)
    assert set(fitted.E_under) == {"joint", "interaction", "tied"}
    other = fit(InteractionLaw(), N=GRID_N, D=GRID_D, loss=loss, asymmetry=2.0, weights=GRID_N**0.1)
    assert fitted.E_under["interaction"] == pytest.approx(other.params["E"], rel=1e-9)
    assert fitted.E_under["joint"] == fitted.params["E"]
    assert "irreducible loss by law: joint 1." in str(fitted)
    assert set(fit(DataLaw(), D=BUDGETS, loss=2 + 1500 / BUDGETS**0.33).E_under) == {"data", "rectified"}
    sizes = fit(ModelLaw(), N=SIZES, loss=2 + 1500 / SIZES**0.33)
    assert set(sizes.E_under) == {"model", "rectified_model"}
    assert set(fit(KaplanLaw(), N=GRID_N, D=GRID_D, loss=loss).E_under) == {"joint", "interaction"}
    # Three runs are too few for the law with a shift.
    assert set(fit(DataLaw(), D=BUDGETS[:3], loss=2 + 1500 / BUDGETS[:3] ** 0.33).E_under) == {"data"}


def test_what_was_dropped_and_what_errs_is_kept(loss):
    fitted = fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss, dropped=["row 3: loss is NaN"], unit="size")
    assert fitted.to_dict()["dropped"] == ["row 3: loss is NaN"]
    assert fitted.to_dict()["unit"] == "size"
    assert "1 runs dropped before the fit: row 3: loss is NaN" in str(fitted)
    assert "what errs independently: the size" in str(fitted)
    assert fitted.params == fit(JointLaw(), N=GRID_N, D=GRID_D, loss=loss).params


def test_a_fit_says_its_ranges_and_becomes_json(loss):
    fitted = fit(InteractionLaw(), N=GRID_N, D=GRID_D, loss=loss)
    plain = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    assert plain["ranges"] == {"N": [1e8, 3e9], "D": [1e9, 1e11]}
    assert plain["E_under"]["interaction"] == fitted.params["E"]
    assert plain["derivatives"] == "exact"
    assert len(plain["influence"]["most_influential"]) == 5
    assert plain["condition_number"] == fitted.condition_number > 1


def test_a_law_that_turns_up_beyond_the_runs_says_so():
    truth = {"E": 1.9, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.45, "c": -0.2}
    law = InteractionLaw()
    rising = fit(law, N=GRID_N, D=GRID_D, loss=law.predict(truth, N=GRID_N, D=GRID_D))
    (note,) = rising.warnings
    assert note.startswith("the law turns up with N: at the largest N of the runs more parameters would make the loss")
    assert "(D 1e+10)" in note
    assert law.predict(rising.params, N=3.1e9, D=1e10) > law.predict(rising.params, N=3e9, D=1e10)
    # At the same D, but further out.
    mild = truth | {"B": 50.0}
    later = fit(law, N=GRID_N, D=GRID_D, loss=law.predict(mild, N=GRID_N, D=GRID_D))
    values = law.predict(mild, N=np.array([3e9, 3.1e9, 3e10, 3.1e10]), D=1e10)
    assert (np.diff(values)[::2] > 0).tolist() == [False, True]
    assert "before 10 times the largest N of the runs" in later.warnings[0]
    falling = truth | {"c": 0.05}
    assert fit(law, N=GRID_N, D=GRID_D, loss=law.predict(falling, N=GRID_N, D=GRID_D)).warnings == []


# --- the laws that came with this ---

MORE = [
    (OffsetKaplanLaw(), {"A": 30.0, "B": 120.0, "alpha": 0.17, "beta": 0.2, "E": 1.4}),
    (CrossedLaw(), {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.33, "beta": 0.34, "c": -0.03, "d": 0.02}),
    (RectifiedModelLaw(), {"E_at_D": 2.0, "A": 500.0, "N0": 3e8, "alpha": 0.33}),
]


@pytest.mark.parametrize(("law", "truth"), MORE, ids=lambda x: getattr(x, "name", ""))
def test_more_laws_are_their_formula_and_come_back(law, truth):
    p = truth
    if law.name == "offset_kaplan":
        model, data = p["A"] / GRID_N ** p["alpha"], p["B"] / GRID_D ** p["beta"]
        expected = p["E"] + (model ** (1 / p["beta"]) + data ** (1 / p["beta"])) ** p["beta"]
    elif law.name == "crossed":
        expected = p["E"] + p["A"] / (GRID_N ** p["alpha"] * GRID_D ** p["d"])
        expected = expected + p["B"] / (GRID_D ** p["beta"] * GRID_N ** p["c"])
    else:
        expected = p["E_at_D"] + p["A"] / (p["N0"] + GRID_N) ** p["alpha"]
    at = {"N": GRID_N, "D": GRID_D} if "D" in law.variables else {"N": GRID_N}
    assert law.predict(truth, **at) == pytest.approx(expected, rel=1e-12)
    gradient = law.gradient(truth, **at)
    for k, name in enumerate(law.parameters):
        h = 1e-4 * abs(truth[name])
        up, down = (law.predict(truth | {name: truth[name] + sign * h}, **at) for sign in (1, -1))
        assert gradient[:, k] == pytest.approx((up - down) / (2 * h), rel=1e-6), name
    for objective in ("huber", "mse"):
        fitted = fit(law, **at, loss=expected, objective=objective)
        assert fitted.converged
        assert fitted.params == pytest.approx(truth, rel=1e-5, abs=1e-7)


def test_a_budget_where_the_crossed_law_turns_up_is_the_first():
    law, truth = MORE[1]
    assert law.solve_D(truth, law.predict(truth, N=1e9, D=3e10), N=1e9) == pytest.approx(3e10, rel=1e-9)
    rising = truth | {"d": -0.05}
    found = law.solve_D(rising, law.predict(rising, N=1e9, D=3e9), N=1e9)
    assert found == pytest.approx(3e9, rel=1e-9)
    assert law.predict(rising, N=1e9, D=1e30) > law.predict(rising, N=1e9, D=1e15)
    assert np.isinf(law.solve_D(rising, 1.5, N=1e9))
