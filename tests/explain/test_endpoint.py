"""The confirmatory conclusions against plain computations, and how often they reject what is exactly one half."""

import numpy as np
import pytest

from clipbias.explain import endpoint, temperature
from clipbias.explain.effects import Measured, Sample, over_seeds
from clipbias.explain.endpoint import CONSTANT, TOKENS_ALONE, conclude_cells, holm, measure_cell, summarize_cell
from clipbias.explain.results import EndpointCell, EndpointTest
from clipbias.explain.temperature import halves
from clipbias.explain.uncertainty import Estimate, draw_counts
from tests.reference import calibration

STREAMS = ("RRR", "PRR", "RPP", "PPP", "nothing", "mean")
# What each stream adds to the true class' logit.
AHEAD = {"RRR": 0.0, "PRR": 0.1, "RPP": 1.3, "PPP": 2.0, "nothing": 0.4, "mean": 1.2}


def seeds_of_logits(ahead=AHEAD, *, seeds=3, images=40, classes=3):
    """`[n, K, C]` of each seed, and the labels `[n]`."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, images)
    shared = draw.normal(size=(images, 1, classes))
    right = np.eye(classes)[labels][:, None] * np.array([ahead[name] for name in STREAMS])[:, None]
    noise = draw.normal(size=(seeds, images, len(STREAMS), classes))
    return [(shared + right + 0.3 * each).astype(np.float32) for each in noise], labels


def test_p_values_are_those_of_plain_loops(monkeypatch):
    """Resample by resample, seed by seed, each stream's log-likelihood under the other half's temperature."""
    monkeypatch.setattr(endpoint, "RESAMPLES", 300)
    monkeypatch.setattr(temperature, "REFIT_UP_TO", 0)  # what new temperatures do is tested with them
    logits, labels = seeds_of_logits()
    cell = measure_cell(("a", "b", "c"), logits, labels, STREAMS)
    second = halves(labels)
    outcome = {}
    for number, of_seed in enumerate(logits):
        for k, stream in enumerate(STREAMS):
            outcome[number, stream] = np.zeros(len(labels))
            for half in (second, ~second):
                other = of_seed[~half, k], labels[~half]
                fitted = calibration.temperature(*other, np.ones(len(other[1])))
                outcome[number, stream][half] = calibration.log_likelihoods(of_seed[half, k], labels[half], fitted)
    counts = draw_counts(len(labels), resamples=300)
    generator = np.random.default_rng([0, 1])
    normal = generator.normal(size=(300, 3))
    spread = generator.chisquare(2, 300)
    for test, (with_it, without) in zip(cell.tests, (("RPP", "RRR"), ("mean", "nothing")), strict=True):
        above = []
        for number in range(3):
            gain = outcome[number, "PPP"] - outcome[number, "RRR"]
            above.append(outcome[number, with_it] - outcome[number, without] - gain / 2)
        means = [each.mean() for each in above]
        draws = []
        for row in range(300):
            of_images = np.mean([counts[row] @ each / len(labels) for each in above])
            pulls = normal[row] / np.sqrt(3 * spread[row])
            draws.append(of_images + sum(pulls[s] * (means[s] - np.mean(means)) for s in range(3)))
        at_most_0 = sum(draw <= 0 for draw in draws)
        assert test.p == pytest.approx((1 + at_most_0) / 301) and at_most_0 > 0
        assert test.calibrated.value == pytest.approx(np.mean(means), abs=1e-7)
        ends = test.calibrated.low, test.calibrated.high
        np.testing.assert_allclose(ends, np.quantile(draws, [0.025, 0.975]), atol=1e-6)
        right = [100.0 * (of_seed.argmax(-1) == labels[:, None]) for of_seed in logits]
        at = STREAMS.index
        points = [x[:, at(with_it)] - x[:, at(without)] - (x[:, at("PPP")] - x[:, at("RRR")]) / 2 for x in right]
        assert test.accuracy.value == pytest.approx(np.mean(points)) and test.accuracy.low < test.accuracy.high
    assert [test.name for test in cell.tests] == [TOKENS_ALONE, CONSTANT]
    gains = [(outcome[s, "PPP"] - outcome[s, "RRR"]).mean() for s in range(3)]
    assert cell.gain.value == pytest.approx(np.mean(gains), abs=1e-7) and cell.models == ("a", "b", "c")


def test_no_p_value_is_0_and_temperatures_are_fitted_anew(monkeypatch):
    monkeypatch.setattr(endpoint, "RESAMPLES", 400)
    logits, labels = seeds_of_logits(AHEAD | {"RPP": 2.2}, seeds=1, images=200)
    tokens, constant = measure_cell(("a",), logits, labels, STREAMS).tests
    assert tokens.p == 1 / 401 < constant.p
    monkeypatch.setattr(temperature, "REFIT_UP_TO", 0)
    fixed, _ = measure_cell(("a",), logits, labels, STREAMS).tests
    assert fixed.calibrated.value == tokens.calibrated.value and fixed.calibrated.low != tokens.calibrated.low


def test_only_what_there_is_is_concluded(monkeypatch):
    monkeypatch.setattr(endpoint, "RESAMPLES", 50)
    logits, labels = seeds_of_logits(seeds=1)
    corners = measure_cell(("a",), [logits[0][:, :4]], labels, STREAMS[:4])
    assert [test.name for test in corners.tests] == [TOKENS_ALONE]
    assert measure_cell(("a",), logits, labels, ("RR", "RP", "PR", "PP", "nothing", "mean")) is None
    assert measure_cell(("a",), [logits[0][:19]], labels[:19], STREAMS) is None


def test_holms_correction_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.3, 0.5, 0.01]), [0.6, 0.6, 0.03])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([0.04]) == [0.04] and len(holm([])) == 0


def test_conclusions_are_corrected_over_all_cells_and_need_a_gain():
    def cell(gain, *p):
        number = Estimate(0.1, 0.0, 0.2)
        return EndpointCell(("m",), gain, tuple(EndpointTest(str(x), number, number, x) for x in p))

    sure = Estimate(0.3, 0.2, 0.4)
    first, second, unsure = conclude_cells(
        [cell(sure, 0.012, 0.03), cell(sure, 0.001), cell(Estimate(0.1, -0.1, 0.3), 0.001)]
    )
    assert [each.adjusted for each in first] == pytest.approx([0.024, 0.03])
    assert [each.adjusted for each in (*second, *unsure)] == pytest.approx([0.004, 0.004])
    assert [each.is_shown for each in (*first, *second, *unsure)] == [True, True, True, False]
    (alone,), (other,) = conclude_cells([cell(sure, 0.026), cell(sure, 0.06)])
    assert not alone.is_shown and not other.is_shown  # of two, 0.026 is too much


def outcomes(draw, effects, *, seeds=5, images=60, seed_share=0.5):
    """`Measured` of models whose mean differences from the reference are `effects`, of such images and seeds."""
    shape = (seeds, images, len(STREAMS))
    values = np.array([effects[name] for name in STREAMS]) + np.zeros(shape)
    values += np.sqrt(images * (1 - seed_share)) * draw.normal(size=(1, *shape[1:]))
    values += np.sqrt(seeds * seed_share) * draw.normal(size=(seeds, 1, len(STREAMS)))
    counts = draw_counts(images, resamples=1000).astype(float)
    measured = []
    for of_seed in values:
        sample = Sample(of_seed.mean(0), counts @ of_seed / images)
        samples = {"calibrated": sample, "accuracy": sample}
        measured.append(Measured(samples, {}, images, 1, True, np.ones(len(STREAMS))))
    return over_seeds(measured)


@pytest.mark.parametrize("seed_share", [0.0, 0.5, 1.0])
def test_exactly_one_half_is_rejected_as_rarely_as_stated(seed_share):
    draw = np.random.default_rng(1)
    half = {"RRR": 1.0, "PRR": 0.0, "RPP": 3.0, "PPP": 5.0, "nothing": 2.0, "mean": 4.0}
    p = []
    for _ in range(500):
        cell = summarize_cell(("a",), outcomes(draw, half, seed_share=seed_share), STREAMS)
        p.append([test.p for test in cell.tests])
    for share in np.mean(np.array(p) <= 0.05, axis=0):
        assert 0.03 <= share <= 0.07  # two standard errors to either side


def test_more_than_half_is_shown_and_less_is_not():
    draw = np.random.default_rng(2)
    effects = dict.fromkeys(STREAMS, 0.0) | {"RPP": 30.0, "PPP": 40.0, "mean": 10.0}
    cell = summarize_cell(("a",), outcomes(draw, effects), STREAMS)
    tokens, constant = cell.tests
    assert tokens.p < 0.01 and constant.p > 0.99
    ((shown, other),) = conclude_cells([cell])
    assert shown.is_shown and not other.is_shown
