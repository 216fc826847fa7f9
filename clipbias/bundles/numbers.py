"""Accuracies, calibration, standard errors and paired differences from predictions, in plain NumPy.

Nothing here is shared with the code that trains, evaluates or draws tables: it checks what that code wrote.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from clipbias.bundles.files import Predictions

BINS = 15
WITHIN = 1.96  # standard errors on each side of a 95 % interval
BASE, NEW, HARMONIC = "base", "new", "H"


@dataclasses.dataclass(frozen=True)
class Number:
    """A mean over seeds in percent, or a difference of two in points, with standard errors.

    Attributes:
      value: of all seeds.
      images_error, seeds_error: of the choice of test images, and of seeds.
      seeds: how many.
      right: share of seeds that are right on each image, `[n]`, NaN where it could not be read; `None` where seeds have
        different images, or of H.
    """

    value: float
    images_error: float
    seeds_error: float
    seeds: int = 1
    right: np.ndarray | None = None

    @property
    def error(self) -> float:
        """The standard error of both together."""
        return math.sqrt(self.images_error**2 + self.seeds_error**2)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, from a normal distribution."""
        return self.value - WITHIN * self.error, self.value + WITHIN * self.error

    @property
    def is_clear(self) -> bool:
        """Of a difference: whether its interval leaves out 0."""
        return abs(self.value) > WITHIN * self.error


def accuracy(run: Predictions) -> float:
    """Top-1 accuracy in percent of the images that could be read."""
    return 100.0 * float(run.right.sum()) / len(run.right) if len(run.right) else math.nan


def mean(runs: Sequence[Predictions]) -> Number:
    """Over the seeds of a cell: the binomial error of the mean on one run's images, and s / √n of the seeds."""
    values = np.asarray([accuracy(run) for run in runs])
    value, images = float(values.mean()), max(1, min(len(run.right) for run in runs))
    same = all(np.array_equal(run.read, runs[0].read) and run.images.hash == runs[0].images.hash for run in runs)
    right = None
    if same:
        right = np.full(len(runs[0].read), np.nan)
        right[runs[0].read] = np.mean([run.right for run in runs], axis=0)
    return Number(value, math.sqrt(value * (100.0 - value) / images), _of_seeds(values), len(runs), right)


def harmonic(base: Sequence[Predictions], new: Sequence[Predictions]) -> Number:
    """The harmonic mean of base and new accuracy, seed by seed; images of both halves are independent."""
    pairs = [(accuracy(one), accuracy(other)) for one, other in zip(base, new, strict=True)]
    values = np.asarray([2 * one * other / (one + other) if one + other else 0.0 for one, other in pairs])
    b, n = mean(base), mean(new)
    total = b.value + n.value
    slopes = (2 * (n.value / total) ** 2, 2 * (b.value / total) ** 2) if total else (0.0, 0.0)
    images = math.sqrt((slopes[0] * b.images_error) ** 2 + (slopes[1] * n.images_error) ** 2)
    return Number(float(values.mean()), images, _of_seeds(values), len(values))


def _of_seeds(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def difference(one: Number, other: Number) -> Number:
    """`one` less `other`, image by image where both have the same images, else as if images were independent."""
    images = math.sqrt(one.images_error**2 + other.images_error**2)
    a, b = one.right, other.right
    if a is not None and b is not None and np.array_equal(np.isnan(a), np.isnan(b)):
        each = 100.0 * (a - b)[~np.isnan(a)]
        images = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    seeds = math.sqrt(one.seeds_error**2 + other.seeds_error**2)
    return Number(one.value - other.value, images, seeds, min(one.seeds, other.seeds))


def average(numbers: Sequence[Number]) -> Number:
    """Over datasets, whose errors are independent."""
    count = len(numbers)
    images, seeds = (
        math.sqrt(sum(getattr(number, name) ** 2 for number in numbers)) / count
        for name in ("images_error", "seeds_error")
    )
    return Number(sum(number.value for number in numbers) / count, images, seeds, min(one.seeds for one in numbers))


def calibration_error(run: Predictions) -> tuple[float, float]:
    """The expected calibration error in percent, 15 bins of equal width, and how far rounding may have moved it.

    Log-probabilities have half precision. Each confidence may be off by its rounding, and an image that is as near as
    that to the edge of a bin may be in the other bin, which changes both bins by its gap.
    """
    assert run.log_probs is not None
    log_probs = run.log_probs[run.read, 0].astype(np.float64)
    sure = np.exp(log_probs)
    rounding = sure * (np.abs(log_probs) * 2.0**-11 + 2.0**-24)
    bins = np.minimum(np.maximum(np.ceil(sure * BINS) - 1, 0), BINS - 1)
    total = sum(abs(float((run.right[bins == bin] - sure[bins == bin]).sum())) for bin in range(BINS))
    to_edge = np.abs(sure * BINS - np.round(sure * BINS))
    moved = np.abs(run.right - sure)[to_edge <= BINS * rounding]
    return 100.0 * total / len(sure), 100.0 * float(rounding.sum() + 2.0 * moved.sum()) / len(sure)


def contradictions(run: Predictions) -> int:
    """Images whose class and log-probabilities exclude each other: right without the label's being the largest, …

    Classes whose probabilities are equal in half precision do not count.
    """
    assert run.log_probs is not None
    found = run.log_probs[run.read]
    five, own = found[:, :5], found[:, 5]
    first = five[:, 0]
    wrong = np.where(run.right, own < first, (own > first) | ((own == first) & (five[:, 1] < first)))
    unordered = (np.diff(five, axis=1) > 0).any(axis=1)
    sums = np.exp(five.astype(np.float64)).sum(axis=1)
    return int((wrong | unordered | ~np.isfinite(own) | (sums > 1.01)).sum())
