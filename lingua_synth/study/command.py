"""`lingua-synth study plan|launch|status|collect|compare|compare-tokenizers|calibrate|tokenize config=study.yaml`."""

from __future__ import annotations

from collections.abc import Sequence

from lingua_synth.config import HELP_FLAGS, help_text
from lingua_synth.study.args import StudyArgs

ACTIONS = ("plan", "launch", "status", "collect", "compare", "compare-tokenizers", "calibrate", "tokenize")


def main(argv: Sequence[str]) -> int:
    """Plan, train, look at, collect, compare the schedules or tokenizers of, measure, or tokenize a study."""
    if not argv or argv[0] not in ACTIONS:
        if argv and argv[0] in HELP_FLAGS:
            print(help_text(StudyArgs, prog=f"lingua-synth study {'|'.join(ACTIONS)}"))
            return 0
        raise ValueError(f"`lingua-synth study` takes one of {', '.join(ACTIONS)}, then config=FILE")
    action, words = argv[0], argv[1:]
    if action in ("plan", "calibrate", "tokenize"):
        # Here, as planning loads scipy, which a look at a running study does not need.
        from lingua_synth.study import plan_command

        return {
            "plan": plan_command.plan_main,
            "calibrate": plan_command.calibrate_main,
            "tokenize": plan_command.tokenize_main,
        }[action](words)
    from lingua_synth.study import runs_command

    return {
        "launch": runs_command.launch_main,
        "status": runs_command.status_main,
        "collect": runs_command.collect_main,
        "compare": runs_command.compare_main,
        "compare-tokenizers": runs_command.compare_tokenizers_main,
    }[action](words)
