"""How far an accuracy, or the difference between two, may be from what other test images and other seeds would give.

Two things are drawn at random: the test images, and what goes with a seed (training images, the learnables' start,
their order). Each gives a variance of a mean over seeds, and the standard error is the root of their sum. All seeds are
tested on the same images, so more seeds lessen the second alone. What varies from image to image *and* from seed to
seed is in both, so that errors are rather too large than too small.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

# In standard errors, of an interval that holds 95 % of what is normally distributed.
WITHIN = 1.96


def harmonic_error(base: float, new: float, errors: tuple[float, float]) -> float:
    """The error of the harmonic mean `2 b n / (b + n)` of independent `b` and `n`, to first order."""
    if base + new <= 0:
        return 0.0
    slopes = 2 * (new / (base + new)) ** 2, 2 * (base / (base + new)) ** 2
    return math.hypot(*(slope * error for slope, error in zip(slopes, errors, strict=True)))


def seeds_error(values: Sequence[float]) -> float:
    """`s / √k`: the standard error of a mean over `k` seeds with the sample standard deviation `s`; 0 for one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """One method on one dataset: what a difference is taken of.

    Attributes:
      values: accuracy in percent by seed; the one seed `None` where nothing is drawn at random.
      images_error: the standard error that the choice of test images makes; `None` where it is not known.
      correct: by seed, whether each test image was right, bool `[n]`, the same images in all that are compared; empty
        where that was not kept.
    """

    values: Mapping[int | None, float]
    images_error: float | None
    correct: Mapping[int | None, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Accuracy in percent, over the seeds."""
        return statistics.fmean(self.values.values())


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how many points of accuracy one method is ahead of another, with the standard error.

    `paired` says whether it was taken image by image; otherwise test images count as if each method had its own.
    """

    points: float
    error: float
    paired: bool

    @property
    def is_within(self) -> bool:
        """Whether no difference is within the error, too."""
        return abs(self.points) <= WITHIN * self.error


def difference(first: Sequence[Measured], second: Sequence[Measured]) -> Difference | None:
    """Of two methods on the same datasets, averaged over these.

    Args:
      first, second: on each dataset, in the same order.

    Returns:
      `None` where there is nothing to compare, or the error is not known.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs or not all(one.values and other.values for one, other in pairs):
        return None
    variance, paired = 0.0, True
    for one, other in pairs:
        if one.correct.keys() == one.values.keys() and other.correct.keys() == other.values.keys():
            each = _mean_correct(one) - _mean_correct(other)
            variance += 1e4 * float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0
        elif one.images_error is None or other.images_error is None:
            return None
        else:
            paired = False
            variance += one.images_error**2 + other.images_error**2
    variance /= len(pairs) ** 2
    points = statistics.fmean(one.mean - other.mean for one, other in pairs)
    return Difference(points, math.sqrt(variance + _seeds_variance(pairs)), paired)


def _seeds_variance(pairs: Sequence[tuple[Measured, Measured]]) -> float:
    """Of the difference by seed where all have the same seeds, which go together; else of each by itself."""
    drawn = {frozenset(one.values) for pair in pairs for one in pair if None not in one.values}
    if len(drawn) == 1:
        (seeds,) = drawn
        by_seed = [statistics.fmean(_at(one, seed) - _at(other, seed) for one, other in pairs) for seed in seeds]
        return seeds_error(by_seed) ** 2
    return sum(seeds_error([*one.values.values()]) ** 2 for pair in pairs for one in pair) / len(pairs) ** 2


def _at(one: Measured, seed: int | None) -> float:
    return one.values[None] if None in one.values else one.values[seed]


def _mean_correct(one: Measured) -> np.ndarray:
    return np.mean([np.asarray(right, np.float64) for right in one.correct.values()], axis=0)
