import jax
import numpy as np
import pytest

from clipbias.explain.faithfulness import area_under_curve, black_out, distinct_rows, removed

MAP = np.array([[0.1, 0.9, 0.5, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("fraction", "direction", "expected"),
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
    images = np.full((1, 4, 4, 3), 7, np.uint8)
    changed = jax.jit(black_out, static_argnums=2)(images, np.array([[False, True, False, False]]), 2)
    assert changed.dtype == np.uint8
    expected = np.full((4, 4), 7)
    expected[:2, 2:] = 0
    np.testing.assert_array_equal(changed[0, :, :, 0], expected)


def test_area_under_curve():
    assert area_under_curve((0.0, 0.5, 0.75), np.array([1.0, 1.0, 0.0])) == pytest.approx((0.5 + 0.125) / 0.75)


def test_every_image_and_removal_is_classified_once():
    gone = np.zeros((4, 3, 9), bool)
    gone[0, :, 0] = gone[1, :, 0] = True  # two tries remove the same patch of every image
    gone[2, 1, 8] = True
    gone[3] = True
    images, patches, which = distinct_rows(gone, np.array([True, True, False]))
    assert images.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({(image, *row) for image, row in zip(images, patches.tolist(), strict=True)}) == 6
    for k, image in np.ndindex(4, 2):
        assert images[which[k, image]] == image
        np.testing.assert_array_equal(patches[which[k, image]], gone[k, image])


def test_nothing_is_classified_where_no_image_could_be_read():
    images, patches, which = distinct_rows(np.ones((2, 3, 9), bool), np.zeros(3, bool))
    assert images.shape == (0,) and patches.shape == (0, 9) and not which.any()


def test_image_numbers_beyond_one_byte_stay_in_order():
    images, _, which = distinct_rows(np.ones((1, 300, 4), bool), np.ones(300, bool))
    assert images.tolist() == list(range(300)) == which[0].tolist()
