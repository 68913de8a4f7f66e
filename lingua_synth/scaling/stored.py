"""Fits on disk, so that a report need not fit again: `fits.json` for everybody, `resamples.npz` for bands.

`write_fits` puts both into a folder; `read_fits` makes the `StudyFits` of them again and holds them against the runs
table that is to be reported: fits of other runs are refused, not drawn beside them. What is read back predicts,
compares and ranks as before, number by number; it cannot be resampled anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lingua_synth.files import atomic_file, read_json, refuse_path, what_is_there, write_json
from lingua_synth.scaling.fit import ScalingFit
from lingua_synth.scaling.intervals import Intervals
from lingua_synth.scaling.laws import DataLaw, Law, ModelLaw
from lingua_synth.scaling.pooled import MixtureFits, PooledFit
from lingua_synth.scaling.runs import Runs
from lingua_synth.scaling.study import MixtureFit, StudyFits
from lingua_synth.scaling.uncertainty import Bootstrap, PairedBootstrap

FITS_JSON = "fits.json"
RESAMPLES = "resamples.npz"
_INFINITE = {"not defined": math.nan, "infinite": math.inf, "minus infinity": -math.inf}


def write_fits(fits: StudyFits, folder: str | Path, more: Mapping[str, Any] | None = None) -> None:
    """Write `resamples.npz`, then `fits.json` (with the keys of `more`) into `folder`, each atomically.

    The resamples are float64 arrays, numbered as the fits stand in fits.json: joint, data, model, then the pooled ones.
    """
    arrays = {str(k): one.params for k, one in enumerate(_bootstraps(fits)) if one is not None}
    folder = Path(folder)
    with atomic_file(folder / RESAMPLES, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    drawn = fits.drawn
    facts = [
        None if one is None else {"num_units": one.num_units, "freedom": one.freedom, "seed": one.seed}
        for one in _bootstraps(fits)
    ]
    resamples = {
        "file": RESAMPLES,
        "facts": facts,
        "num_cells": drawn.num_cells if drawn is not None else None,
        "num_shared": drawn.num_shared if drawn is not None else None,
    }
    write_json(folder / FITS_JSON, fits.to_dict() | {"resamples": resamples} | dict(more or {}))


def read_fits(path: str | Path, runs: Runs) -> StudyFits:
    """The fits of a folder of `lingua-synth fit`, or of its fits.json, for the runs they were fitted to.

    ValueError when there is none, it is of another version, or `runs` (cleaned alike) are not the runs of the fits: a
    mixture more or less, or another N, D or loss. Without resamples.npz beside it there are intervals of parameters
    but no bands.
    """
    from lingua_synth.scaling.command import law_named

    path = Path(path)
    source = path / FITS_JSON if path.is_dir() else path
    if not source.is_file():
        raise ValueError(f"no fits at {source}; {what_is_there(source)}. `lingua-synth fit out=FOLDER` writes them")
    try:
        plain = read_json(source)
        version = plain.get("version")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{source} is no fits.json: {error}") from None
    if version != 1:
        raise ValueError(f"{source} is of version {version!r}, this library reads version 1; fit again")
    try:
        return _study_of(plain, law_named(plain["joint_law"]), source, runs)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is damaged ({error!r}); fit again") from None


def _study_of(plain: Mapping[str, Any], law: Law, source: Path, runs: Runs) -> StudyFits:
    arrays, facts = _resamples(plain, source)
    number = iter(range(len(facts)))

    def entry(one: Mapping[str, Any], law: Law) -> MixtureFit:
        k = next(number, None)
        if one["fit"] is None:
            return MixtureFit(refusal=one["refusal"])
        found = _fit_of(one["fit"], law, ScalingFit)
        drawn = _bootstrap_of(found, arrays.get(str(k)), facts[k] if k is not None else None)
        return MixtureFit(found, drawn, one["refusal"], _intervals_of(found, one["intervals"]))

    joint = {mixture: entry(one, law) for mixture, one in plain["joint"].items()}
    data = {
        mixture: {size: entry(one, DataLaw()) for size, one in by_size.items()}
        for mixture, by_size in plain["data"].items()
    }
    model = {
        mixture: {float(tokens): entry(one, ModelLaw()) for tokens, one in by_tokens.items()}
        for mixture, by_tokens in plain["model"].items()
    }
    _validate_runs(joint, plain, source, runs)
    pooled, drawn = None, None
    if plain["pooled"] is not None:
        pooled = _pooled_of(plain["pooled"], law, joint)
        members = {}
        for one in pooled.fits.values():
            k = next(number, None)
            member = _bootstrap_of(one, arrays.get(str(k)), facts[k] if k is not None else None)
            if member is not None:
                members[_label_of(pooled, one)] = member
        if len(members) == len(pooled.fits):
            about = plain["resamples"]
            drawn = PairedBootstrap(members, about["num_cells"], about["num_shared"])
    ranking = pooled.rank(drawn) if pooled is not None and drawn is not None and plain["ranking"] is not None else None
    return StudyFits(
        target=plain["target"],
        n_definition=plain["n_definition"],
        data=data,
        model=model,
        joint=joint,
        num_bootstraps=plain["num_bootstraps"],
        seed=plain["seed"],
        joint_law=law,
        objective=plain["objective"],
        unit=plain["unit"],
        interval=plain["interval"],
        pooled=pooled,
        ranking=ranking,
        not_pooled=plain["not_pooled"],
        drawn=drawn,
    )


def _bootstraps(fits: StudyFits) -> list[Bootstrap | None]:
    """In the order of fits.json; the pooled ones last."""
    found = [entry.bootstrap for *_, entry in fits.entries() if entry.fit is not None or entry.refusal is not None]
    if fits.pooled is not None:
        members = fits.drawn.members if fits.drawn is not None else {}
        found += [members.get(label) for label in fits.pooled.fits]
    return found


def _resamples(plain: Mapping[str, Any], source: Path) -> tuple[dict[str, np.ndarray], list[Any]]:
    about = plain.get("resamples")
    if about is None:
        return {}, []
    refuse_path(about["file"], source)
    beside = source.parent / about["file"]
    if not beside.is_file():
        return {}, list(about["facts"])
    with np.load(beside, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}, list(about["facts"])


def _fit_of(plain: Mapping[str, Any], law: Law, kind: type[ScalingFit]) -> Any:
    columns = {name: np.asarray(plain[name], dtype=float) for name in law.variables}
    loss, residuals = (np.asarray(plain[name], dtype=float) for name in ("loss", "residuals"))
    for array in (*columns.values(), loss, residuals):
        array.flags.writeable = False
    return kind(
        law=law,
        params={name: float(plain["params"][name]) for name in law.parameters},
        objective=plain["objective"],
        objective_name=plain["objective_name"],
        delta=plain["delta"],
        converged=plain["converged"],
        grad_norm=plain["grad_norm"],
        condition_number=math.inf if plain["condition_number"] is None else plain["condition_number"],
        num_points=plain["num_points"],
        residuals=residuals,
        n_definition=plain["n_definition"],
        N=columns.get("N"),
        D=columns.get("D"),
        loss=loss,
        variables=columns,
        asymmetry=plain["asymmetry"],
        weights=None if plain["weights"] is None else np.asarray(plain["weights"], dtype=float),
        dropped=tuple(plain["dropped"]),
        unit=plain["unit"],
        reasons=list(plain["reasons"]),
        warnings=list(plain["warnings"]),
    )


def _bootstrap_of(fit: ScalingFit, params: np.ndarray | None, facts: Mapping[str, Any] | None) -> Bootstrap | None:
    if params is None or facts is None:
        return None
    params.flags.writeable = False
    return Bootstrap(fit.law, params, dict(fit.params), facts["seed"], facts["num_units"], facts["freedom"])


def _intervals_of(fit: ScalingFit, plain: Mapping[str, Any] | None) -> Intervals | None:
    if plain is None:
        return None
    missing = plain.get("null_because", {})

    def end(name: str, k: int) -> float:
        value = plain["intervals"][name][k]
        return _INFINITE[missing[f"intervals.{name}[{k}]"]] if value is None else float(value)

    return Intervals(
        fit=fit,
        method=plain["method"],
        why=plain["why"],
        level=plain["level"],
        unit=plain["unit"],
        params=dict(plain["params"]),
        parameters={name: (end(name, 0), end(name, 1)) for name in plain["intervals"]},
        facts=dict(plain["facts"]),
        warnings=list(plain["warnings"]),
    )


def _pooled_of(plain: Mapping[str, Any], law: Law, joint: Mapping[str, MixtureFit]) -> MixtureFits:
    fits: dict[str, ScalingFit] = {}
    for label, one in plain["mixtures"].items():
        alone = joint[label].fit
        assert alone is not None, "mixtures are pooled when each has a fit of its own"
        known = {name: getattr(alone, name) for name in ScalingFit.__dataclass_fields__}
        params = {name: float(one["params"][name]) for name in law.parameters}
        residuals = np.log(np.asarray(law.predict(params, **alone.variables))) - np.log(alone.loss)
        changed = {
            "params": params,
            "objective": one["objective"],
            "converged": one["converged"],
            "grad_norm": one["grad_norm"],
            "condition_number": math.inf if one["condition_number"] is None else one["condition_number"],
            "residuals": residuals,
            "reasons": list(one["reasons"]),
        }
        fits[label] = PooledFit(**known | changed)
    return MixtureFits(
        law=law,
        share=plain["share"],
        paired=plain["paired"],
        fits=fits,
        mean=dict(plain["mean"]),
        spread=dict(plain["spread"]),
        num_cells=plain["num_cells"],
        num_shared=plain["num_shared"],
        warnings=list(plain["warnings"]),
        _pool=None,
    )


def _label_of(pooled: MixtureFits, fit: ScalingFit) -> str:
    return next(label for label, one in pooled.fits.items() if one is fit)


def _validate_runs(joint: Mapping[str, MixtureFit], plain: Mapping[str, Any], source: Path, runs: Runs) -> None:
    """ValueError when the fits are of other runs than the table's."""
    target, n_definition = plain["target"], plain["n_definition"]
    known, there = set(joint), set(runs.mixtures)
    if known != there:
        odd = sorted(known ^ there)
        raise ValueError(
            f"{source} was fitted to other mixtures than the runs table has ({', '.join(odd)} stand in one of them "
            "only); fit again, or leave fits= out"
        )
    for mixture, entry in joint.items():
        if entry.fit is None:
            continue
        mine = runs["mixture"] == mixture
        given = {"N": runs.N(n_definition)[mine], "D": runs["tokens"][mine], "loss": runs[target][mine]}
        stored = {**entry.fit.variables, "loss": entry.fit.loss}
        if any(not np.array_equal(np.asarray(given[name], dtype=float), stored[name]) for name in stored):
            raise ValueError(
                f"{source} was fitted to other runs of {mixture!r} than the table holds (N, D or {target} differ, or "
                "rows were left out of one); fit again with the same keys, or leave fits= out"
            )
