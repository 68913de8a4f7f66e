"""Which mixtures of the paper a pool serves: the paper's own limits, and every cell against the plan itself."""

import pytest

from lingua_synth.config import run_command
from lingua_synth.mixture import Mixture, plan_report
from lingua_synth.mixture.command import main
from lingua_synth.mixture.pool import BUDGETS, fit_pool, paper_mixtures, parse_tokens

B = 10**9
PAPER_POOL = {"cc": 2_000 * B, "hq": 100 * B, "qa": 100 * B, "textbook": 200 * B}


def test_the_paper_s_pool_serves_the_six_mixtures_it_trained_at_200b():
    """Section 3: six mixtures went to 200B, "as our HQ and QA synthetic datasets were limited to 100B tokens each"."""
    report = fit_pool(PAPER_POOL, "cc")
    at_200b = {row.mixture for row in report.rows if row.fits()[BUDGETS.index(200 * B)]}
    assert at_200b == {
        "cc",
        "33% hq + 67% cc",
        "33% qa + 67% cc",
        "textbook",
        "67% textbook + 33% cc",
        "33% textbook + 67% cc",
    }
    assert all(all(row.fits()[:-1]) for row in report.rows)
    assert len(report.rows) == 10


def test_sixty_seven_percent_of_200b_needs_134b():
    rows = {row.mixture: row for row in fit_pool(PAPER_POOL, "cc").rows}
    line = next(source for source in rows["67% hq + 33% cc"].plans[-1].sources if source.name == "hq")
    assert round(line.planned_tokens / B) == 134 and rows["67% hq + 33% cc"].limited_by == "hq"
    enough = {**PAPER_POOL, "hq": 134 * B}
    assert {row.mixture: row for row in fit_pool(enough, "cc").rows}["67% hq + 33% cc"].fits()[-1]


def test_every_cell_is_the_plan_s_and_the_last_budget_that_fits_is_named():
    pool = {"web": 50_000, "rephrased": 7_000}
    report = fit_pool(pool, "web", budgets=[5_000, 20_000, 60_000], seq_len=8, max_epochs=1.5)
    for row in report.rows:
        ratios = paper_mixtures("web", ["rephrased"])[row.mixture]
        used = {name: pool[name] for name in ratios}
        for budget, fits in zip(report.budgets, row.fits(), strict=True):
            plan = plan_report(used, Mixture(ratios, 1.5), budget // 8, 8, validate=False)
            assert fits == all(line.planned_sequences <= line.limit_sequences + 1 for line in plan.sources)
            assert fits or not plan.is_feasible
        plan_report(used, Mixture(ratios, 1.5), row.max_tokens // 8, 8)
        with pytest.raises(ValueError, match="can give"):
            plan_report(used, Mixture(ratios, 1.5), row.max_tokens // 8 + 1, 8)


@pytest.mark.parametrize(
    ("text", "count"),
    [("100B", 100 * B), ("0.5T", 500 * B), ("1_000", 1000), ("2,500", 2500), ("1.5k", 1500), ("7", 7)],
)
def test_counts_are_read_as_they_are_written(text, count):
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "B", "-3", "1.5", "many", "1e400000B", "3/0"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValueError, match="no count of tokens"):
        parse_tokens(text)


def test_the_verb_prints_the_table(capsys):
    assert run_command(main, ["paper", "tokens.cc=2T", "tokens.hq=100B", "natural=cc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mixture", "1B", "5B", "10B", "20B", "50B", "100B", "200B", "lasts", "limited", "by"]
    assert "no: 134B hq" in lines[3] and lines[2].split()[-3:-1] == ["yes", "303B"]
    assert run_command(main, ["paper", "tokens.cc=2T", "natural=web"]) == 2
    assert "no source 'web' in the pool; it has 'cc'" in capsys.readouterr().err
    assert run_command(main, ["paper"]) == 2
    assert "no pool" in capsys.readouterr().err
