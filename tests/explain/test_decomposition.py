"""How constant a known part is, without the share that chance adds; `test_sections` compares the parts themselves."""

import numpy as np

from clipbias.explain.decomposition import constancy
from clipbias.explain.statistics import Moments


def of(parts_over_samples, counted=None):
    """What `observe_parts` gives for parts `[B, L, N, D]` whose queries `[B, L, N]` count, all of them by default."""
    values = np.asarray(parts_over_samples, np.float64)
    counted = np.ones(values.shape[:3], bool) if counted is None else counted

    def moments(values, counted):
        count = counted.sum(0)
        mask = counted.reshape(*counted.shape, *[1] * (values.ndim - counted.ndim))
        mean = (mask * values).sum(0) / np.maximum(mask.sum(0), 1)
        return Moments(count, mean, (mask * (values - mean) ** 2).sum(0))

    shared = np.ones(values.shape[:2], bool)
    total = moments((values * counted[..., None]).sum(2), shared)
    return {"part": moments(values, counted), "total": total, "tokens": moments(counted.sum(2), shared)}


def test_constancy_of_known_parts():
    draw = np.random.default_rng(0)
    vector = draw.normal(size=(1, 2, 1, 6))
    shares = constancy(
        of(np.broadcast_to(vector, (50, 2, 3, 6))), {"learned": 2 * vector[0, :, 0], "opposed": -vector[0, :, 0]}
    )
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_likeness"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["learned"], 1, atol=1e-6)
    np.testing.assert_allclose(shares["bias_cosine"]["opposed"], -1, atol=1e-6)
    shares = constancy(of(np.broadcast_to(draw.normal(size=(1, 2, 3, 6)), (50, 2, 3, 6))), {})
    np.testing.assert_allclose(shares["constancy"], 1, atol=1e-6)
    assert (shares["bias_likeness"] < 0.9).all()
    assert not constancy(of(np.zeros((4, 2, 3, 6))), {})["constancy"].any()
    single = constancy(of(draw.normal(size=(1, 2, 3, 6))), {})
    assert np.isnan(single["constancy"]).all() and np.isnan(single["bias_likeness"]).all()


def test_few_samples_make_nothing_look_constant():
    """Many data sets of a few samples each, one per layer: on average the shares are the true ones."""
    draw = np.random.default_rng(2)
    samples, sets, tokens, width = 2, 3000, 3, 16
    means = draw.normal(size=(tokens, width))
    # Tokens of one sample vary together, as those of one image do, and the last is missing in half of the samples.
    noise = 1.5 * draw.normal(size=(samples, sets, 1, width)) + 0.5 * draw.normal(size=(samples, sets, tokens, width))
    counted = np.ones((samples, sets, tokens), bool)
    counted[:, :, -1] = draw.random((samples, sets)) < 0.5
    variance = 1.5**2 + 0.5**2
    weights = np.array([1, 1, 0.5])[:, None]
    square = (weights * (means**2 + variance)).sum() / weights.sum()
    vector = (weights * means).sum(0) / weights.sum()
    shares = constancy(of(means + noise, counted), {})
    truth = (vector**2).sum() / square
    np.testing.assert_allclose(shares["bias_likeness"].mean(), truth, atol=0.02)
    whole = constancy(of(means[:2] + noise[:, :, :2]), {})
    truth = (means[:2] ** 2).sum() / (means[:2] ** 2 + variance).sum()
    np.testing.assert_allclose(whole["constancy"].mean(), truth, atol=0.02)
    nothing = constancy(of(noise, counted), {})
    for name in ("constancy", "bias_likeness"):  # without the correction 1/n and more
        assert abs(nothing[name].mean()) < 0.02
