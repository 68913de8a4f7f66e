"""Which Meta Lingua this room was tested with: the source text of everything it replaces, extends or calls.

A Lingua that differs there may take a replacement and quietly do something else with it, so it is refused by name
unless `synth.lingua_allow_unknown` is set. What this room does not touch may differ (local changes are common).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

from lingua_synth.files import sha256_bytes

# Module and names in it, as `bind` and its helpers use them.
SYMBOLS: dict[str, tuple[str, ...]] = {
    "apps.main.train": ("TrainArgs", "TrainState", "validate_train_args", "every_n_steps", "train"),
    "apps.main.transformer": ("LMTransformer", "LMTransformerArgs", "create_causal_mask", "build_fsdp_grouping_plan"),
    "lingua.transformer": ("BaseTransformer", "BaseTransformerArgs", "TiedLinear", "cross_entropy"),
    "lingua.checkpoint": ("CheckpointManager", "CheckpointArgs", "load_from_checkpoint"),
    "lingua.distributed": (
        "DistributedArgs",
        "EnvironmentArgs",
        "dist_mean_dict",
        "get_master_port",
        "parallelize_model",
        "setup_env",
        "setup_torch_distributed",
    ),
    "lingua.metrics": ("LoggingArgs", "MetricLogger"),
    "lingua.optim": ("OptimArgs", "build_lr_fn", "build_optimizer"),
    "lingua.logger": ("init_logger",),
}

TESTED_COMMIT = "437d680"

# First 12 hexadecimal digits of the SHA-256 of each symbol's source, without white space at the ends of lines.
KNOWN: dict[str, dict[str, str]] = {
    TESTED_COMMIT: {
        "apps.main.train.TrainArgs": "65ada7892b15",
        "apps.main.train.TrainState": "0f83d98864ca",
        "apps.main.train.validate_train_args": "a7326bf1a664",
        "apps.main.train.every_n_steps": "37ec30da9448",
        "apps.main.train.train": "3afb93d3ec91",
        "apps.main.transformer.LMTransformer": "c8f32846c980",
        "apps.main.transformer.LMTransformerArgs": "9bdcc55f581d",
        "apps.main.transformer.create_causal_mask": "df190ed695cd",
        "apps.main.transformer.build_fsdp_grouping_plan": "fbbe0621b837",
        "lingua.transformer.BaseTransformer": "2919fb93d308",
        "lingua.transformer.BaseTransformerArgs": "b29a52482987",
        "lingua.transformer.TiedLinear": "750713ba0cda",
        "lingua.transformer.cross_entropy": "940c99066ba8",
        "lingua.checkpoint.CheckpointManager": "36e265f60fff",
        "lingua.checkpoint.CheckpointArgs": "a075ac999caa",
        "lingua.checkpoint.load_from_checkpoint": "f225c48670c3",
        "lingua.distributed.DistributedArgs": "120e0dd4f078",
        "lingua.distributed.EnvironmentArgs": "cda80d1a9421",
        "lingua.distributed.dist_mean_dict": "c55b7aac7df0",
        "lingua.distributed.get_master_port": "420d4487930e",
        "lingua.distributed.parallelize_model": "60b4701cb257",
        "lingua.distributed.setup_env": "4731f8b85300",
        "lingua.distributed.setup_torch_distributed": "f716b4498968",
        "lingua.metrics.LoggingArgs": "dd929622529b",
        "lingua.metrics.MetricLogger": "b77296ab4013",
        "lingua.optim.OptimArgs": "ea3790ffb290",
        "lingua.optim.build_lr_fn": "415ca8e18237",
        "lingua.optim.build_optimizer": "13edc4e4656d",
        "lingua.logger.init_logger": "2b080dbb5821",
    }
}


def fingerprint(modules: Mapping[str, ModuleType]) -> dict[str, str]:
    """`module.name` to the hash of its source, for every symbol; an absent one has the hash ''."""
    found = {}
    for module, names in SYMBOLS.items():
        for name in names:
            value = getattr(modules[module], name, None)
            found[f"{module}.{name}"] = "" if value is None else _source_hash(value)
    return found


def _source_hash(value: object) -> str:
    # A cached function is a wrapper around the one with the source.
    text = inspect.getsource(inspect.unwrap(value))  # type: ignore[arg-type]
    return sha256_bytes("\n".join(line.rstrip() for line in text.splitlines()).encode())[:12]


def known_commit(found: Mapping[str, str]) -> str | None:
    """The tested commit whose symbols are these, or None."""
    return next((commit for commit, symbols in KNOWN.items() if symbols == dict(found)), None)


def validate_known(found: Mapping[str, str], where: str, *, allow_unknown: bool) -> str:
    """The commit, or 'unknown' where that is allowed; ValueError names what differs, or what is not there at all."""
    absent = [name for name, digest in found.items() if not digest]
    if absent:
        raise ValueError(
            f"the Meta Lingua in {where} has no {', '.join(absent)}; check out commit {TESTED_COMMIT} of "
            "facebookresearch/lingua"
        )
    commit = known_commit(found)
    if commit is not None:
        return commit
    if allow_unknown:
        return "unknown"
    tested = KNOWN[TESTED_COMMIT]
    different = [name for name, digest in found.items() if tested.get(name) != digest]
    raise ValueError(
        f"the Meta Lingua in {where} is not one that was tested: {', '.join(different)} differ from commit "
        f"{TESTED_COMMIT}. Check that commit out, or set synth.lingua_allow_unknown=true and compare a short run with "
        "host=native"
    )
