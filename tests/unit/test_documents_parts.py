"""Parts of files: however a file is cut, its parts hold what `read_documents` finds, once and in order."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import Document, Rejects, read_documents, reading, write_documents
from lingua_synth.documents.parts import FilePart, TextReader, cut_file
from lingua_synth.documents.reading import BadLine, parse_id_and_utf8

LINES = st.lists(
    st.one_of(
        st.builds(
            lambda text, key, identity: json.dumps(
                {key: text, "n": 1} | ({"id": identity} if identity else {})
            ).encode(),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
            st.sampled_from(["text", "content", "other"]),
            st.none() | st.integers(0, 99) | st.just("name"),
        ),
        st.sampled_from(
            [b"", b"  ", b"{", b"[]", b"\xff{}", b'{"text": null}', b'{"text": "\\ud800"}', b'{"text": NaN}']
        ),
    ),
    max_size=12,
)


def read_parts(file, max_bytes):
    """(id, text) of all documents, (line, reason) of all rejects, and the documents' places, over the parts."""
    documents, rejects, places, lines_before, sizes = [], [], [], 0, 0
    for part in cut_file(str(file), file.stat().st_size, max_bytes):
        reader = TextReader(part)
        num_lines = 0
        for batch in reader.batches(max_lines=3, max_bytes=40):
            documents += [(i, text.decode()) for i, text in zip(batch.ids, batch.texts, strict=True)]
            rejects += [(lines_before + line, reason) for line, reason in batch.bad]
            places += batch.places
            # No batch is empty, or goes on behind the line that makes it full.
            num_lines += len(batch.ids) + len(batch.bad)
            assert 1 <= len(batch.ids) + len(batch.bad) <= 3 and reader.num_lines == num_lines
            assert sum(map(len, batch.texts[:-1])) < 40
            assert 0 <= reader.num_bytes <= part.num_bytes
        lines_before += reader.num_lines
        sizes += part.num_bytes
    assert sizes == file.stat().st_size
    return documents, rejects, places


def read_whole(file, folder):
    rejects = Rejects(folder / "rejects.jsonl", max_rate=1)
    with rejects:
        documents = [(document.id, document.text) for document in read_documents(str(file), rejects)]
    path = folder / "rejects.jsonl"
    cases = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return documents, [(case["line"], case["reason"]) for case in cases]


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(" \u2003ab", max_size=3)


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["text", "content", "id", "meta"]), VALUES | st.lists(VALUES, max_size=2))
    | st.lists(st.sampled_from(["text", "content"]))
    | VALUES
)
def test_a_line_has_the_id_and_the_text_of_the_document_that_is_read(value):
    line = json.dumps(value).encode()

    def outcome(parse):
        try:
            return parse(line)
        except BadLine as bad:
            return str(bad)

    found = outcome(parse_id_and_utf8)
    document = outcome(reading._parse_line)
    assert found == (document if isinstance(document, str) else (document.id, document.text.encode()))


@settings(max_examples=150, deadline=None)
@given(
    lines=LINES,
    max_bytes=st.integers(1, 90),
    end=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.booleans(),
    ends=st.booleans(),
)
def test_parts_of_a_jsonl_file_are_the_file(tmp_path_factory, lines, max_bytes, end, bom, ends):
    folder = tmp_path_factory.mktemp("p")
    content = b"\xef\xbb\xbf" * bom + end.join(lines) + end * ends
    (folder / "a.jsonl").write_bytes(content)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(content))
    documents, rejects, places = read_parts(folder / "a.jsonl", max_bytes)
    assert (documents, rejects) == read_whole(folder / "a.jsonl", folder)
    # A line has its place, whatever the parts and the compression.
    assert len(set(places)) == len(places) and places == sorted(places)
    assert read_parts(folder / "a.jsonl.gz", max_bytes) == (documents, rejects, places)
    assert read_parts(folder / "a.jsonl", 1 << 20) == (documents, rejects, places)


@pytest.mark.parametrize("max_bytes", [1, 700, 5_000, 1 << 20])
def test_parts_of_a_parquet_file_are_the_file(tmp_path, max_bytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [None if i % 37 == 0 else "" if i % 41 == 0 else f"text {i} " * (i % 9) for i in range(1_000)]
    table = pa.table({"text": texts, "id": [str(i) for i in range(1_000)], "extra": list(range(1_000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    documents, rejects, places = read_parts(tmp_path / "a.parquet", max_bytes)
    assert (documents, rejects) == read_whole(tmp_path / "a.parquet", tmp_path)
    numbers = [int(identity) for identity, _ in documents]
    assert places == numbers and len(rejects) > 40 and len(documents) + len(rejects) == 1_000
    count = len(cut_file(str(tmp_path / "a.parquet"), (tmp_path / "a.parquet").stat().st_size, max_bytes))
    assert count == 16 if max_bytes == 1 else 1 <= count <= 16


def test_what_cannot_be_cut_is_one_part(tmp_path):
    for name in ("a.jsonl.gz", "a.jsonl.zst", "b.jsonl"):
        write_documents(tmp_path / name, [Document(str(i), "text") for i in range(50)])
        size = (tmp_path / name).stat().st_size
        whole = [FilePart(str(tmp_path / name), size)]
        assert cut_file(str(tmp_path / name), size, size) == whole
        assert (cut_file(str(tmp_path / name), size, 10) == whole) == (name != "b.jsonl")
    assert cut_file("s3://bucket/a.jsonl", 10**9, 10) == [FilePart("s3://bucket/a.jsonl", 10**9)]


def test_parts_are_nearly_equal(tmp_path):
    parts = cut_file("a.jsonl", 1_001, 100)
    assert len(parts) == 11 and {part.num_bytes for part in parts} == {91}
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    write_documents(tmp_path / name, [Document(str(i), f"text {i} " * 50) for i in range(2_000)])
    content = bytearray((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"\0" * 64 + content[64:-64])
    size = (tmp_path / name).stat().st_size
    with pytest.raises(ValueError, match=name):
        for part in cut_file(str(tmp_path / name), size, size if name != "a.parquet" else 100):
            list(TextReader(part).batches(1_024, 1 << 20))
