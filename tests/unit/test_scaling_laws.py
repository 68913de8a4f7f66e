"""Laws: values by hand, exact gradients, budgets from losses."""

import numpy as np
import pytest

from lingua_synth.scaling import DataLaw, InteractionLaw, JointLaw, ModelLaw

N, D = np.array([1e8, 1e9, 3e9]), np.array([2e9, 2e10, 2e11])
PARAMS = {
    "data": {"E_at_N": 2.0, "B": 1500.0, "beta": 0.33},
    "model": {"E_at_D": 2.1, "A": 400.0, "alpha": 0.34},
    "joint": {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.33},
    "interaction": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.33, "c": -0.05},
}
LAWS = [DataLaw(), ModelLaw(), JointLaw(), InteractionLaw()]


def points(law):
    return {name: {"N": N, "D": D}[name] for name in law.variables}


def by_hand(law, p):
    if law.name == "data":
        return p["E_at_N"] + p["B"] / D ** p["beta"]
    if law.name == "model":
        return p["E_at_D"] + p["A"] / N ** p["alpha"]
    interaction = N ** p["c"] if law.name == "interaction" else 1.0
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (D ** p["beta"] * interaction)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_values_are_the_formula_s(law):
    params = PARAMS[law.name]
    assert law.predict(params, **points(law)) == pytest.approx(by_hand(law, params), rel=1e-13)
    assert set(law.bounds) == set(law.parameters) == set(params)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_gradient_is_exact(law):
    params = PARAMS[law.name]
    gradient = law.gradient(params, **points(law))
    assert gradient.shape == (3, len(law.parameters))
    for k, name in enumerate(law.parameters):
        # Central differences of fourth order: their own error is about 1e-11 here.
        h = 1e-3 * abs(params[name])
        at = [by_hand(law, params | {name: params[name] + step * h}) for step in (-2, -1, 1, 2)]
        numeric = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
        assert gradient[:, k] == pytest.approx(numeric, rel=1e-8), name


def test_many_parameters_at_many_points():
    law = JointLaw()
    theta = law.as_array(PARAMS["joint"]) * np.linspace(0.9, 1.1, 4)[:, None]
    grid = law.predict(theta, N=N[:, None], D=D)
    assert grid.shape == (4, 3, 3)
    assert grid[2, 1, 0] == law.predict(theta[2], N=N[1], D=D[0])
    assert np.ndim(law.predict(theta[0], N=1e9, D=1e9)) == 0
    assert law.gradient(theta, N=N, D=D).shape == (4, 3, 5)


@pytest.mark.parametrize("law", [DataLaw(), JointLaw(), InteractionLaw()], ids=lambda law: law.name)
def test_budget_from_loss_inverts_the_law(law):
    params = PARAMS[law.name]
    extra = {"N": N} if "N" in law.variables else {}
    loss = law.predict(params, **extra, D=D)
    assert law.solve_D(params, loss, **extra) == pytest.approx(D, rel=1e-11)
    rest = law.predict(params, **extra, D=np.full(3, 1e300))
    assert np.isinf(law.solve_D(params, rest * 0.999, **extra)).all()


def test_out_of_reach_begins_exactly_at_the_constant():
    law, params = DataLaw(), PARAMS["data"]
    assert np.isinf(law.solve_D(params, 2.0))
    assert np.isfinite(law.solve_D(params, 2.0001))


def test_what_a_law_refuses():
    with pytest.raises(ValueError, match=r"DataLaw .* has no N; pass D only"):
        DataLaw().predict(PARAMS["data"], N=N, D=D)
    with pytest.raises(ValueError, match="D is needed and was not given"):
        JointLaw().predict(PARAMS["joint"], N=N)
    with pytest.raises(ValueError, match="D must be positive and finite; got 0"):
        DataLaw().predict(PARAMS["data"], D=[1e9, 0])
    with pytest.raises(ValueError, match="must be numbers"):
        DataLaw().predict(PARAMS["data"], D=["many"])
    with pytest.raises(ValueError, match="has parameters E_at_N, B, beta"):
        DataLaw().predict(PARAMS["joint"], D=D)
    with pytest.raises(ValueError, match="3 parameters on the last axis"):
        DataLaw().predict(np.ones(5), D=D)
    with pytest.raises(ValueError, match="has no data term"):
        ModelLaw().solve_D(PARAMS["model"], 2.5)
    with pytest.raises(ValueError, match="B of the fit is 0"):
        DataLaw().solve_D(PARAMS["data"] | {"B": 0.0}, 2.5)


def test_laws_are_equal_by_kind():
    assert JointLaw() == JointLaw() != InteractionLaw()
    assert repr(JointLaw()) == "JointLaw()"
