"""The loop: exact resume, exact accounting, refusals."""

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from killing import train_and_kill

from lingua_synth.files import read_json
from lingua_synth.train import loop, resolve_args, train
from lingua_synth.train.args import OptimArgs
from lingua_synth.train.metrics import read_metrics
from lingua_synth.train.schedule import learning_rate_ratio


def losses(run_dir):
    return [record["loss/mean"] for record in read_metrics(Path(run_dir) / "metrics.jsonl")]


def test_a_run_learns_counts_and_finishes(train_args, shards, tmp_path):
    row = train(train_args(), progress=False)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["global_step"] for record in records] == list(range(1, 13))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 0.3
    last = records[-1]
    assert last["optim/total_tokens"] == 12 * 256 == row["tokens"]
    # 96 sequences of 32 tokens, two thirds and one third of them, exactly.
    assert (last["data/tokens/natural"], last["data/tokens/synthetic"]) == (64 * 32, 32 * 32)
    assert (row["tokens_natural"], row["tokens_synthetic"]) == (64 * 32, 32 * 32)
    # Bytes of text: a document's, without the two marks around its tokens.
    for name in ("natural", "synthetic"):
        manifest = read_json(f"{shards[name]}/manifest.json")
        assert manifest["tokens"] == manifest["bytes"] + 2 * manifest["documents"]
        rate = Fraction(manifest["bytes"], manifest["tokens"])
        assert row[f"training_bytes_{name}"] == round(row[f"tokens_{name}"] * rate)
    assert row["training_bytes"] == row["training_bytes_natural"] + row["training_bytes_synthetic"]
    assert (row["tokenizer"], row["tokenizer_sha256"]) == ("bytes-258", manifest["tokenizer"]["sha256"])
    assert row["eval_bytes_near"] == read_json(f"{shards['near']}/manifest.json")["bytes"]
    assert (row["ratio_natural"], row["ratio_synthetic"]) == (2 / 3, 1 / 3)
    assert row["n_total"] == row["n_lingua"] + 258 * 32 == row["n_non_embedding"] + 2 * 258 * 32
    assert row["loss_macro"] == (row["loss_near"] + row["loss_far"]) / 2
    assert row["mixture"] == "two thirds"
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == row
    # The mean over the sources, weighted by their tokens, is the mean of the step.
    for record in records:
        shares = {s: record.get(f"loss/source/{s}") for s in ("natural", "synthetic")}
        assert (
            min(v for v in shares.values() if v is not None)
            <= record["loss/mean"]
            <= max(v for v in shares.values() if v is not None)
        )


def test_a_finished_run_returns_at_once_and_another_is_refused(train_args, tmp_path):
    row = train(train_args(), progress=False)
    before = os.stat(tmp_path / "run" / "metrics.jsonl").st_mtime_ns
    assert train(train_args(), progress=False) == row
    assert train(train_args({"logging": {"freq": 3}, "data": {"batch_size": 8}}), progress=False) == row
    assert os.stat(tmp_path / "run" / "metrics.jsonl").st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds another run \(optim\.lr 0\.003 there, 0\.01 now\)"):
        train(train_args({"optim": {"lr": 0.01}}), progress=False)


def test_equal_configs_train_to_equal_bits(train_args, tmp_path):
    train(train_args(dump_dir=tmp_path / "a"), progress=False)
    train(train_args(dump_dir=tmp_path / "b"), progress=False)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_micro_batches_do_not_change_the_losses(train_args, tmp_path):
    train(train_args(dump_dir=tmp_path / "a"), progress=False)
    train(train_args({"data": {"batch_size": 2}}, dump_dir=tmp_path / "b"), progress=False)
    for a, b in zip(losses(tmp_path / "a"), losses(tmp_path / "b"), strict=True):
        assert abs(a - b) < 1e-6


def test_killed_with_kill_9_and_resumed_it_ends_with_the_same_bits(train_args, tmp_path):
    whole = train_args(dump_dir=tmp_path / "whole")
    expected = train(whole, progress=False)
    killed = train_args(dump_dir=tmp_path / "killed")
    train_and_kill(killed)
    row = train(killed, progress=False)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    same = [key for key in row if key.startswith(("loss_", "bpb_", "tokens", "epochs"))]
    assert {key: row[key] for key in same} == {key: expected[key] for key in same}


def test_a_half_written_log_line_is_dropped_on_resume(train_args, tmp_path):
    train(train_args(dump_dir=tmp_path / "whole"), progress=False)
    args = train_args()
    train(args, progress=False)
    run_dir = tmp_path / "run"
    # As if killed after the checkpoint of step 10, in the middle of a line.
    (run_dir / "result.json").unlink()
    import shutil

    shutil.rmtree(run_dir / "checkpoints" / f"{12:010d}")
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"global_step": 13, "loss/me')
    train(args, progress=False)
    assert losses(run_dir) == losses(tmp_path / "whole")


def test_a_failed_checkpoint_leaves_the_earlier_one(train_args, tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    calls = []
    real_save = dcp.save

    def full_disk(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real_save(*args, **kwargs)

    monkeypatch.setattr(dcp, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(train_args(), progress=False)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == [f"{5:010d}"]
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    row = train(train_args(), progress=False)
    expected = train(train_args(dump_dir=tmp_path / "other"), progress=False)
    assert row["loss_macro"] == expected["loss_macro"]


def test_a_loss_that_is_not_finite_stops_the_run_by_name(train_args):
    with pytest.raises(ValueError, match=r"not finite at step \d+ \(.*global sequences \d+\.\.\d+"):
        train(train_args({"optim": {"lr": 1e18, "clip": 1e30}}), progress=False)


def test_bf16_trains_close_to_fp32(train_args, tmp_path):
    exact = train(train_args(dump_dir=tmp_path / "a"), progress=False)
    mixed = train(train_args({"distributed": {"model_dtype": "bf16"}}, dump_dir=tmp_path / "b"), progress=False)
    assert abs(exact["loss_macro"] - mixed["loss_macro"]) < 0.02


def test_documents_are_tokenized_on_first_use(train_args, tmp_path):
    from texts import make_documents

    from lingua_synth.documents import write_documents

    write_documents(tmp_path / "text.jsonl", make_documents(5, 200))
    source = {"path": str(tmp_path / "new"), "documents": str(tmp_path / "text.jsonl"), "ratio": "1"}
    args = train_args({"data": {"tokenizer": {"name": "bytes"}}})
    args.synth.sources = {"natural": type(args.synth.sources["natural"])(**source)}
    row = train(args, progress=False)
    assert row["tokens_natural"] == 12 * 256
    assert (tmp_path / "new" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"synth": {"tokens": 1000}},
            r"synth\.tokens 1,000 is not a whole number of optimizer steps of 256 tokens; the nearest budget is 1,024",
        ),
        (
            {"synth": {"global_batch_tokens": 200}},
            r"200 is not a whole number of micro-batches of 128 tokens .*a multiple of 32",
        ),
        (
            {"synth": {"preset": "nano-27k"}, "model": {"dim": 48}},
            r"synth\.preset nano-27k and model\.dim 48 exclude each other",
        ),
        ({"synth": {"preset": "nano-1k"}}, r"no preset 'nano-1k'; there are: nano-27k"),
        ({"model": {"vocab_size": 100}}, r"model\.vocab_size 100 is smaller than the tokenizer's 258"),
        ({"synth": {"warmup_ratio": 1.0}}, r"synth\.warmup_ratio must be in \[0, 1\)"),
        ({"optim": {"scheduler": "cosin"}}, r"optim\.scheduler is one of cosine, linear, wsd, inv_sqrt, constant"),
        (
            {"distributed": {"dp_shard": 2}},
            r"dp_shard 2 divides the model, which distributed\.fsdp_type no_shard keeps",
        ),
        (
            {"distributed": {"fsdp_type": "full_shard", "dp_shard": 2}},
            r"1 ranks are no multiple of distributed\.dp_shard",
        ),
        ({"distributed": {"dp_replicate": 4}}, r"dp_replicate 4 x dp_shard 1 is 4 ranks, there are 1"),
        ({"distributed": {"tp_size": 2}}, r"tp_size 2 is read by Meta Lingua's loop alone"),
        ({"optim": {"scheduler": "wsd", "decay_fraction": 1.5}}, r"decay_fraction 1\.5 must be above 0 and below"),
        ({"optim": {"scheduler": "wsd", "lr_min_ratio": 0.0}}, r"lr_min_ratio must be above 0 with wsd"),
        ({"optim": {"lr": 0.0}}, r"optim\.lr must be above 0"),
        ({"synth": {"device": "tpu"}}, r"synth\.device is auto, cpu or cuda"),
        ({"synth": {"sources": {"natural": {"ratio": "1/2"}}}}, r"5/6"),
        ({"synth": {"tokens": 256 * 4000}}, r"natural"),
        ({"synth": {"sources": {"natural": {"path": "nowhere"}}}}, r"source 'natural': .*nowhere"),
        ({"synth": {"evaluation": {"domains": {"near": "nowhere"}}}}, r"domain 'near': .*nowhere"),
        ({"data": {"tokenizer": {"name": "sp", "path": "gone.model"}}}, r"gone\.model"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_they_start(train_args, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(train_args(change), progress=False)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_presets_and_budgets_resolve_to_plain_keys(train_args):
    args = resolve_args(
        train_args({"synth": {"preset": "nano-107k"}, "model": {"dim": 64, "n_heads": 2, "multiple_of": 32}}),
        dp_size=2,
        vocab_size=258,
    )
    assert (args.model.dim, args.model.n_layers, args.model.vocab_size, args.model.max_seqlen) == (64, 2, 258, 32)
    assert (args.steps, args.grad_acc_steps, args.optim.warmup) == (12, 1, 1)
    assert resolve_args(args, dp_size=2, vocab_size=258) == args


def test_schedules_have_lingua_s_values():
    # Values of Meta Lingua's own functions at these steps (warm-up 10 of 100, min ratio 0.1).
    cosine = OptimArgs(warmup=10, lr_min_ratio=0.1, scheduler="cosine")
    expected = {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 99: 0.1 + 0.45 * (math.cos(math.pi * 89 / 90) + 1)}
    for step, ratio in expected.items():
        assert math.isclose(learning_rate_ratio(step, cosine, 100), ratio, abs_tol=1e-12)
    linear = OptimArgs(warmup=10, lr_min_ratio=0.1, scheduler="linear")
    assert math.isclose(learning_rate_ratio(55, linear, 100), 0.55)
    assert learning_rate_ratio(99, OptimArgs(warmup=0, scheduler="constant"), 100) == 1.0


def test_a_checkpoint_loads_for_inference(train_args, tmp_path):
    from lingua_synth.model import load_checkpoint

    train(train_args(), progress=False)
    model, args, tokenizer = load_checkpoint(tmp_path / "run")
    assert (args.vocab_size, args.max_seqlen, tokenizer["name"]) == (258, 32, "bytes")
    assert not model.training
    sharp = torch.nn.functional.softmax(model(torch.tensor([[97, 98]]))[0, -1], -1).max()
    assert sharp > 2 / 258
    with pytest.raises(ValueError, match=r"no checkpoint in .*nothing_here"):
        load_checkpoint(tmp_path / "nothing_here")
    assert read_json(tmp_path / "run" / "checkpoints" / f"{12:010d}" / "train_state_00000.json")["step"] == 12


# --- mixtures that change ---

RATIOS = {"natural": {"ratio": "1"}, "synthetic": {"ratio": "1"}}
WARM_IN = {
    "plain": {"ratios": {"natural": 1}, "until": "1/4"},
    "ramp": {"ratios": {"natural": 1}, "ramp_to": {"natural": "1/2", "synthetic": "1/2"}, "until": "3/4"},
    "mixed": {"ratios": {"natural": "1/2", "synthetic": "1/2"}},
}


@pytest.mark.parametrize("schedule", ["tree", "strict"])
def test_a_run_in_stages_reads_what_they_ask_for_also_when_resumed(train_args, tmp_path, schedule, monkeypatch):
    staged = {"synth": {"sources": RATIOS, "stages": WARM_IN, "mixture": "", "schedule": schedule}}
    row = train(train_args(staged, dump_dir=tmp_path / "whole"), progress=False)
    # 96 sequences: 24 natural, 48 on the way from 1 to 1/2, 24 at 1/2.
    assert abs(row["tokens_synthetic"] - (12 + 12) * 32) <= 32 and row["tokens"] == 96 * 32
    assert row["ratio_synthetic"] == pytest.approx(0.25, abs=0.01) and "until 1/4" in row["mixture"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(train_args(staged, dump_dir=tmp_path / "cut"), progress=False)
    again = train(train_args(staged, dump_dir=tmp_path / "cut"), progress=False)
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in row.items() if k != "wall_s"}


def test_a_changed_mixture_is_refused_or_appended(train_args, tmp_path, monkeypatch):
    saved = loop._save

    def save_and_stop(run):
        saved(run)
        if run.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(train_args(), progress=False)
    monkeypatch.undo()
    changed = {"synth": {"sources": {"natural": {"ratio": "1/4"}, "synthetic": {"ratio": "3/4"}}}}
    with pytest.raises(ValueError, match=r"sources\.natural\.ratio '2/3' there, '1/4' now.*mixture_change=append"):
        train(train_args(changed), progress=False)
    append = {"synth": {"mixture_change": "append"}}
    with pytest.raises(ValueError, match=r"optim\.lr"):
        train(train_args(changed, append, {"optim": {"lr": 1e-3}}), progress=False)
    with pytest.warns(UserWarning, match=r"mixture has changed: up to position 40"):
        row = train(train_args(changed, append), progress=False)
    # 40 sequences at 1/3, 56 at 3/4.
    assert abs(row["tokens_synthetic"] - round(40 / 3 + 56 * 3 / 4) * 32) <= 64
    assert row["ratio_synthetic"] == pytest.approx((40 / 3 + 42) / 96)
    identity = read_json(tmp_path / "run" / "identity.json")
    assert [one["sources"]["natural"]["ratio"] for one in identity["earlier_mixtures"]] == ["2/3"]
    assert train(train_args(changed), progress=False) == row
    clean = train(train_args(changed, dump_dir=tmp_path / "clean"), progress=False)
    assert clean["config_sha256"] != row["config_sha256"]


def test_a_run_ends_with_its_sources_when_told_to(train_args, shards, tmp_path):
    from lingua_synth.tokens import TokenSource

    windows = (TokenSource(shards["synthetic"]).num_tokens - 1) // 32
    scarce = {"synthetic": {"max_epochs": 16.5 / windows}}  # 16 sequences: a third of 48
    with pytest.raises(ValueError, match="'synthetic' can give 16 sequences"):
        train(train_args({"synth": {"sources": scarce}}), progress=False)
    row = train(train_args({"synth": {"sources": scarce, "on_exhaustion": "stop"}}), progress=False)
    assert row["tokens"] == 6 * 256 and row["tokens_synthetic"] == 16 * 32
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["global_step"] == 6
    assert records[-1]["optim/lr"] < records[2]["optim/lr"]  # the schedule knows the end
    few = {"synthetic": {"max_epochs": 2.5 / windows}}
    with pytest.raises(ValueError, match="end before the first step of 8 sequences"):
        train(
            train_args({"synth": {"sources": few, "on_exhaustion": "stop"}}, dump_dir=tmp_path / "few"), progress=False
        )
