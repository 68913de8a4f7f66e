"""Training: `train(TrainArgs) -> row of the runs table`. See `loop.py`; `hosts.py` chooses between it and Lingua's.

Nothing here imports torch before a run is trained.
"""

from lingua_synth.train.args import TrainArgs, resolve_args
from lingua_synth.train.hosts import train

__all__ = ["TrainArgs", "resolve_args", "train"]
