"""Intervals, temperatures, crossed seeds and shares against plain float64 computations."""

import numpy as np
import pytest

from clipbias import intervals
from clipbias.analysis.causal_section import at_fitted_temperature, halves, outcomes, sample
from clipbias.intervals import cross, draw_counts, estimate, excludes, resample, share, shares
from tests.reference import calibration


def classified(n=90, forms=3, classes=4, seed=0, scales=(0.3, 3.0, 40.0)):
    """Logits whose right temperatures lie far apart, some of them too sure and some not sure enough."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    logits = draw.normal(size=(n, forms, classes)) + 1.2 * np.eye(classes)[labels][:, None]
    return (logits * np.resize(scales, forms)[None, :, None]).astype(np.float32), labels


def test_halves_hold_half_of_every_class():
    labels = np.repeat(np.arange(7), [1, 2, 3, 8, 9, 10, 11])
    second = halves(labels, seed=3)
    for label in range(7):
        of_class = labels == label
        assert abs(second[of_class].sum() - of_class.sum() / 2) <= 0.5
    assert abs(second.sum() - len(labels) / 2) <= 0.5
    np.testing.assert_array_equal(halves(labels, seed=3), second)
    assert (halves(labels, seed=4) != second).any()


def test_log_likelihoods_have_the_other_halfs_temperature_which_resamples_keep():
    logits, labels = classified()
    second = halves(labels)
    nats = np.stack([calibration.cross_fitted(logits[:, k], labels, second) for k in range(3)], axis=1)
    fitted = [[calibration.temperature(logits[half, k], labels[half]) for k in range(3)] for half in (~second, second)]
    np.testing.assert_allclose(at_fitted_temperature(logits, labels)[1], fitted, rtol=1e-6)
    measured = outcomes(logits, labels)
    counts = draw_counts(len(labels))
    for name, values in (("log_likelihood", nats), ("accuracy", 100.0 * (logits.argmax(-1) == labels[:, None]))):
        np.testing.assert_allclose(measured[name], values, atol=1e-8)
        of_ways = sample(measured)[name]
        np.testing.assert_allclose(of_ways.mean, values.mean(0), atol=1e-8)
        for row in (0, 77, 1999):
            np.testing.assert_allclose(of_ways.draws[row], counts[row] @ values / len(labels), atol=1e-8)


@pytest.mark.parametrize("mistakes", [1, 2])
def test_a_model_with_hardly_a_mistake_gains_surely(mistakes):
    """A half without a mistake rises to the lowest temperature, at which the other half's would cost hundreds."""
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 2
    frozen = draw.normal(size=(200, 2))
    tuned = 5.0 * np.eye(2)[labels] + draw.normal(size=(200, 2))
    assert (tuned.argmax(1) == labels).all()
    second = halves(labels)
    wrong = [np.flatnonzero(half)[0] for half in (second, ~second)][:mistakes]
    tuned[wrong] = tuned[wrong, ::-1]
    logits = np.stack([frozen, tuned], axis=1)
    values = outcomes(logits, labels)
    draws = sample(values).log_likelihood.draws
    assert np.quantile(draws[:, 1] - draws[:, 0], 0.025) > 0.5
    expected = calibration.cross_fitted(logits[:, 1], labels, second)
    np.testing.assert_allclose(values.log_likelihood[:, 1], expected, atol=1e-8)


def test_intervals_of_log_likelihoods_cover():
    """Of differences between two ways whose temperatures are far apart, though temperatures are fixed in resamples."""
    draw = np.random.default_rng(1)

    def classify(n):
        labels = draw.integers(0, 4, n)
        shown = np.eye(4)[labels]
        logits = np.stack([3 * (shown + draw.normal(size=(n, 4))), 0.4 * (1.5 * shown + draw.normal(size=(n, 4)))], 1)
        return logits, labels

    truth = np.diff(at_fitted_temperature(*classify(40_000))[0].mean(0)).item()
    covered = []
    for _ in range(100):
        draws = sample(outcomes(*classify(200))).log_likelihood.draws
        low, high = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975])
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.9


def test_one_seed_keeps_its_resamples_and_equal_seeds_add_nothing():
    draws = np.random.default_rng(0).normal(size=(50, 2))
    assert cross([np.zeros(2)], [draws]) is draws
    np.testing.assert_allclose(cross([np.ones(2)] * 3, [draws] * 3), draws, atol=1e-15)


@pytest.mark.parametrize(("seeds", "share"), [(2, 1.0), (3, 0.5), (5, 0.5), (5, 1.0)])
def test_intervals_over_seeds_and_images_cover(seeds, share):
    """Where seeds are so much of the variance of a mean, of 60 images."""
    draw = np.random.default_rng(0)
    covered = []
    for number in range(400):
        images = np.sqrt(60 * (1 - share)) * draw.normal(size=60)
        values = images + np.sqrt(seeds * share) * draw.normal(size=(seeds, 1))
        counts = draw_counts(60, resamples=1000)
        draws = [(counts @ of_seed / 60)[:, None] for of_seed in values]
        low, high = np.quantile(cross(values.mean(1, keepdims=True), draws, seed=number), [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) >= 0.92  # a standard error of one point below the limit


def test_memory_is_bounded_without_changing_the_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 3))
    whole = resample(values, seed=4)
    monkeypatch.setattr(intervals, "_AT_ONCE", 50 * 7)
    np.testing.assert_allclose(resample(values, seed=4), whole, atol=1e-12)
    assert np.abs(resample(values, seed=5) - whole).max() > 0.01


@pytest.mark.parametrize("mean", [1, -1])
def test_shares_are_paired(mean):
    """A part that is 30 % of the gain in every image is 30 % of it in every resample, however noisy that is."""
    gain = np.random.default_rng(1).normal(mean, 3, (300, 1))
    values = np.concatenate([0.3 * gain, gain], axis=1)
    draws = resample(values)
    means = values.mean(0)
    part = share(means[0], draws[:, 0], means[1], draws[:, 1])
    assert [part.share.value, part.share.low, part.share.high] == pytest.approx([0.3] * 3)
    assert excludes(part.share, 0.25) == 1 and excludes(part.share, 0.5) == -1
    assert part.value == pytest.approx(0.3 * means[1])


def test_no_share_of_a_gain_that_may_be_nothing():
    values = np.random.default_rng(2).normal(0, 3, (100, 2))
    draws = resample(values)
    means = values.mean(0)
    part = share(means[0], draws[:, 0], means[1], draws[:, 1])
    assert part.share is None and excludes(part.share, 0.5) == 0
    assert excludes(estimate(means[1], draws[:, 1])) == 0


def test_a_share_in_a_resample_without_the_gain_is_as_large_as_shares_get():
    parts = np.linspace(0, 1, 1000)
    gains = np.ones(1000)
    gains[400:420] = -1.0
    (estimated,) = shares(np.array([0.5]), parts[:, None], 1.0, gains)
    expected = [10.0 if 400 <= row < 420 else part for row, part in enumerate(parts)]
    np.testing.assert_allclose([estimated.share.low, estimated.share.high], np.quantile(expected, [0.025, 0.975]))
    assert estimated.share.value == 0.5 and estimated.low == pytest.approx(0.025)
