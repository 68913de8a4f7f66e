"""What corpora look like by their tokens, and how they differ: statistics of token shards, without a model.

counts = count_unigrams("shards/web")          # one pass, all cores
counts.frequencies                             # and every statistic below takes plain arrays of counts
"""

from lingua_synth.analysis.collapse import CollapseReport, Margins, collapse_tests
from lingua_synth.analysis.counts import UnigramCounts, count_unigrams, validate_same_vocabulary
from lingua_synth.analysis.tails import EvaluatedRun
from lingua_synth.analysis.verdicts import CollapseTest

__all__ = [
    "CollapseReport",
    "CollapseTest",
    "EvaluatedRun",
    "Margins",
    "UnigramCounts",
    "collapse_tests",
    "count_unigrams",
    "validate_same_vocabulary",
]
