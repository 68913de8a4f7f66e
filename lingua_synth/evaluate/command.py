"""`lingua-synth evaluate [run|split|compare|tasks|sets] key=value ...`, and `torchrun -m lingua_synth.evaluate ...`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lingua_synth.config import parse_args
from lingua_synth.evaluate.domain_sets import PRESETS, load_domain_set
from lingua_synth.evaluate.results import compare_evaluations
from lingua_synth.evaluate.run import EvaluateArgs, evaluate
from lingua_synth.evaluate.split import split_domains
from lingua_synth.evaluate.tasks import TasksArgs, run_tasks


@dataclass
class SplitArgs:
    """Split documents of many domains, as the Pile's, into one file a domain."""

    documents: str = ""
    """A jsonl (.gz, .zst) or parquet file, folder, glob or URL."""
    out: str = ""
    """Folder for <domain>.jsonl and manifest.json."""
    domain_set: str = ""
    """Write the domains of this set alone, under its names; empty: every domain that is met."""
    key: str = ""
    """Of a document's metadata, where its domain stands; empty: the set's own, else pile_set_name."""
    format: str = "jsonl"
    """jsonl, jsonl.gz or jsonl.zst."""
    max_reject_rate: float = 0.01
    """Share of input lines without a domain, or that are no documents, in [0, 1], past which the split stops."""


@dataclass
class CompareArgs:
    """Evaluations side by side, with intervals of their differences; refused where figures do not compare."""

    evaluations: list[str] = field(default_factory=list)
    """Folders of evaluations, or of runs; the others are compared with the first."""
    common: bool = False
    """Compare over the domains that all have, where they differ."""


@dataclass
class SetsArgs:
    """List the domain sets, or show one."""

    name: str = ""
    """A preset or a .yaml file; empty: list the presets."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; ValueError for bad input."""
    words = list(argv)
    if words and "=" not in words[0] and not words[0].startswith("-") and words[0] != "help":
        action = words.pop(0)
        if action not in ACTIONS:
            near = difflib.get_close_matches(action, ACTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(ACTIONS)}"
            raise ValueError(f"no `evaluate {action}`; {hint}")
        return ACTIONS[action](words)
    return _run(words)


def _run(argv: Sequence[str]) -> int:
    args = parse_args(EvaluateArgs, argv, prog="lingua-synth evaluate")
    result = evaluate(args)
    if int(os.environ.get("RANK", 0)) == 0:
        _print(args, result.record)
    return 0


def _print(args: EvaluateArgs, record: dict[str, Any]) -> None:
    domains = record["domains"]
    wide = max(24, *map(len, domains))
    print(f"{'domain':{wide}} {'nats/token':>10} {'interval':>17} {'bits/byte':>10} {'tokens':>13} {'documents':>10}")
    for name, found in domains.items():
        interval = found["loss_interval"]
        shown = f"{interval[0]:.4f}-{interval[1]:.4f}" if interval else ""
        print(
            f"{name:{wide}} {found['loss']:10.4f} {shown:>17} {found['bits_per_byte']:10.4f} {found['tokens']:13,} "
            f"{found['documents']:10,}"
        )
    averages = record["averages"]
    print("  ".join(f"{key} {value:.4f}" for key, value in averages.items() if value is not None))
    coverage = record["coverage"]
    print(
        f"{record['protocol']}, seq_len {record['seq_len']}, {record['dtype']}; domain set {record['domain_set']}: "
        f"{len(coverage['present'])} of {coverage['of']} domains"
        + (f", absent: {', '.join(coverage['absent'])}" if coverage["absent"] else "")
    )
    asked = record["max_tokens_per_domain"]
    for name, found in domains.items():
        if asked is not None and found["tokens_available"] < asked:
            print(f"{name}: has {found['tokens_available']:,} tokens, fewer than the {asked:,} asked; all were used")
    if any("lingua" in found for found in domains.values()):
        theirs = (f"{name} {found['lingua']['nll_per_token']:.4f}" for name, found in domains.items())
        print(f"nll_per_token as Meta Lingua logs it: {', '.join(theirs)}")
    if args.out:
        print(f"in {args.out}")


def _split(argv: Sequence[str]) -> int:
    args = parse_args(SplitArgs, argv, prog="lingua-synth evaluate split")
    for key in ("documents", "out"):
        if not getattr(args, key):
            raise ValueError(f"{key} is not set; `lingua-synth evaluate split --help` lists the keys")
    manifest = split_domains(
        args.documents,
        args.out,
        domain_set=load_domain_set(args.domain_set) if args.domain_set else None,
        key=args.key,
        file_format=args.format,
        max_reject_rate=args.max_reject_rate,
    )
    for name, found in manifest["domains"].items():
        print(f"{name:24} {found['documents']:12,} documents {found['bytes']:16,} bytes")
    if manifest["absent"]:
        print(f"of the set, not in the input: {', '.join(manifest['absent'])}")
    others = manifest["other_values"]
    if others:
        print(f"not of the set, left out: {', '.join(f'{name} {count:,}' for name, count in others.items())}")
    if manifest["skipped"]:
        print(f"skipped: {', '.join(f'{reason} {count:,}' for reason, count in manifest['skipped'].items())}")
    print(f"{manifest['lines_read']:,} lines read; in {args.out}")
    return 0


def _compare(argv: Sequence[str]) -> int:
    args = parse_args(CompareArgs, argv, prog="lingua-synth evaluate compare")
    comparison = compare_evaluations(args.evaluations, common=args.common)
    found = comparison.evaluations
    for letter, one in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", found, strict=False):
        print(f"{letter}  {one.folder}  ({one.checkpoint})")
    letters = [chr(ord("A") + i) for i in range(len(found))]
    head = [f"{'domain':24}", *(f"{letter:>9}" for letter in letters)]
    head += [f"{letter + ' - A, interval':>22}" for letter in letters[1:]]
    print(f"{comparison.unit}, {found[0].record['protocol']}, seq_len {found[0].record['seq_len']}")
    print(" ".join(head))
    for name, *cells in comparison.table():
        figures, intervals = cells[: len(found)], cells[len(found) :]
        shown = [f"{one[0]:+.4f} to {one[1]:+.4f}" if one is not None else "-" for one in intervals]
        print(" ".join([f"{name:24}", *(f"{x:9.4f}" for x in figures), *(f"{one:>22}" for one in shown)]))
    for note in comparison.notes:
        print(note)
    return 0


def _tasks(argv: Sequence[str]) -> int:
    args = parse_args(TasksArgs, argv, prog="lingua-synth evaluate tasks")
    record = run_tasks(args)
    print(f"{'task':28} {'correct bits/byte':>18} {'acc':>8} {'acc_norm':>9} {'documents':>10}")
    for name, found in record["results"].items():
        cells = [
            f"{found[key]:{width}.4f}" if found.get(key) is not None else " " * width
            for key, width in (("correct_bits_per_byte", 18), ("acc", 8), ("acc_norm", 9))
        ]
        rest = {
            k: v for k, v in found.items() if k in ("word_perplexity", "bits_per_byte", "perplexity", "exact_match")
        }
        print(
            f"{name:28} {' '.join(cells)} {found.get('documents', ''):>10} "
            + " ".join(f"{k} {v:.4f}" for k, v in rest.items())
        )
    print(f"in {args.out}")
    return 0


def _sets(argv: Sequence[str]) -> int:
    args = parse_args(SetsArgs, argv, prog="lingua-synth evaluate sets")
    if not args.name:
        for name in PRESETS:
            print(f"{name:18} {load_domain_set(name).about}")
        return 0
    found = load_domain_set(args.name)
    print(f"{found.name}: {found.about}")
    for name, domain in found.domains.items():
        value = f"{found.key} {domain.value}" if domain.value is not None else "a file or folder of its own"
        print(f"  {name:32} {value}" + (f", {domain.files}" if domain.files else ""))
    return 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "split": _split,
    "compare": _compare,
    "tasks": _tasks,
    "sets": _sets,
}
