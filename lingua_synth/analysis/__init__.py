"""What corpora look like by their tokens, and how they differ: statistics of token shards, without a model.

counts = count_unigrams("shards/web")          # one pass, all cores
counts.frequencies                             # and every statistic below takes plain arrays of counts
"""

from lingua_synth.analysis.counts import UnigramCounts, count_unigrams, validate_same_vocabulary

__all__ = ["UnigramCounts", "count_unigrams", "validate_same_vocabulary"]
