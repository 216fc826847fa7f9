"""Counts of images in numbers and words, and intervals of accuracies on few images against SciPy."""

import numpy as np
import pytest
from scipy.stats import binomtest

from clipbias.data.confusion import binomial_error
from clipbias.data.few_shot import SMALL, accuracy_words, images_per_class, range_words, wilson_interval
from clipbias.prediction import Accuracy


@pytest.mark.parametrize(("correct", "images"), [(0, 1), (1, 1), (11, 12), (12, 12), (0, 40), (30, 99), (990, 1000)])
def test_the_interval_is_scipys(correct, images):
    expected = binomtest(correct, images).proportion_ci(0.95, "wilson")
    low, high = wilson_interval(100 * correct / images, images)
    np.testing.assert_allclose((low, high), (100 * expected.low, 100 * expected.high), atol=1e-9)
    if images < SMALL:
        np.testing.assert_allclose(
            binomial_error(100 * correct / images, images), (high - low) / 2 / 1.959964, rtol=1e-6
        )


def test_the_error_of_many_images_is_binomial():
    assert binomial_error(90, SMALL) == pytest.approx(100 * np.std([1] * 90 + [0] * 10) / 10)


def test_counts_in_words():
    assert images_per_class(np.array([0, 2, 2, 2]), 3) == [0, 3] and images_per_class(np.array([1, 0]), 2) == [1, 1]
    assert range_words([16, 16]) == "16" and range_words([6, 16]) == "6 to 16" and range_words([1200]) == "1,200"
    assert accuracy_words(91.6667, 12) == "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"
    assert accuracy_words(50, 1000) == "50.00 % of 1,000 test images"
    assert accuracy_words(100, 1, "val image") == "100.00 % of 1 val image (95 % interval 20.7 to 100.0)"


def test_an_accuracy_of_few_images_has_its_interval():
    few = Accuracy(("a", "b"), np.array([0] * 6 + [1] * 6), np.array([0] * 6 + [1] * 5 + [0]), {})
    assert repr(few).startswith("91.67 % of 12 images (95 % interval 64.6 to 98.5)")
    expected = binomtest(11, 12).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(few.interval, (100 * expected.low, 100 * expected.high))
