"""Tokenizers with a flaw on purpose, in a module of their own so that worker processes can import them."""

import os
import signal
import threading
import time

from lingua_synth.tokens import build_tokenizer

ByteTokenizer = type(build_tokenizer("bytes"))


class Slow(ByteTokenizer):
    """Takes its time over each batch, so that a test can kill it half way."""

    def encode_flat(self, texts):
        time.sleep(0.02)
        return super().encode_flat(texts)


class Stuck(ByteTokenizer):
    """Works on its first batch for ever."""

    def encode_flat(self, texts):
        time.sleep(1_000)


class DiesOnce(ByteTokenizer):
    """Its process is killed, as by a kernel short of memory, at a document with `word`, unless `flag` exists."""

    def __init__(self, word, flag):
        self._word, self._flag = word, str(flag)

    def encode_flat(self, texts):
        if any(self._word in text for text in texts) and not os.path.exists(self._flag):
            open(self._flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_flat(texts)


class Counting(ByteTokenizer):
    """Writes down how many documents it was given, over all processes."""

    def __init__(self, log):
        self._log = str(log)

    def encode_flat(self, texts):
        with open(self._log, "a") as file:
            file.write(f"{len(texts)}\n")
        return super().encode_flat(texts)


class Prepared(ByteTokenizer):
    """Writes down which processes prepare it first, and has a thread of its own in each that it travelled to."""

    is_prepared = False

    def __init__(self, log, with_thread):
        self._log, self._with_thread = str(log), with_thread

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self._with_thread:
            threading.Thread(target=time.sleep, args=(1_000,), daemon=True).start()

    def prepare(self):
        import pyarrow  # noqa: F401  # as awkward does, which gigatoken imports; it may start a thread

        if not self.is_prepared:
            self.is_prepared = True
            with open(self._log, "a") as file:
                file.write(f"{os.getpid()}\n")
        return self.name


class ExitsAtStart:
    """Ends the process that it travels to."""

    def __reduce__(self):
        return os._exit, (3,)


def die_or_sleep(state, number, num_seconds, report):
    """A job: number 1 is killed after a while, unless `num_seconds` is below 0, and the other one takes its time."""
    report(os.getpid())
    if number == 1 and num_seconds > 0:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(abs(num_seconds))
