"""What a mixture asks of its sources: exact figures, and refusals with the numbers and two ways out that work."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.config import run_command
from lingua_synth.mixture import Mixture, MixtureLoader, Schedule, plan_report
from lingua_synth.mixture.command import main
from lingua_synth.mixture.plan import count_windows

from mixture_doubles import ArraySource  # isort: skip


@pytest.mark.parametrize(("num_tokens", "windows"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (10, 2)])
def test_windows_are_full_and_share_one_token(num_tokens, windows):
    assert count_windows(num_tokens, 4) == windows
    if windows:
        assert (windows - 1) * 4 + 4 + 1 <= num_tokens < windows * 4 + 4 + 1


def test_the_plan_of_a_small_run():
    plan = plan_report({"web": 81, "hq": 21}, Mixture({"web": "2/3", "hq": "1/3"}, {"hq": 2.5}), 20, 4)
    web, hq = plan.sources
    assert (web.available_sequences, web.available_tokens) == (20, 80)
    assert (web.planned_sequences, web.planned_tokens, web.epochs) == (13, 52, Fraction(13, 20))
    assert (hq.available_sequences, hq.limit_sequences, hq.planned_sequences) == (5, 12, 7)
    assert hq.epochs == Fraction(7, 5)
    assert plan.num_tokens == 80
    assert plan.max_num_sequences == min(web.runs_out_at, hq.runs_out_at) == web.runs_out_at == 30
    assert plan.to_dict()["sources"]["hq"] == {
        "ratio": "1/3",
        "max_epochs": 2.5,
        "available_sequences": 5,
        "available_tokens": 20,
        "planned_sequences": 7,
        "planned_tokens": 28,
        "epochs": 1.4,
        "runs_out_at": 37,
    }
    row = str(plan).splitlines()[1]
    assert " ".join(row.split()) == "web 2/3 13 seq 20 seq = 80 tok 13 seq = 52 tok 0.6500 1 30"


def test_over_asked_sources_are_refused_with_the_numbers():
    mixture = Mixture({"rephrased": "0.85", "web": "0.15"}, max_epochs={"rephrased": 2.0})
    sources = {"rephrased": 600_000 * 4096 + 1, "web": 10**12}
    with pytest.raises(ValueError) as caught:
        plan_report(sources, mixture, 2_000_000, 4096)
    assert str(caught.value) == (
        "source 'rephrased' can give 1,200,000 sequences (600,000 x max_epochs 2) but the plan needs 1,700,000 "
        "(85.0% of 2,000,000). Lower num_sequences to 1,411,765 or raise max_epochs to 2.84, or set "
        "on_exhaustion to stop, repeat or renormalize."
    )
    # Both ways out hold, and the next smaller step of each does not.
    plan_report(sources, mixture, 1_411_765, 4096)
    plan_report(sources, Mixture(mixture.ratios, {"rephrased": 2.84}), 2_000_000, 4096)
    with pytest.raises(ValueError, match="1,411,765"):
        plan_report(sources, mixture, 1_411_766, 4096)
    with pytest.raises(ValueError, match=r"raise max_epochs to 2\.84"):
        plan_report(sources, Mixture(mixture.ratios, {"rephrased": 2.83}), 2_000_000, 4096)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(20, 3_000), st.integers(1, 40)), min_size=1, max_size=8).filter(
        lambda rows: any(row[0] for row in rows)
    )
)
def test_a_source_runs_out_exactly_where_the_plan_says(rows):
    """Against a walk along the schedule that counts one sequence after the other."""
    total = sum(weight for weight, _, _ in rows)
    names = [f"s{i}" for i in range(len(rows))]
    mixture = Mixture(
        {name: Fraction(row[0], total) for name, row in zip(names, rows, strict=True)},
        {name: row[2] / 10 for name, row in zip(names, rows, strict=True)},
    )
    sources = {name: row[1] for name, row in zip(names, rows, strict=True)}
    plan = plan_report(sources, mixture, 1, 5, validate=False)
    end = plan.max_num_sequences
    source, j = Schedule(mixture).locate(np.arange(end + 1))
    limits = np.array([line.limit_sequences for line in plan.sources])
    assert (j[:end] < limits[source[:end]]).all()
    assert j[end] == limits[source[end]]
    assert plan.sources[source[end]].runs_out_at == end
    plan_report(sources, mixture, end, 5)
    with pytest.raises(ValueError):
        plan_report(sources, mixture, end + 1, 5)


def test_a_source_shorter_than_a_sequence_is_refused_if_it_is_read():
    mixture = {"tiny": "1/2", "web": "1/2"}
    with pytest.raises(
        ValueError, match=r"'tiny' holds 100 tokens, less than one sequence of 4,096 \+ 1. Lower seq_len to at most 99"
    ):
        plan_report({"tiny": 100, "web": 10**9}, Mixture(mixture), 10, 4096)
    with pytest.raises(ValueError, match=r"'tiny' holds 0 tokens.*Add text, or set its ratio to 0"):
        plan_report({"tiny": 0, "web": 10**9}, Mixture(mixture), 10, 4096)
    plan = plan_report({"tiny": 100, "web": 10**9}, Mixture({"tiny": 0, "web": 1}), 10, 4096)
    assert plan.sources[0].runs_out_at is None and plan.sources[0].epochs == 0
    assert plan.max_num_sequences == (10**9 - 1) // 4096
    assert "never" in str(plan)


def test_less_than_one_pass_may_be_allowed():
    mixture = Mixture({"web": 1}, 0.5)
    assert plan_report({"web": 41}, mixture, 5, 4).is_feasible
    with pytest.raises(ValueError, match=r"can give 5 sequences \(10 x max_epochs 0.5\) but the plan needs 6"):
        plan_report({"web": 41}, mixture, 6, 4)
    with pytest.raises(ValueError, match=r"\(100.0% of 1\). Raise max_epochs to 1.00"):
        plan_report({"web": 5}, mixture, 1, 4)


def test_every_over_asked_source_is_named():
    with pytest.raises(ValueError) as caught:
        plan_report({"a": 41, "b": 45}, Mixture({"a": "1/2", "b": "1/2"}), 100, 4)
    first, second = str(caught.value).splitlines()
    assert first.startswith("source 'a'") and second.startswith("source 'b'")
    assert "Lower num_sequences to 20 or" in first and "Lower num_sequences to 20 or" in second


@pytest.mark.parametrize(
    ("sources", "num_sequences", "seq_len", "message"),
    [
        ({"a": 10**6}, 10, 4, "the mixture names 'b', which is not among the sources given: 'a'"),
        ({"a": 10**6, "b": 10**6, "c": 5}, 10, 4, "no ratio for 'c'; the mixture has 'a', 'b'"),
        ({"a": 10**6, "b": 10**6}, -1, 4, "num_sequences must be a whole number of at least 0, got -1"),
        ({"a": 10**6, "b": 10**6}, 10, 0, "seq_len must be a whole number of at least 1, got 0"),
        ({"a": 10**6, "b": 10**6}, 1e3, 4, "num_sequences must be a whole number"),
    ],
)
def test_bad_requests_are_refused(sources, num_sequences, seq_len, message):
    with pytest.raises(ValueError, match=message):
        plan_report(sources, Mixture({"a": "1/2", "b": "1/2"}), num_sequences, seq_len)


def test_the_paper_s_pool_for_67_percent_of_200_billion_tokens():
    """67 % of 200B training tokens is 134B of one source: exactly enough passes only with that many in the pool."""
    mixture = Mixture({"hq": "0.67", "cc": "0.33"})
    num_sequences = 200_000_000_000 // 4096
    needed = Schedule(mixture).counts(num_sequences)[0]
    assert abs(needed * 4096 - 134_000_000_000) < 2 * 4096
    enough = {"hq": int(needed) * 4096 + 1, "cc": 10**12}
    assert plan_report(enough, mixture, num_sequences, 4096).sources[0].epochs == 1
    with pytest.raises(ValueError, match="source 'hq'"):
        plan_report(enough | {"hq": enough["hq"] - 1}, mixture, num_sequences, 4096)


def test_the_loader_reads_what_the_plan_says():
    sources = {"a": ArraySource(0, 401), "b": ArraySource(1, 299), "c": ArraySource(2, 77)}
    mixture = Mixture({"a": "0.6", "b": "0.3", "c": "0.1"}, 2.0)
    plan = plan_report(sources, mixture, 60, 8)
    loader = MixtureLoader(sources, mixture, seq_len=8, batch_size=4, num_sequences=60)
    read = np.concatenate([batch.source for batch in loader])
    assert np.bincount(read, minlength=3).tolist() == [line.planned_sequences for line in plan.sources]


# --- the verb ---


def mix(shards, *words, ratios=("2/3", "1/3")):
    argv = []
    for name, ratio in zip(("natural", "synthetic"), ratios, strict=True):
        argv += [f"sources.{name}.path={shards[name]}", f"sources.{name}.ratio={ratio}"]
    return run_command(main, [*argv, "seq_len=32", *words])


def test_mix_prints_the_plan(shards, capsys):
    from lingua_synth.tokens import TokenSource

    assert mix(shards, "num_sequences=300") == 0
    out = capsys.readouterr().out
    assert "300 sequences of 32 = 9,600 training tokens" in out
    available = (TokenSource(shards["natural"]).num_tokens - 1) // 32
    assert f"{available:,} seq = {available * 32:,} tok" in out
    assert "200 seq = 6,400 tok" in out and "100 seq = 3,200 tok" in out
    assert "feasible" in out


def test_mix_rounds_a_budget_in_tokens_up_to_sequences(shards, capsys):
    assert mix(shards, "num_tokens=9_601") == 0
    assert "301 sequences of 32 = 9,632 training tokens" in capsys.readouterr().out


def test_mix_shows_the_table_and_ends_with_2_when_a_source_is_too_small(shards, capsys):
    assert mix(shards, "num_sequences=10_000_000") == 2
    shown = capsys.readouterr()
    assert "(too early)" in shown.out and "10,000,000 sequences" in shown.out
    assert "source 'natural' can give" in shown.err and "Lower num_sequences to" in shown.err
    assert "Traceback" not in shown.err


def test_mix_reads_a_config(shards, tmp_path, capsys):
    config = tmp_path / "mix.yaml"
    config.write_text(
        f"seq_len: 32\nnum_sequences: 30\nsources:\n  all: {{path: '{shards['natural']}', ratio: 1, max_epochs: 2}}\n"
    )
    assert run_command(main, [f"config={config}"]) == 0
    assert "30 seq = 960 tok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "ratios", "message"),
    [
        (["num_sequences=3", "num_tokens=3"], ("2/3", "1/3"), "give the budget once"),
        ([], ("2/3", "1/3"), "give the budget once"),
        (["num_sequences=0"], ("2/3", "1/3"), "num_sequences must be a whole number of at least 1"),
        (["num_sequences=3"], ("0.67", "0.3"), "the ratios must sum to exactly 1, got 97/100"),
        (["num_sequences=3"], ("-1", "2"), "cannot be negative"),
        (["num_sequences=3", "seq_len=0"], ("2/3", "1/3"), "seq_len must be a whole number of at least 1"),
        (["num_sequences=3", "sources.natural.path=gone"], ("2/3", "1/3"), "source 'natural'"),
        (["num_sequences=3", "sources.natural.path=''"], ("2/3", "1/3"), "sources.natural.path is not set"),
        (["num_sequences=3", "sources.natural.max_epochs=0"], ("2/3", "1/3"), "max_epochs of source 'natural'"),
        (["num_sequences=3", "sources.natural.ratoi=1"], ("2/3", "1/3"), "did you mean sources.natural.ratio"),
    ],
)
def test_mix_refuses_bad_input_with_one_message(shards, words, ratios, message, capsys):
    assert mix(shards, *words, ratios=ratios) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_mix_without_sources(capsys):
    assert run_command(main, ["num_sequences=3"]) == 2
    assert "sources is empty" in capsys.readouterr().err
