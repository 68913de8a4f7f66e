"""What to train on by cost: the answer of planted laws, worked out by brute force beside it."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from scipy.optimize import brentq

from lingua_synth.generate.cost import GenerationRate, generation_cost
from lingua_synth.recommend import Generator, Repeats, Surface, advise, training_cost
from lingua_synth.scaling import Runs, best_ratio, fit_ratios, kinds_of, simulate_study
from lingua_synth.scaling.hull import trained_places
from lingua_synth.scaling.ratio import LIKELIER, likelier_by, rivals_of
from lingua_synth.scaling.repetition import PUBLISHED_R_D
from lingua_synth.scaling.simulate import EFFECTS, NATURAL

RATIOS = [0.05, 0.15, 0.33, 0.5, 0.67, 1.0]
D = 50e9
PER_BILLION = 44.0
SHARES = np.linspace(0, 1, 1001)
REPHRASED = EFFECTS["rephrased"]


def only(runs, kind):
    """The runs of natural text and of one kind."""
    return runs.take([name == "natural" or name.startswith(kind) for name in runs["mixture"].tolist()])


@pytest.fixture(scope="module")
def exact():
    """A table without noise, its laws, and the size 1B."""
    runs = only(simulate_study("mixtures", noise=0.0, ratios=RATIOS)[0], "rephrased")
    runs = Runs({name: values for name, values in runs.columns.items() if not re.search("questions|textbook", name)})
    return runs, fit_ratios(runs, "natural", num_bootstraps=30), float(runs.N()[runs["size"] == "1B"][0])


@pytest.fixture(scope="module")
def noisy():
    runs = simulate_study("mixtures", noise=0.001, seed=3, ratios=RATIOS)[0]
    return runs, fit_ratios(runs, "natural", num_bootstraps=200), float(runs.N()[runs["size"] == "1B"][0])


def ask(study, price=PER_BILLION, *, tokens=D, N=None, error=0.0, changes=False, sources=None, **more):
    runs, fits, own = study
    per_token = training_cost(runs)
    generators = {source: Generator(source, price, error=error) for source in sources or fits}
    return advise(
        runs, N or own, tokens, generators, per_token.gpu_hours_per_billion, ratio_fits=fits, changes=changes,
        training_words=per_token.words, **more,
    )  # fmt: skip


# --- brute force ---


def worth(passes, R=PUBLISHED_R_D):
    """Of a token that is read so often, beside a new one."""
    return (1 + R * -math.expm1(-(passes - 1) / R)) / passes if passes > 1 else 1.0


def planted_loss(effect, N, tokens, ratio, passes=1.0, unique=math.inf):
    floor = NATURAL["E"] + effect.e1 * ratio + effect.e2 * ratio**2
    size = NATURAL["A"] * math.exp(effect.a * ratio) / N ** NATURAL["alpha"]
    natural = (1 - ratio) * worth((1 - ratio) * tokens / unique)
    both = natural**effect.gamma + effect.tau * (ratio * worth(passes)) ** effect.gamma
    return floor + size + NATURAL["B"] / (tokens * both ** (1 / effect.gamma)) ** NATURAL["beta"]


def planted_tokens(effect, N, loss, ratio, passes=1.0, unique=math.inf):
    def excess(log_tokens):
        return planted_loss(effect, N, math.exp(log_tokens), ratio, passes, unique) - loss

    return (
        math.exp(brentq(excess, math.log(1e7), math.log(1e14), xtol=1e-13)) if excess(math.log(1e14)) < 0 else math.inf
    )


def cheapest(effect, N, training, price, *, num_runs=1, budget=D, shares=SHARES):
    """(saving, share, tokens, cost) of the cheapest share for the loss of natural text at `budget`."""
    loss = planted_loss(effect, N, budget, 0.0)
    tokens = np.array([planted_tokens(effect, N, loss, share) for share in shares])
    costs = tokens / 1e9 * (num_runs * training + shares * price)
    at = int(np.argmin(costs))
    return 1 - costs[at] / (num_runs * training * budget / 1e9), shares[at], tokens[at], costs[at]


# --- the answer ---


def test_without_noise_it_is_the_cheapest_plan(exact):
    runs, _, N = exact
    training = training_cost(runs).gpu_hours_per_billion(N)
    found = ask(exact, num_runs=20)
    saving, share, tokens, cost = cheapest(REPHRASED, N, training, PER_BILLION, num_runs=20)
    one = found.decision.kinds[0]
    assert found.answer == "rephrased" and one.plan.ratio == pytest.approx(share, abs=1e-3)
    assert one.plan.cost == pytest.approx(cost, rel=1e-6) and one.plan.cost <= cost * (1 + 1e-9)
    assert one.plan.tokens == pytest.approx(tokens, rel=2e-3) and one.saving == pytest.approx(saving, rel=1e-5)
    assert one.interval == pytest.approx((one.saving, one.saving), abs=1e-6)
    assert found.decision.loss == pytest.approx(planted_loss(REPHRASED, N, D, 0.0), rel=1e-8)
    assert one.plan.generated == pytest.approx(one.plan.tokens * one.plan.ratio)
    # For one cost: the lowest loss over shares.
    shares = np.linspace(0, 1, 1001)
    money = found.decision.natural.cost
    losses = [planted_loss(REPHRASED, N, 1e9 * money / (20 * training + r * PER_BILLION), r) for r in shares]
    assert one.at_cost.ratio == pytest.approx(shares[np.argmin(losses)], abs=2e-3)
    assert one.gain == pytest.approx(math.log(found.decision.loss / min(losses)), rel=1e-4)
    assert one.at_cost.cost == pytest.approx(money, rel=1e-9)


def test_free_text_is_taken_at_the_share_of_lowest_loss(exact):
    found = ask(exact, price=0.0)
    one = found.decision.kinds[0]
    assert one.plan.ratio == pytest.approx(one.fewest.ratio, abs=1e-5)
    law = exact[1]["rephrased"].fit
    assert one.plan.ratio == pytest.approx(
        best_ratio(law, exact[2], one.plan.tokens, n=0, rivals=False).ratio, abs=1e-3
    )
    assert found.answer == "rephrased" and one.plan.cost == pytest.approx(one.fewest.cost)


def test_dearer_text_is_never_a_larger_share(exact):
    prices = [0.0, 1.0, 5.0, 20.0, 44.0, 100.0, 300.0, 1e3, 1e5, 1e9]
    found = [ask(exact, price=price, num_runs=20) for price in prices]
    ratios = [one.decision.kinds[0].plan.ratio for one in found]
    savings = [one.decision.kinds[0].saving for one in found]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(ratios)) and ratios[0] > 0.4
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(savings))
    answers = [one.answer for one in found]
    assert answers[0] == "rephrased" and answers[-1] == "natural"
    assert answers == sorted(answers, reverse=True), "once natural text is cheaper, it stays so"
    assert ratios[-1] < 1e-3 and "natural text alone" in str(found[-1])


def test_reading_twice_and_many_runs_are_as_good_as_cheaper_text(exact):
    once = ask(exact, price=PER_BILLION, num_runs=5).decision.kinds[0]
    shared = ask(exact, price=PER_BILLION * 4, num_runs=20).decision.kinds[0]
    assert shared.saving == pytest.approx(once.saving, rel=1e-9) and shared.plan.ratio == pytest.approx(once.plan.ratio)
    again = ask(exact, price=PER_BILLION, num_runs=5, epochs=4).decision.kinds[0]
    assert again.plan.passes > 1.5 and again.saving > once.saving + 0.01
    # The law of repeats beside: what those passes and that share cost.
    N, training = exact[2], training_cost(exact[0]).gpu_hours_per_billion(exact[2])
    loss = planted_loss(REPHRASED, N, D, 0.0)

    def cost(share, passes):
        tokens = planted_tokens(REPHRASED, N, loss, share, passes)
        return tokens / 1e9 * (5 * training + share / passes * PER_BILLION)

    assert again.plan.cost == pytest.approx(cost(again.plan.ratio, again.plan.passes), rel=1e-7)
    assert all(
        again.plan.cost <= cost(again.plan.ratio + a, min(again.plan.passes * b, 4)) * (1 + 1e-9)
        for a in (-0.03, 0, 0.03) for b in (0.8, 1, 1.2)
    )  # fmt: skip


def test_scarce_natural_text_is_bought_or_replaced(exact):
    N, training = exact[2], training_cost(exact[0]).gpu_hours_per_billion(exact[2])
    few = dict(natural_tokens=2e9, num_runs=1)
    cheap = ask(exact, price=1e4, natural_price=0.5, **few)
    assert cheap.answer == "buy" and cheap.decision.choice.plan.bought > 1e9
    assert cheap.decision.kinds[0].plan.ratio < 1e-3 and not cheap.decision.kinds[0].shown
    plan = cheap.decision.choice.plan
    loss = planted_loss(REPHRASED, N, D, 0.0, unique=2e9)
    assert cheap.decision.loss == pytest.approx(loss, rel=1e-7)

    def cost(bought):
        return planted_tokens(REPHRASED, N, loss, 0.0, unique=2e9 + bought) / 1e9 * training + bought / 1e9 * 0.5

    assert plan.cost == pytest.approx(cost(plan.bought), rel=1e-7)
    assert plan.cost <= min(cost(x) for x in np.linspace(0, 60e9, 61)) * (1 + 1e-6)
    written = ask(exact, price=1.0, natural_price=1e4, **few)
    assert written.answer == "rephrased" and written.decision.kinds[0].plan.bought == 0
    assert ask(exact, price=1e9, natural_price=1e9, **few).answer == "natural"
    nothing = ask(exact, price=1.0, natural_tokens=0.0, natural_price=3.0)
    assert nothing.decision.natural.bought == D and nothing.decision.natural.natural_passes == 1
    assert nothing.answer == "rephrased" and nothing.decision.kinds[0].plan.bought < D
    often = ask(exact, price=1.0, natural_tokens=1e9)
    assert "natural text alone would be read 50 times" in str(often) and often.decision.natural.natural_passes == 50
    # More in hand than any run reads is as much as there is.
    plenty, endless = ask(exact, num_runs=20, natural_tokens=1e13), ask(exact, num_runs=20)
    assert plenty.decision.kinds[0].saving == pytest.approx(endless.decision.kinds[0].saving, rel=1e-9)


def test_with_noise_the_intervals_hold_what_was_planted(noisy):
    runs, _, N = noisy
    training = training_cost(runs).gpu_hours_per_billion(N)
    found = ask(noisy, num_runs=20, error=0.02)
    assert found.answer == "rephrased" and [one.source for one in found.decision.kinds] == [
        "rephrased", "questions", "textbook",
    ]  # fmt: skip
    for one in found.decision.kinds:
        saving, share, _, _ = cheapest(
            EFFECTS[one.source], N, training, PER_BILLION, num_runs=20, shares=np.linspace(0, 1, 201)
        )
        assert one.interval[0] - 0.01 <= saving <= one.interval[1] + 0.01
        assert one.ratio_interval[0] - 0.02 <= share <= one.ratio_interval[1] + 0.02
        assert set(one.under) == {"mixture", "log_quadratic"}
        # The rate as it was measured, not as a resample draws it.
        assert one.saving == pytest.approx(1 - one.plan.cost / found.decision.natural.cost, abs=1e-12)
    dear = ask(noisy, num_runs=20, error=0.3)
    spread = [found.decision.kinds[0].interval for found in (found, dear)]
    assert spread[1][1] - spread[1][0] > spread[0][1] - spread[0][0]
    text = str(found)
    assert "20 runs: generate rephrased, 2" in text and "at its share of lowest loss" in text
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_the_picture_shows_the_saving_over_shares(exact):
    found = ask(exact, num_runs=20)
    one, ax = found.decision.kinds[0], found.plot()
    shares, savings, low, high = one.curve
    assert savings[np.argmin(np.abs(shares - one.plan.ratio))] == pytest.approx(one.saving, rel=1e-3)
    assert np.nanmax(savings) == pytest.approx(one.saving, rel=1e-3) and savings[0] == pytest.approx(0, abs=1e-9)
    assert np.nanmax(np.abs(low - high)) < 1e-6
    assert ax.get_xlabel() == "share of synthetic tokens (%)" and len(ax.lines) == 3
    assert "GPU-hours saved" in ax.get_ylabel()
    with pytest.raises(ValueError, match="no answer to draw"):
        ask(exact, tokens=8e12).plot()


def test_generators_that_the_runs_do_not_tell_apart_are_tied_and_the_cheaper_one_wins(exact):
    base = exact[0]
    share, rng = base["ratio_rephrased"], np.random.default_rng(7)
    extra = np.flatnonzero(share > 0)
    rows = {name: list(values) for name, values in base.columns.items() if not name.startswith("ratio_")}
    for name, values in rows.items():
        more = [values[k] for k in extra]
        rows[name] = values + ([f"big {one}" for one in more] if name in ("mixture", "run_id") else more)
    rows["loss_macro"] = list(np.array(rows["loss_macro"]) * np.exp(0.002 * rng.standard_normal(len(rows["size"]))))
    rows["ratio_natural"] = np.concatenate([1 - share, 1 - share[extra]])
    rows["ratio_hq-big-70b"] = np.concatenate([0 * share, share[extra]])
    rows["ratio_hq-small-3b"] = np.concatenate([share, 0 * share[extra]])
    both = Runs(rows)
    study = both, fit_ratios(both, "natural", num_bootstraps=60), exact[2]
    runs, fits, N = study
    for big, tied in ((PER_BILLION * 1.05, True), (PER_BILLION * 10, False)):
        prices = {"hq-big-70b": Generator("hq-big-70b", big), "hq-small-3b": Generator("hq-small-3b", PER_BILLION)}
        hours = training_cost(runs).gpu_hours_per_billion
        found = advise(runs, N, D, prices, hours, num_runs=20, ratio_fits=fits, changes=False)
        assert [one.source for one in found.decision.tied] == ([] if not tied else list(set(fits) - {found.answer}))
        assert ("as good, by these runs" in str(found)) == tied
    assert found.answer == "hq-small-3b"


def test_a_rival_law_that_the_runs_leave_standing_widens_the_interval():
    runs = simulate_study("mixtures", noise=0.004, seed=12, ratios=[0.33, 0.67, 1.0])[0]
    runs = runs.take(np.isin(runs["size"], ["200M", "1B", "3B"]) & (runs["tokens"] >= 5e9))
    fits = fit_ratios(runs, "natural", num_bootstraps=60)
    N = float(runs.N()[runs["size"] == "1B"][0])
    found = ask((runs, fits, N), num_runs=20, error=0.0)
    widened = 0
    for one in found.decision.kinds:
        own = fits[one.source].fit
        ((law, rival),) = rivals_of(own).items()
        stands = likelier_by(own, rival) <= LIKELIER
        said = any(note.startswith(f"{one.source}: a law of another form") for note in found.notes)
        assert said == stands
        inner = np.quantile(one.savings[1:], [0.025, 0.975])
        tokens = law.solve_D(rival.params, rival.predict(N=N, D=D, r=0.0), N=N, r=one.plan.ratio)
        hours = training_cost(runs).gpu_hours_per_billion(N)
        other = 1 - tokens * (20 * hours + one.plan.ratio * PER_BILLION) / (20 * hours * D)
        if stands and not inner[0] <= other <= inner[1]:
            assert min(abs(end - other) for end in one.interval) < 1e-6
            widened += 1
        elif not stands:
            assert one.interval[0] >= one.savings[1:].min() and one.interval[1] <= one.savings[1:].max()
    assert widened, "none of these kinds shows it: choose another study"


def test_runs_that_repeat_text_are_left_out_of_the_laws(exact):
    runs, _, N = exact
    repeated = np.flatnonzero(runs["mixture"] == "rephrased 33%")[:5]
    unique, loss = runs["unique_tokens_natural"].copy(), runs["loss_macro"].copy()
    unique[repeated] /= 8
    loss[repeated] *= 1.1
    more = runs.with_columns(unique_tokens_natural=unique, loss_macro=loss)
    hours = training_cost(runs).gpu_hours_per_billion
    prices = {"rephrased": Generator("rephrased", PER_BILLION, error=0.0)}
    found = advise(more, N, D, prices, hours, num_runs=20, num_bootstraps=20, changes=False)
    assert "5 runs that repeat text are left out" in str(found)
    assert found.decision.kinds[0].saving == pytest.approx(ask(exact, num_runs=20).decision.kinds[0].saving, rel=1e-4)


# --- what would change it ---


def test_break_evens_are_those_of_the_planted_law(exact):
    runs, _, N = exact
    rule = training_cost(runs)
    found = ask(exact, num_runs=20, changes=True)
    rows = {one.name: one for one in found.changes}
    assert [one.factor for one in found.changes] == sorted(one.factor for one in found.changes)
    assert all(one.to in ("natural text alone", "") for one in found.changes)

    def over(num_runs=20.0, price=PER_BILLION, N=N, training=None):
        hours = training or rule.gpu_hours_per_billion(N)
        return cheapest(REPHRASED, N, hours, price, num_runs=num_runs, shares=np.linspace(0, 0.6, 121))[0] - 0.01

    price = brentq(lambda v: over(price=v), 44, 1e4, rtol=1e-4)
    assert rows["rephrased: cost per billion written"].equal_at == pytest.approx(price, rel=3e-3)
    assert rows["rephrased: cost per billion written"].at == pytest.approx(price, rel=5e-3)
    assert rows["rephrased: keep rate"].at == pytest.approx(44 / price, rel=5e-3)
    runs_needed = brentq(lambda v: over(num_runs=v), 1, 20, rtol=1e-4)
    assert rows["runs that share the text"].equal_at == pytest.approx(runs_needed, rel=3e-3)
    at_one = rule.gpu_hours_per_billion(N)
    hours = brentq(lambda v: over(training=v), at_one / 100, at_one, rtol=1e-4)
    assert rows["cost of training a billion tokens"].equal_at == pytest.approx(hours, rel=3e-3)
    size = brentq(lambda v: over(N=v), 3e7, N, rtol=1e-4)
    assert rows["model size N"].equal_at == pytest.approx(size, rel=5e-3)
    assert found.break_even("model size N").at == pytest.approx(size, rel=0.01)
    assert (
        "rephrased breaks even at N " in str(found)
        and "what would change the answer" in str(found)
        and "breaks even at" in str(found)
    )


def test_an_answer_that_no_size_in_the_runs_changes_says_so(exact):
    found = ask(exact, price=3e3, num_runs=1, changes=True)
    size = found.break_even("model size N")
    assert found.answer == "natural" and size.at is None and size.equal_at is None and size.interval == (None, None)
    assert size.searched[0] == pytest.approx(exact[0].N().min(), rel=0.03)
    assert "breaks even at no size within the runs" in str(found) and math.isinf(size.factor)
    cost = found.break_even("rephrased: cost per billion written")
    assert cost.at < 3e3 and cost.to == "generate rephrased"


def test_break_evens_have_intervals(noisy):
    found = ask(noisy, num_runs=20, error=0.1, changes=True, sources=["rephrased"])
    price = found.break_even("rephrased: cost per billion written")
    low, high = price.interval
    assert low < price.equal_at < high and low == pytest.approx(price.at, rel=0.02)
    truth = brentq(
        lambda v: cheapest(
            REPHRASED, noisy[2], training_cost(noisy[0]).gpu_hours_per_billion(noisy[2]), v, num_runs=20,
            shares=np.linspace(0, 0.6, 121),
        )[0] - 0.01, 44, 1e4, rtol=1e-3,
    )  # fmt: skip
    assert low < truth < high


# --- where there is no answer ---


def test_it_refuses_outside_what_was_trained(exact):
    for N, tokens, message in (
        (None, 8e12, "D = 8e+12 tokens lies outside the runs of rephrased"),
        (70e9, D, "N = 7e+10 parameters lies outside"),
        (2.6e9, 200e9, "this corner was not"),
    ):
        found = ask(exact, N=N, tokens=tokens)
        assert found.decision is None and message in found.refusal and found.answer == "none"
        assert "no answer" in str(found) and json.dumps(found.to_dict(), allow_nan=False)
    two = exact[0].take(np.isin(exact[0]["mixture"], ["natural", "rephrased"]))
    found = advise(two, exact[2], D, {"rephrased": Generator("rephrased", 1.0)}, lambda N: 1.0, num_bootstraps=20)
    assert "2 different ratios of rephrased" in found.refusal


def test_natural_text_too_scarce_for_the_runs_is_no_answer(exact):
    found = ask(exact, natural_tokens=1e6)
    assert found.decision is None and "read 5e+04 times" in found.refusal and "fewer or more tokens" in found.refusal


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"N": -1.0}, "both positive"),
        ({"num_runs": 0}, "num_runs must be 1 or more"),
        ({"epochs": 0.5}, "epochs must be 1 or more"),
        ({"natural_price": 3.0}, "give natural_tokens="),
        ({"natural_tokens": 0.0}, "no natural text to compare with"),
        ({"natural_tokens": -1.0}, "0 or more"),
        ({"natural_tokens": 1.0, "natural_price": -1.0}, "0 or more"),
        ({"min_saving": 1.0}, "min_saving is a share"),
        ({"level": 95}, "level is a share"),
        ({"num_bootstraps": 5}, "20 or more"),
        ({"price": -1.0}, "cost 0 or more"),
        ({"price": math.nan}, "cost 0 or more"),
        ({"sources": ["poems"]}, "no synthetic source poems in the table; it has rephrased"),
    ],
)
def test_numbers_that_cannot_be_are_refused(exact, more, message):
    with pytest.raises(ValueError, match=message):
        ask(exact, **more)


def test_an_unknown_cost_is_named(exact):
    runs, fits, N = exact
    with pytest.raises(ValueError, match="what synthetic text costs is not known for any source"):
        advise(runs, N, D, {}, lambda N: 1.0, ratio_fits=fits)
    with pytest.raises(ValueError, match="is empty"):
        advise(runs.take([]), N, D, {}, lambda N: 1.0)


# --- prices ---


def test_training_costs_what_generate_cost_says(exact):
    runs, _, N = exact
    by_hand = generation_cost(GenerationRate(1.0, 1.0, ""), size="1B", tokens=1e9, ratio=1.0)
    assert training_cost(runs).gpu_hours_per_billion(N) == pytest.approx(by_hand.one_run_gpu_h, rel=0.005)
    without = Runs({name: values for name, values in runs.columns.items() if name != "flops"})
    assert training_cost(without).gpu_hours_per_billion(N) == pytest.approx(by_hand.one_run_gpu_h, rel=0.07)
    measured = training_cost(runs, calibrate="runs")
    assert measured.gpu_hours_per_billion(N) == pytest.approx(by_hand.one_run_gpu_h, rel=0.005)
    told = training_cost(runs, calibrate="1B:21.7k")
    assert told.gpu_hours_per_billion(N) == pytest.approx(1e9 / 21_700 / 3600, rel=1e-9)
    with pytest.raises(ValueError, match="no GPU 'abacus'"):
        training_cost(runs, gpu="abacus")
    with pytest.raises(ValueError, match="mfu is a share"):
        training_cost(runs, mfu=40)
    with pytest.raises(ValueError, match="which has no gpu_hours"):
        training_cost(Runs({k: v for k, v in runs.columns.items() if k != "gpu_hours"}), calibrate="runs")


def test_a_law_comes_apart_into_what_tokens_lower_and_what_they_do_not(exact):
    fitted, drawn = exact[1]["rephrased"].fit, exact[1]["rephrased"].bootstrap
    rng = np.random.default_rng(0)
    rows = drawn.params[:4] * np.exp(0.01 * rng.standard_normal(drawn.params[:4].shape))
    law = fitted.law
    rows[:, law.parameters.index("gamma")] = [0.4, 0.7, 0.9, 1.0]
    tokens, shares = rng.uniform(1e9, 1e11, (4, 5)), rng.uniform(0, 1, 5)
    fixed, data = law.parts(rows, N=8e8, D=tokens, r=shares)
    each = np.stack([law.predict(row, N=8e8, D=own, r=shares) for row, own in zip(rows, tokens, strict=True)])
    assert fixed + data == pytest.approx(each, rel=1e-14)
    assert law.parts(rows, N=8e8, D=1e9, r=shares)[0] == pytest.approx(fixed)
    beta = rows[:, law.parameters.index("beta"), None]
    assert law.parts(rows, N=8e8, D=2 * tokens, r=shares)[1] == pytest.approx(data * 2**-beta, rel=1e-13)
    with pytest.raises(ValueError, match="has no U"):
        law.parts(rows, N=8e8, D=1e9, r=shares, U=1.0)


def test_a_loss_that_repeats_never_reach_takes_infinite_tokens(exact):
    runs, fits, N = exact
    guess = Repeats(PUBLISHED_R_D, "published")
    places = trained_places(runs, "natural", "rephrased")
    surface = Surface.of(kinds_of(runs, "natural")["rephrased"], fits["rephrased"], places, (guess, guess), 0)
    share, once, few = np.array([0.0, 0.0, 0.4]), np.ones(3), np.array([np.inf, 1e9, 1e9])
    # 1e9 natural tokens are worth 16.39e9 new ones at most.
    for budget, reached in ((10e9, [True, True, True]), (20e9, [True, False, True])):
        loss = planted_loss(REPHRASED, N, budget, 0.0)
        tokens = surface.tokens_for(slice(0, 1), np.array([[loss]]), N, share, once, few)[0]
        assert np.isfinite(tokens).tolist() == reached
        for k in np.flatnonzero(reached):
            assert tokens[k] == pytest.approx(planted_tokens(REPHRASED, N, loss, share[k], 1.0, few[k]), rel=1e-7)
