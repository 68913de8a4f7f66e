"""The laws of repeated data over a runs table, and from the verb: planted decays, unequal passes, refusals, files."""

import csv
import itertools

import numpy as np
import pytest

from lingua_synth.files import read_json
from lingua_synth.scaling import Runs, fit_repetition, load_runs, value_of_repeats, write_runs
from lingua_synth.scaling.command import main

SIZES = {"100M": 1e8, "200M": 2e8, "500M": 5e8}
BASE = {"E": 1.87, "A": 520.0, "alpha": 0.35, "B": 1490.0, "beta": 0.36}
SHARES = {"natural": 0.75, "synthetic": 0.25}


def worth(tokens, unique, R):
    unique = min(tokens, unique)
    return unique * (1 + R * (1 - np.exp(-(tokens / unique - 1) / R)))


def table(mixtures=("natural", "half"), sizes=SIZES, R=6.0, noise=0.0, budgets=(1e9, 4e9, 1.6e10)):
    """Runs on parts of natural text; `half` reads a quarter of its tokens from text that never repeats."""
    rng = np.random.default_rng(0)
    rows = []
    for mixture, size, D, U in itertools.product(mixtures, sizes, budgets, (5e8, 2e9, 1e11)):
        shares = {"natural": 1.0} if mixture == "natural" else SHARES
        held = {"natural": U, "synthetic": 1e12}
        tokens = sum(worth(share * D, held[name], R) for name, share in shares.items())
        loss = BASE["E"] + BASE["A"] / SIZES[size] ** BASE["alpha"] + BASE["B"] / tokens ** BASE["beta"]
        row = {"run_id": f"{mixture}-{size}-{D:g}-{U:g}", "mixture": mixture, "size": size, "tokens": D, "seed": 1}
        row |= {"n_non_embedding": SIZES[size], "loss_macro": loss * np.exp(noise * rng.standard_normal())}
        for name in SHARES:
            share = shares.get(name, 0.0)
            unique = min(share * D, held[name])
            row |= {f"ratio_{name}": share, f"tokens_{name}": share * D, f"unique_tokens_{name}": unique}
            row[f"epochs_{name}"] = share * D / unique if share else 0.0
        rows.append(row)
    return rows


def runs_of(rows):
    return Runs({name: np.array([row[name] for row in rows]) for name in rows[0]})


def test_planted_decays_come_back_for_every_mixture():
    fits = fit_repetition(runs_of(table()), objective="mse", num_bootstraps=20)
    one, half = fits.entries
    assert (one.mixture, half.mixture, one.size) == ("natural", "half", None)
    assert one.law.variables == ("N", "D", "U") and half.law.variables == ("N", "D", "U_natural", "U_synthetic")
    for entry in fits.entries:
        assert entry.fit.params == pytest.approx(BASE | {"R_D": 6.0}, rel=1e-4)
        assert entry.value.worth == pytest.approx(
            [6 * (1 - np.exp(-(p - 1) / 6)) + 1 for p in entry.value.passes], 1e-4
        )
    # Passes as far as the runs go.
    assert one.value.passes.tolist() == [2, 4, 8, 16, 32] and half.value.passes.tolist() == [2, 4, 8, 16]
    worths = [row for row in fits.rows() if str(row["parameter"]).startswith("worth of")]
    assert [row["parameter"] for row in worths[:2]] == ["worth of 2 passes", "worth of 4 passes"]


def test_with_fewer_sizes_each_is_fitted_on_its_own():
    fits = fit_repetition(runs_of(table(sizes=("100M", "500M"))), objective="mse", num_bootstraps=0)
    assert [(e.mixture, e.size) for e in fits.entries] == [
        ("natural", "100M"), ("natural", "500M"), ("half", "100M"), ("half", "500M"),
    ]  # fmt: skip
    for entry in fits.entries:
        at = BASE["E"] + BASE["A"] / SIZES[entry.size] ** BASE["alpha"]
        expected = {"E_at_N": at, "B": BASE["B"], "beta": BASE["beta"], "R_D": 6.0}
        assert entry.fit.params == pytest.approx(expected, rel=1e-4)
        assert entry.value is None and entry.interval("R_D") is None


def test_what_cannot_be_fitted_says_why():
    few = fit_repetition(runs_of(table(sizes=("100M",), budgets=(1e9,))), num_bootstraps=20)
    assert "3 runs; L = E_at_N + B/D'^beta" in few.entries[0].refusal and "takes at least 5" in str(few)
    penalty = fit_repetition(runs_of(table(sizes=("100M",))), law="overfit", num_bootstraps=0)
    assert "takes three sizes or more" in penalty.entries[0].refusal
    half = fit_repetition(runs_of(table(mixtures=("half",))), law="overfit", num_bootstraps=0).entries[0]
    assert "the sources of this mixture are passed over unequally" in half.refusal
    once = [row | {"unique_tokens_natural": row["tokens_natural"] or 1.0} for row in table(mixtures=("natural",))]
    never = fit_repetition(runs_of(once), num_bootstraps=20).entries[0]
    assert never.fit is not None and never.value is None and "no run of this fit sees a token twice" in never.refusal
    rows = [{k: v for k, v in row.items() if not k.startswith("unique")} for row in table()]
    with pytest.raises(ValueError, match="the table has no column unique_tokens"):
        fit_repetition(runs_of(rows))
    with pytest.raises(ValueError, match="law is one of repetition, overfit"):
        fit_repetition(runs_of(table()), law="joint")
    with pytest.raises(ValueError, match="0 or at least 2"):
        fit_repetition(runs_of(table()), num_bootstraps=1)


def test_the_verb_fits_repeats_and_other_laws_speak_of_them(tmp_path, capsys):
    write_runs(table(noise=0.001), tmp_path / "runs.csv")
    words = [f"runs={tmp_path}/runs.csv", f"out={tmp_path}/fits", "bootstraps=30"]
    assert main([*words, "law=repetition"]) == 0
    printed = capsys.readouterr().out
    assert "natural: L = E + A/N^alpha + B/D'^beta" in printed and "new tokens / U" in printed
    written = read_json(tmp_path / "fits" / "repetition.json")
    fitted = fit_repetition(load_runs(tmp_path / "runs.csv"), num_bootstraps=30)
    assert [one["fit"]["params"] for one in written["fits"]] == [entry.fit.params for entry in fitted.entries]
    value = value_of_repeats(fitted.entries[0].fit, resamples=fitted.entries[0].resamples)
    assert written["fits"][0]["value"]["worth"] == value.worth.tolist()
    with (tmp_path / "fits" / "repetition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(fitted.rows()) and float(rows[0]["value"]) == fitted.rows()[0]["value"]
    assert main([*words, "law=joint", "bootstraps=0", "share=", "figures=false"]) == 0
    assert "note: sources were read up to 32 times (epochs_natural)" in capsys.readouterr().out
    # A table of one's own, with one column of unique tokens.
    (tmp_path / "own.csv").write_text(
        "N,D,unique,L\n" + "\n".join(
            f"{r['n_non_embedding']},{r['tokens']},{r['unique_tokens_natural']},{r['loss_macro']}"
            for r in table(mixtures=("natural",))
        )
    )  # fmt: skip
    columns = ["n_non_embedding=N", "tokens=D", "unique_tokens=unique", "loss_macro=L"]
    own = [f"runs={tmp_path}/own.csv", f"out={tmp_path}/own", "law=repetition", "bootstraps=0", "objective=mse"]
    assert main([*own, *[f"columns.{column}" for column in columns]]) == 0
    (one,) = read_json(tmp_path / "own" / "repetition.json")["fits"]
    assert one["fit"]["params"]["R_D"] == pytest.approx(6.0, rel=1e-4)
