"""Which keys of a training config decide no number of its result; without torch, so that a study can compare runs."""

from __future__ import annotations

import copy
from typing import Any

from lingua_synth.mixture.ratios import parse_ratio

# What may differ between two calls for one run: it changes no number of the result, or none beyond rounding. A run may
# go on with other ranks, sharded or not, and in the other host.
FREE_KEYS = (
    "dump_dir",
    "host",
    "logging",
    "env",
    "profiling",
    "gc_collect_freq",
    "grad_acc_steps",
    "data.batch_size",
    "data.tokenizer",
    "data.root_dir",
    "data.sources",
    "data.add_bos",
    "data.add_eos",
    "data.n_views",
    "data.load_async",
    "data.prefetch_size",
    "distributed.fsdp_type",
    "distributed.dp_shard",
    "distributed.dp_replicate",
    "distributed.compile",
    "distributed.compile_cache_size_limit",
    "distributed.selective_activation_checkpointing",
    "distributed.detect_anomaly",
    "distributed.spawn_method",
    "checkpoint.dump",
    "checkpoint.eval",
    "checkpoint.path",
    "synth.tokenizer",
    "synth.preset",
    "synth.tokens",
    "synth.global_batch_tokens",
    "synth.warmup_ratio",
    "synth.device",
    "synth.prefetch",
    "synth.mixture_change",
    "synth.branch_from",
    "synth.keep_steps",
    "synth.attention",
    "synth.loss",
    "synth.reshard_after_forward",
    "synth.async_checkpoint",
    "synth.deterministic",
    "synth.requeue",
    "synth.evaluation.domain_set",
    "synth.strict_upstream",
    "synth.lingua_allow_unknown",
)


def without_free_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config without what decides no number; keys that it lacks (of an earlier version) are no matter."""
    config = copy.deepcopy(config)
    for key in FREE_KEYS:
        *sections, last = key.split(".")
        section: Any = config
        for name in sections:
            section = section.get(name, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section.pop(last, None)
    return config


def drop_unused_new_keys(config: dict[str, Any]) -> None:
    """Take out keys that came after 0.4 where they are not used, so that runs and studies without them keep the
    identity they had before."""
    synth = config["synth"]
    if synth["feedback"]["every_tokens"] is None:
        del synth["feedback"]
    if synth["match_repetition"] is None:
        del synth["match_repetition"]
    for source in synth["sources"].values():
        if parse_ratio(source["part"]) == 1:
            del source["part"]
    if synth["evaluation"]["max_bytes_per_domain"] is None:
        del synth["evaluation"]["max_bytes_per_domain"]
