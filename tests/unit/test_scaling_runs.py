"""The runs table: what it holds, what it refuses, and that writing loses nothing."""

import numpy as np
import pytest

from lingua_synth.scaling import Runs, clean, load_runs, simulate_study, write_runs

ROW = {
    "run_id": "a-1",
    "mixture": "natural",
    "ratio_natural": 1.0,
    "ratio_synthetic": 0.0,
    "size": "nano-27k",
    "n_non_embedding": 26784,
    "n_total": 288928,
    "n_lingua": 157856,
    "tokens": 262144,
    "seed": 0,
    "loss_macro": 4.25,
    "loss_news": 4.0,
    "loss_books": 4.5,
}


def rows(**changes):
    return [ROW | {"run_id": f"a-{k}", "tokens": 2**k, "loss_macro": 4 + 1 / (k + 3)} | changes for k in range(1, 4)]


def test_columns_are_typed_read_only_and_described(tmp_path):
    write_runs(rows(), tmp_path / "runs.csv")
    runs = load_runs(tmp_path / "runs.csv")
    assert len(runs) == 3
    assert runs["run_id"].tolist() == ["a-1", "a-2", "a-3"]
    assert runs["tokens"].dtype == np.float64
    assert runs["tokens"].tolist() == [2.0, 4.0, 8.0]
    assert runs.mixtures == ["natural"]
    assert runs.domains == ["news", "books"]
    assert runs.sources == ["natural", "synthetic"]
    assert runs.N().tolist() == [26784.0] * 3
    assert runs.N("lingua")[0] == 157856
    assert runs.N("total")[0] == 288928
    with pytest.raises(ValueError, match="read-only"):
        runs["tokens"][0] = 1


def test_writing_and_reading_loses_no_bit_and_orders_the_columns(tmp_path):
    runs, _ = simulate_study("nano", seed=3)
    write_runs(runs, tmp_path / "a.csv")
    again = load_runs(tmp_path / "a.csv")
    assert sorted(again.columns) == sorted(runs.columns)
    for name, values in runs.columns.items():
        assert np.array_equal(values, again[name]), name
    shuffled = Runs({name: runs.columns[name] for name in sorted(runs.columns, key=lambda name: name[0])})
    assert list(shuffled.columns) != list(runs.columns)
    write_runs(shuffled, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_fixed_order_whole_numbers_and_absent_cells(tmp_path):
    first = {
        "mine": "x",
        "wall_s": 0.1,
        "loss_macro": 0.1 + 0.2,
        "tokens": 10.0,
        "size": "s",
        "mixture": "m",
        "run_id": "r",
    }
    write_runs([first, {"run_id": "q", "n_total": 5, "tokens": None}], tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text() == (
        "run_id,mixture,size,n_total,tokens,loss_macro,wall_s,mine\nr,m,s,,10,0.30000000000000004,0.1,x\nq,,,5,,,,\n"
    )


def test_a_failed_write_leaves_the_old_table(tmp_path):
    path = tmp_path / "runs.csv"
    write_runs(rows(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="gpu_hours = inf"):
        write_runs(rows(gpu_hours=float("inf")), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["runs.csv"]
    with pytest.raises(ValueError, match="no runs to write"):
        write_runs([], path)


def test_select_by_text_and_number(tmp_path):
    runs, _ = simulate_study("nano")
    chosen = runs.select(mixture="synthetic", size="nano-107k", tokens=2**20)
    assert len(chosen) == 1
    assert chosen["run_id"][0] == "simulated-synthetic-nano-107k-1048576-0"
    assert chosen.mixtures == ["synthetic"]
    assert len(runs.select(mixture="no such")) == 0
    with pytest.raises(ValueError, match=r"no column 'mixtur'.*did you mean mixture"):
        runs.select(mixtur="natural")
    with pytest.raises(ValueError, match="holds numbers; it cannot equal 'many'"):
        runs.select(tokens="many")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    runs, _ = simulate_study("nano")
    with pytest.raises(ValueError, match=r"no column 'loss_macr'.*did you mean loss_macro\? columns: run_id, mixture"):
        runs["loss_macr"]
    with pytest.raises(ValueError, match="non_embedding, lingua, total; got 'active'"):
        runs.N("active")
    with pytest.raises(ValueError, match="has 2 rows where the others have 1"):
        Runs({"run_id": ["a"], "tokens": [1, 2]})
    with pytest.raises(ValueError, match="must hold numbers"):
        Runs({"tokens": ["many"]})


def csv(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


HEADER = "run_id,mixture,size,n_non_embedding,tokens,loss_macro\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("mixture,size,tokens,n_total,loss_macro\n", "lacks run_id"),
        ("run_id,mixture,size,n_total,loss_macro\n", "lacks tokens"),
        ("run_id,mixture,size,tokens,loss_macro\n", "lacks one of n_non_embedding, n_lingua, n_total"),
        ("run_id,mixture,size,tokens,n_total\n", "lacks one of loss_macro, loss_<domain>"),
        (HEADER + "a,m,s,1e6,1e9,3\nb,m,s,1e6,lots,3\n", r"row 2 \(line 3\), column 'tokens': 'lots' is not a number"),
        (HEADER + "a,m,s,1e6,1e9,\n", r"run 'a' has no loss_macro .*row 1 \(line 2\), column 'loss_macro' is empty"),
        (HEADER + "a,m,s,1e6,1e9,nan\n", "run 'a' has no loss_macro"),
        (HEADER + "a,m,s,1e6,1e9,inf\n", "column 'loss_macro': 'inf' of run 'a' is not finite"),
        (HEADER + "a,m,s,1e6,1e9,-3\n", "loss_macro of run 'a' must be positive, got -3"),
        (HEADER + "a,m,s,1e6,0,3\n", "tokens of run 'a' must be positive, got 0"),
        (HEADER + "a,m,s,,1e9,3\n", "run 'a' has no n_non_embedding"),
        (HEADER + "a,m,s,1e6,1e9,3\nb,m,s,1e6,2e9,3\na,m,s,1e6,3e9,3\n", r"run 'a' stands twice: .*row 1 .* row 3"),
        (HEADER + ",m,s,1e6,1e9,3\n", "column 'run_id': empty"),
        (HEADER + "a,,s,1e6,1e9,3\n", "run 'a' needs a mixture"),
        (HEADER + "a,m,s,1e6,1e9\n", "has 5 cells where the header has 6"),
        (HEADER.replace("size", "mixture"), "more than one column named 'mixture'"),
        (HEADER + 'a,"m', "is not a CSV file"),
    ],
)
def test_bad_tables_are_refused_with_file_row_and_column(tmp_path, text, message):
    path = csv(tmp_path, text)
    with pytest.raises(ValueError, match=message) as refusal:
        load_runs(path)
    assert str(path) in str(refusal.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ValueError, match=r"no runs table .*gone.csv"):
        load_runs(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        load_runs(tmp_path / "b.csv")


def test_a_table_without_runs_is_a_table(tmp_path):
    runs = load_runs(csv(tmp_path, HEADER))
    assert len(runs) == 0
    assert runs.mixtures == []
    assert runs["tokens"].dtype == np.float64


def test_other_column_names_and_other_columns(tmp_path):
    text = "\ufeffparams,tokens,loss,note\n1e6,1e9,3.5,first\n2e6,1e9,3.25,\n"
    runs = load_runs(csv(tmp_path, text), {"n_total": "params", "loss_macro": "loss"})
    assert runs["run_id"].tolist() == ["row-1", "row-2"]
    assert runs.mixtures == ["all"]
    assert runs["size"].tolist() == ["1e6", "2e6"]
    assert runs.N("total").tolist() == [1e6, 2e6]
    assert runs["loss_macro"].tolist() == [3.5, 3.25]
    assert runs["note"].tolist() == ["first", ""]
    with pytest.raises(ValueError, match=r"asks for 'losses' \(as loss_macro\).*did you mean loss\?"):
        load_runs(tmp_path / "runs.csv", {"n_total": "params", "loss_macro": "losses"})
    with pytest.raises(ValueError, match="gives 'loss' two names"):
        load_runs(tmp_path / "runs.csv", {"n_total": "params", "loss_macro": "loss", "loss_a": "loss"})
    with pytest.raises(ValueError, match="has a column 'tokens' already"):
        load_runs(tmp_path / "runs.csv", {"tokens": "params", "loss_macro": "loss"})


def test_optional_numbers_may_be_absent_and_unknown_numbers_are_numbers(tmp_path):
    text = HEADER.strip() + ",gpu_hours,warmup\na,m,s,1e6,1e9,3,,0.1\nb,m,s,1e6,2e9,2.9,4,\n"
    runs = load_runs(csv(tmp_path, text))
    assert np.isnan(runs["gpu_hours"][0])
    assert runs["gpu_hours"][1] == 4
    assert runs["warmup"].dtype == np.float64


def test_schedules_are_told_apart(tmp_path, capsys):
    from lingua_synth.scaling.command import main

    def row(k, schedule, tokens, n=10**6, loss=None):
        law = 1.8 + 480 / n**0.35 + 2000 / tokens**0.37
        return {
            "run_id": f"r{k}", "mixture": "m", "size": str(n), "n_non_embedding": n, "tokens": tokens, "seed": 1,
            "schedule": schedule, "loss_macro": loss or law,
        }  # fmt: skip

    sizes = (10**6, 3 * 10**6, 10**7)
    cells = [(n, tokens) for n in sizes for tokens in (10**8, 2 * 10**8, 3 * 10**8, 4 * 10**8, 5 * 10**8)]
    rows = [row(k, "wsd-sqrt", tokens, n) for k, (n, tokens) in enumerate(cells)]
    write_runs(rows, tmp_path / "one.csv")
    one = load_runs(tmp_path / "one.csv")
    # Evenly spaced budgets are no checkpoints where each has a decay of its own; a cosine's may be.
    assert not one.notes and not clean(one).warnings
    write_runs([r | {"schedule": "cosine"} for r in rows], tmp_path / "cosine.csv")
    assert "evenly spaced" in clean(load_runs(tmp_path / "cosine.csv")).warnings[0]

    both = [*rows, *[r | {"run_id": r["run_id"] + "c", "schedule": "cosine", "loss_macro": 9.0} for r in rows[:5]]]
    write_runs(both, tmp_path / "both.csv")
    table = load_runs(tmp_path / "both.csv")
    assert table.notes == (
        "runs of different learning-rate schedules (wsd-sqrt: 15, cosine: 5): in one fit the schedule passes for an "
        "effect of N or D; schedule=wsd-sqrt takes those runs alone",
    )
    assert table["schedule"].tolist() == ["wsd-sqrt"] * 15 + ["cosine"] * 5
    # A cosine run is no repeat of the wsd run of its cell.
    assert len(clean(table, cells="mean").runs) == 20 and len(clean(table, cells="best").runs) == 20

    words = [f"runs={tmp_path / 'both.csv'}", "bootstraps=0", "figures=false", "share="]
    assert main([*words, f"out={tmp_path / 'a'}"]) == 0
    assert "note: runs of different learning-rate schedules" in capsys.readouterr().out
    for extra in ([], ["clean=false"]):
        assert main([*words, f"out={tmp_path / 'b'}", "schedule=wsd-sqrt", *extra]) == 0
        shown = capsys.readouterr().out
        assert "note: runs of different" not in shown and "15 runs" in shown
    with pytest.raises(ValueError, match="no run has the schedule 'linear'; there are: wsd-sqrt, cosine"):
        main([*words, f"out={tmp_path / 'c'}", "schedule=linear"])
