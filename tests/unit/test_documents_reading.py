"""Reading and writing documents: every format, every kind of bad input, nothing lost or read twice unseen."""

import errno
import gzip
import json
import os
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document, Rejects, document_id, find_files, read_documents, reading, write_documents

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(row + b"\n" for row in rows))
    return str(path)


def row(text, **more):
    return json.dumps({"text": text, **more}).encode()


# --- formats ---


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(
        st.builds(
            Document,
            id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            text=TEXTS,
            meta=st.dictionaries(
                st.text("abcxyz", min_size=1),
                st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(-1e9, 1e9), st.booleans(), TEXTS),
                max_size=3,
            ),
        ),
        max_size=6,
    )
)
def test_what_is_written_is_read_back(tmp_path_factory, suffix, documents):
    path = tmp_path_factory.mktemp("x") / f"d{suffix}"
    assert write_documents(path, documents) == len(documents)
    assert list(read_documents(str(path))) == documents


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_documents_give_the_same_bytes(tmp_path, suffix):
    documents = [Document(str(i), f"text {i}", {"n": i}) for i in range(5_000)]
    write_documents(tmp_path / f"a{suffix}", iter(documents))
    write_documents(tmp_path / f"b{suffix}", iter(documents))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert [d.id for d in read_documents(str(tmp_path / f"a{suffix}"))] == [d.id for d in documents]


def test_keys_of_a_line(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        b"\xef\xbb\xbf" + row("first, after a byte order mark"),
        row("x", id=7, url="u", meta={"url": "of meta", "lang": "en"}),
        b'{"content": "y"}',
        b'{"content": "not this", "text": "this"}',
        b'{"text": "z", "id": 123456789012345678901234567890, "meta": "plain"}\r',
    )
    first, second, third, fourth, fifth = read_documents(path)
    assert first == Document(document_id("first, after a byte order mark"), "first, after a byte order mark", {})
    assert second == Document("7", "x", {"url": "of meta", "lang": "en"})
    assert third.text == "y"
    assert fourth == Document(document_id("this"), "this", {"content": "not this"})
    assert fifth == Document("123456789012345678901234567890", "z", {"meta": "plain"})
    # sha256 of "abc" begins with ba7816bf 8f01cfea (FIPS 180-2, appendix B.1).
    assert document_id("abc") == "ba7816bf8f01cfea"


def test_parquet_of_others(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["one", None, "three"]).dictionary_encode(),
            "score": [1.5, 2.0, float("nan")],
            "date": pa.array([0, 1, 2], pa.timestamp("s")),
            "tags": [["a"], [], ["b", "c"]],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rejects = Rejects()
    one, three = read_documents(str(tmp_path / "a.parquet"), rejects)
    assert one.meta == {"score": 1.5, "date": "1970-01-01 00:00:00", "tags": ["a"]}
    assert three.meta == {"score": None, "date": "1970-01-01 00:00:02", "tags": ["b", "c"]}
    assert rejects.counts == {"text is null": 1}
    assert rejects.num_read == 3
    json.dumps([one.meta, three.meta], allow_nan=False)


def test_parquet_cells_that_are_not_utf8(tmp_path):
    bad = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    rejects = Rejects(tmp_path / "rejects.jsonl")
    assert [d.text for d in read_documents(str(tmp_path / "a.parquet"), rejects)] == ["good"]
    rejects.close()
    assert json.loads((tmp_path / "rejects.jsonl").read_text()) == {
        "file": str(tmp_path / "a.parquet"),
        "line": 2,
        "reason": "not UTF-8",
    }


def test_parquet_without_usable_text_is_refused_with_its_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column text or content; its columns are body, n"):
        list(read_documents(str(tmp_path / "a.parquet")))
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: the column text must hold strings, not int64"):
        list(read_documents(str(tmp_path / "b.parquet")))


# --- bad lines ---

BAD_LINES = {
    b"": "blank line",
    b"   ": "blank line",
    b'{"text": "cut': "not JSON",
    b'{"text": "x", "n": NaN}': "not JSON",
    b'{"text": "\xff"}': "not UTF-8",
    b'["text"]': "not a JSON object",
    b"3": "not a JSON object",
    b'{"body": "x"}': "no text",
    b'{"text": null, "content": "x"}': "text is null",
    b'{"text": 5}': "text is not a string",
    b'{"text": ""}': "empty text",
    b'{"text": " \\n\\t"}': "empty text",
    b'{"text": "\\ud800 alone"}': "lone surrogate",
    b'{"text": "fine", "meta": {"x": "\\udc00"}}': "lone surrogate",
    b'{"text": ' + b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("loader", ["default", "standard library"])
@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: bad[:30].decode(errors="replace"))
def test_a_bad_line_is_counted_by_reason_with_file_and_line(tmp_path, monkeypatch, loader, bad):
    if loader == "standard library":
        monkeypatch.setattr(reading, "_load_json", reading._load_json_strictly)
    path = lines(tmp_path / "a.jsonl", row("before"), bad, row("after"))
    with Rejects(tmp_path / "out" / "rejects.jsonl") as rejects:
        assert [d.text for d in read_documents(path, rejects)] == ["before", "after"]
    assert rejects.counts == {BAD_LINES[bad]: 1}
    assert rejects.num_read == 3
    written = json.loads((tmp_path / "out" / "rejects.jsonl").read_text())
    assert written == {"file": path, "line": 2, "reason": BAD_LINES[bad]}


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "a"]), inner),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_with_and_without_orjson_a_line_means_the_same(line):
    pytest.importorskip("orjson")

    def outcome(load):
        try:
            return repr(load(line))
        except reading.BadLine as bad:
            return str(bad)

    fast = reading._json_loader()
    assert fast is not reading._load_json_strictly
    assert outcome(fast) == outcome(reading._load_json_strictly)


def test_empty_files_and_a_huge_line_are_no_problem(tmp_path):
    lines(tmp_path / "a.jsonl")
    text = "many words " * 1_000_000
    lines(tmp_path / "b.jsonl", row(text))
    lines(tmp_path / "c.jsonl")
    write_documents(tmp_path / "d.parquet", [])
    (document,) = read_documents(str(tmp_path))
    assert document.text == text


def test_too_many_bad_lines_stop_the_reading_with_the_counts(tmp_path):
    path = lines(tmp_path / "a.jsonl", *[row("fine")] * 198, b"{", b"", *[row("fine")] * 100)
    read = []
    with pytest.raises(ValueError) as raised:
        for document in read_documents(path, Rejects(tmp_path / "rejects.jsonl", max_rate=0.006)):
            read.append(document)
    assert "2 of 200 lines read (1.00%)" in str(raised.value)
    assert "not JSON 1" in str(raised.value) and "blank line 1" in str(raised.value)
    assert f"{path}:199 not JSON" in str(raised.value)
    assert len(read) == 198

    rejects = Rejects(max_rate=0.02)
    assert sum(1 for _ in read_documents(path, rejects)) == 298


def test_the_rate_is_judged_from_min_count_lines_on(tmp_path):
    path = lines(tmp_path / "a.jsonl", b"{", *[row("fine")] * 98)
    rejects = Rejects()
    assert sum(1 for _ in read_documents(path, rejects)) == 98
    lines(tmp_path / "a.jsonl", b"{", b"{", *[row("fine")] * 98)
    with pytest.raises(ValueError, match="2 of 100 lines"):
        list(read_documents(path, Rejects()))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Rejects(max_rate=1.5)


def test_without_a_rejects_object_a_warning_gives_the_counts(tmp_path):
    path = lines(tmp_path / "a.jsonl", row("x"), b"{", b"")
    with pytest.warns(UserWarning, match=r"skipped 2 of 3 lines.*not JSON 1, blank line 1"):
        assert len(list(read_documents(path))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_documents(lines(tmp_path / "b.jsonl", row("x"))))) == 1


def test_a_new_reading_does_not_keep_the_cases_of_an_earlier_one(tmp_path):
    record = tmp_path / "rejects.jsonl"
    with Rejects(record) as rejects:
        rejects.add("a", 1, "blank line")
    assert record.exists()
    Rejects(record)
    assert not record.exists()


# --- damaged files ---


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    write_documents(path, (Document(str(i), os.urandom(50).hex()) for i in range(1_000)))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"\x00garbage" * 200, "empty": b""}[damage])
    if damage == "empty" and suffix != ".parquet":
        assert list(read_documents(str(path))) == []  # an empty stream holds no document
        return
    with pytest.raises(ValueError, match=rf"a{suffix} (is damaged|cannot be read)"):
        list(read_documents(str(path)))


def test_files_of_several_compressed_members(tmp_path):
    import zstandard

    one, two = row("one") + b"\n", row("two") + b"\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "b.jsonl.zst").write_bytes(compress(one) + compress(two))
    assert [d.text for d in read_documents(str(tmp_path))] == ["one", "two", "one", "two"]


# --- where documents are ---


def test_find_files_sorts_recurses_and_leaves_out_what_is_not_for_reading(tmp_path):
    for name in [
        "b.jsonl",
        "a/c.chunk.01.jsonl",
        "a/c.chunk.00.jsonl",
        ".hidden.jsonl",
        ".cache/x.jsonl",
        "rejects.jsonl",
    ]:
        lines(tmp_path / name, row("x"))
    lines(tmp_path / "notes.txt")
    (tmp_path / "a" / "up").symlink_to(tmp_path)  # a circle
    names = ["a/c.chunk.00.jsonl", "a/c.chunk.01.jsonl", "b.jsonl"]
    assert find_files(str(tmp_path)) == [str(tmp_path / name) for name in names]
    assert find_files(str(tmp_path / "a" / "*.jsonl")) == [str(tmp_path / name) for name in names[:2]]
    assert find_files(str(tmp_path / "**" / "*.jsonl")).count(str(tmp_path / "b.jsonl")) == 1
    assert find_files(str(tmp_path / "b.jsonl")) == [str(tmp_path / "b.jsonl")]


def test_a_manifest_limits_a_folder_to_what_is_for_reading(tmp_path):
    for name in ["documents-0.jsonl", "documents-1.jsonl", "filtered-0.jsonl", "heldout/a.jsonl"]:
        lines(tmp_path / name, row(name))
    (tmp_path / "manifest.json").write_text('{"document_files": ["documents-*.jsonl"]}')
    assert [d.text for d in read_documents(str(tmp_path))] == ["documents-0.jsonl", "documents-1.jsonl"]
    (tmp_path / "manifest.json").write_text('{"document_files": ["gone.jsonl"]}')
    with pytest.raises(ValueError, match=r"no documents named by its manifest.json \(gone.jsonl\)"):
        find_files(str(tmp_path))
    (tmp_path / "manifest.json").write_text("of another program")
    assert len(find_files(str(tmp_path))) == 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "no documents given"),
        ("gone", r"no documents at .*gone.*holds: folder, here\.txt"),
        ("folder", r"no documents in the folder .*holds: nothing"),
        ("*.jsonl", r"no documents at .*holds: folder, here\.txt"),
        ("here.txt", r"here\.txt is not a file of documents: its name must end in \.jsonl"),
        ("python://", "no files"),
        ("nosuch://bucket/x", "cannot read nosuch://bucket/x"),
    ],
)
def test_a_path_without_documents_says_what_is_there(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "here.txt").write_text("x")
    given_path = path if "://" in path or not path else str(tmp_path / path)
    with pytest.raises(ValueError, match=message):
        find_files(given_path)


def test_a_file_reached_twice_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", row("x"))
    with pytest.raises(ValueError, match=r"a\.jsonl is reached twice"):
        read_documents([path, str(tmp_path)])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jsonl").symlink_to(path)
    with pytest.raises(ValueError, match="reached twice"):
        read_documents(str(tmp_path))


def test_several_paths_are_read_in_the_order_given(tmp_path):
    paths = [lines(tmp_path / f"{name}.jsonl", row(name)) for name in "zay"]
    assert [d.text for d in read_documents(paths)] == ["z", "a", "y"]


def test_fsspec_urls(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    write_documents(tmp_path / "x.jsonl.gz", [Document("1", "zipped")])
    with memory.open("/corpus/sub/b.jsonl.gz", "wb") as file:
        file.write((tmp_path / "x.jsonl.gz").read_bytes())
    with memory.open("/corpus/a.jsonl", "wb") as file:
        file.write(row("plain") + b"\n{\n")
    memory.pipe("/corpus/.hidden.jsonl", row("hidden"))
    try:
        files = find_files("memory://corpus")
        assert [file.rpartition("corpus/")[2] for file in files] == ["a.jsonl", "sub/b.jsonl.gz"]
        rejects = Rejects()
        assert [d.text for d in read_documents("memory://corpus", rejects)] == ["plain", "zipped"]
        assert rejects.counts == {"not JSON": 1}
        assert find_files("memory://corpus/*.jsonl") == files[:1]
        assert find_files(files[1]) == files[1:]
        with pytest.raises(ValueError, match="no documents at memory://gone"):
            find_files("memory://gone")
        memory.pipe("/corpus/manifest.json", b'{"document_files": ["sub/*"]}')
        assert find_files("memory://corpus") == files[1:]
    finally:
        memory.rm("/corpus", recursive=True)


# --- writing ---


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_raises_and_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_documents(path, [Document("1", "old")])

    def failing():
        for i in range(10_000):
            yield Document(str(i), "new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_documents(path, failing())
    assert [d.text for d in read_documents(str(path))] == ["old"]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("a", "\ud800"), "document 'a' cannot be written"),
        (Document("b", "x", {"n": float("nan")}), "document 'b' cannot be written"),
        (Document("c", "x", {"n": {1}}), "document 'c' cannot be written"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_document_that_no_file_can_hold_is_named(tmp_path, suffix, document, message):
    with pytest.raises(ValueError, match=message):
        write_documents(tmp_path / f"a{suffix}", [Document("0", "fine"), document])
    assert os.listdir(tmp_path) == []


def test_other_suffixes_and_urls_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.jsonl"):
        write_documents(tmp_path / "a.txt", [])
    with pytest.raises(ValueError, match="this machine's file system only"):
        write_documents("s3://bucket/a.jsonl", [])


def test_missing_packages_are_named(tmp_path, monkeypatch):
    write_documents(tmp_path / "a.jsonl.zst", [Document("1", "x")])
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        list(read_documents(str(tmp_path)))
    with pytest.raises(ValueError, match="pip install fsspec"):
        find_files("s3://bucket/x")
