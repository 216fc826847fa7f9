"""Bootstrap intervals against plain computations and known distributions."""

import numpy as np
import pytest

from clipbias.explain import uncertainty
from clipbias.explain.uncertainty import (
    estimate,
    excludes,
    interval,
    resample,
    share,
    shares,
)


def test_an_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(3, 2, (400, 1))
    low, high = interval(resample(values)[:, 0])
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_memory_is_bounded_without_changing_the_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 3))
    whole = resample(values, seed=4)
    monkeypatch.setattr(uncertainty, "_AT_ONCE", 50 * 7)
    np.testing.assert_allclose(resample(values, seed=4), whole, atol=1e-12)
    assert np.abs(resample(values, seed=5) - whole).max() > 0.01


@pytest.mark.parametrize("mean", [1, -1])
def test_shares_are_paired(mean: int) -> None:
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
