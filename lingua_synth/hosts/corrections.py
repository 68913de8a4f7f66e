"""Defects of Meta Lingua (commit 437d680) and what becomes of each when its loop runs under `bind`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """One upstream defect that is corrected from outside, unless `synth.strict_upstream` is set."""

    name: str
    defect: str
    """What the loop does on its own."""
    now: str
    """What it does under `bind`."""


CORRECTIONS = (
    Correction(
        "learning rate on resume",
        "the first step after a resume is taken at learning rate 0, as the optimizer's rate is not restored",
        "the rate of the schedule at that step is set after loading",
    ),
    Correction(
        "finished run",
        "starting a run again that has taken its last step ends in UnboundLocalError",
        "what is missing is done (evaluation, result.json), and the row is returned",
    ),
    Correction(
        "preemption",
        "only SIGUSR2 is heard, each rank obeys on its own, a partly accumulated step is lost, and outside SLURM it "
        "ends in KeyError",
        "SIGTERM and SIGUSR2, agreed on by all ranks at the end of a step, with a checkpoint of that step",
    ),
    Correction(
        "change of ranks",
        "with more ranks the new ones skip loading and the collectives do not match; with fewer, data is lost",
        "every rank reads the same train state, which is good for any number of ranks",
    ),
    Correction(
        "checkpoint in place",
        "a checkpoint is written under its final name, so a killed run leaves half a one there",
        "it is written beside and renamed when it is whole; old ones are deleted after that",
    ),
    Correction(
        "last step",
        "the last step is logged and evaluated only if the intervals say so, and its evaluation reads the checkpoint "
        "before",
        "the last step and every step with a checkpoint are logged; its checkpoint is there before it is evaluated",
    ),
    Correction(
        "repeated log lines",
        "a resumed run logs the steps after its checkpoint a second time",
        "lines past the checkpoint are dropped from metrics.jsonl first",
    ),
    Correction(
        "not-finite loss",
        "a NaN is trained on and saved",
        "the run stops at the next log line or checkpoint, before it is saved",
    ),
    Correction(
        "FLOPS",
        "speed/FLOPS leaves the output matrix out of a tied model and counts attention 1.17-fold",
        "the formula of the native loop; speed/mfu beside it where the GPU's peak is known",
    ),
    Correction(
        "port",
        "two single-process runs on one machine take the same port",
        "a run that is not under torchrun or SLURM takes a free one",
    ),
)

# Not switched off by strict_upstream: what they replace is replaced whole.
REPLACED = (
    ("the whole environment, secrets included, in train.log", "not logged"),
    ("a loader that weighs documents, discards surplus chunks and repeats without end", "our mixture loader"),
    ("loss/out of the last micro-batch alone", "loss/mean and loss/source/<name> beside it"),
    ("per-document validation means, summed with the wrong sign", "synth.evaluation: sums per domain"),
    ("28 GB of logits at a 128k vocabulary", "per-token loss in chunks, inside `output`"),
)

NOT_REACHABLE = (
    "cuda.synchronize after every micro-batch",
    "checkpoints that hold training up (synth.async_checkpoint is for host=native)",
    "unsharded fp32 gradients while accumulating under full_shard (4 bytes per parameter and GPU)",
    "distributed.allow_bf16_reduced_precision_reduction cannot be set: the field has no type in Lingua",
)


def log_lines(strict: bool) -> list[str]:
    """What a run says about the corrections in its log, one line each."""
    if strict:
        return [f"synth.strict_upstream: left as in Meta Lingua: {one.name}: {one.defect}" for one in CORRECTIONS]
    return [f"corrected: {one.name}: {one.now} (Meta Lingua: {one.defect})" for one in CORRECTIONS]
