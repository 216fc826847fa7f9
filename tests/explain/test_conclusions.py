"""Claims follow from intervals alone; power against repeated studies."""

import numpy as np
import pytest

from clipbias.explain.conclusions import alone, constant_part, mean_has, through
from clipbias.explain.power import DETECTABLE, Power, Spread, power, spread
from clipbias.explain.results import ByOutcome, Effects, Levels
from clipbias.explain.uncertainty import Estimate

GAIN = Estimate(10.0, 8.0, 12.0)
NO_GAIN = Estimate(0.4, -1.0, 1.8)


def part(low, high):
    """A share with its interval, in percent of a gain of 10."""
    value = (low + high) / 2
    return Estimate(value / 10, low / 10, high / 10, Estimate(value / 100, low / 100, high / 100))


def effects(attention, tokens, gain=GAIN):
    """Of a method with slots, what attention and tokens give alone; scale and values alone say nothing here."""
    corners = {"PRR": attention, "RPP": tokens, "RPR": part(60, 80), "RRP": part(60, 80)}
    return Effects(Estimate(50.0), gain, dict.fromkeys(("attention", "scale", "values"), part(60, 80)), {}, corners)


@pytest.mark.parametrize(
    ("attention", "tokens", "expected", "words"),
    [
        (part(-5, 20), part(60, 90), "tokens", "mainly what is added to tokens"),
        (part(40, 60), part(51, 90), "tokens", "mainly what is added to tokens"),
        (part(60, 90), part(10, 40), "attention", "mainly where CLIP looks"),
        (part(51, 90), part(40, 60), "attention", "mainly where CLIP looks"),
        (part(60, 90), part(80, 95), "either", "each alone has more than half"),
        (part(-5, 20), part(10, 49), "together", "neither alone has half"),
        (part(-5, 20), part(40, 60), "undecided", "undecided which alone has more than half"),
        (part(40, 60), part(10, 40), "undecided", "undecided which alone has more than half"),
    ],
)
@pytest.mark.parametrize("outcome", ["accuracy", "calibrated"])
def test_a_gain_comes_through_what_alone_has_more_than_half_of_it(attention, tokens, expected, words, outcome):
    numbers = effects(attention, tokens)
    assert through(numbers) == expected
    sentence = alone(numbers, outcome)
    name = {"accuracy": "accuracy", "calibrated": "calibrated log-likelihood"}[outcome]
    first, second = (
        f"{each.value * 10:.0f} % ({each.low * 10:.0f} to {each.high * 10:.0f})" for each in (tokens, attention)
    )
    assert sentence.startswith(f"Of the gain in {name}, what is added to tokens has {first} with attention frozen")
    assert sentence.endswith(f"the new attention alone {second}: {words}.")
    for gain in (NO_GAIN, Estimate(-3.0, -5.0, -1.0)):
        assert through(effects(attention, tokens, gain)) == "no gain"
        assert alone(effects(attention, tokens, gain), outcome).startswith(f"There is no sure gain in {name}")


def levels(constant, fitted=None, everything=GAIN):
    return Levels(everything, {"constant": constant}, part(10, 20), fitted, {})


@pytest.mark.parametrize(
    ("constant", "expected", "words"),
    [
        (part(51, 99), "more than half", "the mean has more than half"),
        (part(-20, 49), "less than half", "the mean has less than half"),
        (part(40, 60), "undecided", "it is undecided whether the mean has more than half"),
    ],
)
def test_the_mean_is_judged_by_its_share_of_all_that_is_added(constant, expected, words):
    assert mean_has(constant, GAIN) == expected
    assert mean_has(constant, NO_GAIN) == "no gain"
    sentence = constant_part(ByOutcome(levels(constant), levels(constant, everything=NO_GAIN)), "vision")
    assert sentence.startswith("Of what it adds to image tokens, the mean over training images gives ")
    assert sentence.endswith(f" in accuracy, the image's own 15 % (10 to 20): in accuracy {words}.")
    fitted = constant_part(ByOutcome(levels(constant), levels(part(10, 20), part(80, 90))), "text")
    assert fitted.endswith(" The best constant in its place gives 85 % (80 to 90) in calibrated log-likelihood.")
    assert "no share of it" in constant_part(ByOutcome(*[levels(constant, everything=NO_GAIN)] * 2), "vision")


def test_the_spread_of_seeds_and_images_is_told_apart():
    draw = np.random.default_rng(0)
    spreads = []
    for _ in range(200):
        seeds, images, rest = (draw.normal(0, s, shape) for s, shape in ((3, (4, 1)), (20, 150), (10, (4, 150))))
        spreads.append(spread(seeds + images + rest))
    assert np.mean([estimate.seeds for estimate in spreads]) == pytest.approx(9, rel=0.2)
    assert np.mean([estimate.images for estimate in spreads]) == pytest.approx(400, rel=0.05)
    assert np.mean([estimate.rest for estimate in spreads]) == pytest.approx(100, rel=0.05)
    single = spread(np.arange(10.0)[None])
    assert single == Spread(pytest.approx(np.arange(10).var(ddof=1)), None, 0.0)


def test_the_smallest_difference_is_seen_four_times_in_five():
    variances = Spread(400.0, 9.0, 100.0)
    images = 150
    seeds = 4
    smallest = power(variances, images, seeds).smallest
    draw = np.random.default_rng(1)
    seen = 0
    for _ in range(3000):
        values = [np.sqrt(v) * draw.normal(size=s) for v, s in ((9, (4, 1)), (400, 150), (100, (4, 150)))]
        seen += abs(smallest + sum(values).mean()) > 1.96 * variances.error(images, seeds)
    assert seen / 3000 == pytest.approx(0.8, abs=0.025)
    assert smallest == pytest.approx(DETECTABLE * np.sqrt(400 / 150 + 9 / 4 + 100 / 600))


def test_what_is_needed_is_the_least_that_is_enough():
    variances = Spread(40.0, 0.05, 100.0)
    estimate = power(variances, 560, 3)
    for images, seeds in ((estimate.images_needed, 3), (560, estimate.seeds_needed)):
        assert power(variances, images, seeds).smallest <= 1.0
    assert power(variances, estimate.images_needed - 1, 3).smallest > 1.0
    assert power(variances, 560, estimate.seeds_needed - 1).smallest > 1.0
    assert power(Spread(40.0, 9.0, 0.0), 560, 3).images_needed is None
    assert power(Spread(400.0, 0.1, 0.0), 560, 3).seeds_needed is None
    assert power(Spread(400.0, None, 0.0), 560, 1).seeds_needed is None
    assert "1 seed, a difference of 2.4 points or more could have been seen; 1 point would need 3,140 images" in (
        power(Spread(400.0, None, 0.0), 560, 1).sentence()
    )
    assert Power(10, 2, 0.9, 1.0, 1, 1).sentence().endswith("a difference of 0.9 points or more could have been seen.")
    assert Power(10, 2, 20, 1.0, None, None).sentence().endswith("more of both: neither alone is enough.")
