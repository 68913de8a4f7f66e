"""Where a run starts from: its seed, another checkpoint's weights, PyTorch's switches."""

import dataclasses
import gc

import pytest
import torch

from lingua_synth.documents import Document
from lingua_synth.model import load_checkpoint
from lingua_synth.model.distributed import Ranks
from lingua_synth.tokens import build_tokenizer, mapped, tokenize
from lingua_synth.train import loop, train
from lingua_synth.train.inputs import open_shards
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


def test_ranks_divide_the_files_that_are_compared_with_the_manifests(tmp_path, monkeypatch):
    for name in ("a", "b"):
        documents = [Document(str(i), "x" * 50) for i in range(40)]
        tokenize(documents, tmp_path / name, build_tokenizer("bytes"), shard_tokens=200, progress=False)
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    opened = []
    real = mapped.open_shard
    monkeypatch.setattr(mapped, "open_shard", lambda *args: (opened.append(args[:2]), real(*args))[1])

    class OneOf(Ranks):
        def sum(self, values):
            return values + self.problems_of_others

        problems_of_others = 0

    shares = []
    for rank in range(3):
        sources = open_shards("source", paths, OneOf(rank, 3, torch.device("cpu")))
        shares.append([(folder.name, entry["name"]) for folder, entry in opened])
        opened.clear()
    every = [(name, entry["name"]) for name in paths for entry in sources[name].manifest["files"]]
    assert sorted(file for share in shares for file in share) == sorted(every), "each by one rank"
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    OneOf.problems_of_others = 1
    with pytest.raises(ValueError, match="another rank found shards of a source that are not as written"):
        open_shards("source", paths, OneOf(0, 3, torch.device("cpu")))
    (tmp_path / "b" / shares[1][-1][1]).unlink()
    with pytest.raises(ValueError, match=rf"source 'b': .*{shares[1][-1][1]} is missing"):
        open_shards("source", paths, OneOf(1, 3, torch.device("cpu")))
