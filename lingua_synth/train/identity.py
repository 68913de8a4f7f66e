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
from lingua_synth.model.checkpoint import list_checkpoints
from lingua_synth.model.distributed import Ranks
from lingua_synth.tokens import TokenSource
from lingua_synth.train.args import TrainArgs, tokens_per_step
from lingua_synth.train.folder import CONFIG, IDENTITY, METRICS, RESULT
from lingua_synth.train.free_keys import drop_unused_new_keys, without_free_keys


def run_identity(
    args: TrainArgs, sources: Mapping[str, TokenSource], domains: Mapping[str, TokenSource], dp_size: int
) -> dict[str, Any]:
    """Everything that decides the run's numbers: its resolved config without paths, and its data's hashes."""
    config = without_free_keys(to_dict(args))
    # Any split of the batch over ranks and micro-batches is the same run.
    config["tokens_per_step"] = tokens_per_step(args, dp_size)
    drop_unused_new_keys(config)
    for name, source in config["synth"]["sources"].items():
        for key in ("path", "documents"):
            del source[key]
        source["shards"] = sources[name].fingerprint
    config["synth"]["evaluation"]["domains"] = {name: domain.fingerprint for name, domain in domains.items()}
    return config


def _differences(ours: Any, theirs: Any, defaults: Any, prefix: str = "") -> list[str]:
    """Leaves that differ, in words. What is not there was written before the key existed: it had today's default."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted(set(ours) | set(theirs)):
            default = defaults.get(key) if isinstance(defaults, dict) else None
            there = theirs.get(key, default)
            if prefix == "model" and key == "seed" and key not in theirs:
                continue  # it was the run's seed, which is compared
            found += _differences(ours.get(key), there, default, f"{prefix}.{key}" if prefix else key)
        return found
    return [] if ours == theirs else [f"{prefix} {theirs!r} there, {ours!r} now"]


def config_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What two identities differ in, one phrase a key; keys that an earlier version lacked had today's defaults."""
    return _differences(ours, without_free_keys(theirs), to_dict(TrainArgs()))


# What a resumed run may change with synth.mixture_change=append.
_MIXTURE_KEYS = ("mixture", "sources", "stages", "on_exhaustion")


def claim_folder(run_dir: Path, args: TrainArgs, identity: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Write the config of a new run, or check that the folder holds this one; returns the run's identity.

    A folder in which no step was logged yet is anybody's. With `synth.mixture_change=append` a run that is not finished
    may go on with another mixture; its identity lists the earlier ones. ValueError names what differs otherwise.
    """
    path = run_dir / IDENTITY
    writes = True
    if path.is_file() and _has_begun(run_dir):
        there = read_json(path)
        earlier = there.pop("earlier_mixtures", [])
        different = _differences(identity, without_free_keys(there), to_dict(TrainArgs()))
        writes = bool(different) and args.synth.mixture_change == "append" and not (run_dir / RESULT).is_file()
        if writes:
            theirs = {key: there["synth"].pop(key, None) for key in _MIXTURE_KEYS}
            ours = dict(identity, synth={k: v for k, v in identity["synth"].items() if k not in _MIXTURE_KEYS})
            different = _differences(ours, without_free_keys(there), to_dict(TrainArgs()))
            # Before the first checkpoint nothing was trained on the earlier mixture.
            earlier = [*earlier, theirs] if list_checkpoints(run_dir) else earlier
        if different:
            shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
            raise ValueError(
                f"{run_dir} holds another run ({shown}); use another dump_dir, or delete that folder"
                + "; synth.mixture_change=append goes on with another mixture, and with nothing else that is other"
                * any(one.startswith("synth.sources") or one.startswith("synth.stages") for one in different)
            )
        identity = identity | ({"earlier_mixtures": earlier} if earlier else {})
    ranks.barrier()
    if writes and ranks.is_main:
        dump_args(args, run_dir / CONFIG)
        write_json(path, identity)
    ranks.barrier()
    return identity


def _has_begun(run_dir: Path) -> bool:
    metrics = run_dir / METRICS
    return bool(list_checkpoints(run_dir)) or (metrics.is_file() and metrics.stat().st_size > 0)
