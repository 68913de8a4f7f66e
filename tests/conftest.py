"""Small token shards, made through the library's own path, for every test that trains."""

import os

# One thread per test process: small models are faster so, and results do not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from texts import make_documents


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Folders of token shards: two sources and two held-out domains, bytes tokenizer."""
    from lingua_synth.tokens import build_tokenizer, tokenize

    folder = tmp_path_factory.mktemp("shards")
    tokenizer = build_tokenizer("bytes")
    plan = {
        "natural": (0, 300, "abcdefgh"),
        "synthetic": (1, 300, "ijklmnop"),
        "near": (2, 12, "abcdefgh"),
        "far": (3, 12, "ijklmnop"),
    }
    for name, (seed, count, alphabet) in plan.items():
        tokenize(make_documents(seed, count, alphabet), folder / name, tokenizer, progress=False)
    return {name: str(folder / name) for name in plan}


@pytest.fixture(scope="session")
def nano_args(shards):
    """A run of 12 steps on a nano model, as a function of its folder and of overrides."""
    from lingua_synth.config import build_args
    from lingua_synth.train.args import TrainArgs

    def build(dump_dir, *overrides):
        base = {
            "name": "test",
            "dump_dir": str(dump_dir),
            "data": {"seq_len": 32, "batch_size": 4},
            "optim": {"lr": 3e-3},
            "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "multiple_of": 16},
            "distributed": {"model_dtype": "fp32"},
            "checkpoint": {"dump": {"every": 5, "keep": 2}},
            "logging": {"freq": 1},
            "synth": {
                "tokens": 12 * 256,
                "global_batch_tokens": 256,
                "warmup_ratio": 0.1,
                "mixture": "two thirds",
                "device": "cpu",
                "sources": {
                    "natural": {"path": shards["natural"], "ratio": "2/3"},
                    "synthetic": {"path": shards["synthetic"], "ratio": "1/3"},
                },
                "evaluation": {"domains": {"near": shards["near"], "far": shards["far"]}},
            },
        }
        return build_args(TrainArgs, base, *overrides)

    return build


@pytest.fixture
def train_args(nano_args, tmp_path):
    """The same in the test's own folder."""
    return lambda *overrides, dump_dir=tmp_path / "run": nano_args(dump_dir, *overrides)


@pytest.fixture(scope="session")
def nano_study(shards):
    """A study of one nano size without mixtures and budgets, as a function of overrides."""
    from lingua_synth.config import build_args
    from lingua_synth.study import StudyArgs

    base = {
        "sizes": ["nano-27k"],
        "sources": {name: {"path": shards[name]} for name in ("natural", "synthetic")},
        "train": {
            "data": {"seq_len": 32, "batch_size": 4},
            "checkpoint": {"dump": {"every": 0}},
            "synth": {
                "global_batch_tokens": 128,
                "device": "cpu",
                "evaluation": {"domains": {"near": shards["near"]}},
            },
        },
    }
    return lambda *overrides: build_args(StudyArgs, base, *overrides)


@pytest.fixture
def study_args(nano_study, tmp_path):
    """The same in the folder `study` of the test's own folder."""
    return lambda *overrides: nano_study({"out": str(tmp_path / "study")}, *overrides)
