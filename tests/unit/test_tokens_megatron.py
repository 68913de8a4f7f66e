"""Megatron's indexed datasets: the format byte by byte, round trips, and its own classes where installed."""

import base64
import os
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document
from lingua_synth.tokens import TokenSource, build_tokenizer, tokenize, train_sentencepiece, verify_shards
from lingua_synth.tokens.megatron import export_megatron, import_megatron, read_export

TEXTS = ["one", "two words", "日本 é", "x" * 50, "a\nb", "the last of them"]


def make_shards(folder, texts=TEXTS, tokenizer=None, **settings):
    documents = [Document(f"d{i}", text, {}) for i, text in enumerate(texts)]
    settings = {"shuffle_seed": None, "progress": False, **settings}
    tokenize(documents, folder, tokenizer or build_tokenizer("bytes"), **settings)
    return folder


def write_dataset(prefix, sequences, document_indices, code=8, dtype="<u2", modes=b""):
    """The two files of a dataset, written from the format's description."""
    data = [np.array(sequence, dtype=dtype).tobytes() for sequence in sequences]
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(data))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(document_indices))
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(sequences)}q", *(sum(map(len, data[:i])) for i in range(len(data))))
    index += struct.pack(f"<{len(document_indices)}q", *document_indices) + modes
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    return prefix


def documents_of(source):
    return [source.document(i).tolist() for i in range(len(source))]


def test_an_export_byte_by_byte(tmp_path):
    shards = make_shards(tmp_path / "shards", ["ab", "c"])
    record = export_megatron(shards, tmp_path / "out", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["out.bin", "out.idx", "out.json", "shards"]
    assert (tmp_path / "out.bin").read_bytes() == bytes.fromhex("0001 6100 6200 0101 0001 6300 0101")
    assert (tmp_path / "out.idx").read_bytes() == bytes.fromhex(
        "4d4d494449445800 00"  # MMIDIDX, two zeros
        "0100000000000000"  # version 1
        "08"  # uint16
        "0200000000000000 0300000000000000"  # two sequences, three document indices
        "04000000 03000000"  # their lengths
        "0000000000000000 0800000000000000"  # their places in bytes
        "0000000000000000 0100000000000000 0200000000000000"
    )
    source = TokenSource(shards)
    assert record == read_export(tmp_path / "out.bin")
    assert (record["documents"], record["tokens"], record["bytes"], record["bin_bytes"]) == (2, 7, 3, 14)
    assert record["tokenizer"] == source.manifest["tokenizer"] and record["add_bos"] and record["add_eos"]


def wide_ranks(path, num_ranks):
    tokens = [bytes([byte]) for byte in range(256)] + [b"the", b" of", b"of ", "日本".encode()]
    tokens += [b"zz%d" % i for i in range(num_ranks - len(tokens))]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return build_tokenizer("tiktoken", str(path))


@pytest.mark.parametrize(
    ("num_ranks", "code", "size", "shard_dtype"),
    [(65_243, 8, 2, "uint16"), (65_244, 4, 4, "uint16"), (65_280, 4, 4, "uint16"), (65_281, 4, 4, "uint32")],
)
def test_the_type_is_megatron_s_choice_for_the_vocabulary(tmp_path, num_ranks, code, size, shard_dtype):
    tokenizer = wide_ranks(tmp_path / "ranks.model", num_ranks)
    shards = make_shards(tmp_path / "shards", tokenizer=tokenizer)
    record = export_megatron(shards, tmp_path / "out", progress=False)
    assert (tmp_path / "out.idx").read_bytes()[17] == code
    assert record["bin_bytes"] == record["tokens"] * size
    assert TokenSource(shards).manifest["dtype"] == shard_dtype
    import_megatron(tmp_path / "out", tmp_path / "back", tokenizer, progress=False)
    assert documents_of(TokenSource(tmp_path / "back")) == documents_of(TokenSource(shards))


@pytest.mark.parametrize("name", ["bytes", "sp", "tiktoken"])
@pytest.mark.parametrize("with_specials", [True, False])
def test_a_round_trip_keeps_tokens_documents_and_bytes(tmp_path, name, with_specials, monkeypatch):
    monkeypatch.setattr("lingua_synth.tokens.megatron.BLOCK_TOKENS", 7)
    if name == "sp":
        train_sentencepiece([*TEXTS, "the cat sat on the mat and looked at the sea"] * 20, tmp_path / "sp.model", 300)
    tokenizer = (
        wide_ranks(tmp_path / "ranks.model", 300)
        if name == "tiktoken"
        else build_tokenizer(name, str(tmp_path / "sp.model") if name == "sp" else None)
    )
    bos_eos = {"add_bos": with_specials, "add_eos": with_specials}
    shards = make_shards(tmp_path / "shards", tokenizer=tokenizer, shard_tokens=20, shuffle_seed=3, **bos_eos)
    export_megatron(shards, tmp_path / "out", progress=False)
    manifest = import_megatron(tmp_path / "out", tmp_path / "back", tokenizer, shard_tokens=24, progress=False)
    source, back = TokenSource(shards), TokenSource(tmp_path / "back", verify=True)
    assert documents_of(back) == documents_of(source)
    assert back.document_num_bytes.tolist() == source.document_num_bytes.tolist()
    assert back.dtype == source.dtype and verify_shards(tmp_path / "back") == []
    with pa.memory_map(str(tmp_path / "back" / "shard-00000.arrow")) as file:
        metadata = pa.ipc.open_file(file).schema.metadata
    assert metadata == {b"lingua_synth.tokenizer_sha256": tokenizer.sha256.encode()}
    assert [back.document_id(i) for i in range(len(back))] == [f"out:{i}" for i in range(len(back))]
    assert {key: manifest[key] for key in bos_eos} == bos_eos
    assert manifest["tokenizer"] == tokenizer.describe() and manifest["skipped"] == {}
    files = manifest["files"]
    assert len(files) > 1 and all(entry["tokens"] <= 24 or entry["documents"] == 1 for entry in files)


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 257), max_size=5), max_size=3), min_size=1, max_size=8),
    shard_tokens=st.integers(1, 12),
    kind=st.sampled_from([(8, "<u2"), (3, "<i2"), (4, "<i4"), (5, "<i8")]),
)
def test_any_dataset_is_imported_document_by_document(tmp_path_factory, documents, shard_tokens, kind):
    folder = tmp_path_factory.mktemp("dataset")
    sequences = [sequence for document in documents for sequence in document]
    indices = np.cumsum([0, *map(len, documents)]).tolist()
    prefix = write_dataset(folder / "data.v1", sequences, indices, *kind)
    joined = [[i for sequence in document for i in sequence] for document in documents]
    kept = [(i, ids) for i, ids in enumerate(joined) if ids]
    tokenizer = build_tokenizer("bytes")
    if not kept:
        with pytest.raises(ValueError, match="holds no tokens"):
            import_megatron(prefix, folder / "out", tokenizer, progress=False)
        return
    manifest = import_megatron(prefix, folder / "out", tokenizer, shard_tokens=shard_tokens, progress=False)
    source = TokenSource(folder / "out")
    assert documents_of(source) == [ids for _, ids in kept]
    assert [source.document_id(i) for i in range(len(source))] == [f"data.v1:{i}" for i, _ in kept]
    assert source.document_num_bytes.tolist() == [sum(i < 256 for i in ids) for _, ids in kept]
    assert manifest["skipped"].get("zero tokens", 0) == len(documents) - len(kept)
    assert manifest["add_bos"] == all(ids[0] == 256 for _, ids in kept)
    assert manifest["add_eos"] == all(ids[-1] == 257 for _, ids in kept)
    assert all(entry["tokens"] <= shard_tokens or entry["documents"] == 1 for entry in manifest["files"])


def test_asking_again_returns_what_is_there_and_other_content_is_refused(tmp_path):
    tokenizer = build_tokenizer("bytes")
    shards = make_shards(tmp_path / "shards")
    first = export_megatron(shards, tmp_path / "out", progress=False)
    stamp = (tmp_path / "out.bin").stat().st_mtime_ns
    assert export_megatron(shards, tmp_path / "out.idx", progress=False) == first
    assert (tmp_path / "out.bin").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="exported from other shards"):
        export_megatron(make_shards(tmp_path / "other", ["else"]), tmp_path / "out", progress=False)

    manifest = import_megatron(tmp_path / "out", tmp_path / "in", tokenizer, progress=False)
    assert import_megatron(tmp_path / "out.bin", tmp_path / "in", tokenizer, progress=False) == manifest
    with pytest.raises(ValueError, match="other files or settings"):
        import_megatron(tmp_path / "out", tmp_path / "in", tokenizer, shard_tokens=5, progress=False)

    with open(tmp_path / "out.bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(ValueError, match="was changed since it was exported"):
        export_megatron(shards, tmp_path / "out", progress=False)
    (tmp_path / "out.json").unlink()
    with pytest.raises(ValueError, match="are there and not of this library"):
        export_megatron(shards, tmp_path / "out", progress=False)
    (tmp_path / "out.idx").unlink()
    with pytest.raises(ValueError, match="interrupted or one of its files removed"):
        export_megatron(shards, tmp_path / "out", progress=False)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    shards = make_shards(tmp_path / "shards")
    monkeypatch.setattr("lingua_synth.tokens.megatron._code", lambda dtype: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_megatron(shards, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path) == ["shards"]


def damage(tmp_path, what):
    prefix = write_dataset(tmp_path / "data", [[256, 97, 257], [256, 98, 257]], [0, 1, 2])
    bin_path, idx_path = tmp_path / "data.bin", tmp_path / "data.idx"
    index = bytearray(idx_path.read_bytes())
    if what == "no bin":
        bin_path.unlink()
    elif what == "no idx":
        idx_path.unlink()
    elif what == "short bin":
        bin_path.write_bytes(bin_path.read_bytes()[:-1])
    elif what == "long bin":
        bin_path.write_bytes(bin_path.read_bytes() + b"\0\0")
    elif what == "modes":
        idx_path.write_bytes(index + b"\0\0")
    elif what == "unknown id":
        write_dataset(prefix, [[256, 97, 257], [256, 258, 257]], [0, 1, 2])
    elif what == "negative id":
        write_dataset(prefix, [[256, 97], [-1]], [0, 1, 2], 4, "<i4")
    elif what == "floats":
        write_dataset(prefix, [[1.0], [2.0]], [0, 1, 2], 7, "<f4")
    elif what == "backwards":
        write_dataset(prefix, [[97], [98]], [0, 2, 1, 2])
    elif what == "overlapping":
        write_dataset(prefix, [[97] * 3, [98], [99]], [0, 1, 2, 3])
        index = bytearray(idx_path.read_bytes())
        index[34 : 34 + 12 + 24] = struct.pack("<3i3q", 3, -1, 3, 0, 6, 4)  # 5 ids in all, as .bin has
        idx_path.write_bytes(index)
    elif what == "no documents":
        write_dataset(prefix, [[97]], [0])
    else:
        place, value = {
            "magic": (0, b"TNTIDX\x00\x00"),
            "version": (9, b"\2"),
            "type": (17, b"\x09"),
            "counts": (18, b"\3"),
            "pointers": (34 + 8 + 8, b"\5"),
            "negative length": (34, struct.pack("<i", -3)),
            "documents": (34 + 8 + 16, b"\1"),
            "empty": (0, b""),
        }[what]
        index[place : place + len(value)] = value
        idx_path.write_bytes(b"" if what == "empty" else index)
    return prefix


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no bin", r"no data.bin: .* holds: data.idx"),
        ("no idx", r"no data.idx: .* holds: data.bin"),
        ("short bin", r"data.bin is cut short: 11 bytes, data.idx names 12"),
        ("long bin", r"data.bin is longer than its index: 14 bytes"),
        ("magic", r"data.idx is not the index of an indexed dataset"),
        ("empty", r"data.idx is not the index of an indexed dataset"),
        ("version", r"data.idx is of version 2; known is version 1"),
        ("type", r"unknown type 9; known are 1 uint8, .* 8 uint16"),
        ("floats", r"data.idx is of float32; token ids are integers"),
        ("counts", r"data.idx is cut short or damaged: 82 bytes, 3 sequences and 3 document indices take 94"),
        ("modes", r"multimodal"),
        ("pointers", r"data.idx is damaged: its sequences do not follow each other"),
        ("negative length", r"data.idx is damaged: its sequences do not follow each other"),
        ("overlapping", r"data.idx is damaged: its sequences do not follow each other"),
        ("backwards", r"data.idx is damaged: its documents do not cover its 2 sequences"),
        ("documents", r"data.idx is damaged: its documents do not cover its 2 sequences"),
        ("no documents", r"data.idx is damaged: its documents do not cover its 1 sequences"),
        ("unknown id", r"data.bin holds the id 258 in document 1, the vocabulary bytes .* has ids 0 to 257"),
        ("negative id", r"data.bin holds the id -1 in document 1"),
    ],
)
def test_damaged_and_foreign_files_are_refused_in_words(tmp_path, what, message):
    prefix = damage(tmp_path, what)
    with pytest.raises(ValueError, match=message):
        import_megatron(prefix, tmp_path / "out", build_tokenizer("bytes"), progress=False)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_vocabulary_than_the_exported_one_is_refused(tmp_path):
    export_megatron(make_shards(tmp_path / "shards"), tmp_path / "out", progress=False)
    other = wide_ranks(tmp_path / "ranks.model", 300)
    with pytest.raises(ValueError, match=r"out.json says that the ids are of bytes .* given is tiktoken"):
        import_megatron(tmp_path / "out", tmp_path / "in", other, progress=False)
    (tmp_path / "out.json").write_text("{}")  # of somebody else: says nothing
    import_megatron(tmp_path / "out", tmp_path / "in", other, progress=False)


def test_megatron_reads_what_is_exported_and_writes_what_is_imported(tmp_path):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    for num_ranks in (300, 70_000):
        folder = tmp_path / str(num_ranks)
        folder.mkdir()
        tokenizer = wide_ranks(folder / "ranks.model", num_ranks)
        shards = make_shards(folder / "shards", tokenizer=tokenizer, shard_tokens=40)
        export_megatron(shards, folder / "out", progress=False)
        source, theirs = TokenSource(shards), megatron.IndexedDataset(str(folder / "out"))
        assert len(theirs) == len(source)
        assert theirs.document_indices.tolist() == list(range(len(source) + 1))
        assert [theirs[i].tolist() for i in range(len(source))] == documents_of(source)

        dtype = megatron.DType.optimal_dtype(tokenizer.n_words)
        builder = megatron.IndexedDatasetBuilder(str(folder / "built.bin"), dtype=dtype)
        for ids in documents_of(source):
            builder.add_item(torch.tensor(ids))
            builder.end_document()
        builder.finalize(str(folder / "built.idx"))
        for suffix in (".bin", ".idx"):
            assert (folder / f"built{suffix}").read_bytes() == (folder / f"out{suffix}").read_bytes()

        # Documents of several sequences, as a splitter of sentences leaves them.
        builder = megatron.IndexedDatasetBuilder(str(folder / "parts.bin"), dtype=dtype)
        for ids in documents_of(source):
            builder.add_document(torch.tensor(ids), [1, len(ids) - 1])
        builder.finalize(str(folder / "parts.idx"))
        import_megatron(folder / "parts", folder / "in", tokenizer, progress=False)
        assert documents_of(TokenSource(folder / "in")) == documents_of(source)


def test_the_verbs(tmp_path, capsys):
    from lingua_synth.tokens.command import main

    shards = make_shards(tmp_path / "shards")
    prefix, back = tmp_path / "out" / "web", tmp_path / "back"
    assert main(["export", f"path={shards}", f"out={prefix}", "progress=false"]) == 0
    assert "6 documents, 102 tokens as uint16" in capsys.readouterr().out
    # The record beside the files names the tokenizer.
    assert main(["import", f"path={prefix}", f"out={back}", "progress=false"]) == 0
    assert "6 documents, 102 tokens, 90 bytes of text" in capsys.readouterr().out
    assert main(["verify", f"out={back}"]) == 0
    assert documents_of(TokenSource(back)) == documents_of(TokenSource(shards))
    prefix.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.name= is missing"):
        main(["import", f"path={prefix}", f"out={tmp_path / 'new'}"])
    assert main(["import", f"path={prefix}", f"out={back}", "tokenizer.name=bytes", "progress=false"]) == 0
    for words in (["export", "path=x"], ["import", "out=x"]):
        with pytest.raises(ValueError, match="= is missing"):
            main(words)
    with pytest.raises(ValueError, match="no token shards in"):
        main(["export", f"path={tmp_path / 'none'}", "out=x"])
