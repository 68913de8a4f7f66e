"""Every example config is read as the verb that takes it would read it."""

from pathlib import Path

import pytest

from lingua_synth.config import parse_args
from lingua_synth.mixture.args import build_mixture
from lingua_synth.study.plan import StudyArgs
from lingua_synth.train import resolve_args
from lingua_synth.train.args import TrainArgs

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_example_config_is_read(config):
    if "study" in config.stem:
        study = parse_args(StudyArgs, [f"config={config}"], prog="study")
        assert study.mixtures and study.sizes
        return
    args = parse_args(TrainArgs, [f"config={config}"], prog="train")
    resolved = resolve_args(args, dp_size=1, vocab_size=128_256)
    mixture = build_mixture(args.synth.sources, args.synth.stages, args.synth.on_exhaustion)
    num_sequences = args.synth.tokens // args.data.seq_len
    course = mixture.course(num_sequences, args.data.seq_len)
    assert resolved.steps > 0 and sum(course.target(num_sequences)) == num_sequences


def test_there_are_examples():
    assert len(CONFIGS) >= 3
