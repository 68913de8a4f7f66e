"""The other end of `measure.Worker`: a line of JSON out for every line of JSON in, and nothing else on the output.

The standard library alone: measured libraries run this in environments of their own.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]
Say = Callable[[Answer], None]


def take_output() -> Say:
    """A function that answers; what anything else prints from now on goes where errors go."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")

    return say


def silence() -> None:
    """No warnings and no log lines of any library."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)


def answer_all(say: Say, answer: Callable[..., Answer]) -> None:
    """Answer each line {"command": NAME, ...} of the input with `answer(NAME, ...)`, until it ends.

    What goes wrong is an answer too, and the next line is answered: measured libraries may raise whatever they like.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say(answer(asked.pop("command"), **asked))
        except Exception as error:
            say(failure(error))


def methods_of(session: Any) -> Callable[..., Answer]:
    """Commands as the methods of an object."""
    return lambda command, **arguments: getattr(session, command)(**arguments)


def failure(error: Exception) -> Answer:
    """The answer that says what went wrong."""
    return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def measured(write: Callable[[], int]) -> Answer:
    """What writing so many records took: seconds on the clock and of the processor, and the process's peak memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    records = write()
    return {
        "records": records,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
