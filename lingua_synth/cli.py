"""`lingua-synth VERB ...`: one line per verb; each verb's own module is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lingua_synth import __version__
from lingua_synth.config import HELP_FLAGS, run_command

VERBS: dict[str, tuple[str, str]] = {
    "quickstart": ("lingua_synth.quickstart", "the whole study in miniature, on this machine, in minutes"),
    "generate": (
        "lingua_synth.generate.command",
        "make synthetic documents from natural ones (run, list, show, verify)",
    ),
    "tokenize": ("lingua_synth.tokens.command", "documents -> token shards (run, verify)"),
    "mix": ("lingua_synth.mixture.command", "what a mixture asks of its sources; trains nothing"),
    "sizes": ("lingua_synth.model.command", "model sizes: parameters by every count, FLOPs, memory per GPU"),
    "train": ("lingua_synth.train.command", "one training run; under torchrun: -m lingua_synth.train"),
    "resolve": ("lingua_synth.hosts.command", "the same run as a plain YAML for a stock Meta Lingua"),
    "evaluate": ("lingua_synth.evaluate.command", "held-out loss per domain of a trained model"),
    "export": ("lingua_synth.model.export_command", "a checkpoint as a Hugging Face folder"),
    "import": ("lingua_synth.model.import_command", "a Hugging Face Llama folder as a checkpoint to start from"),
    "study": ("lingua_synth.study.command", "a grid of runs (plan, launch, status, collect)"),
    "generations": (
        "lingua_synth.generations.command",
        "rounds of training on the models' own text, and tests of collapse (run, report)",
    ),
    "fit": ("lingua_synth.scaling.command", "scaling laws with intervals from a runs table"),
    "analyze": (
        "lingua_synth.analysis.command",
        "token shards of training and evaluation corpora: counts, laws, distances, overlap",
    ),
    "recommend": (
        "lingua_synth.recommend.command",
        "what to train on, by cost: natural text, more of it, or a share of synthetic text",
    ),
    "report": ("lingua_synth.report.command", "figures and one self-contained page from a runs table"),
}


def usage() -> str:
    """What `lingua-synth --help` prints."""
    lines = [
        f"lingua-synth {__version__}",
        "",
        "documents -> generate -> token shards -> mixture -> train -> evaluate -> runs table -> scaling fits -> report",
        "",
        "usage: lingua-synth VERB [config=FILE] [key=value ...]",
        "",
    ]
    lines += [f"  {verb:11} {summary}" for verb, (_, summary) in VERBS.items()]
    lines += ["", "`lingua-synth VERB --help` lists the verb's keys. Exit code: 0 success, 2 bad input, 1 a fault."]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Dispatch to a verb; ValueError names the verbs for an unknown one."""
    if not argv or argv[0] in HELP_FLAGS:
        print(usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in VERBS:
        import difflib

        near = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(VERBS)}"
        raise ValueError(f"no verb {argv[0]!r}; {hint}")
    module = importlib.import_module(VERBS[argv[0]][0])
    return module.main(argv[1:]) or 0


def entry() -> None:
    """The console script."""
    sys.exit(run_command(main))


if __name__ == "__main__":
    entry()
