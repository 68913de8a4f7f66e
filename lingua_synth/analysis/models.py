"""Trained models beside the corpora they were trained on: evaluated checkpoints, runs and token counts, put together.

Evaluation folders come in, named by mixture; `read_checkpoints` pairs each with its run. `model_tables` puts what the
statistics of `losses.py`, `correlation.py` and `collapse.py` say of them into rows, for `lingua-synth analyze`. What a
mixture was trained on is its ratios times the counts of its sources.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lingua_synth.analysis.collapse import collapse_tests
from lingua_synth.analysis.correlation import loss_distance, mixture_distances
from lingua_synth.analysis.distances import SMOOTHING, mixture_curve
from lingua_synth.analysis.losses import WINDOW, RollingLoss, loss_differences, loss_table, rolling_loss
from lingua_synth.analysis.tails import CorpusCounts, EvaluatedRun
from lingua_synth.evaluate.results import EVALUATION, Evaluation, read_evaluation
from lingua_synth.files import read_json, what_is_there
from lingua_synth.scaling.folders import RESULT, run_folders
from lingua_synth.scaling.natural import base_mixture, natural_source, ratios, synthetic_ratios
from lingua_synth.scaling.runs import N_COLUMNS, Runs

NUM_POINTS = 400
"""Rows of a running mean in a table."""
NUM_LISTED = 50
"""Tokens in a list."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One evaluated model of a mixture."""

    mixture: str
    folder: Path
    evaluation: Evaluation
    run: EvaluatedRun
    num_parameters: float
    """All of them, from the run's record; NaN where there is none."""

    def by_domain(self) -> tuple[np.ndarray, np.ndarray]:
        """(counts, nats), `[domains, vocab]`, domains in order of their names."""
        found = [self.evaluation.token_losses(name) for name in sorted(self.evaluation.domains)]
        return np.stack([one.counts for one in found]), np.stack([one.nats for one in found])


def read_checkpoints(evaluations: Mapping[str, str | Path]) -> dict[str, list[Checkpoint]]:
    """Mixture -> its evaluated models, from a folder each: an evaluation, a run with one, or a folder of such runs.

    Size, budget and seed are those of the run's result.json, by which models of two mixtures pair; evaluations outside
    a run pair in order. Of a folder of runs those of the mixture are taken, where runs say what they are. ValueError
    for a folder without an evaluation, and for evaluations by several tokenizers or protocols.
    """
    found: dict[str, list[Checkpoint]] = {}
    for mixture, path in evaluations.items():
        folders = _evaluation_folders(Path(path))
        several = len(folders) > 1
        mine = [one for one in (_checkpoint(mixture, f, k, several) for k, f in enumerate(folders)) if one is not None]
        if not mine:
            raise ValueError(
                f"no evaluation of {mixture!r} in {path}; {what_is_there(Path(path) / EVALUATION)}; "
                "`lingua-synth evaluate out=FOLDER` makes one, and every run has one when it evaluates"
            )
        found[mixture] = mine
    alike: dict[tuple[str, str, int], Path] = {}
    for one in (one for several_ in found.values() for one in several_):
        record = one.evaluation.record
        key = (record["tokenizer"]["sha256"], str(record["protocol"]), int(record["seq_len"]))
        alike.setdefault(key, one.folder)
    if len(alike) > 1:
        first, second = list(alike.values())[:2]
        raise ValueError(
            f"{first} and {second} were not evaluated alike (tokenizer, protocol or seq_len): their losses by token do "
            "not compare"
        )
    return found


def _evaluation_folders(path: Path) -> list[Path]:
    """Folders that hold evaluation.json."""
    for one in (path, path / "evaluation"):
        if (one / EVALUATION).is_file():
            return [one]
    if not path.is_dir():
        raise ValueError(f"no folder {path}; {what_is_there(path)}")
    inside = [one / "evaluation" for one in run_folders(path)] + sorted(p for p in path.iterdir() if p.is_dir())
    return [one for one in inside if (one / EVALUATION).is_file()]


def _checkpoint(mixture: str, folder: Path, position: int, several: bool) -> Checkpoint | None:
    """None for a run of another mixture among several."""
    evaluation = read_evaluation(folder)
    record: dict[str, Any] = next(
        (read_json(f / RESULT) for f in (folder, folder.parent) if (f / RESULT).is_file()), {}
    )
    if several and record.get("mixture", mixture) != mixture:
        return None
    losses = evaluation.token_losses()
    run = EvaluatedRun(
        losses.counts,
        losses.nats,
        size=str(record.get("size", "")),
        tokens=_number(record.get("tokens")),
        seed=_number(record.get("seed")) if record else float(position),
    )
    return Checkpoint(mixture, folder, evaluation, run, _number(record.get(N_COLUMNS["total"])))


def one_per_mixture(checkpoints: Mapping[str, Sequence[Checkpoint]]) -> dict[str, Checkpoint]:
    """One model of each mixture, all of one size, budget and seed where such there are: the largest, then longest."""
    num = Counter(one.run.key for several in checkpoints.values() for one in several)
    every = [one for several in checkpoints.values() for one in several]
    best = max(every, key=lambda one: (num[one.run.key], _low(one.num_parameters), _low(one.run.tokens), one.run.key))
    return {
        mixture: next((one for one in several if one.run.key == best.run.key), several[0])
        for mixture, several in checkpoints.items()
    }


def mixture_counts(shares: Mapping[str, float], sources: Mapping[str, ArrayLike]) -> np.ndarray | None:
    """Expected counts of a mixture of as many tokens as its smallest source has; None if a source was not counted."""
    held = {source: share for source, share in shares.items() if share > 0}
    if not held or not set(held) <= set(sources):
        return None
    size = min(float(np.sum(sources[source])) for source in held)
    total = sum(held.values())
    mixed = [share / total * np.asarray(sources[s], dtype=float) / np.sum(sources[s]) for s, share in held.items()]
    return np.asarray(size * np.sum(mixed, axis=0))


@dataclass(frozen=True, eq=False)
class Trained:
    """What a study's models are compared by; every part may be missing."""

    runs: Runs | None = None
    checkpoints: dict[str, list[Checkpoint]] = field(default_factory=dict)
    sources: dict[str, CorpusCounts] = field(default_factory=dict)
    """Training corpora by source."""
    test: np.ndarray | None = None
    """Counts of the evaluation corpora together."""
    base: str | None = None
    """The base mixture, where it is named."""

    def base_name(self) -> str | None:
        """The base mixture: as named, natural text alone by the runs table, or the first that was evaluated."""
        if self.runs is not None and len(self.runs):
            return base_mixture(self.runs, self.base)
        if self.base is not None and self.checkpoints and self.base not in self.checkpoints:
            raise ValueError(f"base mixture {self.base!r} was not evaluated; there are {', '.join(self.checkpoints)}")
        return self.base or next(iter(self.checkpoints), None)

    def natural_name(self) -> str | None:
        """The source that is natural text, where its tokens were counted."""
        base = self.base_name()
        named = natural_source(self.runs, base) if self.runs is not None and len(self.runs) else base
        return named if named in self.sources else None

    def shares(self) -> dict[str, dict[str, float]]:
        """Mixture -> source -> share: from the runs table; a mixture outside it called like a source is that source."""
        found = {name: {name: 1.0} for name in self.checkpoints if name in self.sources}
        return found | (ratios(self.runs) if self.runs is not None and len(self.runs) else {})

    def trained_on(self, mixture: str) -> np.ndarray | None:
        """Expected counts of a mixture's training text, or None."""
        return mixture_counts(self.shares().get(mixture, {}), {name: one.counts for name, one in self.sources.items()})

    def rolling(self, window: int = WINDOW) -> dict[str, RollingLoss]:
        """Running losses of one model a mixture, all sorted by the natural corpus, or else by the evaluated text.

        The mean is over `window` types, or over a tenth of them where that is less.
        """
        chosen = one_per_mixture(self.checkpoints) if self.checkpoints else {}
        natural = self.natural_name()
        return {
            mixture: rolling_loss(
                one.run.counts,
                one.run.nats,
                self.sources[natural].counts if natural else one.run.counts,
                window=max(1, min(window, int((one.run.counts > 0).sum()) // 10)),
                sorted_by=natural or "the evaluated text",
            )
            for mixture, one in chosen.items()
        }

    def collapse(self, **more: Any) -> Any:
        """`collapse_tests` of all that is there, or None without anything to compare."""
        runs = self.runs if self.runs is not None and len(self.runs.mixtures) > 1 else None
        base, natural = self.base_name(), self.natural_name()
        evaluations = {name: [one.run for one in several] for name, several in self.checkpoints.items()}
        if base not in evaluations or len(evaluations) < 2:
            evaluations = {}
        counts = self.sources if natural is not None and len(self.sources) > 1 else {}
        if runs is None and not evaluations and not counts:
            return None
        return collapse_tests(runs, base=base, evaluations=evaluations, counts=counts, natural=natural, **more)


@dataclass(frozen=True)
class ModelTables:
    """Rows by table, what belongs in the record, and what was left out."""

    tables: dict[str, list[dict[str, Any]]]
    record: dict[str, Any]
    skipped: list[str]


def model_tables(
    trained: Trained,
    *,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    noise: float | None = None,
    smoothing: float = SMOOTHING,
    window: int = WINDOW,
    num_listed: int = NUM_LISTED,
    readable: Callable[[Sequence[int]], list[str]] | None = None,
) -> ModelTables:
    """Every table about models that `trained` allows; see `results.TABLES` for what each holds.

    `readable`: token ids to texts. ValueError as the statistics raise it, and for counts and evaluations of two
    vocabularies.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    record: dict[str, Any] = {}
    skipped: list[str] = []
    texts = readable or (lambda ids: [f"token {i}" for i in ids])
    if trained.checkpoints:
        _validate_one_vocabulary(trained)
        tables |= _token_tables(trained, window, num_listed, smoothing or SMOOTHING, texts, record, skipped)
    if trained.runs is not None and trained.test is not None:
        tables |= _distance_tables(trained, trained.runs, trained.test, target, noise, smoothing, record, skipped)
    report = trained.collapse(target=target, n_definition=n_definition, noise=noise)
    if report is not None:
        tables["collapse"] = report.rows()
        record["collapse"] = report.to_dict()
        skipped += [f"collapse: {note}" for note in report.notes]
    else:
        skipped.append("collapse was not tested: there are no two mixtures, evaluations or corpora to compare")
    return ModelTables({name: rows for name, rows in tables.items() if rows}, record, skipped)


def _token_tables(
    trained: Trained,
    window: int,
    num_listed: int,
    smoothing: float,
    texts: Callable[[Sequence[int]], list[str]],
    record: dict[str, Any],
    skipped: list[str],
) -> dict[str, list[dict[str, Any]]]:
    chosen = one_per_mixture(trained.checkpoints)
    base = trained.base_name()
    rolled, under, differences, figures = [], [], [], {}
    for mixture, rolling in trained.rolling(window).items():
        rows = rolling.rows()
        at = np.unique(np.round(np.linspace(0, len(rows) - 1, min(NUM_POINTS, len(rows)))).astype(int))
        rolled += [
            {"mixture": mixture, "sorted_by": rolling.sorted_by, "window": rolling.window, **rows[k]} for k in at
        ]
    for mixture, one in chosen.items():
        train = trained.trained_on(mixture)
        if train is None:
            skipped.append(f"the training text of {mixture} was not counted: no table of its losses beside it")
            continue
        table = loss_table(one.run.counts, one.run.nats, train, smoothing=smoothing)
        figures[mixture] = table.to_dict()
        rows = table.rows(most=num_listed)
        for row, text in zip(rows, texts([row["token_id"] for row in rows]), strict=True):
            under.append({"mixture": mixture, **row, "text": text})
    for mixture, one in chosen.items():
        if base not in chosen or mixture == base:
            continue
        try:
            found = loss_differences(one.by_domain(), chosen[base].by_domain())
        except ValueError as error:
            skipped.append(f"losses by token of {mixture} against {base}: {error}")
            continue
        if found.why_not:
            skipped.append(f"losses by token of {mixture} against {base}: no intervals, {found.why_not}")
        rows = found.rows(most=num_listed)
        for row, text in zip(rows, texts([row["token_id"] for row in rows]), strict=True):
            differences.append({"mixture": mixture, "base": base, **row, "text": text})
        figures.setdefault(mixture, {})["num_types_told_apart"] = len(found.told_apart)
    record["token_losses"] = figures
    record["evaluated"] = {mixture: str(one.folder) for mixture, one in chosen.items()}
    return {"rolling_losses": rolled, "token_losses": under, "token_loss_differences": differences}


def _distance_tables(
    trained: Trained,
    runs: Runs,
    test: np.ndarray,
    target: str,
    noise: float | None,
    smoothing: float,
    record: dict[str, Any],
    skipped: list[str],
) -> dict[str, list[dict[str, Any]]]:
    sources = {name: one.counts for name, one in trained.sources.items()}
    try:
        distance = mixture_distances(trained.shares(), sources, test, smoothing=smoothing)
        found = loss_distance(
            runs, {name: d for name, d in distance.items() if name in runs.mixtures}, target=target, noise=noise
        )
    except ValueError as error:
        skipped.append(f"loss and distance over mixtures: {error}")
        return {}
    record["loss_and_distance"] = found.to_dict()
    tables = {"loss_distance": found.rows()}
    base = trained.base_name()
    natural = trained.natural_name()
    curves, best = [], {}
    shares = synthetic_ratios(runs, base)
    for source in dict.fromkeys(names[0] for names, _ in shares.values() if len(names) == 1):
        mine = {m: p for m, (names, p) in shares.items() if set(names) <= {source} and m in distance}
        if len(mine) < 3 or natural is None or source not in sources:
            continue
        try:
            one = loss_distance(runs, {m: distance[m] for m in mine}, target=target, noise=noise)
        except ValueError as error:
            skipped.append(f"loss over the share of {source}: {error}")
            continue
        curve = mixture_curve(test, sources[natural], sources[source], smoothing=smoothing)
        rows = [{"source": source, "ratio": mine[row["mixture"]], **row} for row in one.rows()]
        curves += sorted(rows, key=lambda row: row["ratio"])
        best[source] = {
            "nearest_ratio": curve.best_ratio,
            "best_trained_ratio": mine[one.best],
            "tied_ratios": sorted(mine[m] for m in one.tied_with_best),
            "verdict": one.verdict,
            "why": one.why,
        }
    record["ratio_and_distance"] = best
    return tables | {"loss_ratio": curves}


def _validate_one_vocabulary(trained: Trained) -> None:
    lengths = {name: len(one.counts) for name, one in trained.sources.items()}
    lengths |= {mixture: len(several[0].run.counts) for mixture, several in trained.checkpoints.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise ValueError(f"corpora and evaluations are of several vocabularies ({listed}); use one tokenizer for all")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _low(value: float) -> float:
    return -1.0 if math.isnan(value) else value
