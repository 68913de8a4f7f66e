"""From runs and prices to an answer: natural text only, more of it, or a share of one kind of synthetic text.

runs ──fit_ratios──> surfaces (loss of any plan, by the fit and by every resample)
generators, GPU, prices ──> what a plan costs
both ──planner──> the cheapest plan of each option for one loss ──> Decision ──> what would change it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from tqdm import tqdm

from lingua_synth.recommend.advice import Advice, Change
from lingua_synth.recommend.changes import Input, find_changes, inputs_of
from lingua_synth.recommend.generators import Generator
from lingua_synth.recommend.planner import Decision, Outcome, Planner, Question
from lingua_synth.recommend.repeats import fresh_runs, repeats_of
from lingua_synth.recommend.surface import Surface
from lingua_synth.scaling.hull import outside, section, trained_places
from lingua_synth.scaling.kinds import Kind, kinds_of
from lingua_synth.scaling.natural import base_mixture, natural_source
from lingua_synth.scaling.ratio_fits import RatioFit, fit_ratios
from lingua_synth.scaling.runs import Runs

MANY_PASSES = 40.0
"""Passes beyond which repeated text was found to teach next to nothing (Muennighoff et al. 2023)."""


def advise(
    runs: Runs,
    N: float,
    D: float,
    generators: Mapping[str, Generator],
    training: Callable[[float], float],
    *,
    training_words: str = "",
    unit: str = "GPU-hours",
    num_runs: float = 1,
    epochs: float = 1,
    natural_tokens: float | None = None,
    natural_price: float | None = None,
    min_saving: float = 0.01,
    target: str = "loss_macro",
    n_definition: str = "non_embedding",
    base: str | None = None,
    roles: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    ratio_fits: Mapping[str, RatioFit] | None = None,
    num_bootstraps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    changes: bool = True,
    progress: bool = False,
) -> Advice:
    """What to train on, by cost at equal loss.

    N: parameters, as `n_definition` counts them. D: tokens that natural text alone would be trained on; its loss there
    is what every option must reach. `generators`: what each kind of text costs, by source; `training`: N -> the cost
    of a billion training tokens, in the same unit. `num_runs` such trainings share the texts, each reads its synthetic
    text at most `epochs` times. `natural_tokens`: unique natural tokens in hand, beyond which they repeat (None: no
    run runs out); `natural_price`: of a billion more.

    An option counts when the whole `level` interval of its saving lies above `min_saving`, a share of the cost of
    natural text alone; the cheapest of those is the choice, and without one it is natural text alone. Intervals are
    percentiles over resamples of the runs, each with a draw of what generation costs (lognormal, `Generator.error`) and
    of what repeats are worth. Where nothing repeats they are widened to hold what a law of another form says, if the
    runs do not rule it out.

    `roles`, `names`: as `kinds_of` takes them. `ratio_fits`: of `fit_ratios`, made before, of runs that repeat nothing.
    `changes=False` leaves out what would change the answer. ValueError for numbers that cannot be, an empty table, no
    generator of any source; a place that the runs do not hold is no error but a `refusal`.
    """
    _validate(N, D, num_runs, epochs, natural_tokens, natural_price, min_saving, level)
    if num_bootstraps < 20:
        raise ValueError(
            f"an answer needs intervals: bootstraps is a number of resamples, 20 or more; got {num_bootstraps}"
        )
    if not len(runs):
        raise ValueError("the runs table is empty; there is nothing to recommend from")
    base = base_mixture(runs, base)
    assert base is not None, "a table with runs has a first mixture"
    kinds = kinds_of(runs, base, roles, names)
    stray = sorted(set(generators) - set(kinds))
    if stray:
        raise ValueError(f"no synthetic source {', '.join(stray)} in the table; it has {', '.join(kinds) or 'none'}")
    if not generators:
        raise ValueError(
            f"what synthetic text costs is not known for any source ({', '.join(kinds) or 'the table has none'}): "
            "generator=, the folder of a generation run, or gpu_hours_per_billion="
        )
    place = (float(N), float(D))
    question = Question(
        *place, training(N), {name: one.per_billion for name, one in generators.items()}, float(num_runs),
        float(epochs), natural_tokens, natural_price, min_saving, level,
    )  # fmt: skip
    about = (n_definition, target, base, unit)
    notes: list[str] = []
    fits = ratio_fits
    if fits is None:
        fits = fit_ratios(
            _fresh(runs, base, notes), base, target=target, n_definition=n_definition,
            num_bootstraps=num_bootstraps, seed=seed,
        )  # fmt: skip
    surfaces, why = _surfaces(runs, base, kinds, fits, generators, question, target, n_definition, seed, notes)
    if not surfaces:
        return Advice(question, *about, None, generators, "", (), training_words, why, tuple(notes))
    planner = Planner(surfaces, _rate_errors(surfaces, generators, seed))
    decision = planner.decide(question, details=True)
    assert decision is not None, "surfaces that hold the place were kept"
    if all(one.plan is None for one in decision.kinds):
        return Advice(question, *about, None, generators, "", (), training_words, _too_scarce(decision), tuple(notes))
    compared = decision.choice.source if decision.choice is not None else None
    compared = compared or decision.kinds[0].source
    assert compared is not None, "every kind has a source"
    notes += _said(decision, surfaces, question)
    found: list[Change] = []
    if changes:
        inputs = _inputs(question, training, generators, surfaces, compared)
        with tqdm(total=len(inputs), desc="what would change it", disable=not progress, leave=False) as bar:
            for some in find_changes(planner, inputs, compared):
                found += some
                bar.update()
        found = [one for one in found if one.compared or one.at is not None]
        found.sort(key=lambda one: (one.factor, one.name))
    return Advice(
        question, *about, decision, dict(generators), compared, tuple(found), training_words, None, tuple(notes)
    )


def _validate(
    N: float,
    D: float,
    num_runs: float,
    epochs: float,
    natural_tokens: float | None,
    natural_price: float | None,
    min_saving: float,
    level: float,
) -> None:
    if not (math.isfinite(N) and N > 0 and math.isfinite(D) and D > 0):
        raise ValueError(f"an answer is for N parameters and D tokens, both positive; got {N} and {D}")
    for name, value in (("num_runs", num_runs), ("epochs", epochs)):
        if not (math.isfinite(value) and value >= 1):
            raise ValueError(f"{name} must be 1 or more; got {value}")
    if natural_tokens is not None and not (math.isfinite(natural_tokens) and natural_tokens >= 0):
        raise ValueError(f"natural_tokens are the unique tokens in hand, 0 or more; got {natural_tokens}")
    if natural_price is not None:
        if not (math.isfinite(natural_price) and natural_price >= 0):
            raise ValueError(f"the price of a billion natural tokens is 0 or more; got {natural_price}")
        if natural_tokens is None:
            raise ValueError(
                "a price of more natural tokens says something beside those in hand only: give natural_tokens= "
                "(0: none yet)"
            )
    if natural_tokens == 0 and natural_price is None:
        raise ValueError(
            "without natural tokens in hand, and none to buy, there is no natural text to compare with: give "
            "natural_tokens= above 0, or a price of natural tokens"
        )
    if not 0 <= min_saving < 1:
        raise ValueError(f"min_saving is a share of the cost, from 0 to below 1; got {min_saving}")
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95; got {level}")


def _fresh(runs: Runs, base: str, notes: list[str]) -> Runs:
    """The runs without repeats, for a law of fresh text; all of them where that would leave no natural runs."""
    fresh = fresh_runs(runs)
    if len(fresh) == len(runs):
        return runs
    if base not in fresh.mixtures or len(fresh.mixtures) < 3:
        notes.append("nearly every run repeats text, so the laws are of text repeated as in these runs")
        return runs
    notes.append(f"{len(runs) - len(fresh)} runs that repeat text are left out of the laws in the ratio")
    return fresh


def _surfaces(
    runs: Runs,
    base: str,
    kinds: Mapping[str, Kind],
    fits: Mapping[str, RatioFit],
    generators: Mapping[str, Generator],
    q: Question,
    target: str,
    n_definition: str,
    seed: int,
    notes: list[str],
) -> tuple[dict[str, Surface], str]:
    """(surface by source, why there is none)."""
    beyond: dict[str, str] = {}
    asked: dict[str, RatioFit] = {}
    for source, one in fits.items():
        if source not in generators:
            notes.append(f"{source} takes no part: what it costs is not known (generator.{source}=FOLDER)")
        elif not one.usable:
            notes.append(f"{source} takes no part: {one.why_not}")
        elif why := outside(trained_places(runs, base, source, n_definition), source, q.N, q.D):
            beyond[source] = why
        else:
            asked[source] = one
    notes += [f"{source} takes no part: {why}" for source, why in beyond.items() if asked]
    if not asked:
        nowhere = (
            "No kind of synthetic text whose cost is known was trained at enough ratios for a law in the ratio"
            + (f" ({'; '.join(notes)})" if notes else "")
            + "; train at least three ratios of one source beside natural text, at several budgets."
        )
        return {}, next(iter(beyond.values()), nowhere)
    natural = natural_source(runs, base)
    assert natural is not None, "sources were mixed into a natural one"
    options = {"target": target, "n_definition": n_definition, "seed": seed}
    of_natural = repeats_of(runs, base, natural, **options)  # type: ignore[arg-type]
    surfaces = {}
    for source, one in asked.items():
        again = repeats_of(runs, base, source, **options)  # type: ignore[arg-type]
        places = trained_places(runs, base, source, n_definition)
        surfaces[source] = Surface.of(kinds[source], one, places, (of_natural, again), seed)
        if q.epochs > 1:
            notes.append(again.origin)
    if q.natural_tokens is not None and q.natural_tokens < q.D:
        notes.append(of_natural.origin)
    return surfaces, ""


def _too_scarce(decision: Decision) -> str:
    """Why no mixture reaches the loss inside the runs: with natural text to spare, its own plan would."""
    return (
        f"Natural text in hand, read {decision.natural.natural_passes:.3g} times, has a loss ({decision.loss:.4g}) "
        "that mixtures reach only with fewer or more tokens than any run of this size had. Ask for tokens= nearer to "
        "what is in hand, or train smaller budgets."
    )


def _rate_errors(
    surfaces: Mapping[str, Surface], generators: Mapping[str, Generator], seed: int
) -> dict[str, np.ndarray]:
    """Factors on the cost of each source's text, lognormal; those of different sources err independently."""
    found = {}
    for k, (source, surface) in enumerate(sorted(surfaces.items())):
        rng = np.random.default_rng((seed, 2, k))
        factors = np.exp(generators[source].error * rng.standard_normal(len(surface.rows)))
        factors[0] = 1.0
        found[source] = factors
    return found


def _said(decision: Decision, surfaces: Mapping[str, Surface], q: Question) -> list[str]:
    """What a reader should know beside the table."""
    notes = []
    if MANY_PASSES < decision.natural.natural_passes < math.inf:
        notes.append(
            f"natural text alone would be read {decision.natural.natural_passes:.3g} times: what so many passes are "
            "worth is the law's form, and all savings rest on it"
        )
    if decision.bought is not None and decision.bought.shown and _at_edge(decision.bought):
        notes.append("with natural text bought, the tokens are at the edge of the runs at this size")
    for one in decision.kinds:
        if one.plan is None or one.source is None or one.plan.ratio == 0:
            continue
        fitted = surfaces[one.source].found.fit
        assert fitted is not None, "a surface has a fit"
        trained = np.unique(fitted.variables["r"][fitted.variables["r"] > 0])
        if one.shown and one.plan.ratio < 0.999 * trained.min():
            notes.append(
                f"{one.source}: its share lies below {100 * trained.min():.3g} %, the smallest that was trained; there "
                "the answer rests on the law's form"
            )
        if one.plan.ratio >= 0.999 * surfaces[one.source].max_ratio:
            notes.append(f"{one.source}: its share is the largest that was trained; the best may lie beyond")
        if one.shown and _at_edge(one):
            notes.append(
                f"{one.source}: {one.plan.tokens:.4g} tokens are at the edge of the runs at this size; a cheaper plan "
                "may lie beyond"
            )
        for rival, stands in surfaces[one.source].rivals():
            if stands and rival.law.name in one.under:
                ratio, saving = one.under[rival.law.name]
                notes.append(
                    f"{one.source}: a law of another form ({rival.law.name}), which the runs do not rule out, puts the "
                    f"cheapest share at {100 * ratio:.2g} %, saving {100 * saving:.2g} %"
                )
    return notes


def _at_edge(one: Outcome) -> bool:
    return one.plan is not None and one.plan.at_edge


def _inputs(
    q: Question,
    training: Callable[[float], float],
    generators: Mapping[str, Generator],
    surfaces: Mapping[str, Surface],
    compared: str,
) -> list[Input]:
    places = surfaces[compared].places
    spans = section(places, 1, math.log(q.D)), section(places, 0, math.log(q.N))
    sizes, budgets = ((math.exp(one[0]), math.exp(one[1])) if one is not None else (1.0, 1.0) for one in spans)
    mine = {source: one for source, one in generators.items() if source in surfaces}
    if "N" not in surfaces[compared].law.variables:
        sizes = (q.N, q.N)
    return inputs_of(
        q, training, {name: one.per_billion_written for name, one in mine.items()},
        {name: one.keep_rate for name, one in mine.items()}, sizes, budgets,
    )  # fmt: skip
