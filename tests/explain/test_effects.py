"""Calibration, interactions, crossed seeds and shares against plain float64 computations."""

import itertools

import numpy as np
import pytest

from clipbias.explain import temperature
from clipbias.explain.effects import (
    Measured,
    Sample,
    accuracies,
    measure,
    over_seeds,
    summarize_effects,
    summarize_replacements,
    temperature_alone,
)
from clipbias.explain.temperature import calibrate, halves, raw_log_likelihoods
from clipbias.explain.uncertainty import RESAMPLES, Estimate, cross, draw_counts, interactions, mean_over_datasets
from clipbias.training.calibration import fit_temperatures
from tests.reference import calibration, factorial

EFFECTS = ("attention", "scale", "values")
CORNERS = tuple("".join(letters) for letters in itertools.product("RP", repeat=3))


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


def test_temperatures_are_the_most_likely_ones():
    logits, labels = classified()
    temperatures = fit_temperatures(logits, labels)
    expected = [calibration.temperature(logits[:, k], labels, np.ones(len(labels))) for k in range(3)]
    np.testing.assert_allclose(temperatures, expected, rtol=1e-6)
    assert temperatures[2] / temperatures[0] > 30


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.01), (-1.0, 100.0)])
def test_temperatures_stay_within_bounds(sign, expected):
    labels = np.arange(40) % 2
    logits = sign * 10 * np.eye(2, dtype=np.float32)[labels][:, None]
    assert fit_temperatures(logits, labels) == pytest.approx(expected)
    calibrated = calibrate(logits, labels)
    np.testing.assert_allclose(calibrated.temperatures, expected)
    np.testing.assert_allclose(calibrated.values, calibration.log_likelihoods(logits[:, 0], labels, expected)[:, None])
    np.testing.assert_allclose(calibrated.draws, calibrated.values.mean(), atol=1e-6)


def drawn(logits, labels, second, counts, values):
    """A resample's mean: with the images' temperatures, and what new temperatures change divided by the root of 3."""
    fixed = counts @ values / len(labels)
    return fixed + (calibration.cross_fitted(logits, labels, second, counts.astype(float)) - fixed) / 3**0.5


def test_the_variance_of_what_temperatures_cost_is_three_times_too_large():
    """The reason for the root of 3: `d²` of two independent errors, and of these with as large ones added."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(2, 400, 2))[:, :, 0]
    again = draw.normal(size=(400, 4000, 2))
    d = scores[0] - scores[1]
    resampled = (d[:, None] + again[..., 0] - again[..., 1]) ** 2
    assert resampled.var(axis=1).mean() / (2 * 2**2) == pytest.approx(3, rel=0.15)


def test_every_resample_has_temperatures_of_its_own():
    logits, labels = classified()
    counts = draw_counts(len(labels), seed=0)
    calibrated = calibrate(logits, labels, counts)
    second = halves(labels)
    assert calibrated.refitted
    for k, row in itertools.product(range(3), (0, 1, 77, 1999)):
        expected = drawn(logits[:, k], labels, second, counts[row], calibrated.values[:, k])
        assert calibrated.draws[row, k] == pytest.approx(expected, abs=1e-6)
    for k in range(3):
        ones = np.ones(len(labels))
        assert calibrated.values[:, k].mean() == pytest.approx(
            calibration.cross_fitted(logits[:, k], labels, second, ones), abs=1e-8
        )
    fixed = calibrate(logits, labels, counts, refit=False)
    np.testing.assert_allclose(fixed.draws, counts @ calibrated.values / len(labels), atol=1e-12)
    assert not fixed.refitted and np.abs(fixed.draws - calibrated.draws).max() > 1e-4


def test_resamples_far_from_the_fit_are_followed():
    """Few and nearly separated images: temperatures of some resamples lie at a bound."""
    logits, labels = classified(n=24, forms=1, classes=2, seed=2, scales=(6.0,))
    counts = draw_counts(24, seed=1)
    calibrated = calibrate(logits, labels, counts, seed=1)
    second = halves(labels, seed=1)
    for row in np.argsort(calibrated.draws[:, 0])[[0, 1, -2, -1]]:
        expected = drawn(logits[:, 0], labels, second, counts[row], calibrated.values[:, 0])
        assert calibrated.draws[row, 0] == pytest.approx(expected, abs=2e-6)


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
    counts = draw_counts(200)
    calibrated = calibrate(logits, labels, counts)
    assert np.quantile(calibrated.draws[:, 1] - calibrated.draws[:, 0], 0.025) > 0.5
    assert calibrated.values[:, 1].mean() == pytest.approx(
        calibration.cross_fitted(logits[:, 1], labels, second, np.ones(200)), abs=1e-8
    )
    _, rows = np.unique(counts[:, wrong] > 0, axis=0, return_index=True)
    assert len(rows) == 2**mistakes  # resamples with and without each mistake
    for row in rows:
        expected = drawn(logits[:, 1], labels, second, counts[row], calibrated.values[:, 1])
        assert calibrated.draws[row, 1] == pytest.approx(expected, abs=2e-6)


def test_many_images_and_classes_keep_their_temperatures(monkeypatch):
    logits, labels = classified()
    assert calibrate(logits, labels).refitted
    monkeypatch.setattr(temperature, "REFIT_UP_TO", len(labels) * 4 - 1)
    assert not calibrate(logits, labels).refitted


def test_a_temperature_changes_nothing_that_is_calibrated():
    logits, labels = classified(forms=1)
    both = np.concatenate([logits, 7 * logits], axis=1)
    measured = measure(both, labels)
    np.testing.assert_allclose(np.ptp(measured.samples["calibrated"].draws, axis=1), 0, atol=1e-6)
    assert measured.samples["accuracy"].mean[0] == measured.samples["accuracy"].mean[1]
    assert measured.temperatures[1] / measured.temperatures[0] == pytest.approx(7, rel=1e-6)


def test_interactions_are_what_smaller_sets_leave():
    draw = np.random.default_rng(0)
    outcome = {name: draw.normal(size=5) for name in CORNERS}
    values = np.stack([outcome[name] for name in CORNERS], axis=1)
    terms = interactions(values, EFFECTS)
    expected = calibration.moebius(outcome, EFFECTS)
    assert list(terms) == list(expected) and len(terms) == 4
    for name, term in expected.items():
        np.testing.assert_allclose(terms[name], term, atol=1e-12)
    single = values[:, [4, 2, 1]] - values[:, :1]
    np.testing.assert_allclose(single.sum(1) + sum(terms.values()), values[:, 7] - values[:, 0], atol=1e-12)


def test_numbers_of_effects_are_means_over_images():
    logits, labels = classified(n=120, forms=10)
    streams = (*CORNERS, "RR:token", "RR:vector")
    numbers_by_outcome = summarize_effects(measure(logits, labels), streams, EFFECTS)
    second = halves(labels)
    ones = np.ones(len(labels))
    means = {
        "accuracy": 100 * (logits.argmax(-1) == labels[:, None]).mean(0),
        "calibrated": [calibration.cross_fitted(logits[:, k], labels, second, ones) for k in range(10)],
    }
    for outcome, values in means.items():
        corner = dict(zip(streams, map(np.asarray, values), strict=True))
        numbers = numbers_by_outcome[outcome]
        gain = corner["PPP"] - corner["RRR"]
        assert numbers.reference.value == pytest.approx(float(corner["RRR"]))
        assert numbers.gain.value == pytest.approx(float(gain))
        for part, expected in (
            ("effects", factorial.shapley(corner, EFFECTS)),
            ("interactions", calibration.moebius(corner, EFFECTS)),
            ("corners", {name: corner[name] - corner["RRR"] for name in streams[1:]}),
        ):
            named = getattr(numbers, part)
            assert list(named) == list(expected)
            for name, value in expected.items():
                assert named[name].value == pytest.approx(float(value), abs=1e-8), (part, name)
                assert named[name].low <= value <= named[name].high
                if named[name].share is not None:
                    assert named[name].share.value == pytest.approx(float(value / gain), rel=1e-6)


FORMS = ("tuned", "kept:kind", "reference", "lost:kind", "lost:random")


def test_kept_counts_from_below_and_lost_from_above():
    draw = np.random.default_rng(0)
    mean = np.array([60.0, 55.0, 40.0, 41.0, 59.5])
    draws = mean + 0.1 * draw.normal(size=(RESAMPLES, 5))
    measured = Measured({name: Sample(mean, draws) for name in ("accuracy", "calibrated")}, {}, 10, 1, True, np.ones(5))
    replacements = summarize_replacements(measured, FORMS)
    for numbers in (replacements.accuracy, replacements.calibrated):
        assert numbers.gain.value == 20
        assert numbers.kept["kind"].share.value == pytest.approx(15 / 20)
        assert numbers.lost["kind"].share.value == pytest.approx(19 / 20)
        assert numbers.lost["random"].share.value == pytest.approx(0.5 / 20)
        low, high = np.quantile((draws[:, 0] - draws[:, 3]) / (draws[:, 0] - draws[:, 2]), [0.025, 0.975])
        share = numbers.lost["kind"].share
        assert [share.low, share.high] == pytest.approx([low, high])


def test_what_a_temperature_alone_gives():
    """Tuning that only divides logits by seven gains nothing but a temperature."""
    logits, labels = classified(n=200, forms=1, scales=(14.0,))
    effect = temperature_alone(measure(np.concatenate([logits, logits / 7], axis=1), labels), 0, 1)
    plain = raw_log_likelihoods(logits, labels).mean()
    fitted = calibration.cross_fitted(logits[:, 0], labels, halves(labels), np.ones(200))
    raw_gain = calibration.log_likelihoods(logits[:, 0], labels, 7).mean() - plain
    assert effect.value == pytest.approx(fitted - plain)
    assert effect.share.value == pytest.approx((fitted - plain) / raw_gain)
    assert 0.9 < effect.share.value < 1.1


# Student's 75, 97.5 and 99.5 % quantiles by degrees of freedom, from a printed table.
STUDENT = {1: (1.0, 12.706, 63.657), 2: (0.8165, 4.3027, 9.9248), 4: (0.7407, 2.7764, 4.6041)}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_part_of_seeds_is_students_in_every_contrast(seeds):
    draw = np.random.default_rng(seeds)
    means = draw.normal(size=(seeds, 3)) @ draw.normal(size=(3, 3))
    crossed = cross(means, [np.tile(mean, (400_000, 1)) for mean in means])
    for contrast in ([1, 0, 0], [0, 1, -1], [-0.5, 1, -0.5]):
        values = means @ contrast
        student = (crossed @ contrast - values.mean()) / (values.std(ddof=1) / np.sqrt(seeds))
        for sign in (1, -1):
            quantiles = np.quantile(sign * student, [0.75, 0.975, 0.995])
            np.testing.assert_allclose(quantiles, STUDENT[seeds - 1], rtol=0.04)


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


def test_several_seeds_are_averaged_and_their_spread_counts():
    logits, labels = classified(forms=2)
    other = logits + 2 * np.random.default_rng(5).normal(size=logits.shape)
    single = [measure(x, labels) for x in (logits, other.astype(np.float32))]
    both = over_seeds(single)
    assert both.seeds == 2 and both.images == len(labels)
    for name, sample in both.samples.items():
        np.testing.assert_allclose(sample.mean, np.mean([of_seed.samples[name].mean for of_seed in single], axis=0))
        assert sample.draws.std(0).min() > min(of_seed.samples[name].draws.std(0).min() for of_seed in single)
    with pytest.raises(ValueError, match="same images"):
        over_seeds([single[0], measure(logits[:50], labels[:50])])


def test_datasets_are_generalised_from_five_on():
    assert mean_over_datasets([1.0, 2.0, 3.0, 6.0]) == Estimate(3.0)
    interval = mean_over_datasets([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.low == pytest.approx(3 - 2.776445 * np.sqrt(2.5 / 5))


@pytest.mark.parametrize(("better", "worse"), [(0.3, 0.0), (15.0, 6.0)])
def test_accuracy_intervals_cover_differences_in_few_images(better, worse):
    """Of 300 images as many as this turn right or wrong on average, often none."""
    draw = np.random.default_rng(3)
    covered = []
    width = []
    n = 300
    for _ in range(150):
        change = draw.choice([1, -1, 0], n, p=[better / n, worse / n, 1 - (better + worse) / n])
        right = np.stack([change < 0, change > 0], axis=1)
        logits = np.stack([right, np.full((n, 2), 0.5)], axis=-1).astype(np.float32)
        draws = accuracies(logits, np.zeros(n, int)).draws
        low, high = np.quantile(draws[:, 1] - draws[:, 0], [0.025, 0.975])
        covered.append(low <= 100 * (better - worse) / n <= high)
        width.append(high - low)
    assert np.mean(covered) >= 0.9
    plain = 2 * 1.96 * 100 / n * np.sqrt(better + worse)
    assert np.mean(width) < 1.1 * plain + 1.0
