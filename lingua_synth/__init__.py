"""lingua_synth: studies of synthetic data in LLM pre-training, on top of Meta Lingua.

    documents -> generate -> token shards -> mixture -> train -> evaluate -> runs table -> fits -> report

Each arrow is one room of this package (`documents`, `generate`, `tokens`, `mixture`, `model`, `train`,
`evaluate`, `study`, `scaling`, `report`), usable alone. Importing the package imports none of them:
planning, fitting and reporting work on a laptop without torch.
"""

__version__ = "0.5.0"
