"""Scaling laws with their evidence: a runs table in, fits, intervals and comparisons out.

`load_runs` -> `Runs` -> `fit` (one law) or `fit_study` (all of a study) -> `ScalingFit` -> `bootstrap`, `holdout`,
`speedup`, `crossing`, `best_ratio`. Works for runs trained by anyone with anything; needs numpy and scipy only.

    runs = load_runs("runs.csv").select(mixture="natural")
    f = fit(JointLaw(), N=runs.N(), D=runs["tokens"], loss=runs["loss_macro"])
    print(f)
    print(bootstrap(f).interval("E") if f.identifiable else f.reasons)
"""

from lingua_synth.scaling.choice import LawChoice, Score, choose_law
from lingua_synth.scaling.cleaning import Cleaned, Dropped, clean
from lingua_synth.scaling.compare import Crossing, Crossings, Speedup, crossing, crossing_intervals, speedup
from lingua_synth.scaling.coverage import CoverageReport, simulate_coverage, simulate_paired_coverage
from lingua_synth.scaling.design import Design, NextRuns, expected_errors, next_runs
from lingua_synth.scaling.ensemble import Ensemble, Member, default_members, fit_ensemble
from lingua_synth.scaling.fit import ScalingFit, fit
from lingua_synth.scaling.frontier import (
    SIX_ND,
    Extrapolation,
    FlopsRule,
    Frontier,
    IsoLoss,
    compute_optimal,
    extrapolate,
    iso_loss,
    preset_flops,
)
from lingua_synth.scaling.function_law import FunctionLaw
from lingua_synth.scaling.influence import Influence, influence
from lingua_synth.scaling.intervals import (
    Intervals,
    bootstrap_intervals,
    intervals,
    profile_intervals,
    reml_intervals,
    wald_intervals,
)
from lingua_synth.scaling.kinds import Kind, kinds_of
from lingua_synth.scaling.laws import (
    CrossedLaw,
    DataLaw,
    InteractionLaw,
    JointLaw,
    KaplanLaw,
    Law,
    ModelLaw,
    OffsetKaplanLaw,
    PowerLaw,
    RectifiedLaw,
    RectifiedModelLaw,
    Term,
    TiedLaw,
)
from lingua_synth.scaling.mixture_law import LogQuadraticLaw, MixingLaw, MixtureLaw, SourcesLaw
from lingua_synth.scaling.paired import PairedDifferences, paired_differences
from lingua_synth.scaling.pooled import MixtureFits, PooledFit, fit_mixtures
from lingua_synth.scaling.prediction import PredictionInterval, prediction_interval, rolling_errors
from lingua_synth.scaling.ranking import PairDifference, Ranking
from lingua_synth.scaling.ratio import BestRatio, CellRatio, best_ratio, best_ratio_in_cell
from lingua_synth.scaling.ratio_fits import RatioFit, fit_ratios
from lingua_synth.scaling.recommendation import Option, Recommendation, recommend
from lingua_synth.scaling.repeats import RepeatValue, value_of_repeats
from lingua_synth.scaling.repetition import OverfitLaw, RepetitionLaw, effective_tokens
from lingua_synth.scaling.repetition_fits import RepetitionFit, RepetitionFits, fit_repetition
from lingua_synth.scaling.runs import Runs, load_runs, write_runs
from lingua_synth.scaling.schedules import ScheduleCell, ScheduleComparison, compare_schedules
from lingua_synth.scaling.simulate import simulate_study
from lingua_synth.scaling.stored import read_fits, write_fits
from lingua_synth.scaling.study import MixtureFit, StudyFits, fit_study
from lingua_synth.scaling.ties import RatioTies, RunNoise, ratio_ties, run_noise, tie_set
from lingua_synth.scaling.tokenizer_effect import TokenizerComparison, compare_tokenizers, in_bytes
from lingua_synth.scaling.uncertainty import Bootstrap, PairedBootstrap, bootstrap, paired_bootstrap
from lingua_synth.scaling.validation import Holdout, holdout

__all__ = [
    "SIX_ND",
    "BestRatio",
    "Bootstrap",
    "CellRatio",
    "Cleaned",
    "CoverageReport",
    "CrossedLaw",
    "Crossing",
    "Crossings",
    "DataLaw",
    "Design",
    "Dropped",
    "Ensemble",
    "Extrapolation",
    "FlopsRule",
    "Frontier",
    "FunctionLaw",
    "Holdout",
    "Influence",
    "InteractionLaw",
    "Intervals",
    "IsoLoss",
    "JointLaw",
    "KaplanLaw",
    "Kind",
    "Law",
    "LawChoice",
    "LogQuadraticLaw",
    "Member",
    "MixingLaw",
    "MixtureFit",
    "MixtureFits",
    "MixtureLaw",
    "ModelLaw",
    "NextRuns",
    "OffsetKaplanLaw",
    "Option",
    "OverfitLaw",
    "PairDifference",
    "PairedBootstrap",
    "PairedDifferences",
    "PooledFit",
    "PowerLaw",
    "PredictionInterval",
    "Ranking",
    "RatioFit",
    "RatioTies",
    "Recommendation",
    "RectifiedLaw",
    "RectifiedModelLaw",
    "RepeatValue",
    "RepetitionFit",
    "RepetitionFits",
    "RepetitionLaw",
    "RunNoise",
    "Runs",
    "ScalingFit",
    "ScheduleCell",
    "ScheduleComparison",
    "Score",
    "SourcesLaw",
    "Speedup",
    "StudyFits",
    "Term",
    "TiedLaw",
    "TokenizerComparison",
    "best_ratio",
    "best_ratio_in_cell",
    "bootstrap",
    "bootstrap_intervals",
    "choose_law",
    "clean",
    "compare_schedules",
    "compare_tokenizers",
    "compute_optimal",
    "crossing",
    "crossing_intervals",
    "default_members",
    "effective_tokens",
    "expected_errors",
    "extrapolate",
    "fit",
    "fit_ensemble",
    "fit_mixtures",
    "fit_ratios",
    "fit_repetition",
    "fit_study",
    "holdout",
    "in_bytes",
    "influence",
    "intervals",
    "iso_loss",
    "kinds_of",
    "load_runs",
    "next_runs",
    "paired_bootstrap",
    "paired_differences",
    "prediction_interval",
    "preset_flops",
    "profile_intervals",
    "ratio_ties",
    "read_fits",
    "recommend",
    "reml_intervals",
    "rolling_errors",
    "run_noise",
    "simulate_coverage",
    "simulate_paired_coverage",
    "simulate_study",
    "speedup",
    "tie_set",
    "value_of_repeats",
    "wald_intervals",
    "write_fits",
    "write_runs",
]
