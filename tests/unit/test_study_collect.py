"""The runs table: rows are checked, and nothing is missing without being named."""

import json
import shutil
import time

import pytest

from lingua_synth.files import write_json
from lingua_synth.scaling import load_runs, write_runs
from lingua_synth.study import collect
from lingua_synth.study.board import QueuedRun, write_plan
from lingua_synth.study.command import main


def row(name, k=0, **more):
    values = {
        "run_id": name, "mixture": "m", "ratio_web": 0.25, "ratio_hq": 0.75, "size": "1B", "n_non_embedding": 800,
        "n_lingua": 900, "n_total": 1000, "tokens": 4096, "tokens_web": 1024, "tokens_hq": 3072, "seed": 1,
        "loss_macro": 3.0 + k / 7, "loss_micro": 3.1 + k / 7, "loss_pile": 3.0 + k / 7, "bpb_pile": 1.0,
        "flops": 10**12, "gpu_hours": 0.5, "wall_s": 1800.0, "config_sha256": "ab",
    }  # fmt: skip
    return values | more


def planned(folder, name):
    config = {"seed": 1, "synth": {"device": "cpu"}}
    return QueuedRun(name, str(folder / "runs" / name), "1B", "m", 4096, 10**12, 0, (), config)


def make(folder, name, k=0, **more):
    path = folder / "runs" / name
    write_json(path / "result.json", row(name, k, **more))
    write_json(path / "identity.json", {"name": name})
    return path


def validation(path, **losses):
    record = {"global_step": 4} | {name: {"nll_per_token": loss, "tokens": 8} for name, loss in losses.items()}
    (path / "metrics.validation.jsonl").write_text(json.dumps(record) + "\n" + '{"global_step": 9, "pi')


def test_what_is_not_in_the_table_is_named(tmp_path):
    runs = [planned(tmp_path, name) for name in ("a", "b", "c", "d")]
    validation(make(tmp_path, "a"), pile=3.0)
    path = make(tmp_path, "b", 1)
    (path / "result.json").unlink()
    (path / "checkpoints" / f"{5:010d}").mkdir(parents=True)
    (path / "metrics.jsonl").write_text('{"global_step": 6, "optim/total_tokens": 1024}\n{"global_step": 7, "opt')
    validation(make(tmp_path, "d", 2), pile=3.0)
    found = collect([], planned=runs)
    assert [r["run_id"] for r in found.rows] == ["a"]
    assert found.unfinished == {
        "b": "at step 6, 25% of its tokens, newest checkpoint of step 5",
        "c": "not begun",
    }
    assert list(found.left_out) == ["d"]
    assert "metrics.validation.jsonl says 3.0: edited by hand?. Delete" in found.left_out["d"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run_id": "other"}, "its row is of another run: run_id is 'other', planned 'a'"),
        ({"tokens": 8192}, "tokens is 8192, planned 4096"),
        ({"seed": 2, "mixture": "n"}, "seed is 2, planned 1; mixture is 'n', planned 'm'"),
        ({"tokens": "4096"}, "tokens is '4096', not a number"),
        ({"loss_pile": -1.0}, r"loss_pile is -1.0, which no loss is"),
        ({"loss_macro": None}, "loss_macro is None, which no loss is"),
        ({"ratio_hq": 0.5}, "its ratios sum to 0.75"),
        ({"n_total": 0}, "n_total is 0, which no run has"),
        ({"mixture": ""}, "mixture is '', not a text"),
        ({"wall_s": True}, "wall_s is True, not a number"),
    ],
)
def test_a_row_that_cannot_be_right_is_left_out_with_its_reason(tmp_path, change, why):
    make(tmp_path, "a", **change)
    found = collect([], planned=[planned(tmp_path, "a")])
    assert found.rows == [] and why in found.left_out["a"]
    assert f"Delete {tmp_path / 'runs' / 'a' / 'result.json'}" in found.left_out["a"]


@pytest.mark.parametrize("content", ["{half", "[]", "null"])
def test_a_result_that_is_no_row_is_left_out(tmp_path, content):
    make(tmp_path, "a")
    (tmp_path / "runs" / "a" / "result.json").write_text(content)
    assert list(collect([tmp_path / "runs" / "a"]).left_out) == ["a"]


def test_a_run_that_stands_twice_is_counted_once_or_refused(tmp_path):
    make(tmp_path, "a")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "copy" / "a")
    found = collect([tmp_path / "runs" / "a", tmp_path / "copy" / "a"])
    assert len(found.rows) == 1 and "equal; it is counted once" in found.notes[0]
    write_json(tmp_path / "copy" / "a" / "result.json", row("a", seed=2, loss_macro=2.0))
    with pytest.raises(
        ValueError, match=r"run a is in .*runs/a and in .*copy/a with different values of seed, loss_macro"
    ):
        collect([tmp_path / "runs" / "a", tmp_path / "copy" / "a"])
    write_json(tmp_path / "copy" / "a" / "result.json", row("b"))
    found = collect([tmp_path / "runs" / "a", tmp_path / "copy" / "a"])
    assert len(found.rows) == 2 and "runs a and b have the same losses to the last digit" in found.notes[0]


def test_runs_of_other_domains_are_refused_and_missing_sources_are_zero(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", 1)
    path = tmp_path / "runs" / "b" / "result.json"
    values = row("b", 1, ratio_web=1.0)
    del values["ratio_hq"], values["tokens_hq"]
    write_json(path, values)
    found = collect([tmp_path / "runs"])
    assert [(r["ratio_hq"], r["tokens_hq"]) for r in found.rows] == [(0.75, 3072), (0, 0)]
    values["loss_books"] = values.pop("loss_pile")
    write_json(path, values)
    with pytest.raises(
        ValueError, match=r"runs a and b were evaluated on different domains \(loss_pile against loss_books"
    ):
        collect([tmp_path / "runs"])


def test_dump_dirs_of_lingua_and_tables_of_others_come_in(tmp_path):
    dump = tmp_path / "lingua" / "big"
    (dump / "checkpoints").mkdir(parents=True)
    model = "{dim: 64, n_layers: 2, n_heads: 2, vocab_size: 256}"
    (dump / "config.yaml").write_text(
        f"steps: 10\nseed: 3\nmodel: {model}\ndata: {{seq_len: 32, sources: {{web: 1.0}}}}\n"
    )
    line = {"global_step": 10, "optim/total_tokens": 4096, "speed/wps": 100.0, "loss/out": 3.0}
    (dump / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (dump / "metrics.validation.jsonl").write_text(
        json.dumps({"global_step": 10, "pile": {"nll_per_token": 2.5}}) + "\n"
    )
    (tmp_path / "theirs.csv").write_text("name,D,N,loss,pile\nx,100,10,2.5,2.5\ny,200,10,2.25,2.25\n")
    columns = {"run_id": "name", "tokens": "D", "n_total": "N", "loss_macro": "loss", "loss_pile": "pile"}
    make(tmp_path, "a")
    found = collect([tmp_path / "runs", tmp_path / "lingua", tmp_path / "theirs.csv"], columns=columns)
    assert [(r["run_id"], r["tokens"], r["loss_pile"]) for r in found.rows] == [
        ("a", 4096, 3.0), ("big", 4096.0, 2.5), ("x", 100.0, 2.5), ("y", 200.0, 2.25),
    ]  # fmt: skip
    for name in ("runs.csv", "runs.parquet"):
        write_runs(found.rows, tmp_path / name)
    csv, parquet = load_runs(tmp_path / "runs.csv", strict=False), load_runs(tmp_path / "runs.parquet", strict=False)
    assert list(csv.columns) == list(parquet.columns)
    assert all([*map(str, csv[name])] == [*map(str, parquet[name])] for name in csv.columns)
    # The same run, cut short.
    (dump / "config.yaml").write_text((dump / "config.yaml").read_text().replace("steps: 10", "steps: 40"))
    assert collect([tmp_path / "lingua"]).unfinished == {"big": "evaluated after 25% of its steps"}


def test_a_path_where_nothing_is_says_what_there_is(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no run folder"):
        collect([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"no run folder and no table .*gone; .* holds: empty"):
        collect([tmp_path / "gone"])


def test_the_verb_writes_the_table_and_says_what_is_missing(tmp_path, capsys):
    runs = [planned(tmp_path, name) for name in ("a", "b")]
    write_plan(tmp_path, runs)
    with pytest.raises(ValueError, match=r"no run of the study in .* is finished yet"):
        main(["collect", f"out={tmp_path}"])
    make(tmp_path, "a")
    make(tmp_path, "b", 1, loss_pile=0)
    assert main(["collect", f"out={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'runs.csv'}: 1 runs\nleft out: 1\n  b: loss_pile is 0, which no loss is" in shown
    assert main(["collect", f"runs=[{tmp_path}/runs/a]", f"table={tmp_path}/one.parquet"]) == 0
    assert len(load_runs(tmp_path / "one.parquet")) == 1
    with pytest.raises(ValueError, match=r"table is the file to write, .csv or .parquet"):
        main(["collect", f"out={tmp_path}", "table=runs.txt"])
    with pytest.raises(ValueError, match="nothing to collect"):
        main(["collect"])


def test_a_thousand_runs_are_collected_within_ten_seconds(tmp_path):
    runs = [planned(tmp_path, f"r{k}") for k in range(1000)]
    for k, run in enumerate(runs):
        validation(make(tmp_path, run.run_id, k), pile=3.0 + k / 7)
    write_plan(tmp_path, runs)
    began = time.perf_counter()
    assert main(["collect", f"out={tmp_path}"]) == 0
    assert time.perf_counter() - began < 10
    assert len(load_runs(tmp_path / "runs.csv")) == 1000
