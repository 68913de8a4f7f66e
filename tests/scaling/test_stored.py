"""Fits written and read again: the same numbers, for the same runs only."""

import json

import numpy as np
import pytest

from lingua_synth.config import run_command
from lingua_synth.files import read_json, write_json
from lingua_synth.scaling import fit_study, load_runs, simulate_study, write_runs
from lingua_synth.scaling.command import main
from lingua_synth.scaling.stored import FITS_JSON, read_fits, write_fits


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, runs, fits) of two mixtures, written by the verb."""
    runs, _ = simulate_study("nano", noise=0.001, seed=2)
    keep = np.isin(runs["mixture"], ["natural", "synthetic 33%"]) & np.isin(
        runs["tokens"], [2**k for k in (18, 20, 22, 24)]
    )
    folder = tmp_path_factory.mktemp("fits")
    write_runs(runs.take(keep), folder / "runs.csv")
    words = [f"runs={folder}/runs.csv", f"out={folder}", "bootstraps=30", "figures=false"]
    assert run_command(main, words) == 0
    runs = load_runs(folder / "runs.csv")
    return folder, runs, fit_study(runs, num_bootstraps=30)


def plain(fits):
    """Everything of the fits as text, numbers to 12 digits (a residual is computed again, not stored)."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        return float(f"{value:.12g}") if isinstance(value, float) else value

    return rounded(json.loads(json.dumps(fits.to_dict())))


def test_what_is_read_is_what_was_written(study):
    folder, runs, fits = study
    again = read_fits(folder, runs)
    assert plain(again) == plain(fits) and str(again) == str(fits)
    assert fits.ranking is not None and again.ranking.groups == fits.ranking.groups
    for (*_, one), (*_, other) in zip(fits.entries(), again.entries(), strict=True):
        assert (one.bootstrap is None) == (other.bootstrap is None)
        if one.bootstrap is not None:
            np.testing.assert_array_equal(one.bootstrap.params, other.bootstrap.params)
    N, D = float(runs.N()[0]), float(runs["tokens"].max())
    for name in ("factor", "low", "high"):
        first, second = (
            getattr(f.pooled.speedup("natural", "synthetic 33%", D, N, resamples=f.drawn), name) for f in (fits, again)
        )
        np.testing.assert_array_equal(first, second)
    band, band_again = (f.data["natural"]["nano-804k"].bootstrap.predict_interval(D=D) for f in (fits, again))
    assert band == band_again
    with pytest.raises(ValueError, match="read from a file"):
        again.pooled.bootstrap(10)


def test_a_refused_fit_and_open_intervals_are_kept(tmp_path):
    runs, _ = simulate_study("nano", noise=0.05, seed=5)
    few = runs.take(np.flatnonzero(runs["mixture"] == "natural")[:9])
    fits = fit_study(few, num_bootstraps=20)
    write_fits(fits, tmp_path)
    again = read_fits(tmp_path, few)
    assert plain(again) == plain(fits) and str(again) == str(fits)
    assert any(entry.refusal for *_, entry in again.entries())


def test_without_resamples_there_are_parameters_and_no_bands(study, tmp_path):
    folder, runs, _ = study
    write_json(tmp_path / FITS_JSON, read_json(folder / FITS_JSON))
    again = read_fits(tmp_path / FITS_JSON, runs)
    entry = again.joint["natural"]
    assert entry.bootstrap is None and np.isfinite(entry.interval("E")).all()
    assert again.drawn is None and again.ranking is None


def test_fits_of_other_runs_are_refused(study, tmp_path):
    folder, runs, _ = study
    with pytest.raises(ValueError, match=r"other mixtures than the runs table has .synthetic 33%"):
        read_fits(folder, runs.select(mixture="natural"))
    loss = runs["loss_macro"].copy()
    loss[3] *= 1.000001
    with pytest.raises(ValueError, match="other runs of 'natural'"):
        read_fits(folder, runs.with_columns(loss_macro=loss))
    with pytest.raises(ValueError, match="other runs of"):
        read_fits(folder, runs.take(np.arange(1, len(runs))))
    with pytest.raises(ValueError, match="no fits at"):
        read_fits(tmp_path / "none", runs)
    for text, message in (("{", "is no fits.json"), ('{"version": 2}', "version 2"), ('{"version": 1}', "damaged")):
        (tmp_path / FITS_JSON).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_fits(tmp_path, runs)
