"""`lingua-synth study plan|calibrate|tokenize`: a study before it is launched, on a screen and as plan.csv and
plan.json; and its shards.

lingua-synth study plan config=paper/full
lingua-synth study calibrate config=study.yaml at=[200M,1B]
lingua-synth study plan config=study.yaml out=runs/study calibrate=1B:21.7k
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lingua_synth.config import HELP_FLAGS, help_text, parse_args
from lingua_synth.study.args import parse_study
from lingua_synth.study.ledger import changes_since_launch
from lingua_synth.study.overview import overview


def plan_main(argv: Sequence[str]) -> int:
    """Print the plan; with `out`, write plan.csv and plan.json there, and say what has changed since a launch."""
    study = parse_study(argv, prog="lingua-synth study plan")
    planned = overview(study, draft=True)
    print(planned)
    if study.out:
        if changes := changes_since_launch(study, planned.runs):
            print(f"\n{changes}")
        written = planned.write(Path(study.out))
        print(f"\n{' and '.join(map(str, written))}: every run and figure")
    return 0


def calibrate_main(argv: Sequence[str]) -> int:
    """Measure the study's sizes here, print the speeds, and write them where `plan` looks."""
    from lingua_synth.study.calibrate import CalibrateArgs, calibrate
    from lingua_synth.study.pricing import CALIBRATION, calibration_words

    prog = "lingua-synth study calibrate"
    if any(word in HELP_FLAGS for word in argv):
        print(help_text(CalibrateArgs, prog=prog))
        return 0
    own = {key.name for key in dataclasses.fields(CalibrateArgs)}
    mine = [word for word in argv if word.partition("=")[0] in own]
    study = parse_study([word for word in argv if word not in mine], prog=prog)
    speeds = calibrate(study, parse_args(CalibrateArgs, mine, prog=prog))
    for size, speed in speeds.items():
        print(f"{size:>12} {speed:>12,.0f} tokens/s")
    print(f"calibrate={calibration_words(speeds)}")
    if study.out:
        print(f"{Path(study.out) / CALIBRATION}: `lingua-synth study plan` reads it where calibrate is empty")
    return 0


def tokenize_main(argv: Sequence[str]) -> int:
    """Make the shards of every tokenizer of the study that are not there, and print what each holds."""
    from lingua_synth.study.tokenizing import tokenize_study

    study = parse_study(argv, prog="lingua-synth study tokenize")
    for made in tokenize_study(study):
        print(made, flush=True)
    return 0
