import jax
import numpy as np
import pytest

from clipbias.analysis.statistics import (
    Moments,
    divided_by_sum,
    merge,
    rank_correlation,
    stretched,
)

DRAW = np.random.default_rng(0)
of = jax.jit(Moments.of)
VALUES = DRAW.normal(5, 2, (11, 2, 3)).astype(np.float32)


def batched(values, mask):
    """Moments of batches of four, as a pass over a dataset makes them."""
    totals = {}
    for start in range(0, len(values), 4):
        batch = slice(start, start + 4)
        totals = merge(totals, {"x": of(values[batch], mask[batch])})
    return totals["x"]


def test_batches_add_up_to_the_whole():
    mask = np.ones(len(VALUES), bool)
    mask[[2, 7]] = False
    values = VALUES.copy()
    values[2] = np.nan  # what is masked may hold anything
    moments = batched(values, mask)
    counted = VALUES[mask].astype(np.float64)
    assert moments.samples == 9
    np.testing.assert_allclose(moments.mean, counted.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.standard_error, counted.std(0, ddof=1) / 3, rtol=1e-5)
    assert np.isnan(of(VALUES[:1]).standard_error).all()


def test_counts_may_differ_within_a_sample():
    mask = DRAW.random((11, 2)) < 0.6
    moments = batched(VALUES, mask)
    for j in range(2):
        counted = VALUES[mask[:, j], j].astype(np.float64)
        np.testing.assert_allclose(moments.mean[j], counted.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.squares[j], len(counted) * counted.var(0), rtol=1e-5)


def test_a_far_mean_costs_no_precision():
    values = np.float32(1e4) + DRAW.normal(0, 1, (400, 1)).astype(np.float32)
    moments = batched(values, np.ones(400, bool))
    np.testing.assert_allclose(moments.squares, 400 * values.astype(np.float64).var(0), rtol=1e-3)


def test_rows_are_divided_by_their_sum_or_stretched():
    rows = np.array([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    visible = np.array([[True, True, False], [True, True, True]])
    padded = np.where(visible, rows, 7)
    divided = jax.jit(divided_by_sum)(padded, visible)
    np.testing.assert_allclose(divided, [[0.25, 0.75, 0], [0, 0, 0]])
    np.testing.assert_allclose(jax.jit(stretched)(rows + 2), [[1 / 3, 1, 0], [0, 0, 0]], rtol=1e-6)


def test_rank_correlation_shares_ranks_of_equal_values():
    x, y = np.array([3, 1, 1, 2], np.float32), np.array([10, 2, 0, 5], np.float32)
    run = jax.jit(rank_correlation)
    expected = np.corrcoef([3, 0.5, 0.5, 2], [3, 1, 0, 2])[0, 1]
    assert float(run(x, y)) == pytest.approx(expected, rel=1e-5)
    assert float(run(x, -x)) == pytest.approx(-1)
    assert float(run(x, np.ones(4, np.float32))) == 0
