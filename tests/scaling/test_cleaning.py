"""Cleaning: each row is kept or named, for any order of rows; units and checkpoints are told by what they look like."""

import math

import numpy as np
import pytest

from lingua_synth.scaling import JointLaw, Runs, clean, fit, load_runs, simulate_study


def table(**changes):
    """Twelve finished runs of one mixture on a 4 x 3 grid."""
    N, D = (axis.ravel() for axis in np.meshgrid([5e7, 2e8, 8e8, 3e9], [2e9, 1e10, 5e10], indexing="ij"))
    columns = {
        "run_id": [f"r{k}" for k in range(12)], "mixture": ["web"] * 12, "n_non_embedding": N, "tokens": D,
        "loss_macro": 1.9 + 400 / N**0.34 + 1500 / D**0.33,
    }  # fmt: skip
    return Runs({**columns, **changes})


def joined(*tables):
    names = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    return Runs({name: np.concatenate([t[name] for t in tables]) for name in names})


def named(cleaned):
    return {(d.run_id, d.kind) for d in cleaned.dropped}


def test_a_clean_table_stays_as_it_is():
    runs, _ = simulate_study("paper", num_seeds=2)
    cleaned = clean(runs)
    assert not cleaned.dropped and not cleaned.warnings and not cleaned.changes
    assert np.array_equal(cleaned.runs["run_id"], runs["run_id"])


def test_rows_without_a_number_are_dropped_by_name():
    loss = np.array(table()["loss_macro"])
    loss[[1, 2, 3]] = np.nan, -2.5, np.inf
    tokens = np.array(table()["tokens"])
    tokens[4] = 0
    cleaned = clean(table(loss_macro=loss, tokens=tokens))
    assert named(cleaned) == {(f"r{k}", "no number") for k in (1, 2, 3, 4)}
    reasons = {d.run_id: d.reason for d in cleaned.dropped}
    assert reasons["r1"] == "loss_macro is missing" and reasons["r2"] == "loss_macro is -2.5"
    assert reasons["r4"] == "tokens is 0"
    assert cleaned.counts == {"no number": 4} and len(cleaned.runs) == 8
    assert "4 dropped: a number is missing or not positive" in str(cleaned)
    assert cleaned.to_dict()["num_kept"] == 8


def test_unfinished_runs_and_earlier_checkpoints_go():
    done = np.ones(12)
    done[5] = 0.4
    cleaned = clean(table(schedule_done=done))
    assert named(cleaned) == {("r5", "unfinished")} and "after 40 % of its steps" in cleaned.dropped[0].reason
    # One training a size: the largest budget of each is its last checkpoint.
    cleaned = clean(table(training=[f"size {k // 3}" for k in range(12)]))
    assert cleaned.runs["run_id"].tolist() == ["r2", "r5", "r8", "r11"]
    assert cleaned.counts == {"checkpoint": 8}
    assert clean(table(name=[f"size {k // 3}" for k in range(12)]), training="name").counts == {"checkpoint": 8}
    with pytest.raises(ValueError, match="a training has one size"):
        clean(table(training=["one"] * 12))


def test_checkpoints_in_a_row_are_noticed():
    D = np.arange(1, 13) * 1e9
    one = table(n_non_embedding=np.full(12, 2e8), tokens=D)
    assert any("evenly spaced tokens" in warning for warning in clean(one).warnings)
    doubling = table(n_non_embedding=np.full(12, 2e8), tokens=1e8 * 2.0 ** np.arange(12))
    assert not any("evenly spaced" in warning for warning in clean(doubling).warnings)


def test_rows_that_stand_twice_and_cells_with_several_runs():
    once = table()
    again = once.take([3, 7]).with_columns(run_id=["z3", "z7"])
    other = once.take([5]).with_columns(run_id=["lr2"], loss_macro=once["loss_macro"][[5]] - 0.01)
    runs = joined(once, again, other)
    cleaned = clean(runs)
    assert named(cleaned) == {("z3", "repeated row"), ("z7", "repeated row")}
    assert any("1 cell (mixture" in warning and "cells='best'" in warning for warning in cleaned.warnings)
    best = clean(runs, cells="best")
    assert named(best) - named(cleaned) == {("r5", "same cell")}
    mean = clean(runs, cells="mean")
    assert ("r5", "same cell") in named(mean), "the first by name of r5 and lr2 keeps the mean"
    kept = mean.runs.select(run_id="lr2")["loss_macro"][0]
    assert kept == pytest.approx(once["loss_macro"][5] - 0.005, rel=1e-15)
    seeds = joined(once.with_columns(seed=np.zeros(12)), other.with_columns(seed=[1.0]))
    assert not clean(seeds).warnings and not clean(seeds, cells="best").dropped, "seeds of one cell are repeats"
    assert clean(seeds, cells="mean").counts == {"same cell": 1}
    repeats = joined(once.with_columns(unique_tokens=once["tokens"]), other.with_columns(unique_tokens=[1e9]))
    assert not clean(repeats).warnings, "other data is another cell"


def test_outliers_go_only_when_asked():
    rng = np.random.default_rng(0)
    loss = table()["loss_macro"] * np.exp(0.002 * rng.standard_normal(12))
    loss[6] *= 1.1
    runs = table(loss_macro=loss)
    assert not clean(runs).dropped
    cleaned = clean(runs, outliers=8)
    assert named(cleaned) == {("r6", "outlier")}
    assert float(cleaned.dropped[0].reason.split(" %")[0]) == pytest.approx(10, abs=1)
    few = clean(runs.take(range(7)), outliers=8)
    assert not few.dropped and any("too few runs (7)" in warning for warning in few.warnings)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    once = table(schedule_done=np.where(np.arange(12) == 2, 0.5, 1.0))
    again = once.take([3, 7, 8]).with_columns(run_id=["a3", "z7", "r80"])
    runs = joined(once, again, once.take([5]).with_columns(run_id=["lr2"], loss_macro=[9.0]))
    shuffled = runs.take(rng.permutation(len(runs)))
    for choice in ({}, {"cells": "best"}, {"cells": "mean"}, {"outliers": 5}):
        a, b = clean(runs, **choice), clean(shuffled, **choice)
        assert named(a) == named(b)
        order = np.argsort(b.runs["run_id"])
        assert np.array_equal(a.runs["loss_macro"][np.argsort(a.runs["run_id"])], b.runs["loss_macro"][order])


def test_units_are_told_by_magnitude():
    natural = table()
    assert not clean(natural).warnings
    bits = natural.with_columns(loss_macro=natural["loss_macro"] / math.log(2))
    (warning,) = clean(bits).warnings
    assert "clean with loss_unit='bits'" in warning
    back = clean(bits, loss_unit="bits")
    assert not back.warnings and back.changes == ("losses are multiplied by ln 2, from bits to nats",)
    assert back.runs["loss_macro"] == pytest.approx(natural["loss_macro"], rel=1e-15)
    per_byte = natural.with_columns(loss_macro=natural["loss_macro"] / math.log(2) / 4.2)
    assert any("bits per byte" in warning for warning in clean(per_byte).warnings)
    billions = natural.with_columns(tokens=natural["tokens"] / 1e9, n_non_embedding=natural["n_non_embedding"] / 1e6)
    said = " ".join(clean(billions.with_columns(n_non_embedding=natural["n_non_embedding"] / 1e7)).warnings)
    assert "tokens_unit=1e9" in said and "n_unit=1e6" in said
    mended = clean(billions, tokens_unit=1e9, n_unit=1e6)
    assert not mended.warnings and len(mended.changes) == 2
    f, g = (fit(JointLaw(), N=r.N(), D=r["tokens"], loss=r["loss_macro"]) for r in (mended.runs, natural))
    assert f.params == pytest.approx(g.params, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": "first"}, "cells is one of all, best, mean; got 'first'"),
        ({"loss_unit": "nat"}, "loss_unit is one of nats, bits"),
        ({"outliers": 1.0}, "3 or more; got 1.0"),
        ({"tokens_unit": 0.0}, "tokens_unit is a factor, positive"),
        ({"target": "loss_moon"}, "no column 'loss_moon'"),
        ({"target": "mixture"}, "column mixture holds text"),
        ({"training": "job"}, "no column 'job'"),
    ],
)
def test_bad_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        clean(table(), **arguments)


def test_a_table_with_nothing_in_it():
    with pytest.raises(ValueError, match="none of the 12 rows is a finished run with loss_macro; unfinished: r0"):
        clean(table(schedule_done=np.full(12, 0.5)))
    with pytest.raises(ValueError, match="the runs table is empty"):
        clean(table().take([]))


# --- public tables ---


def test_public_tables_are_read_and_cleaned(shared_path):
    runs = load_runs(shared_path("misfitting"), {"n_total": "params", "loss_macro": "loss"}, strict=False)
    assert len(runs) == 261
    every, best = clean(runs, n_definition="total"), clean(runs, n_definition="total", cells="best")
    assert len(every.runs) + len(every.dropped) == 261
    cells = {(n, d) for n, d in zip(best.runs["n_total"], best.runs["tokens"], strict=True)}
    assert len(cells) == len(best.runs) < len(every.runs), "one learning rate a cell is left"
    for n, d in list(cells)[:20]:
        mine = (runs["n_total"] == n) & (runs["tokens"] == d)
        assert best.runs.select(n_total=n, tokens=d)["loss_macro"][0] == runs["loss_macro"][mine].min()


def test_logs_of_public_trainings_are_checkpoints(shared_path):
    columns = {"n_total": "params", "loss_macro": "train_loss"}
    runs = load_runs(shared_path("gemstones"), columns)
    last = clean(runs, n_definition="total", training="run_name")
    assert len(last.runs) == len(set(runs["run_name"])) and last.counts["checkpoint"] == len(runs) - len(last.runs)


@pytest.mark.parametrize(
    ("name", "columns", "definition"),
    [
        ("chinchilla_epoch", {"n_total": "params", "loss_macro": "loss"}, "total"),
        ("kyotakano_llm_example", {"n_total": "params", "loss_macro": "loss"}, "total"),
        ("datablations", {"n_total": "params", "loss_macro": "loss", "run_id": "name"}, "total"),
        ("steplaw_dense_lr_bs", {"n_non_embedding": "params_no_embed", "loss_macro": "loss"}, "non_embedding"),
    ],
)
def test_losses_in_nats_raise_no_doubt_about_their_unit(shared_path, name, columns, definition):
    cleaned = clean(load_runs(shared_path(name), columns, strict=False), n_definition=definition)
    assert not [w for w in cleaned.warnings if "unit" in w or "bits" in w]
    assert set(cleaned.counts) <= {"repeated row"}
