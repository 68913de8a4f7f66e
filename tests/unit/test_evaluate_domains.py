"""Domain sets as data, and one file a domain out of the Pile's shared files."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lingua_synth.documents import read_documents
from lingua_synth.evaluate import load_domain_set, resolve_domains, split_domains
from lingua_synth.evaluate.command import main
from lingua_synth.evaluate.domain_sets import PRESETS
from lingua_synth.files import read_json

PILE = {
    "NIH ExPorter": "nih_exporter", "Pile-CC": "pile_cc", "Wikipedia (en)": "wikipedia_en",
    "USPTO Backgrounds": "uspto", "PubMed Central": "pubmed_central", "PubMed Abstracts": "pubmed_abstracts",
    "PhilPapers": "philpapers", "OpenWebText2": "openwebtext2", "OpenSubtitles": "opensubtitles",
    "Gutenberg (PG-19)": "gutenberg_pg19", "FreeLaw": "freelaw", "BookCorpus2": "bookcorpus2", "Books3": "books3",
    "ArXiv": "arxiv",
}  # fmt: skip
CLOSED = {"books3", "bookcorpus2", "opensubtitles", "openwebtext2"}


def pile_lines(count=300):
    """Lines as of the Pile, over its 14 English domains and two that are not of the set."""
    values = [*PILE, "Github", "DM Mathematics"]
    return [{"text": f"text {i}", "meta": {"pile_set_name": values[i % len(values)]}} for i in range(count)]


def write_lines(path, lines):
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.ZstdCompressor().compress(data)
    elif path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(lines), path)
        return path
    path.write_bytes(data)
    return path


def test_presets_are_the_sets_of_the_papers():
    assert PRESETS == ("custom", "paloma", "pile10-open", "pile14+wikitext")
    paper = load_domain_set("pile14+wikitext")
    assert {d.value: name for name, d in paper.domains.items() if d.value} == PILE
    assert set(paper.domains) - set(PILE.values()) == {"wikitext_103"}
    assert set(load_domain_set("pile10-open").domains) == set(PILE.values()) - CLOSED
    assert len(load_domain_set("paloma").domains) == 16
    assert load_domain_set("custom").is_open


def test_the_paper_s_configs_name_the_domains_of_its_set():
    import yaml

    with open("examples/configs/paper/1B.yaml") as file:
        config = yaml.safe_load(file)
    assert list(config["synth"]["evaluation"]["domains"]) == list(load_domain_set("pile14+wikitext").domains)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_line_ends_in_one_place(tmp_path, suffix):
    source = write_lines(tmp_path / f"val.{suffix}", pile_lines())
    manifest = split_domains(
        str(source), tmp_path / "out", domain_set=load_domain_set("pile14+wikitext"), progress=False
    )
    lines = pile_lines()
    for value, name in PILE.items():
        texts = [line["text"] for line in lines if line["meta"]["pile_set_name"] == value]
        assert [d.text for d in read_documents(str(tmp_path / "out" / f"{name}.jsonl"))] == texts
        assert manifest["domains"][name]["documents"] == len(texts)
        assert manifest["domains"][name]["bytes"] == sum(map(len, texts))
    assert set(manifest["other_values"]) == {"Github", "DM Mathematics"}
    assert manifest["absent"] == [] and manifest["lines_read"] == 300
    total = sum(d["documents"] for d in manifest["domains"].values()) + sum(manifest["other_values"].values())
    assert total == 300
    # Called again it is finished; other settings are another split.
    stamp = (tmp_path / "out" / "arxiv.jsonl").stat().st_mtime_ns
    again = split_domains(str(source), tmp_path / "out", domain_set=load_domain_set("pile14+wikitext"), progress=False)
    assert again == manifest and (tmp_path / "out" / "arxiv.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="holds a split of other names"):
        split_domains(str(source), tmp_path / "out", progress=False)


@pytest.mark.parametrize("file_format", ["jsonl.gz", "jsonl.zst"])
def test_without_a_set_every_value_is_a_domain(tmp_path, file_format, capsys):
    source = write_lines(tmp_path / "val.jsonl", pile_lines())
    words = [f"documents={source}", f"out={tmp_path / 'out'}", f"format={file_format}"]
    assert main(["split", *words]) == 0
    printed = capsys.readouterr().out
    assert "wikipedia_en" in printed and "dm_mathematics" in printed and "300 lines read" in printed
    found = read_json(tmp_path / "out" / "manifest.json")["domains"]
    assert len(found) == 16
    assert len(list(read_documents(str(tmp_path / "out" / f"github.{file_format}")))) == found["github"]["documents"]
    assert len(list(read_documents(str(tmp_path / "out")))) == 300, "the folder reads as documents"


def test_lines_without_a_domain_are_counted_and_too_many_stop_the_split(tmp_path):
    lines = pile_lines(400)
    lines[7] = {"text": "no meta"}
    lines[9] = {"text": "", "meta": {"pile_set_name": "ArXiv"}}
    source = write_lines(tmp_path / "val.jsonl", lines)
    manifest = split_domains(str(source), tmp_path / "out", progress=False)
    assert manifest["skipped"] == {"no pile_set_name": 1, "empty text": 1}
    with pytest.raises(ValueError, match=r"no source .*the metadata of document .* has pile_set_name; key= names"):
        split_domains(str(source), tmp_path / "other", key="source", progress=False)
    # What is left of it is begun anew.
    assert (
        split_domains(str(source), tmp_path / "other", progress=False)["domains"].keys() == manifest["domains"].keys()
    )


def test_what_cannot_be_split_is_refused(tmp_path):
    source = str(write_lines(tmp_path / "val.jsonl", pile_lines()))
    with pytest.raises(ValueError, match=r"format is jsonl, jsonl.gz, jsonl.zst"):
        split_domains(source, tmp_path / "out", file_format="csv")
    with pytest.raises(ValueError, match="paloma names no values of a key"):
        split_domains(source, tmp_path / "out", domain_set=load_domain_set("paloma"))
    with pytest.raises(ValueError, match="documents is not set"):
        main(["split"])
    github = str(write_lines(tmp_path / "github.jsonl", [one for one in pile_lines() if "Git" in str(one["meta"])]))
    with pytest.raises(ValueError, match=r"no document of .* has a pile_set_name of the set .*there: Github"):
        split_domains(github, tmp_path / "out", domain_set=load_domain_set("pile10-open"), progress=False)
    alike = [{"text": "a", "meta": {"pile_set_name": name}} for name in ("A b", "A_b")]
    with pytest.raises(ValueError, match="'A b' and 'A_b' would both be the domain 'a_b'"):
        split_domains(str(write_lines(tmp_path / "alike.jsonl", alike)), tmp_path / "alike", progress=False)
    many = [{"text": "a", "meta": {"pile_set_name": f"url {i}"}} for i in range(300)]
    with pytest.raises(ValueError, match=r"more than 200 values .*this key does not name domains"):
        split_domains(str(write_lines(tmp_path / "many.jsonl", many)), tmp_path / "many", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"holds notes.jsonl but no manifest.json of ours"):
        split_domains(source, tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "notes.jsonl").exists()


def test_killed_it_is_not_read_as_whole_and_begins_anew(tmp_path):
    """kill -9 as soon as a domain's file is there: no reader takes the folder, and the same call makes it whole."""
    write_lines(tmp_path / "val.jsonl", pile_lines(60_000))
    words = [
        "-m",
        "lingua_synth",
        "evaluate",
        "split",
        f"documents={tmp_path / 'val.jsonl'}",
        f"out={tmp_path / 'out'}",
    ]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, env=os.environ)
    while not list((tmp_path / "out").glob("*.jsonl")):
        assert process.poll() is None, "killed before it ended"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(ValueError, match="is not finished"):
        list(read_documents(str(tmp_path / "out")))
    with pytest.raises(ValueError, match="is not finished"):
        resolve_domains(load_domain_set("custom"), data=str(tmp_path / "out"))
    manifest = split_domains(str(tmp_path / "val.jsonl"), tmp_path / "out", progress=False)
    assert sum(found["documents"] for found in manifest["domains"].values()) == 60_000
    assert sum(1 for _ in read_documents(str(tmp_path / "out"))) == 60_000


# --- sets of your own, and where their texts are ---


def test_a_set_of_your_own(tmp_path, capsys):
    (tmp_path / "news.jsonl").write_text("")
    file = tmp_path / "mine.yaml"
    file.write_text("about: ours\nkey: source\ndomains:\n  news: {files: news.jsonl}\n  law: {value: Law}\n")
    found = load_domain_set(str(file))
    assert (found.name, found.key, found.domains["law"].value) == ("mine", "source", "Law")
    assert resolve_domains(found) == ({"news": str(tmp_path / "news.jsonl")}, ["law"])
    assert resolve_domains(found, named={"law": "shards/law"})[0]["law"] == "shards/law"
    assert main(["sets"]) == 0 and main(["sets", f"name={file}"]) == 0
    printed = capsys.readouterr().out
    assert "pile10-open" in printed and "source Law" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "is no domain set"),
        ("domains: {a: {}}\nurl: x\n", "unknown key url"),
        ("domains: {a: {path: x}}\n", "unknown key domains.a.path"),
        ("domains: {a/b: {}}\n", "'a/b' cannot name a domain"),
        ("domains: {a: {value: X}, b: {value: X}}\n", "two domains have the same value"),
        ("domains: {a: [\n", "is not valid YAML"),
        ("domains: {a: text}\n", "domains.a is a mapping"),
    ],
)
def test_a_set_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_domain_set(str(tmp_path / "bad.yaml"))


def test_texts_are_found_by_the_names_of_domains(tmp_path):
    for name in ("arxiv.jsonl.zst", "freelaw.parquet", "notes.txt", "else.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "uspto").mkdir()
    found, absent = resolve_domains(load_domain_set("pile10-open"), data=str(tmp_path))
    assert set(found) == {"arxiv", "freelaw", "uspto"} and "pile_cc" in absent and len(absent) == 7
    everything, none = resolve_domains(load_domain_set("custom"), data=str(tmp_path))
    assert set(everything) == {"arxiv", "else", "freelaw", "uspto"} and none == []
    with pytest.raises(ValueError, match=r"no domain of paloma was found in .*it holds: arxiv"):
        resolve_domains(load_domain_set("paloma"), data=str(tmp_path))
    with pytest.raises(ValueError, match=r"data=.*nowhere is no folder"):
        resolve_domains(load_domain_set("paloma"), data=str(tmp_path / "nowhere"))
    (tmp_path / "arxiv.jsonl").write_text("")
    with pytest.raises(ValueError, match="both are the domain 'arxiv'"):
        resolve_domains(load_domain_set("custom"), data=str(tmp_path))
