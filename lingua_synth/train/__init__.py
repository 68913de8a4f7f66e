"""The one training loop: `train(TrainArgs) -> row of the runs table`. See `loop.py`."""

from typing import Any

from lingua_synth.train.args import TrainArgs, resolve_args

__all__ = ["TrainArgs", "resolve_args", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # torch is imported only where a run is trained
        from lingua_synth.train.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
