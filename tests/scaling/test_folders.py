"""Runs in: folders of runs (this library's, Meta Lingua's), parquet, and tables with bad cells."""

import json

import numpy as np
import pytest
import yaml

from lingua_synth.files import write_json
from lingua_synth.model import ModelArgs, count_parameters, flops_per_token
from lingua_synth.scaling import load_runs, simulate_study, write_runs

MODEL = {"dim": 64, "n_layers": 2, "n_heads": 2, "multiple_of": 32, "vocab_size": 1000}


def lingua_dump(folder, *, steps=100, last=100, loss=3.0, name="lingua", validation=True, model=None, seed=777):
    """A dump_dir with the files and keys that Meta Lingua's loop writes; logs every 10 steps of 2048 tokens."""
    folder.mkdir(parents=True)
    config = {
        "name": name, "dump_dir": str(folder), "seed": seed, "steps": steps, "grad_acc_steps": 1,
        "data": {"seq_len": 128, "batch_size": 16, "sources": {"web/cc": 30.0, "hq": 10.0}},
        "model": {**MODEL, "sliding_window": None, "head_dim": None, **(model or {})},
        "optim": {"lr": 1e-3}, "logging": {"freq": 10},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(10, last + 1, 10):
            record = {
                "global_step": step, "acc_step": 0, "speed/wps": 1e5, "optim/total_tokens": step * 2048,
                "loss/out": loss + 10 / step, "created_at": f"2025-01-01T00:{step // 10:02d}:00+00:00",
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
        file.write('{"global_step": ')  # killed here
    if validation:
        lines = []
        for step in (last // 2, last):
            losses = {"a.jsonl": loss + 10 / step, "b.jsonl": loss + 1 + 10 / step}
            lines.append({"global_step": step, **{d: {"nll": -9.0, "nll_per_token": -v} for d, v in losses.items()}})
        text = "".join(json.dumps({"created_at": "2025-01-01", **line}) + "\n" for line in lines)
        (folder / "metrics.validation.jsonl").write_text(text)


def test_a_lingua_dump_becomes_a_row(tmp_path):
    lingua_dump(tmp_path / "first")
    runs = load_runs(tmp_path)
    assert len(runs) == 1
    row = {name: values[0] for name, values in runs.columns.items()}
    counts = count_parameters(ModelArgs(**MODEL))
    assert (row["n_non_embedding"], row["n_total"], row["n_lingua"]) == (
        counts.non_embedding, counts.total, counts.lingua,
    )  # fmt: skip
    assert row["run_id"] == "first" and row["size"] == "64x2" and row["seed"] == 777
    assert row["tokens"] == 100 * 2048 and row["schedule_done"] == 1
    assert row["loss_a"] == pytest.approx(3.1) and row["loss_b"] == pytest.approx(4.1)
    assert row["loss_macro"] == pytest.approx(3.6) and row["loss_train"] == pytest.approx(3.1)
    assert row["flops"] == 100 * 2048 * flops_per_token(ModelArgs(**MODEL), 128)
    assert row["gpu_hours"] == pytest.approx(204_800 / 1e5 / 3600) and row["wall_s"] == 540
    # Lingua's weights count documents, so they are no ratios of tokens.
    assert row["mixture"] == "cc:0.75+hq:0.25" and (row["weight_cc"], row["weight_hq"]) == (0.75, 0.25)
    assert runs.sources == []
    assert any("averages over documents" in note for note in runs.notes)
    assert load_runs(tmp_path / "first")["run_id"].tolist() == ["first"], "the folder may be the run itself"


def test_unfinished_and_unreadable_runs_are_told(tmp_path):
    lingua_dump(tmp_path / "s" / "half", last=40, model={"dim": 128})
    lingua_dump(tmp_path / "s" / "no_validation", validation=False)
    lingua_dump(tmp_path / "s" / "empty")
    (tmp_path / "s" / "empty" / "metrics.jsonl").write_text("")
    (tmp_path / "s" / "notes").mkdir()
    runs = load_runs(tmp_path / "s")
    assert runs["run_id"].tolist() == ["half", "no_validation"]
    assert runs["schedule_done"].tolist() == [0.4, 1.0]
    assert runs["tokens"].tolist() == [40 * 2048, 100 * 2048]
    assert np.isnan(runs["loss_macro"][1]) and runs["loss_train"][1] == pytest.approx(3.1)
    assert "empty is left out: metrics.jsonl has no whole line" in runs.notes
    assert any(note.startswith("no_validation has no validation losses") for note in runs.notes)
    with pytest.raises(ValueError, match="holds no run folder"):
        load_runs(tmp_path / "s" / "notes")
    with pytest.raises(ValueError, match="a column map is for a table"):
        load_runs(tmp_path / "s", {"n_total": "params"})


def test_an_eval_folder_later_than_the_log_wins(tmp_path):
    lingua_dump(tmp_path / "run", validation=False)
    for step, loss in ((50, 4.0), (100, 3.25)):
        folder = tmp_path / "run" / "evals" / f"{step:010d}"
        folder.mkdir(parents=True)
        (folder / "validation.json").write_text(json.dumps({"c4": {"nll_per_token": -loss}}))
    assert load_runs(tmp_path)["loss_c4"].tolist() == [3.25]


def test_our_run_folders_are_their_results(tmp_path):
    table, _ = simulate_study("nano", noise=0.001)
    some = table.take(range(6))
    for k in range(6):
        row = {name: values[k].item() for name, values in some.columns.items()}
        write_json(tmp_path / "runs" / row["run_id"] / "result.json", row)
    lingua_dump(tmp_path / "runs" / "unfinished", last=40, validation=False)
    runs = load_runs(tmp_path)
    finished = runs.take(runs["schedule_done"] == 1)
    assert sorted(finished["run_id"]) == sorted(some["run_id"]) and len(runs) == 7
    assert finished["loss_macro"][np.argsort(finished["run_id"])] == pytest.approx(
        some["loss_macro"][np.argsort(some["run_id"])], rel=0
    )
    write_json(tmp_path / "again" / "result.json", row)
    with pytest.raises(ValueError, match="read the folders one by one"):
        load_runs(tmp_path)


def test_runs_on_other_domains_are_not_one_table(tmp_path):
    lingua_dump(tmp_path / "one")
    write_json(tmp_path / "two" / "result.json", {"run_id": "two", "mixture": "m", "loss_macro": 3.0, "loss_c": 3.0})
    with pytest.raises(ValueError, match=r"one and two were evaluated on different domains \(a, b against c\)"):
        load_runs(tmp_path)


def test_parquet_is_read_as_csv_is(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, _ = simulate_study("nano", noise=0.003)
    write_runs(table, tmp_path / "runs.csv")
    columns = {name: values.tolist() for name, values in table.columns.items()}
    pq.write_table(pa.table({**columns, "log": [[1, 2]] * len(table)}), tmp_path / "runs.parquet")
    ours, theirs = load_runs(tmp_path / "runs.csv"), load_runs(tmp_path / "runs.parquet")
    assert set(ours.columns) == set(theirs.columns)
    for name, values in ours.columns.items():
        assert np.array_equal(values, theirs[name]), name
    assert len(theirs.notes) == 1 and theirs.notes[0].startswith("column 'log' of runs.parquet is left out: it holds")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.parquet is not a parquet file"):
        load_runs(tmp_path / "bad.parquet")


def test_bad_cells_come_in_when_asked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("run_id,mixture,size,n_total,tokens,loss_macro\na,m,s,1e6,1e9,3\na,m,s,1e6,2e9,\n,m,s,x,3e9,-1\n")
    with pytest.raises(ValueError, match=r"run 'a' stands twice|empty; every run needs"):
        load_runs(path)
    runs = load_runs(path, strict=False)
    assert runs["run_id"].tolist() == ["a", "a#2", "row-3"]
    assert np.isnan(runs["loss_macro"][1]) and runs["loss_macro"][2] == -1 and np.isnan(runs["n_total"][2])


def test_a_table_of_other_names_is_told_which_map_would_do(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("params,tokens,loss\n1e6,1e9,3\n")
    with pytest.raises(ValueError, match=r"perhaps n_total=params, loss_macro=loss"):
        load_runs(path)
