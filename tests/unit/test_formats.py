"""Files of the version before are read: tests/golden/0.4.0, which `make.py` there wrote with that version."""

import json
import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "0.4.0"
WORDS = frozenset(
    [
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
)


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the files, and a process that stands where they were written: their paths are relative."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def result_of(folder):
    return json.loads((folder / "run" / "result.json").read_text())


def test_the_files_are_few_and_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 300_000


def test_token_shards_and_their_manifest(old):
    from lingua_synth.tokens import TokenSource, read_manifest, verify_shards

    verify_shards(old / "shards")
    source = TokenSource(old / "shards")
    manifest = read_manifest(old / "shards")
    assert source.num_documents == manifest["documents"] == 40
    text = bytes(int(token) for token in source.document(0)[1:-1]).decode()
    assert text.endswith(".") and len(text.split()) >= 30
    assert {word.rstrip(".") for word in text.split()} <= WORDS
    assert (source.document(0)[0], source.document(0)[-1]) == (256, 257)


def test_a_generation_folder_verifies_and_its_records_are_documents(old):
    from lingua_synth.documents import read_documents
    from lingua_synth.generate import verify

    assert verify(old / "generated") == []
    documents = list(read_documents(str(old / "generated")))
    assert len(documents) == 4
    assert {document.meta["synth"]["recipe"] for document in documents} == {"hq"}
    assert {document.meta["synth"]["source_id"] for document in documents} == {f"few-{k}" for k in range(4)}


def test_a_run_folder_is_a_row_and_so_is_a_runs_table(old):
    from lingua_synth.scaling import load_runs
    from lingua_synth.scaling.folders import read_run_folders

    (row,) = read_run_folders(old / "run")["loss_macro"]
    assert row == result_of(old)["loss_macro"]
    runs = load_runs(old / "runs.csv")
    assert len(runs) == 18 and set(runs["mixture"]) == {"web", "hq33"}


def test_a_checkpoint_gives_the_losses_of_its_run(old):
    from lingua_synth.cli import main
    from lingua_synth.evaluate import read_evaluation

    words = ["checkpoint=run", "domains.held=held", "out=evaluated", "device=cpu", "dtype=fp32"]
    assert not main(["evaluate", *words])
    (sums,) = read_evaluation(old / "evaluated").domains.values()
    assert sums.nats / sums.tokens == pytest.approx(result_of(old)["loss_held"], rel=1e-6)


def test_a_finished_run_is_finished_and_an_unfinished_one_goes_on(old):
    from lingua_synth.cli import main

    before = result_of(old)
    assert not main(["train", "config=run/config.yaml"])
    assert result_of(old) == before
    (old / "run" / "result.json").unlink()  # killed between the last checkpoint and the end
    assert not main(["train", "config=run/config.yaml"])
    after = result_of(old)
    # The configuration has keys today that it had not, so its hash is another.
    kept = [key for key in before if key not in ("wall_s", "gpu_hours", "config_sha256")]
    assert len(kept) > 15
    for key in kept:
        assert after[key] == (pytest.approx(before[key], rel=1e-6) if isinstance(before[key], float) else before[key])


def test_fits_are_read_and_are_those_of_today(old):
    from lingua_synth.scaling import JointLaw, fit, load_runs
    from lingua_synth.scaling.stored import read_fits

    runs = load_runs(old / "runs.csv")
    stored = read_fits(old / "fits", runs).joint["web"].fit
    web = runs.select(mixture="web")
    fresh = fit(JointLaw(), N=web.N("non_embedding"), D=web["tokens"], loss=web["loss_macro"])
    assert stored is not None and stored.params == pytest.approx(fresh.params, rel=1e-5)


@pytest.mark.parametrize(
    ("file", "read"),
    [("shards/manifest.json", "shards"), ("generated/manifest.json", "generated"), ("fits/fits.json", "fits")],
)
def test_a_version_of_the_future_is_refused_by_name(old, file, read):
    from lingua_synth.generate import verify
    from lingua_synth.scaling import load_runs
    from lingua_synth.scaling.stored import read_fits
    from lingua_synth.tokens import read_manifest

    readers = {
        "shards": lambda: read_manifest(old / "shards"),
        "generated": lambda: verify(old / "generated"),
        "fits": lambda: read_fits(old / "fits", load_runs(old / "runs.csv")),
    }
    path = old / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(ValueError, match="99"):
        readers[read]()
