"""Step by step beside Meta Lingua's own training loop, on a CPU: the same batches, the same losses.

Where LINGUA_DIR names a checkout, Lingua itself is run; its loader alone is replaced, so that both loops read the same
batches. Everywhere, this library's loop is held to a trajectory recorded from Lingua, `tests/golden/`. To record it
again: `LINGUA_DIR=... python tests/integration/test_lingua_parity.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import lingua_cpu

from lingua_synth.config import build_args, dump_args
from lingua_synth.files import sha256_bytes
from lingua_synth.mixture import MixtureLoader
from lingua_synth.mixture.args import build_mixture
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize
from lingua_synth.train import train
from lingua_synth.train.args import TrainArgs, resolve_args
from lingua_synth.train.metrics import read_metrics

needs_lingua = pytest.mark.skipif(not lingua_cpu.LINGUA_DIR, reason="LINGUA_DIR names no checkout of Meta Lingua")
GOLDEN = Path(__file__).parents[1] / "golden" / "lingua_trajectory.json"
COMMIT = "437d680e521873bb5971067148a69587790da853"
STEPS = 30


def formula_shards(folder):
    """Two sources whose texts are a formula: no corpus, no random generator that could change."""
    from lingua_synth.documents import Document

    def text(source, i):
        words, state = [], 2 * i + 7 * source + 1
        for _ in range(20 + i % 30):
            state = (1103515245 * state + 12345) % 2**31
            words.append("".join(chr(97 + (state >> shift) % (9 + 8 * source)) for shift in range(4, 16, 4)))
        return " ".join(words)

    for source, name in enumerate(("alpha", "beta")):
        documents = [Document(f"{name}{i}", text(source, i), {}) for i in range(250)]
        tokenize(documents, folder / name, build_tokenizer("bytes"), progress=False)
    return {name: str(folder / name) for name in ("alpha", "beta")}


@pytest.fixture(scope="module")
def formula(tmp_path_factory):
    return formula_shards(tmp_path_factory.mktemp("formula"))


def run_args(shards, dump_dir, *overrides):
    """30 steps of 8 sequences of 32 tokens, cosine with warm-up, weight decay and clipping in force."""
    base = {
        "name": "parity",
        "dump_dir": str(dump_dir),
        "seed": 17,
        "data": {"seq_len": 32, "batch_size": 2},
        "optim": {"lr": 1e-2, "clip": 0.8, "lr_min_ratio": 0.1},
        "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "multiple_of": 16},
        "distributed": {"model_dtype": "fp32"},
        "checkpoint": {"dump": {"every": 15, "keep": 0}},
        "logging": {"freq": 1},
        "synth": {
            "tokens": STEPS * 256,
            "global_batch_tokens": 256,
            "warmup_ratio": 0.2,
            "device": "cpu",
            "sources": {
                "alpha": {"path": shards["alpha"], "ratio": "2/3"},
                "beta": {"path": shards["beta"], "ratio": "1/3"},
            },
        },
    }
    return build_args(TrainArgs, base, *overrides)


def micro_batches(args, rank, size):
    """What rank `rank` of `size` reads in the whole run, [steps x grad_acc_steps, batch_size, seq_len + 1]."""
    sources = {name: TokenSource(source.path) for name, source in args.synth.sources.items()}
    loader = MixtureLoader(
        sources,
        build_mixture(args.synth.sources),
        seq_len=args.data.seq_len,
        batch_size=args.data.batch_size,
        dp_rank=rank,
        dp_size=size,
        global_batch_size=8,
        seed=args.data.seed,
        num_sequences=args.steps * 8,
    )
    return np.stack([batch.block for batch in loader])


def columns(records, *keys):
    return np.array([[record[key] for key in keys] for record in records], dtype=np.float64)


def torchrun(num_ranks, *command, **environment):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    done = subprocess.run(
        [*words, *map(str, command)], capture_output=True, text=True, timeout=200, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def lingua_trajectory(args, size, folder):
    """Lingua's metrics on our batches, on `size` ranks."""
    resolved = resolve_args(args, dp_size=size, vocab_size=258)
    config = lingua_cpu.shared_keys(resolved) | {"dump_dir": str(folder / "lingua")}
    if size == 1:
        with pytest.MonkeyPatch.context() as patch:
            lingua = lingua_cpu.imported(patch)
            return lingua_cpu.train_on_batches(patch, lingua, config, micro_batches(resolved, 0, 1))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(size):
        np.save(folder / f"blocks_{rank}.npy", micro_batches(resolved, rank, size))
    torchrun(size, lingua_cpu.__file__, "batches", folder)
    return read_metrics(folder / "lingua" / "metrics.jsonl")


def native_trajectory(args, size, folder):
    """This library's metrics, on `size` ranks."""
    if size == 1:
        train(args, progress=False)
    else:
        dump_args(args, folder / "native.yaml")
        torchrun(size, "-m", "lingua_synth.train", f"config={folder / 'native.yaml'}")
    return read_metrics(Path(args.dump_dir) / "metrics.jsonl")


KEYS = ("loss/out", "optim/grad_norm", "optim/lr", "optim/total_tokens")


@needs_lingua
@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch_size"), [(1, 8), (2, 4), (1, 2), (2, 2)], ids=["1x1", "2x1", "1x4", "2x2"])
def test_thirty_steps_are_lingua_s(formula, tmp_path, size, batch_size):
    args = run_args(formula, tmp_path / "native", {"data": {"batch_size": batch_size}})
    our_records, their_records = native_trajectory(args, size, tmp_path), lingua_trajectory(args, size, tmp_path)
    assert set(their_records[0]) <= set(our_records[0])
    ours, theirs = columns(our_records, *KEYS), columns(their_records, *KEYS)
    assert ours.shape == theirs.shape == (STEPS, len(KEYS))
    assert ours[-1, 0] < ours[0, 0] - 1
    difference = np.abs(ours - theirs).max(axis=0)
    print("largest differences:", dict(zip(KEYS, difference, strict=True)))
    assert difference[0] <= 1e-6 and difference[1] <= 1e-6
    assert difference[2] <= 1e-15 and difference[3] == 0


GOLDEN_CHANGES = {
    "cosine": {"data": {"batch_size": 8}},
    "wsd, grouped heads, tied, 4 micro-batches": {
        "optim": {"scheduler": "wsd", "decay_fraction": 0.3},
        "model": {"n_heads": 4, "n_kv_heads": 2, "weight_tying": True, "init_std_factor": "current_depth"},
    },
}


@pytest.mark.parametrize("name", GOLDEN_CHANGES)
def test_thirty_steps_are_those_recorded_from_lingua(formula, tmp_path, name):
    golden = json.loads(GOLDEN.read_text())["trajectories"][name]
    args = run_args(formula, tmp_path / "native", GOLDEN_CHANGES[name])
    blocks = micro_batches(resolve_args(args, dp_size=1, vocab_size=258), 0, 1)
    assert sha256_bytes(blocks.astype("<i4").tobytes()) == golden["batches_sha256"], "the data order has changed"
    ours = columns(native_trajectory(args, 1, tmp_path), "loss/out", "optim/grad_norm", "optim/lr")
    theirs = np.array([golden["loss"], golden["grad_norm"], golden["lr"]]).T
    assert ours.shape == theirs.shape == (STEPS, 3)
    difference = np.abs(ours - theirs).max(axis=0)
    print("largest differences:", difference)
    # Other builds of torch sum in another order.
    assert difference[0] <= 1e-4 and difference[1] <= 1e-4 and difference[2] <= 1e-12


def record_golden():
    """Write the golden file from a real Lingua in LINGUA_DIR."""
    import tempfile

    import torch

    from lingua_synth.files import write_json

    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = formula_shards(Path(folder))
        for number, (name, change) in enumerate(GOLDEN_CHANGES.items()):
            args = run_args(shards, Path(folder) / "unused", change)
            records = lingua_trajectory(args, 1, Path(folder) / str(number))
            blocks = micro_batches(resolve_args(args, dp_size=1, vocab_size=258), 0, 1)
            recorded[name] = {
                "batches_sha256": sha256_bytes(blocks.astype("<i4").tobytes()),
                "loss": [record["loss/out"] for record in records],
                "grad_norm": [record["optim/grad_norm"] for record in records],
                "lr": [record["optim/lr"] for record in records],
            }
    write_json(GOLDEN, {"lingua": COMMIT, "torch": torch.__version__, "steps": STEPS, "trajectories": recorded})


if __name__ == "__main__":
    record_golden()
