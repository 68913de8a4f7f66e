"""Our configuration in Meta Lingua's own keys, and a refusal of what its loop cannot do.

Presets, budgets and fractions are written out before (`resolve_args`); what is left is dropping our section and the
keys that Lingua lacks.
"""

from __future__ import annotations

import re
from typing import Any

from lingua_synth.config import to_dict
from lingua_synth.train.args import TrainArgs

# Fields of its EnvironmentArgs; it refuses others.
ENVIRONMENT = (
    "MKL_SERVICE_FORCE_INTEL",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ENABLE_INTRA_NODE_COMM",
    "TORCH_NCCL_AVOID_RECORD_STREAMS",
    "NCCL_IB_TIMEOUT",
    "NCCL_DEBUG",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)

# Ours, inside sections that are Lingua's.
_OUR_KEYS = {
    "model": ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_seqlen"),
    "logging": ("tensorboard",),
}


def plain_config(args: TrainArgs) -> dict[str, Any]:
    """The resolved `args` with exactly the keys that Lingua's `TrainArgs` takes, in its order of sections."""
    config = to_dict(args)
    del config["host"], config["synth"]
    for section, keys in _OUR_KEYS.items():
        for key in keys:
            del config[section][key]
    config["data"]["tokenizer"] = {key: config["data"]["tokenizer"][key] for key in ("name", "path")}
    config["env"] = {key: value for key, value in config["env"].items() if key in ENVIRONMENT}
    # Without evaluations of Lingua's own, its interval for them would only make it save more often.
    if config["eval"] is None:
        config["checkpoint"]["eval"] = dict(config["checkpoint"]["dump"])
    return config


def refuse_impossible(args: TrainArgs) -> None:
    """ValueError for what would change a run's numbers and Meta Lingua's loop does not do."""
    synth, optim, native = args.synth, args.optim, "; it is there with host=native"
    refused = {
        "synth.document_masking": (synth.document_masking, "its training loop attends across documents"),
        "model.rope_scaling_factor": (args.model.rope_scaling_factor != 1, "it has no scaled rotary frequencies"),
        "synth.branch_from": (synth.branch_from is not None, "it goes on from checkpoints of its own run alone"),
        "synth.keep_steps": (bool(synth.keep_steps), "it has one rule for all checkpoints"),
        "synth.feedback": (synth.feedback.every_tokens is not None, "its batches follow a course that is known before"),
        "synth.decay": (synth.decay != "reciprocal", "its wsd has one decay"),
        "synth.guard.spike": (synth.guard.spike != "off", "it cannot leave a step out"),
        "synth.guard.nonfinite": (synth.guard.nonfinite != "stop", "it cannot leave a step out"),
    }
    for key, (is_set, reason) in refused.items():
        if is_set:
            raise ValueError(f"{key} cannot be had in Meta Lingua's loop: {reason}{native}")
    if optim.scheduler == "constant" and optim.warmup:
        raise ValueError(
            f"optim.warmup {optim.warmup}: Meta Lingua's constant schedule has no warm-up; set optim.warmup=0, or "
            "optim.scheduler=linear with optim.lr_min_ratio=1"
        )
    if optim.scheduler == "inv_sqrt" and not optim.warmup:
        raise ValueError("optim.warmup 0: Meta Lingua's inv_sqrt schedule divides by it; set optim.warmup=1 or more")
    if args.checkpoint.dump.every < 0:
        raise ValueError(f"checkpoint.dump.every must be at least 0, got {args.checkpoint.dump.every}")
    if args.probe_freq is not None:
        steps = {key: args.profiling.get(key, 2) for key in ("mem_steps", "profile_steps")}
        for key, value in steps.items():
            if value == args.probe_freq:
                raise ValueError(
                    f"probe_freq {args.probe_freq} equals profiling.{key}, which Meta Lingua refuses; change one"
                )
        if args.distributed.selective_activation_checkpointing:
            raise ValueError("probe_freq and distributed.selective_activation_checkpointing exclude each other")


def refuse_impossible_in_host(args: TrainArgs) -> None:
    """ValueError for what stock Lingua does and `host=lingua` does not, as the loss is computed inside `output`."""
    distributed, way_out = args.distributed, "use stock Meta Lingua with the output of `lingua-synth resolve`"
    if distributed.tp_size != 1:
        raise ValueError(f"distributed.tp_size {distributed.tp_size}: host=lingua does not divide layers; {way_out}")
    if distributed.float8_recipe is not None and re.search(distributed.float8_filter, "output"):
        raise ValueError(
            f"distributed.float8_filter {distributed.float8_filter!r} takes in the output matrix, which host=lingua "
            f"keeps in the loss; {way_out}, or change the filter"
        )


def ignored_keys(args: TrainArgs) -> list[str]:
    """Settings that ask for a convenience of the native loop and change no number; the host names them in its log."""
    asked = {
        "synth.async_checkpoint": args.synth.async_checkpoint,
        "synth.reshard_after_forward": args.synth.reshard_after_forward,
    }
    return [key for key, is_set in asked.items() if is_set]
