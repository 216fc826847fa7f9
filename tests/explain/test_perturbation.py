import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.explain.perturbation import area_under_curve, black_out, removed

MAP = jnp.array([[0.1, 0.9, 0.5, 0.5]])


@pytest.mark.parametrize(
    "fraction, direction, expected",
    [
        (0.0, "positive", []),
        (0.25, "positive", [1]),
        (0.5, "positive", [1, 2]),  # ties by position
        (0.25, "negative", [0]),
        (0.75, "negative", [0, 2, 3]),
    ],
)
def test_which_patches_go(fraction, direction, expected):
    assert np.flatnonzero(removed(MAP, fraction, direction)[0]).tolist() == expected


def test_black_out_makes_whole_patches_black():
    images = jnp.full((1, 4, 4, 3), 7, jnp.uint8)
    changed = black_out(images, jnp.array([[False, True, False, False]]), 2)
    assert changed.dtype == jnp.uint8
    expected = np.full((4, 4), 7)
    expected[:2, 2:] = 0
    np.testing.assert_array_equal(changed[0, :, :, 0], expected)


def test_area_under_curve():
    assert area_under_curve((0.0, 0.5, 0.75), np.array([1.0, 1.0, 0.0])) == pytest.approx((0.5 + 0.125) / 0.75)
