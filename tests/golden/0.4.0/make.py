"""Writes the files beside this one: run with lingua_synth 0.4.0 (7383de1) first on the path, in an empty folder."""

import json
import random
from pathlib import Path

import lingua_synth

assert lingua_synth.__version__ == "0.4.0", lingua_synth.__file__
from lingua_synth.cli import main  # noqa: E402

WORDS = [
    "the",
    "a",
    "river",
    "stone",
    "bright",
    "model",
    "token",
    "data",
    "loss",
    "ratio",
    "train",
    "learn",
    "small",
    "large",
    "seven",
    "nine",
    "and",
    "of",
    "to",
    "in",
]


def write_documents(path, seed, count):
    rng = random.Random(seed)
    rows = [
        {"id": f"{path[:-6]}-{k}", "text": " ".join(rng.choice(WORDS) for _ in range(rng.randint(30, 60))) + "."}
        for k in range(count)
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*words):
    print("+", *words, flush=True)
    assert main(list(words)) in (0, None)


write_documents("web.jsonl", 0, 40)
write_documents("held.jsonl", 1, 6)
write_documents("few.jsonl", 2, 4)
run("tokenize", "documents=web.jsonl", "out=shards", "tokenizer.name=bytes")
run("tokenize", "documents=held.jsonl", "out=held", "tokenizer.name=bytes")
run("generate", "recipe=hq", "documents=few.jsonl", "out=generated", "engine=mock")
run(
    "train",
    "dump_dir=run",
    "name=golden",
    "seed=5",
    "data.seq_len=32",
    "data.batch_size=4",
    "optim.lr=3e-3",
    "model.dim=8",
    "model.n_layers=1",
    "model.n_heads=1",
    "model.multiple_of=8",
    "distributed.model_dtype=fp32",
    "logging.freq=1",
    "checkpoint.dump.every=100",
    "checkpoint.dump.keep=1",
    "synth.tokens=1024",
    "synth.global_batch_tokens=128",
    "synth.warmup_ratio=0.1",
    "synth.mixture=web",
    "synth.device=cpu",
    "synth.sources.web.path=shards",
    "synth.sources.web.ratio=1",
    "synth.evaluation.domains.held=held",
)


rng = random.Random(3)
lines = ["run_id,mixture,size,n_non_embedding,n_total,n_lingua,tokens,seed,loss_macro"]
for mixture, B in (("web", 400.0), ("hq33", 300.0)):
    for N in (10**6, 4 * 10**6, 16 * 10**6):
        for D in (2e7, 8e7, 32e7):
            loss = 1.7 + 120.0 / N**0.35 + B / D**0.3 + rng.gauss(0, 0.002)
            lines.append(f"{mixture}-{N}-{int(D)},{mixture},{N},{N},{N + 10**6},{N + 5 * 10**5},{int(D)},0,{loss!r}")
Path("runs.csv").write_text("\n".join(lines) + "\n")
run("fit", "runs=runs.csv", "out=fits", "bootstraps=4", "figures=false")
