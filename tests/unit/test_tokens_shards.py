"""Token shards: what goes in comes out, without a copy, and nothing damaged is believed."""

import collections
import errno
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.cli import main
from lingua_synth.config import run_command
from lingua_synth.documents import Document, Rejects, write_documents
from lingua_synth.files import sha256_file
from lingua_synth.tokens import (
    TokenSource,
    build_tokenizer,
    mapped,
    tokenization,
    tokenize,
    train_sentencepiece,
    verify_shards,
)
from lingua_synth.tokens.units import document_keys

BYTES = build_tokenizer("bytes")


def make_documents(count=100, seed=0):
    rng = random.Random(seed)
    return [Document(f"d{i}", f"Document {i}: " + "é" * rng.randint(0, 80), {"n": i}) for i in range(count)]


def make(tmp_path, documents=None, name="shards", **settings):
    documents = make_documents() if documents is None else documents
    return tokenize(documents, tmp_path / name, BYTES, **{"progress": False, **settings})


class Wide(type(BYTES)):
    """Bytes with a vocabulary too large for uint16: ids are shifted past it."""

    n_words = 128_256
    sha256 = "wide"

    def _encode(self, text):
        return [100_000 + byte for byte in text.encode()]

    def encode_flat(self, texts):
        ids, lengths = super().encode_flat(texts)
        return 100_000 + ids, lengths


# --- round trip ---


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=12
    ),
    shard_tokens=st.integers(1, 60),
    add_bos=st.booleans(),
    add_eos=st.booleans(),
    shuffle_seed=st.none() | st.integers(0, 3),
)
def test_every_document_is_stored_once_and_whole(tmp_path_factory, texts, shard_tokens, add_bos, add_eos, shuffle_seed):
    folder = tmp_path_factory.mktemp("s")
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    manifest = tokenize(
        iter(documents), folder, BYTES, add_bos=add_bos, add_eos=add_eos, shuffle_seed=shuffle_seed,
        shard_tokens=shard_tokens, progress=False,
    )  # fmt: skip
    source = TokenSource(folder, verify=True)
    ids = [source.document_id(i) for i in range(len(source))]
    if shuffle_seed is None:
        assert ids == [document.id for document in documents]
    else:
        order = np.argsort(document_keys(shuffle_seed, [0] * len(documents), range(len(documents))))
        assert ids == [documents[i].id for i in order]
    expected = [BYTES.encode(texts[int(i)], add_bos, add_eos) for i in ids]
    assert [source.document(i).tolist() for i in range(len(source))] == expected
    assert source.document_lengths.tolist() == [len(tokens) for tokens in expected]
    assert source.document_num_bytes.tolist() == [len(texts[int(i)].encode()) for i in ids]
    assert source.document_lengths.dtype == source.document_num_bytes.dtype == np.int64

    stream = [token for tokens in expected for token in tokens]
    assert source.num_tokens == manifest["tokens"] == len(stream)
    assert source.num_bytes == manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert source.num_documents == manifest["documents"] == len(texts)
    for start in range(len(stream) + 1):
        for length in (0, 1, 7, len(stream) - start):
            if start + length <= len(stream):
                assert source.window(start, length).tolist() == stream[start : start + length]
    for entry in manifest["files"]:
        assert entry["tokens"] <= shard_tokens or entry["documents"] == 1
    assert verify_shards(folder) == []


@pytest.mark.parametrize(("tokenizer", "dtype"), [(BYTES, "uint16"), (Wide(), "uint32")])
def test_files_are_arrow_as_the_contract_says(tmp_path, tokenizer, dtype):
    documents = make_documents(3)
    manifest = tokenize(documents, tmp_path, tokenizer, shuffle_seed=None, progress=False)
    assert manifest["dtype"] == dtype
    assert TokenSource(tmp_path).window(0, 5).dtype == np.dtype(dtype)
    with pa.memory_map(str(tmp_path / "shard-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.schema.metadata == {b"lingua_synth.tokenizer_sha256": tokenizer.sha256.encode()}
        kind = table.schema.field("tokens").type
        assert kind == pa.large_list(pa.field("item", getattr(pa, dtype)(), nullable=False))
        assert table.column("id").to_pylist() == ["d0", "d1", "d2"]
        assert table.column("num_bytes").to_pylist() == [len(d.text.encode()) for d in documents]
        assert table.column("tokens").to_pylist() == [tokenizer.encode(d.text, True, True) for d in documents]


def test_the_manifest_names_what_is_there(tmp_path):
    manifest = make(tmp_path, shard_tokens=2_000)
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text()) == manifest
    assert manifest["tokenizer"] == {
        "name": "bytes", "path": None, "sha256": BYTES.sha256, "n_words": 258, "bos_id": 256, "eos_id": 257
    }  # fmt: skip
    assert (manifest["version"], manifest["add_bos"], manifest["add_eos"]) == (1, True, True)
    assert len(manifest["files"]) > 3
    for key in ("documents", "tokens", "bytes"):
        assert sum(entry[key] for entry in manifest["files"]) == manifest[key]
    names = [entry["name"] for entry in manifest["files"]]
    assert sorted(os.listdir(tmp_path / "shards")) == sorted([".lock", "manifest.json", *names])


def test_the_same_documents_give_the_same_shards(tmp_path):
    for suffix in ("jsonl", "jsonl.gz"):
        write_documents(tmp_path / f"in.{suffix}", make_documents())
    one = make(tmp_path, str(tmp_path / "in.jsonl"), shard_tokens=500)
    two = make(tmp_path, str(tmp_path / "in.jsonl.gz"), "again", shard_tokens=500)
    assert [entry["sha256"] for entry in one["files"]] == [entry["sha256"] for entry in two["files"]]
    fingerprints = {TokenSource(tmp_path / name).fingerprint for name in ("shards", "again")}
    assert len(fingerprints) == 1
    make(tmp_path, str(tmp_path / "in.jsonl"), "other", shuffle_seed=1, shard_tokens=500)
    assert TokenSource(tmp_path / "other").fingerprint not in fingerprints
    # In the order of the input objects are no other documents than lines.
    make(tmp_path, name="objects", shuffle_seed=None)
    make(tmp_path, str(tmp_path / "in.jsonl.gz"), "lines", shuffle_seed=None)
    assert TokenSource(tmp_path / "objects").fingerprint == TokenSource(tmp_path / "lines").fingerprint


# --- without a copy ---


def test_a_window_in_one_file_is_a_view_of_the_mapped_file(tmp_path):
    make(tmp_path, shard_tokens=1_000)
    source = TokenSource(tmp_path / "shards")
    first = source.manifest["files"][0]["tokens"]
    whole = source.window(0, first)
    for start, length in [(0, first), (5, 100), (first - 1, 1)]:
        window = source.window(start, length)
        assert np.shares_memory(window, whole)
        assert window.ctypes.data == whole.ctypes.data + 2 * start
    assert np.shares_memory(source.document(0), whole)
    across = source.window(first - 3, 6)
    assert not np.shares_memory(across, whole)
    assert across.tolist() == source.window(first - 3, 3).tolist() + source.window(first, 3).tolist()
    for window in (whole, across, source.document(1)):
        with pytest.raises(ValueError, match="read-only"):
            window[0] = 1


def test_opening_and_reading_take_no_memory_of_their_own(tmp_path):
    big = np.random.default_rng(0).integers(97, 123, 40_000_000, dtype=np.uint8).tobytes().decode()
    make(tmp_path, [Document("big", big), Document("small", "x")], shuffle_seed=None)
    # An address space too small for a copy of the 80 MB of tokens on top of the mapping.
    code = f"""
import resource, sys, numpy, pyarrow
from lingua_synth.tokens import TokenSource
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000,) * 2)
source = TokenSource({str(tmp_path / "shards")!r})
window = source.window(1_000, 39_000_000)
print(int(window[::4096].max()) < 123, len(window), "pandas" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.stdout == "True 39000000 False\n", done.stderr


# --- asking again ---


def test_a_finished_folder_is_returned_at_once(tmp_path, monkeypatch):
    write_documents(tmp_path / "in.jsonl", make_documents())
    path = str(tmp_path / "in.jsonl")
    manifest = make(tmp_path, path)
    monkeypatch.setattr(tokenization, "plan_units", lambda *_: pytest.fail("read again"))
    assert make(tmp_path, path) == manifest
    os.utime(path, ns=(5, 5))
    assert make(tmp_path, path) == manifest


def test_objects_are_compared_by_content(tmp_path):
    manifest = make(tmp_path, iter(make_documents()))
    assert make(tmp_path, make_documents()) == manifest
    with pytest.raises(ValueError, match="the documents are others"):
        make(tmp_path, make_documents(101))
    with pytest.raises(ValueError, match="the documents are others"):
        make(tmp_path, make_documents(seed=1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"add_bos": False}, "add_bos is True there and False now"),
        ({"add_eos": False}, "add_eos is True there and False now"),
        ({"shuffle_seed": None}, "shuffle_seed is 0 there and None now"),
        ({"shard_tokens": 7}, "shard_tokens is 67108864 there and 7 now"),
    ],
)
def test_other_settings_in_a_finished_folder_are_refused(tmp_path, setting, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"finished token shards of other settings: {message}"):
        make(tmp_path, **setting)


def test_another_vocabulary_or_other_files_are_refused(tmp_path):
    write_documents(tmp_path / "in.jsonl", make_documents())
    path = str(tmp_path / "in.jsonl")
    make(tmp_path, path)
    model = train_sentencepiece([d.text for d in make_documents()], tmp_path / "sp.model", 300)
    with pytest.raises(ValueError, match=r"tokenizer is bytes \(\w+\) there and sp \(\w+\) now"):
        tokenize(path, tmp_path / "shards", build_tokenizer("sp", str(model)), progress=False)
    text = (tmp_path / "in.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text(text.replace("Document 0", "Dokument 0"))  # the same size
    with pytest.raises(ValueError, match="the documents are others"):
        make(tmp_path, path)
    # The vocabulary is its hash: the same file elsewhere is the same tokenizer.
    sp = tokenize(path, tmp_path / "sp", build_tokenizer("sp", str(model)), progress=False)
    shutil.copy(model, tmp_path / "moved.model")
    assert tokenize(path, tmp_path / "sp", build_tokenizer("sp", str(tmp_path / "moved.model")), progress=False) == sp


# --- interruptions ---


@pytest.mark.parametrize("failing", ["shard-00002.arrow", "manifest.json"])
def test_a_failing_write_leaves_no_shards_behind_that_anyone_believes(tmp_path, monkeypatch, failing):
    expected = make(tmp_path, name="expected", shard_tokens=500)
    replace = os.replace

    def full_disk(source, target):
        if os.path.basename(target) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path, shard_tokens=500)
    monkeypatch.undo()
    assert not [name for name in os.listdir(tmp_path / "shards") if name.endswith(".tmp")]
    with pytest.raises(ValueError, match=r"no token shards in .*lingua-synth tokenize"):
        TokenSource(tmp_path / "shards")
    # Longer shards now: of the interrupted try nothing may be left.
    (tmp_path / "shards" / "shard-00999.arrow").write_bytes(b"stale")
    assert make(tmp_path, shard_tokens=500)["files"] == expected["files"]
    assert verify_shards(tmp_path / "shards") == []


def test_files_of_somebody_else_are_not_removed(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-00000.arrow").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds shard-00000\.arrow but no manifest\.json of ours"):
        make(tmp_path)
    assert (tmp_path / "shards" / "shard-00000.arrow").read_bytes() == b"mine"


def test_two_runs_into_one_folder(tmp_path):
    from lingua_synth.files import folder_lock

    with folder_lock(tmp_path / "shards", "tokenization"), pytest.raises(ValueError, match="is in use by tokenization"):
        make(tmp_path)


# --- bad documents ---


class Forgetful(type(BYTES)):
    """A vocabulary in which some texts have no tokens, as in SentencePiece models that drop spaces."""

    def encode_flat(self, texts):
        return super(BYTES.__class__, self).encode_flat(texts)

    def _encode(self, text):
        return [] if "nothing" in text else super()._encode(text)


def test_documents_without_tokens_are_counted(tmp_path):
    texts = {"a": "text", "b": "nothing", "c": "", "d": " \n", "e": "\ud800"}
    documents = [Document(name, text) for name, text in texts.items()]
    manifest = tokenize(documents, tmp_path / "x", Forgetful(), progress=False)
    assert manifest["skipped"] == {"zero tokens": 1, "empty text": 2, "lone surrogate": 1}
    assert manifest["documents"] == 1
    with pytest.raises(ValueError, match="no tokens in the documents given: empty text 2, zero tokens 1"):
        tokenize(documents[1:4], tmp_path / "y", Forgetful(), progress=False)
    with pytest.raises(ValueError, match="no tokens in the documents given: there is no document"):
        tokenize([], tmp_path / "z", BYTES, progress=False)


def test_rejects_are_written_beside_the_shards_and_too_many_stop(tmp_path):
    write_documents(tmp_path / "in.jsonl", make_documents(100))
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write("{\n\n")
    path = str(tmp_path / "in.jsonl")
    with pytest.raises(ValueError, match=r"2 of 102 lines read \(1\.96%\).*in\.jsonl:101 not JSON"):
        make(tmp_path, path)
    manifest = make(tmp_path, path, max_reject_rate=0.05)
    assert manifest["skipped"] == {"not JSON": 1, "blank line": 1}
    assert manifest["lines_read"] == 102 == manifest["documents"] + sum(manifest["skipped"].values())
    written = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [(case["line"], case["reason"]) for case in written] == [(101, "not JSON"), (102, "blank line")]
    # The shards' folder as documents is no trap: its rejects are not read.
    with pytest.raises(ValueError, match="no documents in the folder"):
        tokenize(str(tmp_path / "shards"), tmp_path / "again", BYTES, progress=False)


def test_linguas_chunks_and_several_paths(tmp_path):
    documents = make_documents(30)
    for i in range(3):
        write_documents(tmp_path / "src" / f"src.chunk.{i:02d}.jsonl", documents[10 * i : 10 * i + 10])
    manifest = make(tmp_path, str(tmp_path / "src"), shuffle_seed=None)
    source = TokenSource(tmp_path / "shards")
    assert [source.document_id(i) for i in range(30)] == [document.id for document in documents]
    parts = [str(tmp_path / "src" / f"src.chunk.{i:02d}.jsonl") for i in (2, 0)]
    assert make(tmp_path, parts, "two", shuffle_seed=None)["documents"] == 20
    assert TokenSource(tmp_path / "two").document_id(0) == "d20"
    assert [entry["name"] for entry in manifest["inputs"]["files"]] == [f"src.chunk.{i:02d}.jsonl" for i in range(3)]


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shard_tokens is the most tokens of one file and must be positive; got 0"):
        make(tmp_path, shard_tokens=0)
    with pytest.raises(ValueError, match="no documents at"):
        make(tmp_path, str(tmp_path / "gone"))
    assert os.listdir(tmp_path) == []


# --- damaged shards ---


@pytest.fixture
def damaged(tmp_path):
    """A folder of three shards, and a function that opens it and checks that both readers name the file."""
    make(tmp_path, make_documents(60), shard_tokens=2_000)
    folder = tmp_path / "shards"

    def refused(pattern, at_open=True):
        problems = verify_shards(folder)
        assert len(problems) == 1
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(problems[0])
        with pytest.raises(ValueError, match=pattern):
            TokenSource(folder, verify=not at_open)

    return folder, refused


def test_a_cut_or_longer_shard_is_refused_at_open(damaged):
    folder, refused = damaged
    whole = (folder / "shard-00001.arrow").read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[: len(whole) // 2], b""):
        (folder / "shard-00001.arrow").write_bytes(content)
        refused(r"shard-00001\.arrow is cut short or was edited: [\d,]+ bytes on disk")


def test_a_missing_shard_is_refused_at_open(damaged):
    folder, refused = damaged
    (folder / "shard-00001.arrow").unlink()
    refused(r"shard-00001\.arrow is missing")


def test_any_flipped_bit_is_found(damaged):
    folder, refused = damaged
    file = folder / "shard-00001.arrow"
    whole = file.read_bytes()
    for position in random.Random(0).sample(range(len(whole)), 40):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        refused(r"shard-00001\.arrow was changed: SHA-256", at_open=False)
    file.write_bytes(whole)
    assert verify_shards(folder) == []


def test_other_rows_of_the_same_size_are_refused_at_open(damaged):
    folder, refused = damaged
    entry = json.loads((folder / "manifest.json").read_text())
    for key in ("documents", "tokens"):
        edited = json.loads(json.dumps(entry))
        edited["files"][1][key] += 1
        (folder / "manifest.json").write_text(json.dumps(edited))
        refused(rf"shard-00001\.arrow holds [\d,]+ {key}, the manifest says [\d,]+")
    for key in ("documents", "tokens", "bytes"):
        (folder / "manifest.json").write_text(json.dumps({**entry, key: entry[key] + 1}))
        refused(rf"manifest\.json was edited: it names [\d,]+ {key}")


def rewrite(folder, number, metadata):
    """Write a shard again with other metadata, and its size and hash into the manifest."""
    file = folder / f"shard-{number:05d}.arrow"
    with pa.memory_map(str(file)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
        with pa.OSFile(f"{file}.new", "wb") as sink, pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as new:
            new.write_table(table)
    os.replace(f"{file}.new", file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][number] |= {"file_bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_shard_of_another_vocabulary_is_refused_at_open_though_every_hash_fits(damaged):
    folder, refused = damaged
    before = TokenSource(folder)
    rewrite(folder, 1, {"lingua_synth.tokenizer_sha256": "5ec0de" * 10})
    refused(
        rf"shard-00001\.arrow holds ids of the vocabulary 5ec0de5ec0de\.\.\., .*manifest\.json names "
        rf"{BYTES.sha256[:12]}\.\.\.: the file is of another folder, .* tokenize again"
    )
    # The shards of 0.1 do not say, and are read as before.
    rewrite(folder, 1, {})
    source = TokenSource(folder, verify=True)
    assert verify_shards(folder) == []
    assert source.window(0, source.num_tokens).tolist() == before.window(0, before.num_tokens).tolist()


def test_a_manifest_that_names_another_vocabulary_is_refused(damaged):
    folder, _ = damaged
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"ids of the vocabulary {BYTES.sha256[:12]}\.\.\., .*names 000000000000"):
        TokenSource(folder)
    assert len(verify_shards(folder)) == len(manifest["files"])


def test_a_file_that_the_manifest_does_not_name_is_found(damaged):
    folder, _ = damaged
    shutil.copy(folder / "shard-00000.arrow", folder / "shard-00077.arrow")
    assert verify_shards(folder) == [f"{folder / 'shard-00077.arrow'} is not named by the manifest"]


def test_ids_outside_the_vocabulary_are_found(damaged):
    folder, _ = damaged
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["n_words"] = 200
    (folder / "manifest.json").write_text(json.dumps(manifest))
    problems = verify_shards(folder)
    assert len(problems) == len(manifest["files"])
    assert all("holds the id 257, the vocabulary has 200 words" in problem for problem in problems)


def test_a_file_of_another_layout_is_refused(damaged):
    folder, _ = damaged
    file = folder / "shard-00001.arrow"
    table = pa.table({"tokens": [[1, 2]]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][1]["file_bytes"] = file.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"shard-00001\.arrow is no shard of this library"):
        TokenSource(folder)
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00001\.arrow is damaged"):
        TokenSource(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no token shards in"),
        ("{", "is not valid JSON"),
        ('{"format": "other"}', "is not a manifest of token shards"),
        ("[]", "is not a manifest of token shards"),
        ('{"format": "lingua_synth token shards", "version": 2}', "version 2, this library reads version 1"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        TokenSource(tmp_path)
    (problem,) = verify_shards(tmp_path)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_windows_and_documents_outside_are_refused(tmp_path):
    make(tmp_path)
    source = TokenSource(tmp_path / "shards")
    n = source.num_tokens
    for start, length in [(-1, 2), (n, 1), (0, n + 1), (5, -1)]:
        with pytest.raises(ValueError, match="no window"):
            source.window(start, length)
    assert source.window(n, 0).tolist() == []
    for i in (-1, 100):
        with pytest.raises(ValueError, match=f"no document {i} "):
            source.document(i)


# --- the verb ---


def test_the_verb_tokenizes_and_verifies(tmp_path, capsys):
    write_documents(tmp_path / "in.jsonl", [Document("a", "abc"), Document("b", "defgh")])
    words = [f"documents={tmp_path / 'in.jsonl'}", f"out={tmp_path / 'out'}", "tokenizer.name=bytes", "progress=false"]
    for action in ([], ["run"]):
        assert main(["tokenize", *action, *words]) == 0
        assert "2 documents, 12 tokens, 8 bytes of text" in capsys.readouterr().out
    assert main(["tokenize", "verify", f"out={tmp_path / 'out'}"]) == 0
    assert "1 files, 12 tokens, every byte as written" in capsys.readouterr().out
    with open(tmp_path / "out" / "shard-00000.arrow", "r+b") as file:
        file.seek(600)
        byte = file.read(1)
        file.seek(600)
        file.write(bytes([byte[0] ^ 1]))
    assert main(["tokenize", "verify", f"out={tmp_path / 'out'}"]) == 1
    assert "shard-00000.arrow was changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "documents= is missing"),
        (["documents=x"], "out= is missing"),
        (["verify"], "out= is missing"),
        (["documents=gone", "out=x"], "no documents at gone"),
        (["documents=gone", "out=x", "tokenizer.name=word"], "no tokenizer 'word'"),
        (["documents=gone", "out=x", "tokeniser.name=sp"], "did you mean tokenizer"),
        (["verify", "out=gone"], "no folder gone"),
    ],
)
def test_bad_words_end_in_one_message(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    code = run_command(main, ["tokenize", *words])
    shown = capsys.readouterr()
    assert code == 2
    assert message in shown.out + shown.err
    assert "Traceback" not in shown.err
    assert os.listdir(tmp_path) == []


def test_a_given_rejects_object_is_used(tmp_path):
    write_documents(tmp_path / "in.jsonl", make_documents(5))
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write("[]\n")
    rejects = Rejects(tmp_path / "mine.jsonl")
    make(tmp_path, str(tmp_path / "in.jsonl"), rejects=rejects)
    assert rejects.counts == {"not a JSON object": 1} and rejects.num_read == 6
    assert (tmp_path / "mine.jsonl").exists() and not (tmp_path / "shards" / "rejects.jsonl").exists()


def test_document_starts_are_found_in_any_window_across_files(tmp_path):
    documents = [Document(str(i), "x" * (1 + 7 * i % 23)) for i in range(40)]
    tokenize(documents, tmp_path / "s", build_tokenizer("bytes"), shuffle_seed=None, shard_tokens=64, progress=False)
    source = TokenSource(tmp_path / "s")
    starts = np.concatenate([[0], np.cumsum(source.document_lengths)[:-1]])
    assert len(source.manifest["files"]) > 3
    for start in range(0, source.num_tokens, 5):
        for length in (0, 1, 9, 200, source.num_tokens - start):
            if start + length > source.num_tokens:
                continue
            expected = starts[(starts >= start) & (starts < start + length)] - start
            assert source.document_starts(start, length).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="no window"):
        source.document_starts(0, source.num_tokens + 1)


# --- more files than a process may map ---


def mapped_now(source):
    return sum(shard is not None for shard in source.shards.mapped)


def test_any_number_of_files_is_read_with_few_mapped(tmp_path, monkeypatch):
    make(tmp_path, shard_tokens=200)
    whole = TokenSource(tmp_path / "shards")
    num_files = len(whole.manifest["files"])
    assert mapped_now(whole) == num_files > 20
    monkeypatch.setattr(mapped, "MOST_OPEN", 3)
    monkeypatch.setattr(mapped, "_opened", collections.deque())
    few, other = TokenSource(tmp_path / "shards"), TokenSource(tmp_path / "shards")
    assert mapped_now(few) == 0 and mapped_now(other) == 3, "the newest of the whole process stay mapped"
    rng, kept = random.Random(0), []
    for _ in range(300):
        source = rng.choice((few, other))
        start = rng.randrange(whole.num_tokens - 300)
        kept.append((start, source.window(start, 300)))
        assert mapped_now(few) + mapped_now(other) <= 3
    assert all((window == whole.window(start, 300)).all() for start, window in kept), "what was given out stays"
    assert [few.document(i).tolist() for i in range(len(few))] == [whole.document(i).tolist() for i in range(len(few))]
    assert few.document_lengths.tolist() == whole.document_lengths.tolist()
    assert [len(shard.tokens) for shard in few.shards] == [entry["tokens"] for entry in whole.manifest["files"]]


def test_files_of_sources_that_are_gone_make_room(tmp_path, monkeypatch):
    make(tmp_path, shard_tokens=200)
    monkeypatch.setattr(mapped, "_opened", collections.deque())
    source = TokenSource(tmp_path / "shards")
    first = weakref.ref(source.shards[0].tokens)
    del source
    gc.collect()
    assert first() is None, "the list of what is mapped holds nothing"


def test_threads_read_what_one_reads(tmp_path, monkeypatch):
    make(tmp_path, shard_tokens=200)
    whole = TokenSource(tmp_path / "shards")
    monkeypatch.setattr(mapped, "MOST_OPEN", 2)
    few = TokenSource(tmp_path / "shards", check=False)
    starts = random.Random(0).choices(range(whole.num_tokens - 50), k=2_000)
    with ThreadPoolExecutor(4) as pool:
        for start, window in zip(starts, pool.map(lambda start: few.window(start, 50), starts), strict=True):
            assert (window == whole.window(start, 50)).all()


def test_readers_divide_the_check_of_the_files(tmp_path, monkeypatch):
    make(tmp_path, shard_tokens=200)
    source = TokenSource(tmp_path / "shards", check=False)
    assert mapped_now(source) == 0
    (tmp_path / "shards" / "shard-00004.arrow").unlink()
    monkeypatch.setattr(mapped, "MANY_FILES", 4)
    for reader in range(3):
        if reader == 4 % 3:
            with pytest.raises(ValueError, match=r"shard-00004\.arrow is missing"):
                source.check_files(reader, 3)
        else:
            source.check_files(reader, 3)
    # Nobody has compared it: it is when it is read.
    unread = TokenSource(tmp_path / "shards", check=False)
    before = sum(entry["tokens"] for entry in unread.manifest["files"][:4])
    unread.window(0, before)
    with pytest.raises(ValueError, match=r"shard-00004\.arrow is missing"):
        unread.window(before - 1, 2)
