"""What corpora look like by their tokens, and how they differ: statistics of token shards, without a model.

web = count_unigrams("shards/web")                       # one pass, all cores
print(fit_zipf(web.counts))                              # every statistic takes plain arrays of counts
distances({"web": web.counts, "hq": hq.counts})          # at equal numbers of tokens
"""

from lingua_synth.analysis.collapse import CollapseReport, Margins, collapse_tests
from lingua_synth.analysis.correlation import (
    Correlation,
    LossDistance,
    compare_losses,
    loss_distance,
    mixture_distances,
    pearson,
    spearman,
)
from lingua_synth.analysis.counts import UnigramCounts, count_unigrams, validate_same_vocabulary
from lingua_synth.analysis.coverage import (
    expected_coverage,
    expected_singletons,
    expected_types,
    subsample,
    tail_mass,
    tail_types,
)
from lingua_synth.analysis.distances import (
    Distance,
    MixtureCurve,
    distances,
    js_divergence,
    kl_divergence,
    mixture_curve,
    nearest_mixture,
    smoothed,
)
from lingua_synth.analysis.lengths import LengthDistribution, document_lengths
from lingua_synth.analysis.losses import (
    LossTable,
    RollingLoss,
    TypeDifferences,
    loss_differences,
    loss_table,
    rolling_loss,
)
from lingua_synth.analysis.overlap import EvaluationTokens, Overlap
from lingua_synth.analysis.repetition import Copies, Repetition, document_copies, repeated_ngrams
from lingua_synth.analysis.results import Analysis, read_analysis
from lingua_synth.analysis.tails import EvaluatedRun, tail_of
from lingua_synth.analysis.tokens_table import TokenLogOdds, TokenRow, extreme_tokens, readable_token, token_log_odds
from lingua_synth.analysis.verdicts import CollapseTest
from lingua_synth.analysis.zipf import RankFrequency, ZipfFit, fit_zipf, rank_frequency

__all__ = [
    "Analysis",
    "CollapseReport",
    "CollapseTest",
    "Copies",
    "Correlation",
    "Distance",
    "EvaluatedRun",
    "EvaluationTokens",
    "LengthDistribution",
    "LossDistance",
    "LossTable",
    "Margins",
    "MixtureCurve",
    "Overlap",
    "RankFrequency",
    "Repetition",
    "RollingLoss",
    "TokenLogOdds",
    "TokenRow",
    "TypeDifferences",
    "UnigramCounts",
    "ZipfFit",
    "collapse_tests",
    "compare_losses",
    "count_unigrams",
    "distances",
    "document_copies",
    "document_lengths",
    "expected_coverage",
    "expected_singletons",
    "expected_types",
    "extreme_tokens",
    "fit_zipf",
    "js_divergence",
    "kl_divergence",
    "loss_differences",
    "loss_distance",
    "loss_table",
    "mixture_curve",
    "mixture_distances",
    "nearest_mixture",
    "pearson",
    "rank_frequency",
    "read_analysis",
    "readable_token",
    "repeated_ngrams",
    "rolling_loss",
    "smoothed",
    "spearman",
    "subsample",
    "tail_mass",
    "tail_of",
    "tail_types",
    "token_log_odds",
    "validate_same_vocabulary",
]
