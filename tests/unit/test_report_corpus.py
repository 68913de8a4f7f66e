"""Figures 7 and 8 and those of the collapse tests: what is drawn is what the tables hold; the page has all of it."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from collapse_doubles import BUDGETS, corpus, evaluated, table, zipf_counts

from lingua_synth.analysis import Distance, collapse_tests, fit_zipf, rolling_loss
from lingua_synth.report import collapse_figures, corpus_figures, style, write_report
from lingua_synth.report.canvas import drawn
from lingua_synth.report.collapse import collapse_section, sentences
from lingua_synth.report.page import numbers_csv
from lingua_synth.scaling import write_runs

pytest.importorskip("matplotlib")
VOCAB = 3_000


@pytest.fixture(scope="module")
def corpora():
    return {
        "cc": zipf_counts(VOCAB, 200_000, seed=1),
        "hq": zipf_counts(VOCAB, 150_000, top_p=0.9, seed=2),
        "wikipedia": zipf_counts(VOCAB, 50_000, exponent=1.0, seed=3),
    }


def of_kind(ax, kind, series=None):
    return [row for row in drawn(ax) if row["kind"] == kind and series in (None, row["series"])]


def complete(ax):
    """A figure of ours has both axes named, a legend or row names, and files in all three formats."""
    assert ax.get_xlabel()
    figure = ax.get_figure()
    assert style.figure_png(figure, dpi=40).startswith(b"\x89PNG")
    assert len(style.figure_svg(figure, "x")) < 400_000  # dots are one picture in it
    rows = list(csv.DictReader(io.StringIO(numbers_csv(ax))))
    assert len(rows) == len(drawn(ax))
    return rows


def test_rank_frequency_shows_shares_by_rank(corpora):
    fits = {"cc": fit_zipf(corpora["cc"])}
    ax = corpus_figures.unigram_frequencies(corpora, tests=["wikipedia"], fits=fits, base="cc")
    complete(ax)
    shown = of_kind(ax, "measured", "hq")
    ordered = np.sort(corpora["hq"])[::-1] / corpora["hq"].sum()
    assert [row["frequency"] for row in shown] == [ordered[row["rank"] - 1] for row in shown]
    assert shown[-1]["rank"] == int((corpora["hq"] > 0).sum())  # absent types have no rank
    law = of_kind(ax, "fit", "cc")
    for row in law[10:-10:10]:  # the fitted law lies on what it was fitted to
        measured = np.sort(corpora["cc"])[::-1][round(row["rank"]) - 1] / corpora["cc"].sum()
        assert math.log(row["frequency"] / measured) == pytest.approx(0, abs=0.35)
    labels = [text.get_text() for text in ax.get_figure().legends[0].get_texts()]
    assert labels == ["test corpus", "cc", "hq", "fitted law"]
    empty = corpus_figures.unigram_frequencies({"cc": np.zeros(5, dtype=int)})
    assert "No corpus holds a token." in [row.get("note") for row in drawn(empty)]


def distance(first, second, kl, sd=0.01):
    return Distance(first, second, 1000, 0.5, kl, sd, kl, sd, kl / 8, sd, 0.0, 0.0, 4)


def test_distances_are_rows_of_tests_nearest_first():
    found = [distance("arxiv", "cc", 0.5), distance("arxiv", "hq", 0.7), distance("books", "cc", 0.2)]
    ax = corpus_figures.unigram_distances([*found, distance("books", "hq", math.inf)], base="cc")
    rows = complete(ax)
    assert {row["kind"] for row in rows} == {"measured", "note"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["books", "arxiv"]
    (mark,) = of_kind(ax, "measured", "hq")
    assert (mark["kl"], mark["test"], mark["low"], mark["high"]) == (0.7, "arxiv", pytest.approx(0.68), 0.72)
    assert any("∞: hq" in text.get_text() for text in ax.texts)
    alone = corpus_figures.unigram_distances([replace(found[0], kl_sd=math.nan)])
    assert of_kind(alone, "measured")[0]["low"] == 0.5  # one sample has no spread
    assert "No pair" in drawn(corpus_figures.unigram_distances([]))[0]["note"]


def test_token_frequencies_name_what_differs_most(corpora):
    training = {"cc": corpora["cc"].copy(), "hq": corpora["hq"].copy()}
    training["hq"][7] = 0
    training["cc"][30] = training["cc"][30] * 50
    names = {7: "\n\n", 30: ":"}
    ax = corpus_figures.token_frequencies(
        corpora["wikipedia"], training, decode=lambda token: names.get(token, f"t{token}"), base="cc"
    )
    complete(ax)
    notes = {(row["series"], row["token_id"]): row["value"] for row in of_kind(ax, "best")}
    assert notes["hq", 7] < -3 and notes["cc", 30] > 3
    texts = [text.get_text() for text in ax.texts]
    assert '"\\n\\n"' in texts and '":"' in texts
    order = np.argsort(-corpora["wikipedia"], kind="stable")
    for row in of_kind(ax, "measured", "hq")[::50]:
        assert row["token_id"] == order[row["rank"] - 1]
        assert row["frequency"] == training["hq"][row["token_id"]] / training["hq"].sum()
    assert "no token" in drawn(corpus_figures.token_frequencies(np.zeros(4), {"cc": np.ones(4)}))[0]["note"]


def test_token_losses_draw_the_running_means(corpora):
    test = corpora["wikipedia"]
    losses = {
        name: rolling_loss(test, test * level, corpora["hq"], window=100, sorted_by="hq")
        for name, level in (("natural", 3.0), ("synthetic", 3.5))
    }
    ax = corpus_figures.token_losses(losses, base="natural")
    complete(ax)
    assert [row["loss"] for row in of_kind(ax, "mean", "synthetic")] == pytest.approx(
        [3.5] * len(of_kind(ax, "mean", "synthetic"))
    )
    seen = losses["natural"]
    begins = int((seen.frequency > 0).sum()) + 1
    assert of_kind(ax, "guide") == [{"kind": "guide", "series": "absent from here", "rank": begins, "loss": None}]
    assert "frequent to rare in hq" in ax.get_xlabel() and "nats per token" in ax.get_ylabel()
    assert "No evaluation" in drawn(corpus_figures.token_losses({}))[0]["note"]


@pytest.fixture(scope="module")
def report():
    runs = table({"hq": (0.33, lambda N, D: -0.02), "txbk": (1.0, lambda N, D: 0.05)}, noise=0.003)
    counts = {"natural": corpus(zipf_counts(VOCAB)), "synthetic": corpus(zipf_counts(VOCAB, top_p=0.9, seed=3))}
    return collapse_tests(
        runs, evaluations={"natural": evaluated(num=3), "hq": evaluated(num=3, seed=2)}, counts=counts
    )


def test_gaps_and_verdicts_are_drawn_as_tested(report):
    ax = collapse_figures.loss_gaps(report)
    complete(ax)
    shown = of_kind(ax, "measured", "txbk")
    assert [row["tokens"] for row in shown] == sorted(BUDGETS)
    assert [row["gap"] for row in shown] == [100 * t.estimate for t in report.select("loss_gap_at_budget", "txbk")]
    ax = collapse_figures.collapse_verdicts(report)
    complete(ax)
    by_key = {(row["series"], row["test"]): row for row in drawn(ax)}
    for test in report.tests:
        if test.name != "loss_gap_at_budget" and math.isfinite(test.low):
            row = by_key[test.mixture, test.name]
            assert row["margins"] == test.estimate / test.margin and row["note"] == test.verdict
            assert (row["low"] > 1) == (test.verdict == "supported") and (row["high"] < 1) == (
                test.verdict == "rejected"
            )
    some = collapse_figures.collapse_verdicts(report, mixtures=["hq"])
    assert {row["series"] for row in drawn(some)} == {"hq"}
    nothing = collapse_tests(table({"m": (0.5, {})}, sizes={"1B": 8.6e8}, budgets=(1e9,)))
    assert "No mixture" in drawn(collapse_figures.loss_gaps(nothing))[0]["note"]
    assert "No statistic" in drawn(collapse_figures.collapse_verdicts(nothing))[0]["note"]


def test_the_section_says_every_verdict(report, tmp_path):
    lines = sentences(report)
    assert any(
        line.startswith("txbk: supported loss gap (worse than the base, by more than the margin)") for line in lines
    )
    assert any(line.startswith("hq: rejected loss gap (better than the base)") for line in lines)
    assert any(line.startswith("corpus synthetic: supported types at equal tokens") for line in lines)
    runs = table({"hq": (0.33, {})}, sizes={"1B": 8.6e8}, budgets=BUDGETS[:2])
    page = write_report(tmp_path, runs, None, title="t", sections_after=[collapse_section(report)]).read_text()
    assert "Signs of collapse" in page and page.count("collapse_gaps") >= 1
    for verdict, count in report.counts().items():
        assert page.count(f"<td><b>{verdict}</b></td>") == (count if verdict != "undecided" else 0)
    assert (tmp_path / "figures" / "collapse_verdicts.csv").exists()
    assert "nan" not in "".join(lines)
    alone = collapse_tests(runs.select(mixture="natural"))
    assert "one mixture" in collapse_section(alone).body[0]


def test_the_verb_writes_the_section(tmp_path, capsys):
    from lingua_synth.cli import main

    runs = table({"hq": (0.33, lambda N, D: 0.04)}, noise=0.002, sizes={"1B": 8.6e8}, budgets=BUDGETS[:3])
    write_runs(runs, tmp_path / "runs.csv")
    assert main(["report", f"runs={tmp_path / 'runs.csv'}", f"out={tmp_path / 'out'}", "bootstraps=0"]) in (0, None)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "hq: supported loss gap" in page
    assert "irreducible loss" in page and "no mixture holds more than 0 and at most 20 % of synthetic" in page
    capsys.readouterr()
