"""`lingua-synth study plan`: a study before it is launched, on a screen and as plan.csv and plan.json.

lingua-synth study plan config=paper/full
lingua-synth study plan config=study.yaml out=runs/study calibrate=1B:21.7k
"""

from __future__ import annotations

from pathlib import Path

from lingua_synth.study.args import StudyArgs
from lingua_synth.study.ledger import changes_since_launch
from lingua_synth.study.overview import overview


def plan(study: StudyArgs) -> int:
    """Print the plan; with `out`, write plan.csv and plan.json there, and say what has changed since a launch."""
    planned = overview(study, draft=True)
    print(planned)
    if study.out:
        if changes := changes_since_launch(study, planned.runs):
            print(f"\n{changes}")
        written = planned.write(Path(study.out))
        print(f"\n{' and '.join(map(str, written))}: every run and figure")
    return 0
