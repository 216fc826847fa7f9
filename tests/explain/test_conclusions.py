"""Claims follow from intervals alone; power against repeated studies."""

import dataclasses

import numpy as np
import pytest

from clipbias.explain.conclusions import carrier, conclude, stands_for
from clipbias.explain.power import DETECTABLE, Power, Spread, power, spread
from clipbias.explain.results import ByOutcome, Effects, Replacements
from clipbias.explain.uncertainty import Estimate

GAIN = Estimate(10.0, 8.0, 12.0)
NO_GAIN = Estimate(0.4, -1.0, 1.8)


def part(low, high):
    """A share with its interval, in percent of a gain of 10."""
    value = (low + high) / 2
    return Estimate(value / 10, low / 10, high / 10, Estimate(value / 100, low / 100, high / 100))


def nothing():
    return dataclasses.replace(part(-5, 5), share=None)


def effects(attention, scale, values, *, gain=GAIN, interactions=None):
    named = {"attention": attention, "scale": scale, "values": values}
    return Effects(Estimate(50.0), gain, named, interactions or {}, {})


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([part(60, 80), part(-5, 5), part(15, 35)], "attention"),
        ([part(0, 20), part(55, 80), part(15, 35)], "scale"),
        ([part(0, 20), part(0, 24), part(51, 120)], "values"),
        ([part(30, 60), part(-9, 9), part(26, 70)], "shared"),
        ([part(60, 90), part(-90, -50), part(80, 160)], "shared"),
        ([part(60, 90), part(-9, 9), part(26, 40)], "shared"),
        ([part(0, 20), part(0, 24), part(49, 120)], "undecided"),
        ([part(20, 60), part(-9, 9), part(20, 70)], "undecided"),
    ],
)
@pytest.mark.parametrize("outcome", ["accuracy", "calibrated"])
def test_an_effect_carries_a_gain_with_its_whole_interval(shares, expected, outcome):
    claim = carrier(effects(*shares), outcome)
    assert claim.verdict == expected
    assert {"accuracy": "the gain in accuracy", "calibrated": "the gain in calibrated log-likelihood"}[outcome] in (
        claim.sentence
    )
    without = carrier(effects(nothing(), nothing(), nothing(), gain=NO_GAIN), outcome)
    assert without.verdict == "no gain" and "no sure gain in" in without.sentence
    loss = Estimate(-3.0, -5.0, -1.0)
    assert carrier(effects(*shares, gain=loss), outcome).verdict == "no gain"


def test_interactions_are_named_where_they_are_not_small():
    shares = [part(0, 20), part(-5, 5), part(60, 100)]
    together = {
        "attention × scale": part(4, 8),  # sure, but small
        "attention × values": part(-20, 60),  # large, but not sure
        "scale × values": part(-80, -20),
    }
    sentence = carrier(effects(*shares, interactions=together), "accuracy").sentence
    words = (
        "The attention that prompts draw away and what prompts add to tokens together give -50 % (-80 to -20) of the"
    )
    assert words in sentence and sentence.count("together give") == 1
    assert "together give" not in carrier(effects(*shares), "accuracy").sentence


@pytest.mark.parametrize(
    ("keep", "lost", "expected", "words"),
    [
        (part(92, 99), part(91, 130), "stands", "Both intervals lie above 90 %."),
        (part(92, 99), part(89, 130), "most", "Both intervals lie above 50 %."),
        (part(51, 99), part(91, 99), "most", "The mean of what its blocks add stands for most of IVLP"),
        (part(10, 49), part(91, 99), "not", "What is kept lies below 50 %."),
        (part(91, 99), part(10, 49), "not", "What is lost lies below 50 %."),
        (part(1, 9), part(10, 49), "not", "What is kept and what is lost lie below 50 %."),
        (part(40, 60), part(91, 99), "undecided", "because the interval of what is kept includes 50 %"),
        (part(91, 99), part(40, 60), "undecided", "because the interval of what is lost includes 50 %"),
        (part(40, 60), part(40, 60), "undecided", "what is kept and that of what is lost includes 50 %"),
    ],
)
def test_a_constant_stands_for_a_method_in_both_directions(keep, lost, expected, words):
    numbers = both(keep, lost)
    claim = stands_for(numbers, "kind", "accuracy", "IVLP")
    assert claim.verdict == expected and words in claim.sentence
    assert "of the gain in accuracy" in claim.sentence
    assert ("Another constant may." in claim.sentence) == (expected == "not")
    missing = stands_for(dataclasses.replace(numbers, lost={}), "kind", "accuracy", "IVLP")
    assert missing.verdict == "undecided" and "was not measured" in missing.sentence
    assert stands_for(dataclasses.replace(numbers, gain=NO_GAIN), "kind", "accuracy", "IVLP").verdict == "no gain"


VALUES = [part(0, 20), part(-5, 5), part(60, 100)]


def both(keep, lost, gain=GAIN):
    return Replacements(gain, {"kind": keep}, {"kind": lost}, None)


@pytest.mark.parametrize(
    ("shares", "keep", "favours"),
    [
        (
            VALUES,
            part(92, 99),
            "This speaks for a bias, the same for every image, against a change of where CLIP looks.",
        ),
        (
            VALUES,
            part(10, 40),
            "This speaks against a change of where CLIP looks. Whether a bias, the same for every image, keeps the gain"
            " is undecided: another bias may.",
        ),
        (
            VALUES,
            part(40, 60),
            "This speaks against a change of where CLIP looks. Whether a bias, the same for every image, keeps the gain"
            " is undecided.",
        ),
        (VALUES[::-1], part(40, 60), "This speaks for a change of where CLIP looks, against a bias."),
    ],
)
def test_the_headline_favours_a_hypothesis(shares, keep, favours):
    numbers = ByOutcome(effects(*shares), effects(*shares))
    constants = ByOutcome(both(keep, part(92, 99)), both(keep, part(92, 99)))
    options = {"label": "IVLP", "prompts": True}
    sentences = conclude(numbers, constants, images=100, **options)
    assert next(s for s in sentences if "speaks" in s).startswith(favours)
    assert sum("calibrated log-likelihood" in s for s in sentences) == 2
    # Nothing is favoured where accuracy has no sure gain.
    numbers = ByOutcome(effects(nothing(), nothing(), nothing(), gain=NO_GAIN), numbers.calibrated)
    constants = ByOutcome(both(nothing(), nothing(), NO_GAIN), constants.calibrated)
    sentences = conclude(numbers, constants, images=100, **options)
    assert not any("speaks" in s for s in sentences) and "no sure gain in accuracy" in sentences[0]
    assert conclude(numbers, constants, images=19, **options)[0].startswith(
        "Undecided, because there are too few images, 19"
    )


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
