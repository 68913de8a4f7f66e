"""Where a run starts from: its seed, another checkpoint's weights, PyTorch's switches."""

import dataclasses
import gc

import pytest
import torch

from lingua_synth.model import load_checkpoint
from lingua_synth.train import loop, train
from lingua_synth.train.metrics import read_metrics


def losses(run_dir):
    return [record["loss/mean"] for record in read_metrics(run_dir / "metrics.jsonl")]


def test_weights_of_another_run_are_the_start(train_args, tmp_path):
    train(train_args(dump_dir=tmp_path / "first"), progress=False)
    start = {"checkpoint": {"init_ckpt_path": str(tmp_path / "first")}, "optim": {"lr": 1e-9}}
    row = train(train_args(start, dump_dir=tmp_path / "second"), progress=False)
    first, _, _ = load_checkpoint(tmp_path / "first")
    second, _, _ = load_checkpoint(tmp_path / "second")
    for name, weight in first.state_dict().items():
        assert torch.allclose(weight, second.state_dict()[name], atol=1e-6), name
    # Its own steps, optimizer and data from the first on.
    assert row["tokens"] == 12 * 256 and losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0] - 0.3
    one_checkpoint = tmp_path / "first" / "checkpoints" / f"{10:010d}"
    start["checkpoint"]["init_ckpt_path"] = str(one_checkpoint)
    train(train_args(start, dump_dir=tmp_path / "third"), progress=False)
    assert one_checkpoint.name in (tmp_path / "third" / "train.log").read_text()


def test_weights_of_another_model_are_refused(train_args, tmp_path):
    train(train_args(dump_dir=tmp_path / "first"), progress=False)
    start = {"checkpoint": {"init_ckpt_path": str(tmp_path / "first")}}
    for change, message in (
        ({"model": {"dim": 64}}, r"of another model: model\.dim 32 there, 64 here"),
        ({"model": {"multiple_of": 128}}, r"feed-forward width 96 there, 128 here"),
    ):
        with pytest.raises(ValueError, match=message):
            train(train_args(start, change, dump_dir=tmp_path / "other"), progress=False)
    start["checkpoint"]["init_ckpt_path"] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no checkpoint in .*nowhere"):
        train(train_args(start, dump_dir=tmp_path / "again"), progress=False)


def test_the_seed_of_the_model_may_be_set_apart(train_args, tmp_path):
    by_run = train_args({"seed": 5}, dump_dir=tmp_path / "a")
    by_model = train_args({"seed": 9, "model": {"seed": 5}}, dump_dir=tmp_path / "b")
    train(by_run, progress=False)
    train(by_model, progress=False)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    train(train_args({"seed": 9}, dump_dir=tmp_path / "c"), progress=False)
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_the_switches_of_pytorch_are_put_back(train_args, tmp_path, monkeypatch):
    seen = []
    real = loop._take_steps

    def take_steps(run, bar):
        cuda = torch.backends.cuda.matmul
        seen.append((torch.are_deterministic_algorithms_enabled(), cuda.allow_tf32, gc.isenabled()))
        real(run, bar)

    monkeypatch.setattr(loop, "_take_steps", take_steps)
    switches = {"synth": {"deterministic": True}, "distributed": {"matmul_allow_tf32": True}}
    train(train_args(switches, dump_dir=tmp_path / "a"), progress=False)
    train(train_args(dump_dir=tmp_path / "b"), progress=False)
    assert seen == [(True, True, False), (False, False, False)]
    assert not torch.are_deterministic_algorithms_enabled() and gc.isenabled()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_memory_that_does_not_suffice_says_what_to_change(train_args, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 GiB.")

    monkeypatch.setattr(loop, "_forward_and_backward", full)
    with pytest.raises(ValueError, match=r"data\.batch_size below 4 .*full_shard.*selective.*Tried to allocate 28"):
        train(train_args(), progress=False)


def test_an_unknown_host_is_refused(train_args):
    with pytest.raises(ValueError, match="host is native or lingua; got 'megatron'"):
        train(dataclasses.replace(train_args(), host="megatron"), progress=False)


def test_documents_are_masked_in_training(train_args, tmp_path):
    masked = {"synth": {"document_masking": True}}
    train(train_args(dump_dir=tmp_path / "plain"), progress=False)
    train(train_args(masked, dump_dir=tmp_path / "masked"), progress=False)
    plain, other = losses(tmp_path / "plain"), losses(tmp_path / "masked")
    assert plain != other and max(abs(a - b) for a, b in zip(plain, other, strict=True)) < 0.3
