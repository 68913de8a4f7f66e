"""Which run a folder holds.

Two calls are the same run when everything that decides its numbers is the same: the config without paths and
conveniences, and the hashes of the data. A run may be cut into ranks and micro-batches anew; it may not change its
learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingua_synth.config import dump_args, to_dict
from lingua_synth.files import read_json, write_json
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, tokens_per_step
from lingua_synth.train.distributed import Ranks
from lingua_synth.train.folder import CONFIG, IDENTITY

# What may differ between two calls for one run: it changes no number of the result.
_FREE_KEYS = ("dump_dir", "logging", "checkpoint")


def run_identity(
    args: TrainArgs, sources: Mapping[str, TokenSource], domains: Mapping[str, TokenSource], dp_size: int
) -> dict[str, Any]:
    """Everything that decides the run's numbers: its resolved config without paths, and its data's hashes."""
    config = to_dict(args)
    for key in _FREE_KEYS:
        del config[key]
    # Any split of the batch over ranks and micro-batches is the same run.
    config["data"].pop("batch_size")
    config.pop("grad_acc_steps")
    config["tokens_per_step"] = tokens_per_step(args, dp_size)
    config["data"].pop("tokenizer")
    for key in ("preset", "tokens", "global_batch_tokens", "warmup_ratio", "device"):
        del config["synth"][key]
    for name, source in config["synth"]["sources"].items():
        for key in ("path", "documents"):
            del source[key]
        source["shards"] = sources[name].fingerprint
    config["synth"]["evaluation"]["domains"] = {name: domain.fingerprint for name, domain in domains.items()}
    return config


def _differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(set(ours) | set(theirs)):
            found += _differences(ours.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if ours == theirs else [f"{prefix} {theirs!r} there, {ours!r} now"]


def claim_folder(run_dir: Path, args: TrainArgs, identity: dict[str, Any], ranks: Ranks) -> None:
    """Write the config of a new run, or check that the folder holds this one; ValueError names what differs."""
    path = run_dir / IDENTITY
    if path.is_file():
        different = _differences(identity, read_json(path))
        if different:
            shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
            raise ValueError(f"{run_dir} holds another run ({shown}); use another dump_dir, or delete that folder")
    ranks.barrier()
    if ranks.is_main and not path.is_file():
        dump_args(args, run_dir / CONFIG)
        write_json(path, identity)
    ranks.barrier()
