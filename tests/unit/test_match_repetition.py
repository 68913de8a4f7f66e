"""A part of every source: short runs that repeat their sources as often as a long one."""

import json
import pickle
import shutil
from fractions import Fraction

import numpy as np
import pytest
from mixture_doubles import BASE, ArraySource

from lingua_synth.cli import main
from lingua_synth.config import build_args
from lingua_synth.mixture import Mixture, MixtureLoader, plan_report
from lingua_synth.mixture.args import SourceArgs, build_part
from lingua_synth.mixture.plan import count_part
from lingua_synth.mixture.sequences import MixtureSequences
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
    with pytest.raises(ValueError, match="part is the share of a source's windows"):
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


# --- a part of one source ---


def blocks_of(run):
    return np.concatenate([batch.block.copy() for batch in run])


def test_a_part_of_one_source_leaves_the_other_as_it_is():
    plain, cut = loader(160), loader(160, {"a": F(1, 10)})
    assert cut.num_windows == {"a": 40, "b": 400} and cut.plan.sources[0].epochs == 3
    # 120 sequences of a are three passes over the 40 windows that a tenth of all sources has too.
    whole, own = blocks_of(plain), blocks_of(cut)
    assert set(windows_of(loader(160, {"a": F(1, 10)}), 0)) == set(windows_of(loader(160, F(1, 10)), 0))
    from_b = own[:, 0] // BASE == 1
    assert (own[from_b] == whole[from_b]).all() and not (own[~from_b] == whole[~from_b]).all()
    assert cut.fingerprint["part"] == "a 1/10" and "part" not in plain.fingerprint
    state = cut.state_dict()
    assert state["position"] == 160
    with pytest.raises(ValueError, match="part was a 1/10, is a 1/5"):
        loader(164, {"a": F(1, 5)}, state=state)
    with pytest.raises(ValueError, match="part names c; the sources are a, b"):
        loader(160, {"c": F(1, 2)})


def test_the_parts_of_a_config_multiply():
    sources = {"a": SourceArgs(part="1/4"), "b": SourceArgs()}
    assert build_part({"b": SourceArgs()}) is None and build_part({"b": SourceArgs()}, F(1, 3)) == F(1, 3)
    assert build_part(sources) == {"a": F(1, 4)}
    assert build_part(sources, F(1, 3)) == {"a": F(1, 12), "b": F(1, 3)}
    for bad in ("0", "3/2"):
        with pytest.raises(ValueError, match=r"sources.a.part is a share of its windows"):
            build_part({"a": SourceArgs(part=bad)})


@pytest.mark.parametrize("part", [F(1, 10), {"a": F(1, 10)}])
def test_a_run_as_a_list_and_as_a_dataset_reads_the_same_part(part):
    torch_data = pytest.importorskip("lingua_synth.mixture.torch_data")
    keys = {"part": part, "seq_len": SEQ, "num_sequences": 160, "seed": 3}
    sources = {name: ArraySource(i, SEQ * 400 + 1) for i, name in enumerate("ab")}
    mixture = Mixture({"a": "3/4", "b": "1/4"}, 9)
    expected = blocks_of(MixtureLoader(sources, mixture, batch_size=4, global_batch_size=8, **keys))
    listed = MixtureSequences(sources, mixture, global_batch_size=8, **keys)
    assert (np.stack([listed[k]["block"] for k in range(160)]) == expected).all()
    rows = [row for row in (pickle.loads(pickle.dumps(listed))[k] for k in range(160)) if row["source"] == 0]
    assert sorted({row["epoch"] for row in rows}) == [0, 1, 2] and len({row["window"] for row in rows}) == 40
    dataset = torch_data.MixtureDataset(sources, mixture, keys=["block"], batch_size=4, global_batch_size=8, **keys)
    assert (np.concatenate([item["block"].numpy() for item in dataset]) == expected).all()
    # Resumed in the middle, and never in another part.
    dataset.load_state_dict(state := dataset.state_after(10))
    assert (np.concatenate([item["block"].numpy() for item in dataset]) == expected[40:]).all()
    other = torch_data.MixtureDataset(sources, mixture, batch_size=4, global_batch_size=8, **keys | {"part": F(1, 5)})
    with pytest.raises(ValueError, match="part was"):
        other.load_state_dict(state)


def test_the_mix_verb_counts_the_part(shards, capsys):
    windows = (TokenSource(shards["natural"]).num_tokens - 1) // 32
    held = -(-windows // 8)
    words = [f"sources.natural.path={shards['natural']}", "sources.natural.max_epochs=3", "seq_len=32"]
    assert main(["mix", *words, "sources.natural.part=1/8", f"num_sequences={2 * held}"]) == 0
    one = capsys.readouterr().out
    assert f"{held:,} seq = {held * 32:,} tok" in one and "2.0000" in one
    assert f"source 'natural': part 1/8, {held:,} of its {windows:,} sequences" in one
    assert main(["mix", *words, "part=1/8", f"num_sequences={2 * held}"]) == 0
    assert capsys.readouterr().out == one
    assert main(["mix", *words, "part=1/2", "sources.natural.part=0.25", f"num_sequences={2 * held}"]) == 0
    assert capsys.readouterr().out == one
    with pytest.raises(ValueError, match=rf"can give {3 * held:,} sequences \({held:,} x max_epochs 3\)"):
        main(["mix", *words, "part=1/8", f"num_sequences={3 * held + 1}"])
    with pytest.raises(ValueError, match="part is the share of every source's windows"):
        main(["mix", *words, "part=2", "num_sequences=1"])
    with pytest.raises(ValueError, match=r"leave sources\.<name>\.part out"):
        main(["mix", "paper", *words[:1], "sources.natural.part=1/2"])


def test_a_run_trains_on_a_part_of_one_source(train_args, tmp_path):
    args = train_args({"synth": {"sources": {"natural": {"max_epochs": 50, "part": "1/32"}}}})
    row = train(args, progress=False)
    windows = (TokenSource(args.synth.sources["natural"].path).num_tokens - 1) // 32
    held = -(-windows // 32)
    assert row["unique_tokens_natural"] == held * 32 and row["epochs_natural"] == 64 / held > 1
    other = (TokenSource(args.synth.sources["synthetic"].path).num_tokens - 1) // 32
    assert row["unique_tokens_synthetic"] == 32 * 32 and row["epochs_synthetic"] == 32 / other
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())["synth"]["sources"]
    assert identity["natural"]["part"] == "1/32" and "part" not in identity["synthetic"]
    with pytest.raises(ValueError, match=r"synth.sources.natural.part '1/32' there, None now"):
        train(train_args({"synth": {"sources": {"natural": {"max_epochs": 50}}}}), progress=False)
