"""What the two programs make of each other's files: a resolved YAML, checkpoints, Lingua's own tools."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
import lingua_cpu

from lingua_synth.hosts import lingua as host
from lingua_synth.hosts.resolve import resolve
from lingua_synth.mixture.args import SourceArgs
from lingua_synth.model.checkpoint import load_checkpoint
from lingua_synth.train import train
from lingua_synth.train.args import OptimArgs, resolve_args
from lingua_synth.train.metrics import read_metrics
from lingua_synth.train.schedule import learning_rate_ratio

pytestmark = pytest.mark.skipif(not lingua_cpu.LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua")


def train_stock(lingua, config):
    """Stock Lingua on `config`, merged over its defaults as its own `main` does."""
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.structured(lingua.train.TrainArgs()), OmegaConf.create(config))
    with lingua_cpu.process_state(lingua):
        lingua.train.train(OmegaConf.to_object(merged))
    return read_metrics(Path(config["dump_dir"]) / "metrics.jsonl")


def test_the_lingua_at_hand_is_the_tested_one(lingua):
    assert host.import_lingua().commit == "437d680"


@pytest.mark.slow
def test_stock_lingua_trains_from_a_resolved_config(lingua, train_args, tmp_path):
    sources = {}
    for name, letters in (("first", "abcdefg"), ("second", "tuvwxyz")):
        folder = tmp_path / "texts" / name
        folder.mkdir(parents=True)
        lines = [json.dumps({"text": letters[i % 7] * (20 + i % 30)}) + "\n" for i in range(200)]
        (folder / f"{name}.chunk.00.jsonl").write_text("".join(lines))
        sources[name] = SourceArgs(path=str(tmp_path / "none" / name), documents=str(folder), ratio="1/2")
    # Every key that Lingua has is set, some away from its default.
    args = train_args({"data": {"tokenizer": {"name": "bytes"}, "prefetch_size": 4}, "optim": {"beta2": 0.99}})
    args.synth.sources = sources
    resolved = resolve(args)
    assert not any(note.startswith("MISSING") for note in resolved.notes)
    config = yaml.safe_load(resolved.to_yaml())
    assert set(config) <= set(vars(lingua.train.TrainArgs()))
    records = train_stock(lingua, config | {"steps": 2})
    assert [record["global_step"] for record in records] == [1, 2]
    assert records[-1]["optim/total_tokens"] == 2 * 256
    assert 4 < records[0]["loss/out"] < 8


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["native", "lingua"])
def test_lingua_s_own_tools_read_our_checkpoints(lingua, train_args, tmp_path, loop):
    import apps.main.generate

    args = train_args({"host": loop, "synth": {"preset": None}})
    train(args, progress=False)
    newest = tmp_path / "run" / "checkpoints" / f"{12:010d}"
    folder = lingua.checkpoint.consolidate_checkpoints(str(newest))
    theirs, tokenizer, config = apps.main.generate.load_consolidated_model_and_tokenizer(folder)
    assert tokenizer.n_words == 258 and config.name == "test"
    ours, _, _ = load_checkpoint(tmp_path / "run")
    tokens = torch.arange(64).view(2, 32) * 3
    with torch.no_grad():
        theirs.rope_embeddings.reset_parameters()
        assert torch.allclose(theirs(tokens), ours(tokens), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["native", "lingua"])
def test_stock_lingua_goes_on_from_our_checkpoint(lingua, train_args, tmp_path, monkeypatch, loop):
    args = train_args({"host": loop, "data": {"batch_size": 8}})
    train(args, progress=False)
    whole = read_metrics(tmp_path / "run" / "metrics.jsonl")
    resolved = resolve_args(args, dp_size=1, vocab_size=258)
    config = lingua_cpu.shared_keys(resolved) | {"dump_dir": str(tmp_path / "stock")}
    shutil.copytree(tmp_path / "run" / "checkpoints" / f"{10:010d}", tmp_path / "stock" / "checkpoints" / f"{10:010d}")
    blocks = np.zeros((12, 8, 33), dtype=np.int64)
    state = json.loads((tmp_path / "stock" / "checkpoints" / f"{10:010d}" / "train_state_00000.json").read_text())
    assert state["step"] == 10 and state["scheduler"]["last_epoch"] == 10
    state["data_loader_state"] = {"at": 10}
    (tmp_path / "stock" / "checkpoints" / f"{10:010d}" / "train_state_00000.json").write_text(json.dumps(state))
    records = lingua_cpu.train_on_batches(monkeypatch, lingua, config, blocks)
    # Its first step is at rate 0, the next on the schedule.
    assert [record["global_step"] for record in records] == [11, 12]
    assert records[0]["optim/lr"] == 0
    assert abs(records[1]["optim/lr"] - whole[11]["optim/lr"]) < 1e-15


SCHEDULES = {
    "cosine": [{}, {"cosine_theta": 2.0}, {"cycle_length": 0.5}, {"lr_min_ratio": 0.0}],
    "linear": [{}, {"lr_min_ratio": 0.0}],
    "wsd": [{}, {"decay_fraction": 0.3}, {"cycle_length": 0.5, "decay_fraction": 0.25}],
    "inv_sqrt": [{}, {"exp_factor": 0.8}],
}


@pytest.mark.parametrize(
    ("scheduler", "change"), [(name, change) for name, changes in SCHEDULES.items() for change in changes]
)
@pytest.mark.parametrize("steps", [200, 37])
def test_every_schedule_has_lingua_s_rate_at_every_step(lingua, scheduler, change, steps):
    fields = {"scheduler": scheduler, "warmup": 13, "lr_min_ratio": 0.1} | change
    theirs = lingua.optim.build_lr_fn(lingua.optim.OptimArgs(**fields), steps)
    for step in range(steps):
        assert abs(learning_rate_ratio(step, OptimArgs(**fields), steps) - theirs(step)) < 1e-12, step
