"""Tables that should not be fitted as they are: each has a clear answer, an error, a reason or a note in words."""

import numpy as np
import pytest
from runs_grid import BUDGETS, SIZES, TRUTH

from lingua_synth.scaling import DataLaw, InteractionLaw, JointLaw, fit

N, D = (axis.ravel() for axis in np.meshgrid(SIZES, BUDGETS))


@pytest.fixture
def loss():
    noise = np.exp(0.002 * np.random.default_rng(3).standard_normal(len(N)))
    return JointLaw().predict(TRUTH, N=N, D=D) * noise


def said(fitted):
    return " | ".join([*fitted.reasons, *fitted.warnings])


def test_one_size(loss):
    at = N == 1e9
    fitted = fit(JointLaw(), N=N[at], D=D[at], loss=loss[at])
    assert not fitted.identifiable
    assert "all runs have one N; a constant, a coefficient and an exponent take 3" in fitted.reasons
    assert "NOT IDENTIFIABLE" in str(fitted)
    # What the runs do determine is the curve at that size.
    curve = fit(DataLaw(), D=D[at], loss=loss[at])
    assert curve.identifiable
    assert fitted.predict(N=1e9, D=3e10) == pytest.approx(curve.predict(D=3e10), rel=1e-3)


def test_two_budgets(loss):
    at = (D == 1e9) | (D == 5e10)
    fitted = fit(JointLaw(), N=N[at], D=D[at], loss=loss[at])
    assert not fitted.identifiable
    assert "the runs have only 2 different values of D; a constant, a coefficient and an exponent take 3" in said(
        fitted
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -2.5, 0.0])
def test_a_loss_that_is_none(loss, value):
    loss[7] = value
    with pytest.raises(ValueError, match=f"loss must be positive and finite; got {value}"):
        fit(JointLaw(), N=N, D=D, loss=loss)


def test_losses_in_another_unit_are_fitted_in_that_unit(loss):
    nats, bits = (fit(JointLaw(), N=N, D=D, loss=values) for values in (loss, loss / np.log(2)))
    assert bits.params["E"] * np.log(2) == pytest.approx(nats.params["E"], rel=1e-7)
    assert bits.params["alpha"] == pytest.approx(nats.params["alpha"], rel=1e-6)
    # Bits per token cannot be told from nats per token; bits per byte, perplexities and sums can.
    assert said(bits) == ""
    per_byte = fit(JointLaw(), N=N, D=D, loss=loss / np.log(2) / 9)
    assert "low for nats per token; if they are per byte or per character, or in bits" in said(per_byte)
    perplexity = fit(JointLaw(), N=N, D=D, loss=np.exp(loss))
    assert "more nats per token than guessing among a million tokens costs (13.8)" in said(perplexity)


def test_the_same_table_twice(loss):
    one = fit(JointLaw(), N=N, D=D, loss=loss)
    two = fit(JointLaw(), N=np.tile(N, 2), D=np.tile(D, 2), loss=np.tile(loss, 2))
    assert two.params == pytest.approx(one.params, rel=1e-6)
    assert "42 rows are exact copies of another (same N, D and loss)" in said(two)
    # Seeds are no copies.
    seeds = fit(JointLaw(), N=np.tile(N, 2), D=np.tile(D, 2), loss=np.append(loss, loss * 1.001))
    assert "copies" not in said(seeds)


def test_rows_in_any_order(loss):
    order = np.random.default_rng(1).permutation(len(N))
    one = fit(InteractionLaw(), N=N, D=D, loss=loss)
    two = fit(InteractionLaw(), N=N[order], D=D[order], loss=loss[order])
    assert one.params == two.params
    assert np.array_equal(one.residuals[order], two.residuals)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_one_run_ten_times_off(loss, factor):
    clean = fit(JointLaw(), N=N, D=D, loss=loss)
    loss[17] *= factor
    fitted = fit(JointLaw(), N=N, D=D, loss=loss)
    assert f"runs far off the law: row 17 (N {N[17]:.4g}, D {D[17]:.4g})" in said(fitted)
    grid = {"N": N, "D": D}
    assert fitted.predict(**grid) == pytest.approx(clean.predict(**grid), rel=2e-3)
    assert fitted.influence.worst[0] == 17
    # Least squares follows it, and says which row it is.
    squares = fit(JointLaw(), N=N, D=D, loss=loss, objective="mse")
    assert "row 17" in said(squares)
    assert squares.influence.rows[0] == 17


def test_one_line_of_tokens_per_parameter():
    loss = JointLaw().predict(TRUTH, N=SIZES, D=20 * SIZES)
    fitted = fit(JointLaw(), N=SIZES, D=20 * SIZES, loss=loss)
    assert not fitted.identifiable
    assert "all runs lie on one line of D against N" in said(fitted)
    assert "add runs with other D at the same N" in said(fitted)


def test_tokens_or_parameters_in_billions(loss):
    fitted = fit(JointLaw(), N=N, D=D / 1e9, loss=loss)
    assert "the largest D is 100 tokens; if tokens are in millions or billions, multiply" in said(fitted)
    assert "the largest N is 3 parameters" in said(fit(JointLaw(), N=N / 1e9, D=D, loss=loss))
    # In millions the counts may be real; only their ratio is not.
    assert "tokens per parameter; are tokens in millions or billions?" in said(
        fit(JointLaw(), N=N, D=D / 1e6, loss=loss)
    )
    assert "tokens per parameter; is N in thousands or millions?" in said(fit(JointLaw(), N=N / 1e6, D=D, loss=loss))
    for table in ((N, D), (N * 100, D * 100)):
        assert said(fit(JointLaw(), N=table[0], D=table[1], loss=loss)) == ""


def test_numbers_that_are_words_and_columns_that_are_missing(loss):
    with pytest.raises(ValueError, match="D is needed and was not given"):
        fit(JointLaw(), N=N, loss=loss)
    with pytest.raises(ValueError, match="N must be numbers"):
        fit(JointLaw(), N=["1B"] * 42, D=D, loss=loss)
    with pytest.raises(ValueError, match="the lengths differ"):
        fit(JointLaw(), N=N, D=D[:41], loss=loss)
    with pytest.raises(ValueError, match=r"JointLaw has 5 parameters .* and there are 3 runs"):
        fit(JointLaw(), N=N[:3], D=D[:3], loss=loss[:3])
