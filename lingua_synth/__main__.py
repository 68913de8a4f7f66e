"""`python -m lingua_synth`: the same as the console script."""

from lingua_synth.cli import entry

if __name__ == "__main__":
    entry()
