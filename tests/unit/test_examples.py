"""Every example config is read as the verb that takes it would read it."""

from pathlib import Path

import pytest

from lingua_synth.config import parse_args
from lingua_synth.generations import GenerationsArgs, validate_generations
from lingua_synth.mixture.args import build_mixture
from lingua_synth.study import plan_study
from lingua_synth.study.args import parse_study
from lingua_synth.train import resolve_args
from lingua_synth.train.args import TrainArgs, tokens_per_step

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_example_config_is_read(config):
    if "study" in config.stem:
        study = parse_study([f"config={config}", "vocab_size=1024"])
        assert plan_study(study, draft=True)
        return
    if config.stem.startswith("generations"):
        validate_generations(parse_args(GenerationsArgs, [f"config={config}"], prog="generations"))
        return
    args = parse_args(TrainArgs, [f"config={config}"], prog="train")
    resolved = resolve_args(args, dp_size=1, vocab_size=128_256)
    mixture = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
    num_sequences = args.synth.tokens // args.data.seq_len
    course = mixture.course(num_sequences, args.data.seq_len)
    assert resolved.steps > 0 and sum(course.target(num_sequences)) == num_sequences


def test_there_are_examples():
    assert len(CONFIGS) >= 9


@pytest.mark.parametrize("size", ["100M", "200M", "500M", "1B", "2B", "3B"])
@pytest.mark.parametrize("num_ranks", [1, 4, 8, 16])
def test_the_paper_s_runs_have_the_numbers_of_its_table_2(size, num_ranks):
    config = next(path for path in CONFIGS if path.parent.name == "paper" and path.stem == size)
    if config.stem.startswith("generations"):
        validate_generations(parse_args(GenerationsArgs, [f"config={config}"], prog="generations"))
        return
    args = parse_args(TrainArgs, [f"config={config}"], prog="train")
    resolved = resolve_args(args, dp_size=num_ranks, vocab_size=128_256)
    assert tokens_per_step(resolved, num_ranks) == 2**20
    assert resolved.steps == 47_684 and resolved.optim.warmup == 4_768  # 10 %
    optim = (resolved.optim.lr, resolved.optim.lr_min_ratio, resolved.optim.clip, resolved.optim.weight_decay)
    assert optim == (3e-4, 1e-6, 1.0, 0.1) and (resolved.optim.beta1, resolved.optim.beta2) == (0.9, 0.95)
    assert resolved.data.seq_len == 4096 and resolved.distributed.model_dtype == "bf16"
    assert len(resolved.synth.evaluation.domains) == 15 and resolved.optim.scheduler == "cosine"
