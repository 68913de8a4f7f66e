"""The dataset card of a finished run: what the texts are, how they were made, what was left out, how they look.

    manifest.json, workers/, a sample of documents-*  ──build_card──>  card.md

Everything in it follows from the folder, so the same folder gives the same card. The head is what the Hugging Face Hub
reads of a dataset's README.md, as which the card can be uploaded.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.documents import Document, read_documents
from lingua_synth.files import atomic_file, read_json
from lingua_synth.generate import store
from lingua_synth.generate.accounting import read_usage

NAME = "card.md"
SAMPLE_SHARDS, SAMPLE_RECORDS = 20, 100
"""The sample: so many shards, evenly spaced, and so many records from the beginning of each."""
DIVERSITY_WORDS = 50_000
"""Words of the sample in which distinct n-grams are counted: the ratio falls with the number of words."""
PERCENTILES = (5, 25, 50, 75, 95)


def write_card(out_dir: str | Path, *, name: str = "", license_id: str = "") -> str:
    """Write `card.md` of the finished run in `out_dir`, instead of an earlier one; returns its text.

    Raises ValueError for a folder without a manifest of generated documents.
    """
    folder = Path(out_dir)
    path = folder / store.MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} has no {store.MANIFEST}: a card is for a run that is finished")
    manifest = read_json(path)
    if manifest.get("format") != store.FORMAT:
        raise ValueError(f"{path} is not the manifest of generated documents")
    text = build_card(folder, manifest, name=name, license_id=license_id)
    with atomic_file(folder / NAME) as file:
        file.write(text)
    return text


def build_card(folder: Path, manifest: Mapping[str, Any], *, name: str = "", license_id: str = "") -> str:
    """The card as Markdown, from the run's manifest and a sample of its records."""
    recipe, engine = manifest["recipe"], manifest["engine"]
    sample = _sample(folder, manifest)
    title = name or f"Synthetic texts, recipe {recipe['name']}"
    parts = [
        _head(title, license_id, manifest),
        f"# {title}",
        " ".join(manifest.get("about", {}).get("description", "").split()),
        _made_up(manifest),
        "## How they were made",
        _table(("", ""), _origin(manifest, recipe, engine)),
        "Calls of the generator for each document:",
        _table(
            ("step", "makes", "temperature", "top-p", "most tokens", "filters"),
            [_step_row(step) for step in recipe["steps"]],
        ),
        "Each record's `meta.synth` holds recipe, prompt hash, source document, generator, sampling with its seed, "
        "token counts, finish reason and the filters that marked it. The prompts are in `manifest.json`.",
        "## What was kept",
        _table(("outcome", "texts", "share"), _outcomes(manifest)),
        *_flags(manifest),
        "## Size",
        _table(("", ""), _sizes(folder, manifest)),
        *_lengths(sample),
        *_diversity(sample),
        "## License and citation",
        _license(license_id),
        _citation(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(title: str, license_id: str, manifest: Mapping[str, Any]) -> str:
    files = manifest["document_files"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(title, ensure_ascii=False)}",
        f"license: {json.dumps(license_id) if license_id else 'unknown  # to be filled in'}",
        "task_categories: [text-generation]",
        "tags: [synthetic]",
        f"size_categories: [{_size_category(manifest['records'])}]",
        "configs:",
        "- config_name: default",
        f"  data_files: {json.dumps(files[0] if len(files) == 1 else files)}",
        "---",
    ]
    return "\n".join(lines)


def _size_category(num_records: int) -> str:
    """As the Hub names it."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for power, bound in enumerate(bounds, 3):
        if num_records < 10**power:
            return f"n<{bound}" if power == 3 else f"{bounds[power - 4]}<n<{bound}"
    return "n>1T"


def _made_up(manifest: Mapping[str, Any]) -> str:
    if manifest["engine"]["name"] != "mock":
        return ""
    return "**The mock engine made these texts up for a test; no model wrote them.**"


def _origin(manifest: Mapping[str, Any], recipe: Mapping[str, Any], engine: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("recipe", f"{recipe['name']}, version {recipe['version']}"),
        ("generator", engine["name"]),
        ("revision", engine["revision"]),
        ("run", f"seed {manifest['seed']}, samples {manifest['samples']}, begun {manifest['created']}"),
        ("fingerprint", f"`{manifest['fingerprint'][:16]}`"),
    ]
    rows += [(f"variable {name}", ", ".join(values)) for name, values in recipe.get("assign", {}).items()]
    return rows


def _step_row(step: Mapping[str, Any]) -> Sequence[str]:
    sampling = step["sampling"]
    filters = ", ".join(f"{one['name']} ({one['action']})" for one in step["filters"]) or "none"
    numbers = (f"{sampling['temperature']:g}", f"{sampling['top_p']:g}", f"{sampling['max_tokens']:,}")
    return (step["name"], "records" if step["emit"] else "input of later steps", *numbers, filters)


def _outcomes(manifest: Mapping[str, Any]) -> list[Sequence[str]]:
    counts = {
        "kept": manifest["records"],
        **{f"left out by {name}": count for name, count in manifest["filtered"].items()},
        "failed": manifest["failed"],
    }
    total = sum(counts.values())
    return [(name, f"{count:,}", _share(count, total)) for name, count in counts.items()]


def _flags(manifest: Mapping[str, Any]) -> list[str]:
    flagged = manifest["flagged"]
    if not flagged:
        return ["No kept record was marked by a filter."]
    rows = [(name, f"{count:,}", _share(count, manifest["records"])) for name, count in flagged.items()]
    return ["Kept records that a filter marked (`meta.synth.flags`):", _table(("filter", "records", "share"), rows)]


def _sizes(folder: Path, manifest: Mapping[str, Any]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("source documents", f"{manifest['source_documents']:,}"),
        ("records", f"{manifest['records']:,}"),
        ("tokens of the records, as the generator counts", f"{manifest['output_tokens']:,}"),
        ("tokens written in all", f"{manifest['generated_tokens']:,}"),
        ("tokens read", f"{manifest['prompt_tokens']:,}"),
    ]
    hours = read_usage(folder).gpu_h
    if hours:
        rows.append(("GPU-hours", f"{hours:,.2f}"))
        if manifest["output_tokens"]:
            rows.append(("GPU-hours per billion kept tokens", f"{hours / manifest['output_tokens'] * 1e9:,.1f}"))
    return rows


def _sample(folder: Path, manifest: Mapping[str, Any]) -> list[Document]:
    """Records from the beginning of shards spread evenly over the run: enough to describe it, quickly read."""
    shards = [shard["shard"] for shard in manifest["shards"] if shard["records"]]
    count = min(SAMPLE_SHARDS, len(shards))
    chosen = [shards[place * len(shards) // count] for place in range(count)]
    found: list[Document] = []
    for shard in chosen:
        path = folder / store.file_name("documents", shard, manifest["document_format"])
        found += itertools.islice(read_documents([str(path)]), SAMPLE_RECORDS)
    return found


def _lengths(sample: Sequence[Document]) -> list[str]:
    if not sample:
        return []
    measured = {
        "tokens": [document.meta["synth"]["output_tokens"] for document in sample],
        "words": [len(document.text.split()) for document in sample],
        "characters": [len(document.text) for document in sample],
    }
    rows = [
        (name, *(f"{value:,.0f}" for value in np.percentile(values, PERCENTILES)), f"{np.mean(values):,.1f}")
        for name, values in measured.items()
    ]
    names = ("length", *(f"{percentile} %" for percentile in PERCENTILES), "mean")
    return [f"Lengths in a sample of {len(sample):,} records (percentiles):", _table(names, rows)]


def _diversity(sample: Sequence[Document]) -> list[str]:
    """Share of different n-grams among the sample's, within records; and texts that occur twice."""
    counted, total = 0, [0, 0, 0]
    different: list[set[tuple[str, ...]]] = [set(), set(), set()]
    for document in sample:
        words = document.text.lower().split()[: DIVERSITY_WORDS - counted]
        counted += len(words)
        for size in (1, 2, 3):
            ngrams = list(zip(*(words[first:] for first in range(size)), strict=False))
            total[size - 1] += len(ngrams)
            different[size - 1].update(ngrams)
        if counted >= DIVERSITY_WORDS:
            break
    if not total[2]:
        return []
    ratios = [len(seen) / count for seen, count in zip(different, total, strict=True)]
    repeated = len(sample) - len({document.text for document in sample})
    return [
        f"Diversity: of the first {counted:,} words of the sample, {ratios[0]:.1%} of single words, {ratios[1]:.1%} of "
        f"word pairs and {ratios[2]:.1%} of triples are different ones; {repeated:,} of its {len(sample):,} texts "
        "occur before in it word for word."
    ]


def _license(license_id: str) -> str:
    if license_id:
        return f"License: {license_id}."
    return (
        "License: *to be filled in by whoever publishes the texts.* It depends on the license of the source documents "
        "and on the terms of the generator."
    )


def _citation(manifest: Mapping[str, Any]) -> str:
    about = manifest.get("about", {})
    lines = [
        " ".join(about.get("citation", "").split()),
        f"Generated with lingua_synth by {manifest['engine']['name']}.",
    ]
    lines = [line for line in lines if line]
    return "To cite, name the recipe's source, the generator and the source documents:\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
