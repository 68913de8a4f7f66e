"""A run that begins in the middle of another: from its weights, its optimizer and its place in the data.

With a schedule that is flat before its decay (wsd), budgets share their first part: one trunk is trained, and every
budget branches off where its own decay begins. What comes out is, to the bit on a CPU, what a run of that budget alone
would have been; so it is only done where the trunk trained as the branch would have: the same data, model, batch and
optimizer, and the same learning rate at every step before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingua_synth.files import read_json
from lingua_synth.mixture.args import build_mixture
from lingua_synth.model.checkpoint import PARAMS, TRAIN_STATE, list_checkpoints
from lingua_synth.train.args import OptimArgs, TrainArgs
from lingua_synth.train.folder import IDENTITY
from lingua_synth.train.identity import config_differences
from lingua_synth.train.schedule import learning_rate_ratio

# Keys of an identity that do not tell two runs apart before the branch: learning rates are compared one by one.
_LATER = ("name", "steps", "synth.mixture", "synth.evaluation", "synth.decay")
_RATES = ("scheduler", "warmup", "lr_min_ratio", "cycle_length", "cosine_theta", "decay_fraction", "exp_factor", "lr")


def validate_branch(args: TrainArgs, identity: Mapping[str, Any]) -> None:
    """ValueError unless `synth.branch_from`, if set, is a checkpoint that this run would have come to by itself.

    A run that has checkpoints of its own goes on from them, and its branch is not looked at again.
    """
    if args.synth.branch_from is None or list_checkpoints(args.dump_dir):
        return
    folder = Path(args.synth.branch_from)
    key = f"synth.branch_from {folder}"
    if args.checkpoint.init_ckpt_path:
        raise ValueError(f"{key} and checkpoint.init_ckpt_path exclude each other; keep one")
    trunk = folder.parent.parent
    if not (folder / PARAMS).is_file():
        there = ", ".join(str(int(p.name)) for p in list_checkpoints(trunk)) or "none"
        raise ValueError(
            f"{key} is no checkpoint: it has no {PARAMS}. {trunk} has checkpoints of steps: {there}; train that run "
            "first, with the step in its synth.keep_steps"
        )
    step = int(read_json(folder / TRAIN_STATE.format(0))["step"])
    if step >= args.steps:
        raise ValueError(f"{key} stands at step {step:,}, and this run has {args.steps:,}; branch off earlier")
    theirs = read_json(trunk / IDENTITY)
    different = config_differences(_before(dict(identity)), _before(theirs))
    if different:
        raise ValueError(
            f"{key} is of a run that trained otherwise ({'; '.join(different[:5])}); a branch shares everything with "
            "its trunk up to there"
        )
    _refuse_other_data(key, step, args, int(theirs["steps"]), int(identity["tokens_per_step"]) // args.data.seq_len)
    rates = (OptimArgs(**theirs["optim"]), int(theirs["steps"]), theirs["synth"].get("decay", "reciprocal"))
    _refuse_other_rates(key, step, (args.optim, args.steps, args.synth.decay), rates)


def _refuse_other_data(key: str, step: int, args: TrainArgs, trunk_steps: int, per_step: int) -> None:
    """ValueError where stages that end at a share of the run lie elsewhere in the trunk, which is of another length."""
    mixture = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
    ours, theirs = (
        mixture.course(steps * per_step, args.data.seq_len).history(step * per_step)
        for steps in (args.steps, trunk_steps)
    )
    if ours != theirs:
        raise ValueError(
            f"{key} is of a run of {trunk_steps:,} steps, whose stages lie elsewhere than in this one's {args.steps:,} "
            f"before step {step:,}: end them at until_tokens instead of until, a share of the run"
        )


def _refuse_other_rates(
    key: str, num_steps: int, ours: tuple[OptimArgs, int, str], theirs: tuple[OptimArgs, int, str]
) -> None:
    for step in range(num_steps):
        rates = [o.lr * learning_rate_ratio(step, o, steps, decay) for o, steps, decay in (ours, theirs)]
        if rates[0] != rates[1]:
            raise ValueError(
                f"{key} is of a run with other learning rates: at step {step:,} of {num_steps:,} it took "
                f"{rates[1]:.4g}, this run would have taken {rates[0]:.4g}. With optim.scheduler wsd and one "
                "optim.warmup (not synth.warmup_ratio) all budgets share theirs before the decay"
            )


def _before(identity: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers of the steps before the branch, rates apart."""
    config = copy.deepcopy(identity)
    for key in (*_LATER, *(f"optim.{name}" for name in _RATES)):
        *sections, last = key.split(".")
        section: Any = config
        for name in sections:
            section = section.get(name, {})
        section.pop(last, None)
    return config
