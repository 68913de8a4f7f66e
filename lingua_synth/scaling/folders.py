"""Run folders as a runs table: this library's, and those of Meta Lingua (`dump_dir`).

A folder is a run when it holds `result.json` (this library's row of a finished run), or `config.yaml` and
`metrics.jsonl` (Lingua's, and this library's before the end). They are looked for in the folder itself and below it.
Of the second kind a row is put together from what the run wrote: parameters counted from `model`, tokens from
`optim/total_tokens`, losses from the last line of `metrics.validation.jsonl` or a later `evals/<step>/validation.json`.

What is not there is NaN, never guessed, and `schedule_done` says how much of the run's steps lay behind it when it was
evaluated: 1 at its end. `clean` drops the others by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.files import read_json, sha256_json, what_is_there
from lingua_synth.scaling.runs import AVERAGES, TEXT_COLUMNS, Runs, with_table_notes

RESULT, CONFIG, METRICS, VALIDATION = "result.json", "config.yaml", "metrics.jsonl", "metrics.validation.jsonl"
MAX_DEPTH = 4
"""Levels below the folder that are searched: study/runs/<run> needs two."""
TRAIN_LOSS_SHARE = 0.02
"""`loss_train` is the mean over the log lines of the last such share of the steps: single steps scatter."""
_PARTS = ("ratio_", "tokens_", "unique_tokens_", "epochs_")
_INSIDE = ("checkpoints", "evals", "tensorboard", "wandb", "profiling")


def read_run_folders(root: str | Path) -> Runs:
    """Every run in `root` and below it, by path; one row a run.

    `run_id` is the result's, or the folder's path below `root`. Lingua's data sources are weighted by documents, so
    their weights become `weight_<source>` and name the mixture; they are no ratios of tokens. `loss_<domain>` is nats
    per token, `loss_macro` their mean, `loss_train` the mean over the last log lines; `gpu_hours` is tokens over the
    median `speed/wps`. `notes` names the folders that are no whole runs, and what the losses are.

    ValueError when there is no run, two runs have one id, or were evaluated on different domains.
    """
    root = Path(root)
    found = run_folders(root)
    if not found:
        raise ValueError(
            f"{root} holds no run folder ({RESULT}, or {CONFIG} with {METRICS}), nor do the folders below it; "
            f"{what_is_there(root / 'x')}"
        )
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    seen: dict[str, Path] = {}
    for folder in found:
        name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
        if (folder / RESULT).is_file():
            row: dict[str, Any] = {**read_json(folder / RESULT), "schedule_done": 1.0}
        else:
            try:
                row, said = _read_lingua(folder, name)
                notes += said
            except ValueError as error:
                notes.append(f"{name} is left out: {error}")
                continue
        if row["run_id"] in seen:
            raise ValueError(
                f"run {row['run_id']!r} is in {seen[row['run_id']]} and in {folder}; read the folders one by one"
            )
        seen[row["run_id"]] = folder
        rows.append(row)
    if not rows:
        raise ValueError(f"no run in {root} can be read: {'; '.join(notes)}")
    _refuse_other_domains(rows)
    return with_table_notes(Runs(_columns(rows), dict.fromkeys(notes)))


def run_folders(root: str | Path) -> list[Path]:
    """The run folders in `root` and below it, by path; a folder inside a run is none."""
    return list(_run_folders(Path(root), MAX_DEPTH))


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / RESULT).is_file() or ((folder / CONFIG).is_file() and (folder / METRICS).is_file()):
        yield folder
        return
    if depth:
        inner = (f for f in folder.iterdir() if f.is_dir() and f.name not in _INSIDE and not f.name.startswith("."))
        for child in sorted(inner):
            yield from _run_folders(child, depth - 1)


def _refuse_other_domains(rows: list[dict[str, Any]]) -> None:
    sets: dict[tuple[str, ...], str] = {}
    for row in rows:
        names = tuple(sorted(k.removeprefix("loss_") for k in row if k.startswith("loss_") and k != "loss_train"))
        if domains := tuple(name for name in names if name not in AVERAGES):
            sets.setdefault(domains, row["run_id"])
    if len(sets) > 1:
        (first, a), (second, b) = list(sets.items())[:2]
        raise ValueError(
            f"runs {a} and {b} were evaluated on different domains ({', '.join(first)} against {', '.join(second)}), "
            "so their average losses do not compare; read them as separate tables"
        )


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as columns; a share a run does not have is 0, another number NaN, another text empty."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        is_text = name in TEXT_COLUMNS or any(isinstance(value, str) for value in values)
        absent: Any = "" if is_text else 0.0 if name.startswith(_PARTS) else math.nan
        filled = [absent if value is None else value for value in values]
        columns[name] = np.array([str(v) for v in filled]) if is_text else np.array(filled, dtype=np.float64)
    return columns


# --- a folder without a result ---


def _read_lingua(folder: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """(row, notes) of a run from its configuration and its logs; ValueError when it has no counted step."""
    config = _read_config(folder / CONFIG)
    lines = _latest(_json_lines(folder / METRICS))
    if not lines:
        raise ValueError(f"{METRICS} has no whole line")
    losses, step, notes = _validation(folder, name)
    last_step = int(lines[-1]["global_step"])
    if step is None:
        step = last_step
    steps = int(config.get("steps", 0) or 0)
    tokens = _tokens_at(lines, step)
    if tokens is None:
        raise ValueError(f"no optim/total_tokens in {METRICS}")
    mixture, shares = _mixture(config)
    row: dict[str, Any] = {"run_id": name, "mixture": mixture, **shares}
    row |= _sizes(config, tokens)
    row |= {"tokens": tokens, "seed": float(config.get("seed", math.nan)), **losses}
    row |= {"loss_train": _train_loss(lines, step), **_cost(lines, tokens)}
    row["schedule"] = _schedule(config)
    row["schedule_done"] = min(step / steps, 1.0) if steps else math.nan
    # What decides the run's numbers, so that a copy of a folder is seen as the same training.
    told = {key: value for key, value in config.items() if key not in ("dump_dir", "logging", "env", "checkpoint")}
    return row | {"config_sha256": sha256_json(told)}, notes


def _read_config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{CONFIG} is not YAML that can be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"{CONFIG} has no section `model`, so it is no training")
    return {str(key): value for key, value in config.items()}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines with a step; a half-written one (a killed run) is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("global_step"), int):
            records.append(record)
    return records


def _latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a step, ascending: of steps logged again after a resume, the later ones."""
    return [record for _, record in sorted({int(r["global_step"]): r for r in records}.items())]


def _validation(folder: Path, name: str) -> tuple[dict[str, float], int | None, list[str]]:
    """({loss_<domain>, bpb_<domain>, loss_macro, ...}, step, notes) of the last evaluation; nothing where there is
    none."""
    records = _latest(_json_lines(folder / VALIDATION))
    step, domains = (int(records[-1]["global_step"]), dict(records[-1])) if records else (None, {})
    for file in sorted(folder.glob("evals/*/validation.json")):
        if file.parent.name.isdigit() and int(file.parent.name) > (step or 0):
            step, domains = int(file.parent.name), read_json(file)
    domains = {key: value for key, value in domains.items() if isinstance(value, dict) and "nll_per_token" in value}
    if not domains:
        return {}, None, [f"{name} has no validation losses: loss_macro is empty, loss_train is all there is"]
    row, notes = {}, []
    for domain, values in domains.items():
        loss = float(values["nll_per_token"])
        if "tokens" not in values:
            # Lingua logs log-likelihoods under this name, averaged over documents.
            loss = -loss if loss < 0 else loss
            notes.append("Meta Lingua's validation averages over documents, long or short alike, not over tokens")
        row[f"loss_{Path(domain).stem}"] = loss
        if "bits_per_byte" in values:
            row[f"bpb_{Path(domain).stem}"] = float(values["bits_per_byte"])
    average = {"loss_macro": float(np.mean([value for key, value in row.items() if key.startswith("loss_")]))}
    if all("tokens" in values for values in domains.values()):
        total = sum(float(values["tokens"]) for values in domains.values())
        average["loss_micro"] = sum(float(v["nll_per_token"]) * float(v["tokens"]) for v in domains.values()) / total
    return average | row, step, notes


def _tokens_at(lines: list[dict[str, Any]], step: int) -> float | None:
    """Tokens trained on at `step`: logged there, else in proportion to the nearest logged step."""
    logged = [(int(r["global_step"]), float(r["optim/total_tokens"])) for r in lines if r.get("optim/total_tokens")]
    if not logged:
        return None
    nearest, tokens = min(logged, key=lambda pair: (abs(pair[0] - step), pair[0]))
    return tokens * step / nearest


def _mixture(config: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Name of the mixture, and ratios (ours, exact) or weights (Lingua's, of documents)."""
    from fractions import Fraction

    ours = config.get("synth") or {}
    if ours.get("sources"):
        ratios = {name: Fraction(str(source["ratio"])) for name, source in ours["sources"].items()}
        named = "+".join(f"{name}:{source['ratio']}" for name, source in ours["sources"].items())
        return ours.get("mixture") or named, {f"ratio_{name}": float(ratio) for name, ratio in ratios.items()}
    weights = (config.get("data") or {}).get("sources") or {}
    total = sum(float(weight) for weight in weights.values())
    if not total:
        return "all", {}
    shares = dict(sorted((Path(str(name)).name, float(weight) / total) for name, weight in weights.items()))
    return "+".join(f"{n}:{share:.4g}" for n, share in shares.items()), {f"weight_{n}": s for n, s in shares.items()}


def _sizes(config: Mapping[str, Any], tokens: float) -> dict[str, Any]:
    """Counts of parameters and FLOPs by the formulas of `lingua_synth.model`."""
    from lingua_synth.model import ModelArgs, count_parameters, flops_per_token

    known = {field.name for field in dataclasses.fields(ModelArgs)}
    args = ModelArgs(**{key: value for key, value in config["model"].items() if key in known})
    if args.vocab_size < 1:
        raise ValueError(f"model.vocab_size in {CONFIG} is {args.vocab_size}; a finished configuration has the number")
    counts = count_parameters(args)
    seq_len = int((config.get("data") or {}).get("seq_len", 0) or 0)
    return {
        "size": (config.get("synth") or {}).get("preset") or f"{args.dim}x{args.n_layers}",
        "n_non_embedding": float(counts.non_embedding),
        "n_total": float(counts.total),
        "n_lingua": float(counts.lingua),
        "flops": tokens * flops_per_token(args, seq_len) if seq_len else math.nan,
    }


def _schedule(config: Mapping[str, Any]) -> str:
    """The learning-rate schedule, as `result.json` of a finished run names it; empty where the config has none."""
    name = str((config.get("optim") or {}).get("scheduler") or "")
    decay = str((config.get("synth") or {}).get("decay") or "reciprocal")
    return name if decay == "reciprocal" else f"{name}-{decay}"


def _train_loss(lines: list[dict[str, Any]], step: int) -> float:
    first = step * (1 - TRAIN_LOSS_SHARE)
    values = [r.get("loss/mean", r.get("loss/out")) for r in lines if first < int(r["global_step"]) <= step]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if numbers else math.nan


def _cost(lines: list[dict[str, Any]], tokens: float) -> dict[str, float]:
    """GPU-hours from the speed (tokens per second and GPU), hours on the clock from the first and last line."""
    speeds = [float(r["speed/wps"]) for r in lines if r.get("speed/wps")]
    cost = {"gpu_hours": tokens / float(np.median(speeds)) / 3600} if speeds else {}
    try:
        ends = [datetime.fromisoformat(str(lines[k]["created_at"])) for k in (0, -1)]
        cost["wall_s"] = (ends[1] - ends[0]).total_seconds()
    except (KeyError, ValueError, TypeError):
        pass
    return cost
