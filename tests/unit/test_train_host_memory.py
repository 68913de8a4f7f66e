"""malloc on CPUs: a step's memory stays with the process, and a user's own settings stay his."""

import os
import platform
import subprocess
import sys

import pytest

FREED_AND_TAKEN_AGAIN = """
import resource, sys
import torch
from lingua_synth.train.host_memory import keep_freed_memory
kept = len(sys.argv) > 1 and keep_freed_memory()
def step():
    return [torch.ones(size << 18) for size in (1, 40, 3, 17)]  # 1 to 40 MB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


def page_faults(*words, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", FREED_AND_TAKEN_AGAIN, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@on_glibc
def test_memory_that_is_freed_comes_back_without_page_faults():
    _, by_default = page_faults()
    kept, faults = page_faults("keep")
    assert kept and by_default > 5000 and faults < by_default / 20


@on_glibc
def test_settings_of_the_user_are_left_alone():
    assert page_faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
