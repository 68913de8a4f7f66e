"""A part of every source: short runs that repeat their sources as often as a long one."""

import shutil
from fractions import Fraction

import numpy as np
import pytest
from mixture_doubles import BASE, ArraySource

from lingua_synth.config import build_args
from lingua_synth.mixture import Mixture, MixtureLoader, plan_report
from lingua_synth.mixture.plan import count_part
from lingua_synth.study import StudyArgs, plan_study
from lingua_synth.study.overview import run_row
from lingua_synth.tokens import TokenSource
from lingua_synth.train import train
from lingua_synth.train.metrics import read_metrics

F = Fraction
SEQ = 16


def loader(num_sequences, part=None, **keys):
    sources = {name: ArraySource(i, SEQ * 400 + 1) for i, name in enumerate("ab")}
    # In the order of positions, so that passes end where they end.
    keys = {"seed": 1, "batch_size": 4, "num_sequences": num_sequences, "slot_permutation": False} | keys
    mixture = Mixture({"a": "3/4", "b": "1/4"}, max_epochs=keys.pop("max_epochs", 9))
    return MixtureLoader(sources, mixture, seq_len=SEQ, part=part, **keys)


def windows_of(run, source):
    first = np.concatenate([batch.block[:, 0].copy() for batch in run])
    own = first[first // BASE == source]
    return ((own - source * BASE) // SEQ).tolist()


def test_the_part_is_exact_nested_and_repeated_as_often():
    whole = plan_report({"a": SEQ * 400 + 1, "b": SEQ * 400 + 1}, Mixture({"a": "3/4", "b": "1/4"}, 9), 1600, SEQ)
    assert [line.epochs for line in whole.sources] == [3, 1]
    read = {}
    for part in (F(1, 10), F(1, 4), F(1)):
        run = loader(int(1600 * part), part)
        assert [line.epochs for line in run.plan.sources] == [3, 1]
        read[part] = windows_of(run, 0)
        # Three whole passes over a tenth, a quarter, or all of the 400 windows.
        count = int(400 * part)
        for k in range(3):
            assert len(set(read[part][k * count : (k + 1) * count])) == count
        assert len(set(read[part])) == count and len(read[part]) == 3 * count
        assert {name: own.epochs for name, own in run.accounting().items()} == {"a": 3, "b": 1}
    assert set(read[F(1, 10)]) < set(read[F(1, 4)]) < set(read[F(1)]) == set(range(400))
    # Spread over the whole source, not its beginning, and another part with another seed.
    assert max(read[F(1, 10)]) > 300 and min(read[F(1, 10)]) < 100
    assert set(windows_of(loader(160, F(1, 10), seed=2), 0)) != set(read[F(1, 10)])


def test_without_a_part_states_are_what_they_were():
    expected = {"schedule": "tree", "seq_len": 16, "seed": 1}
    expected |= {"source.a": "0000-000006401-f", "source.b": "0001-000006401-f"}
    assert loader(400).fingerprint == expected
    assert loader(400, F(1)).fingerprint == expected | {"part": "1"}


def test_what_fits_into_the_long_run_fits_into_the_short_one():
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens, full = int(rng.integers(2_000, 90_000)), int(rng.integers(50, 5_000))
        sequences = int(rng.integers(1, full + 1))
        share = F(int(rng.integers(1, 100)), 100)
        mixture = Mixture({"a": share, "b": 1 - share}, {"a": F(int(rng.integers(1, 300)), 100), "b": 9_999})
        if not (tokens - 1) // SEQ:
            continue
        sources = {"a": tokens, "b": 10**6}
        long = plan_report(sources, mixture, full, SEQ, validate=False)
        short = plan_report(sources, mixture, sequences, SEQ, validate=False, part=F(sequences, full))
        own, other = long.sources[0], short.sources[0]
        assert other.available_sequences == -(-own.available_sequences * sequences // full)
        # Off by the rounding to whole sequences and windows, not more.
        assert abs(other.planned_sequences - own.epochs * other.available_sequences) <= 1 + own.epochs
        if share * full <= own.available_sequences:
            assert other.planned_sequences <= other.available_sequences


@pytest.mark.parametrize("part", [F(0), F(3, 2)])
def test_no_part(part):
    with pytest.raises(ValueError, match="part is the share of every source's windows"):
        loader(40, part)


def test_a_state_of_another_part_is_refused():
    run = loader(160, F(1, 10))
    next(run)
    state = run.state_dict()
    assert (next(loader(160, F(1, 10), state=state)).block == next(run).block).all()
    with pytest.raises(ValueError, match="part was 1/10, is 1/5"):
        loader(160, F(1, 5), state=state)
    with pytest.raises(ValueError, match="part was 1/10, is None"):
        loader(160, state=state)


def test_a_trained_proxy_counts_its_own_passes_and_resumes(train_args, tmp_path):
    change = {"synth": {"match_repetition": 10 * 12 * 256, "sources": {"natural": {"max_epochs": 50}}}}
    change["synth"]["sources"]["synthetic"] = {"max_epochs": 50}
    args = train_args(change)
    row = train(args, progress=False)
    for name, sequences in (("natural", 64), ("synthetic", 32)):
        windows = (TokenSource(args.synth.sources[name].path).num_tokens - 1) // 32
        held = count_part(windows, F(1, 10))
        assert held == -(-windows // 10) < windows
        assert row[f"epochs_{name}"] == sequences / held
        assert row[f"unique_tokens_{name}"] == min(sequences, held) * 32
        # Those of the long run, to the rounding of a tenth to whole windows.
        assert row[f"epochs_{name}"] == pytest.approx(10 * sequences / windows, rel=1 / held)
    losses = [r["loss/mean"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{12:010d}")
    again = train(args, progress=False)
    assert again["loss_macro"] == row["loss_macro"]
    assert [r["loss/mean"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == losses


def test_a_proxy_is_refused_where_the_long_run_would_be(train_args):
    with pytest.raises(ValueError, match="source 'natural' can give"):
        train(train_args({"synth": {"match_repetition": 100 * 12 * 256}}), progress=False)
    with pytest.raises(ValueError, match=r"match_repetition 3,071 .* at least this one's own 3,072"):
        train(train_args({"synth": {"match_repetition": 3071}}), progress=False)
    with pytest.raises(ValueError, match="as they would in the run that this one stands for"):
        train(train_args({"synth": {"match_repetition": 100 * 12 * 256, "on_exhaustion": "stop"}}), progress=False)


def test_a_study_plans_the_passes_of_the_long_run(shards):
    study = {
        "out": "s", "sizes": ["nano-27k"], "budgets": [1024, 2048, 32768],
        "mixtures": {"half": {"ratios": {"natural": "1/2", "synthetic": "1/2"}}},
        "sources": {"natural": {"path": shards["natural"], "max_epochs": 9}, "synthetic": {"tokens": "10k"}},
        "train": {
            "data": {"seq_len": 32, "batch_size": 4}, "optim": {"warmup": 2},
            "synth": {"global_batch_tokens": 128, "device": "cpu", "match_repetition": 32768},
        },
    }  # fmt: skip
    study["sources"]["synthetic"]["max_epochs"] = 9
    rows = [run_row(run) for run in plan_study(build_args(StudyArgs, study), draft=True)]
    windows = (10_000 - 1) // 32
    held = [-(-windows * tokens // 32768) for tokens in (1024, 2048, 32768)]
    assert [row["epochs_synthetic"] for row in rows] == [16 / held[0], 32 / held[1], 512 / windows]
    unknown = {"sources": {"synthetic": {"tokens": None}}}
    assert plan_study(build_args(StudyArgs, study, unknown), draft=True)[0].needs[1].epochs is None
    with pytest.raises(ValueError, match="the budgets of a ladder share their data"):
        plan_study(build_args(StudyArgs, study, {"grids": {"wsd": {"ladder": True}}}), draft=True)
