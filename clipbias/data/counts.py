"""How many images a number rests on, in numbers and in words: training images of each class, and test images."""

import math
from collections.abc import Sequence

import numpy as np

from clipbias.sentences import counted

# Test images; of fewer the normal distribution is no good approximation, and accuracies have a Wilson interval.
SMALL = 100
# Half the width of a 95 % interval, in standard errors.
WITHIN = 1.959963984540054


def images_per_class(labels: np.ndarray, classes: int) -> list[int]:
    """The smallest and the largest number of images of a class, `[lowest, highest]`."""
    counts = np.bincount(labels, minlength=classes)
    return [int(counts.min()), int(counts.max())]


def range_words(numbers: Sequence[int]) -> str:
    """The smallest and the largest of some numbers: "16", or "6 to 16"."""
    return " to ".join(f"{number:,}" for number in dict.fromkeys((min(numbers), max(numbers))))


def wilson_interval(accuracy: float, images: float) -> tuple[float, float]:
    """The 95 % interval of an accuracy in percent on `n` test images (Wilson 1927).

    `(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`; the accuracy may be a mean over seeds.
    """
    share = min(max(accuracy / 100, 0.0), 1.0)
    square = WITHIN**2 / images
    centre = share + square / 2
    half = WITHIN * math.sqrt(share * (1 - share) / images + square / images / 4)
    low, high = ((centre - half) / (1 + square), (centre + half) / (1 + square))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def interval_words(accuracy: float, images: float, digits: int = 1) -> str:
    """The interval of an accuracy on few images, "64.6 to 98.5"; "" on many."""
    if images >= SMALL:
        return ""
    low, high = wilson_interval(accuracy, images)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def accuracy_words(accuracy: float, images: int, what: str = "test image") -> str:
    """An accuracy with the number of images: "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"."""
    words = f"{accuracy:.2f} % of {counted(images, what)}"
    interval = interval_words(accuracy, images)
    return f"{words} (95 % interval {interval})" if interval else words
