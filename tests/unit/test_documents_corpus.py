"""The corpus: clean text, nothing twice, nothing shared between training and held-out documents."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingua_synth.documents import (
    Document,
    find_files,
    prepare_corpus,
    python_documents,
    read_documents,
    write_documents,
)
from lingua_synth.documents import corpus as corpus_room
from lingua_synth.documents.cleaning import UNIT_CHARS, Deduplicator, clean_markup, normalize_text


def units(text):
    """Every line and paragraph of 80 characters or more, without case and spacing: written apart from the library."""
    parts = text.split("\n") + text.split("\n\n")
    return {" ".join(part.lower().split()) for part in parts if len(part) >= 80}


def sentence(i, length=100):
    return f"Sentence {i} of the corpus says something that no other one says, namely {i * i}.".ljust(length, "!")


def write_corpus(path, count=200, domains=("web", "books"), paragraphs=3):
    documents = [
        Document(
            f"d{i}",
            "\n\n".join(sentence(1_000 * i + j) for j in range(paragraphs)),
            {"domain": domains[i % len(domains)]},
        )
        for i in range(count)
    ]
    write_documents(path, documents)
    return str(path)


# --- cleaning ---


@given(st.text(alphabet="ab \t\n\r\x00\x0b\u200b\u2028\ufeffé", max_size=60))
def test_normalizing_twice_is_normalizing_once(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert "\n\n\n" not in once and "\r" not in once and "\x00" not in once
    assert [c for c in once if c in "abé"] == [c for c in text if c in "abé"]


def test_normalizing_keeps_indentation_and_words():
    text = "\ufeffdef f():\r\n    return 1  \r\n\r\n \t\r\n    # \x07d\u00e9j\u00e0 vu\u200b\n\n"
    assert normalize_text(text) == "def f():\n    return 1\n\n    # déjà vu"


def test_markup_goes_and_prose_stays():
    text = textwrap.dedent(
        """
        Compute the mean of the values along the axis, as in :func:`~numpy.mean`, where
        the result is a ``float`` for most of the *usual* inputs [1]_.

        .. versionadded:: 1.2
            The old behaviour of this function was not the same as it is now.

        .. note:: The axis must be one of those that the array has.

        Parameters
        ----------
        values : array_like, optional
            The values of which the mean is wanted; they are converted to an
            array if they are not one already.
        axis : int
            The axis along which the mean is taken.

        See Also
        --------
        median : the value in the middle of all of those that there are

        Notes
        -----
        The mean of no values is not a number, as is the mean of those that have one::

            for x in values: print(x, sum(x) / len(x) and the or of it is)

        ===== =====
        name  value
        ===== =====

        Permission is hereby granted, free of charge, to any person who obtains a copy of this.

        >>> mean([1, 2, 3]) and this is not a text that you would want
        2.0

        {}[]()<>;:+-*/= 12345 67890 {}[]()<>;:+-*/= 12345 67890 {}[]()<>;:+-*/=

        Ein Satz in einer anderen Sprache, der hier nichts verloren hat und geht.

        Examples
        """
    )
    dropped = {}
    assert clean_markup(text, dropped) == "\n\n".join(
        [
            "Compute the mean of the values along the axis, as in numpy.mean, where the result is a float for most of "
            "the usual inputs.",
            "The axis must be one of those that the array has.",
            "Parameters",
            "values : array_like, optional\nThe values of which the mean is wanted; they are converted to an array if "
            "they are not one already.\naxis : int\nThe axis along which the mean is taken.",
            "Notes",
            "The mean of no values is not a number, as is the mean of those that have one:",
        ]
    )
    assert dropped == {"too short": 2, "licence": 1, "not text": 1, "not English": 1}


def test_markdown_is_cleaned_too():
    text = (
        "# The Package\n\n[![Build](https://ci/x.svg)](https://ci)\n\n"
        "This is [the package](https://example.org/x) that **does** what you want, as https://example.org says.\n\n"
        "```python\nimport the, package, of, which, this, is, not, text\n```\n\n"
        "| a | b |\n|---|---|\n| of the | and the |\n\n<p align='center'>It is <b>free</b> for all of us to use.</p>\n"
    )
    assert clean_markup(text, {}) == (
        "The Package\n\nThis is the package that does what you want, as says.\n\nIt is free for all of us to use."
    )


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.lists(st.sampled_from([sentence(i) for i in range(6)] + ["short one", "AB", ""]), max_size=4), max_size=4
        ),
        max_size=6,
    )
)
def test_no_long_line_or_paragraph_passes_twice(texts):
    seen = Deduplicator()
    kept = [seen.keep_new(normalize_text("\n\n".join("\n".join(lines) for lines in text))) for text in texts]
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert not units(one) & units(other)
    assert normalize_text(kept[0] if kept else "") == (kept[0] if kept else "")


def test_what_is_new_passes_unchanged():
    seen = Deduplicator()
    text = f"A title\n\n{sentence(1)}\n{sentence(2)}\n\nshort\n\n{sentence(3)}"
    assert seen.keep_new(text) == text
    # Case and spacing do not make a text new, and short lines may come again.
    assert (
        seen.keep_new(f"A title\n\n{sentence(1).upper().replace(' ', '  ')}\n\n{sentence(4)}")
        == f"A title\n\n{sentence(4)}"
    )
    # A paragraph that loses most of itself goes as a whole; its new line may still come later.
    assert seen.keep_new(f"{sentence(1)}\n{sentence(2)}\n{sentence(5)}") == ""
    assert seen.keep_new(sentence(5)) == sentence(5)
    assert seen.keep_new(f"{sentence(6)}\n{sentence(7)}\n{sentence(1)}") == f"{sentence(6)}\n{sentence(7)}"
    assert seen.num_repeated_chars > 4 * UNIT_CHARS


# --- the built-in corpus ---


@pytest.fixture(scope="module")
def built_in():
    dropped = {}
    return list(python_documents(1_500_000, dropped)), dropped


def test_the_built_in_corpus_is_clean_text_of_every_domain(built_in):
    documents, dropped = built_in
    domains = {document.meta["domain"] for document in documents}
    assert {"language-reference", "standard-library", "numpy", "scipy", "packages", "package-readmes"} <= domains
    assert 1_300_000 < sum(len(document.text.encode()) for document in documents) <= 1_500_000
    assert len({document.id for document in documents}) == len(documents)
    seen = set()
    for document in documents:
        assert len(document.text) >= 200
        assert normalize_text(document.text) == document.text
        assert ">>>" not in document.text and "--------" not in document.text
        assert set(document.meta) == {"domain", "package", "version", "name"}
        # Nothing twice, checked apart from the library.
        assert not units(document.text) & seen
        seen |= units(document.text)
    letters = sum(char.isalpha() or char.isspace() for document in documents for char in document.text)
    assert letters > 0.9 * sum(len(document.text) for document in documents)
    assert {"not text", "not English", "licence", "too short"} <= set(dropped)


def test_the_built_in_corpus_has_one_order(built_in):
    documents, _ = built_in
    again = [document for document, _ in zip(python_documents(), range(300), strict=False)]
    assert again == documents[:300]
    # One of each domain in turn, so that a limit cuts all alike.
    assert len({document.meta["domain"] for document in documents[:6]}) == 6
    assert list(read_documents("python://").__next__().meta.items()) == list(documents[0].meta.items())


def test_no_package_is_imported():
    code = (
        "import sys; from lingua_synth.documents import python_documents; it = python_documents(); "
        "[next(it) for _ in range(60)]; print(sorted({'scipy', 'torch', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- prepare_corpus ---


def test_both_sides_together_are_the_corpus_and_share_nothing(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl")
    manifest = prepare_corpus(path, tmp_path / "out", held_out_fraction=0.1, min_held_out_bytes=0)
    train = list(read_documents(str(tmp_path / "out" / "train.jsonl")))
    held_out = {
        domain: list(read_documents(str(tmp_path / "out" / "heldout" / f"{domain}.jsonl")))
        for domain in ("web", "books")
    }
    everything = [*train, *held_out["web"], *held_out["books"]]
    assert sorted(everything, key=lambda d: d.id) == sorted(read_documents(path), key=lambda d: d.id)
    for domain, documents in held_out.items():
        assert {document.meta["domain"] for document in documents} == {domain}
        assert len(documents) == 10  # a tenth of 100 documents of about one length
        assert manifest["domains"][domain]["held_out_documents"] == 10
        assert manifest["domains"][domain]["held_out_bytes"] == sum(len(d.text.encode()) for d in documents)
    assert manifest["documents"] == 200
    assert manifest["train_documents"] == len(train) == 180
    assert manifest["bytes"] == manifest["train_bytes"] + manifest["held_out_bytes"]
    assert manifest["bytes"] == sum(len(document.text.encode()) for document in everything)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    # The folder as documents is what is for training.
    assert find_files(str(tmp_path / "out")) == [str(tmp_path / "out" / "train.jsonl")]
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "heldout", "manifest.json", "train.jsonl"]


def test_repeated_paragraphs_never_stand_on_both_sides(tmp_path):
    shared = [sentence(i) for i in range(40)]
    documents = [
        Document(f"d{i}", "\n\n".join([shared[i % 40], sentence(1_000 + i), shared[(7 * i) % 40].upper()]))
        for i in range(300)
    ]
    documents += [Document(f"copy-{i}", documents[i].text) for i in range(20)]
    write_documents(tmp_path / "in.jsonl", documents)
    manifest = prepare_corpus(str(tmp_path / "in.jsonl"), tmp_path / "out", held_out_fraction=0.3)
    train = set().union(*(units(d.text) for d in read_documents(str(tmp_path / "out" / "train.jsonl"))))
    held_out = set().union(
        *(units(d.text) for d in read_documents(str(tmp_path / "out" / "heldout" / "heldout.jsonl")))
    )
    assert train and held_out and not train & held_out
    assert manifest["dropped"] == {"seen before": 20}
    assert list(manifest["domains"]) == ["heldout"]


def test_the_split_follows_the_seed_and_the_ids_not_the_order(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl")
    documents = list(read_documents(path))
    write_documents(tmp_path / "reversed.jsonl", reversed(documents))

    def held_out(name, source, **more):
        prepare_corpus(str(source), tmp_path / name, min_held_out_bytes=0, **more)
        return {d.id for d in read_documents(str(tmp_path / name / "heldout" / "*.jsonl"))}

    first = held_out("a", path)
    assert first == held_out("b", tmp_path / "reversed.jsonl")
    assert first != held_out("c", path, seed=1)
    assert first < held_out("d", path, held_out_fraction=0.2)
    only_web = held_out("e", path, held_out_domains=["web"])
    assert only_web == {i for i in first if int(i[1:]) % 2 == 0}
    assert (tmp_path / "e" / "heldout" / "web.jsonl").exists() and not (
        tmp_path / "e" / "heldout" / "books.jsonl"
    ).exists()


def test_limits_of_what_is_held_out(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl", count=100, domains=("a",))
    size = len(next(iter(read_documents(path))).text.encode())

    def held_out_documents(name, **more):
        return prepare_corpus(path, tmp_path / name, **more)["held_out_documents"]

    assert held_out_documents("fraction", min_held_out_bytes=0) == 5
    assert held_out_documents("least", min_held_out_bytes=10 * size) == 10
    assert held_out_documents("quarter", min_held_out_bytes=10**9) == 25
    assert held_out_documents("most", held_out_fraction=0.4, max_held_out_bytes=20 * size) == 20
    assert held_out_documents("half", held_out_fraction=0.9) == 50


def test_a_finished_corpus_is_returned_and_others_are_refused(tmp_path, monkeypatch):
    path = write_corpus(tmp_path / "in.jsonl")
    manifest = prepare_corpus(path, tmp_path / "out")
    stamp = os.stat(tmp_path / "out" / "train.jsonl").st_mtime_ns
    monkeypatch.setattr(corpus_room, "write_documents", lambda *_: pytest.fail("written again"))
    assert prepare_corpus(path, tmp_path / "out") == manifest
    os.utime(path, ns=(1, 1))  # copied: another time, the same bytes
    assert prepare_corpus(path, tmp_path / "out") == manifest
    assert os.stat(tmp_path / "out" / "train.jsonl").st_mtime_ns == stamp
    with pytest.raises(ValueError, match="finished corpus of other settings: seed is 0 there and 1 now"):
        prepare_corpus(path, tmp_path / "out", seed=1)
    text = Path(path).read_text()
    Path(path).write_text(text.replace("Sentence", "Paragraf"))  # the same size
    with pytest.raises(ValueError, match="the documents are others"):
        prepare_corpus(path, tmp_path / "out")


def test_an_edited_corpus_is_not_trusted(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl")
    prepare_corpus(path, tmp_path / "out")
    with open(tmp_path / "out" / "train.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"train\.jsonl is missing or was edited"):
        prepare_corpus(path, tmp_path / "out")


def test_an_interrupted_preparation_is_done_again(tmp_path, monkeypatch):
    path = write_corpus(tmp_path / "in.jsonl")
    whole = prepare_corpus(path, tmp_path / "whole")
    write = corpus_room.write_documents
    for failing in (".cleaned.jsonl", "train.jsonl", "books.jsonl"):

        def fail(target, documents, failing=failing):
            if target.name == failing:
                list(documents)
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(target, documents)

        monkeypatch.setattr(corpus_room, "write_documents", fail)
        with pytest.raises(OSError, match="No space"):
            prepare_corpus(path, tmp_path / "out")
        assert not (tmp_path / "out" / "manifest.json").exists()
        # A held-out file of other settings must not survive into the next try.
        (tmp_path / "out" / "heldout").mkdir(exist_ok=True)
        (tmp_path / "out" / "heldout" / "stale.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.setattr(corpus_room, "write_documents", write)
    assert prepare_corpus(path, tmp_path / "out") == whole
    assert sorted(os.listdir(tmp_path / "out" / "heldout")) == ["books.jsonl", "web.jsonl"]


def test_somebody_elses_files_are_not_touched(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"holds train\.jsonl but no manifest\.json of ours"):
        prepare_corpus(path, tmp_path / "out")
    assert (tmp_path / "out" / "train.jsonl").read_text() == "mine"
    (tmp_path / "out" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="is not the manifest of a corpus"):
        prepare_corpus(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (10, {"held_out_fraction": 0.0}, "held_out_fraction is a share"),
        (10, {"held_out_fraction": 1.0}, "held_out_fraction is a share"),
        (10, {"held_out_domains": ["news"]}, "no documents of domain news; there are books, web"),
        (1, {}, "nothing can be held out: 1 documents"),
        (10, {"max_held_out_bytes": 10}, "nothing can be held out"),
        (0, {}, "nothing can be held out: 0 documents"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, count, settings, message):
    path = write_corpus(tmp_path / "in.jsonl", count=count)
    with pytest.raises(ValueError, match=message):
        prepare_corpus(path, tmp_path / "out", **settings)


def test_rejects_are_counted_and_too_many_stop(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl")
    with open(path, "a") as file:
        file.write("{\n")
    manifest = prepare_corpus(path, tmp_path / "out")
    assert manifest["dropped"] == {"not JSON": 1} and manifest["lines_read"] == 201
    assert json.loads((tmp_path / "out" / "rejects.jsonl").read_text())["line"] == 201
    with pytest.raises(ValueError, match="1 of 201 lines"):
        prepare_corpus(path, tmp_path / "strict", max_reject_rate=0.0)


def test_max_bytes_and_a_domain_that_is_no_file_name(tmp_path):
    path = write_corpus(tmp_path / "in.jsonl", domains=("../evil name/x",))
    manifest = prepare_corpus(path, tmp_path / "out", max_bytes=10_000)
    assert 9_000 < manifest["bytes"] <= 10_000
    assert os.listdir(tmp_path / "out" / "heldout") == ["evil-name-x.jsonl"]
    with pytest.raises(ValueError, match="holds some of the documents to read"):
        prepare_corpus(str(tmp_path / "in.jsonl"), tmp_path)


def test_the_built_in_corpus_is_prepared_with_versions(tmp_path):
    manifest = prepare_corpus("python://", tmp_path / "out", max_bytes=400_000)
    assert prepare_corpus("python://", tmp_path / "out", max_bytes=400_000) == manifest
    assert manifest["packages"]["numpy"] == __import__("numpy").__version__
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    held_out = manifest["domains"]
    assert all(held_out[domain]["held_out_documents"] > 0 for domain in held_out)
    assert all(held_out[domain]["train_documents"] > 0 for domain in held_out)
