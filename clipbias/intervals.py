"""Intervals at 95 %: of accuracies (Wilson), of means over images and their shares (bootstrap), over seeds (Student).

Intervals are percentiles of the bootstrap (Efron 1979). Images are drawn with replacement. All numbers of a study use
the same draws, so differences and shares stay paired.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clipbias.sentences import counted

# Half the width of a 95 % interval, in standard errors.
Z_95 = 1.959963984540054
# Below so many test images the normal distribution is a poor approximation, and accuracies have a Wilson interval.
SMALL = 100
RESAMPLES = 2000
LEVEL = 0.95
LARGEST_SHARE = 10.0
_ROUNDING = 1e-9  # of float64 means of points and nats
OUTCOMES = ("accuracy", "log_likelihood")
UNITS = {"accuracy": ("points", 1), "log_likelihood": ("nats", 3)}  # unit and digits
# Draws, rows by images, of one round: bounds the memory whatever the dataset's size.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, if any."""

    value: float
    low: float | None = None
    high: float | None = None
    share: "Estimate | None" = None  # of a gain; `None` where the gain's interval includes 0, or without a gain

    @property
    def ends(self) -> tuple[float, float, float]:
        """Value and ends of its interval, for a data frame; NaN where unknown."""
        # NaN, not `None`: a column of `None` alone holds no numbers, by which figures select.
        low, high = (math.nan if end is None else end for end in (self.low, self.high))
        return self.value, low, high


UNKNOWN = Estimate(math.nan)


@functools.lru_cache(maxsize=1)
def draw_counts(n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Counts how often each resample holds each of `n` images: uint8 `[resamples, n]`."""
    # Counts instead of indices: a mean over a resample is then a matrix product, in which all numbers share the draws.
    generator = np.random.default_rng(seed)
    rounds = max(1, _AT_ONCE // n)
    # Bytes suffice, at an eighth of the memory of int64: 2,000 resamples of 50,000 images are 100 MB.
    counts = np.empty((resamples, n), np.uint8)  # a count above 255 never happens: its probability is below 1e-500
    for start in range(0, resamples, rounds):
        part = counts[start : start + rounds]
        # Each resample has bins of its own in one `bincount` over the whole round.
        rows = generator.integers(0, n, part.shape) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(rows.ravel(), minlength=part.size).reshape(part.shape)
    counts.setflags(write=False)  # the cache hands this array to all callers
    return counts


def weigh(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums `values [n, q]` over the images of every resample, in float64: `[RESAMPLES, q]`."""
    # Counts become float64 for the product, eight times their size: round by round, so that this stays bounded.
    rounds = max(1, _AT_ONCE // max(len(values), 1))
    parts = [counts[start : start + rounds].astype(np.float64) @ values for start in range(0, len(counts), rounds)]
    return np.concatenate(parts)


def resample(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Averages `values [n, q]` over rows drawn with replacement: `[RESAMPLES, q]`. A seed fixes the rows."""
    values = np.asarray(values, np.float64)
    return weigh(draw_counts(len(values), seed=seed), values) / len(values)


def cross(means: Sequence[np.ndarray], draws: Sequence[np.ndarray], *, seed: int = 0) -> np.ndarray:
    """Crosses seeds and images: resamples `[R, q]` from means `[q]` and draws `[R, q]` of each training seed.

    A bootstrap over so few training seeds is too narrow: where they are all of the variance, its intervals cover 49 %
    for two and 86 % for five. So a weighted sum of the seeds' deviations is added to the mean of their resamples. Its
    weights make it Student's t times the standard error over seeds.
    """
    if len(draws) == 1:
        return draws[0]
    count = len(draws)
    # Another random stream than that of the images, which draw from `seed` itself: the two must be independent.
    generator = np.random.default_rng([seed, 1])
    resamples = len(draws[0])
    # A normal divided by the root of a chi-square is t, and the same weights serve all numbers, so that every linear
    # combination has its own t. A wider interval instead would be right for one number at one level alone.
    weights = generator.normal(size=(resamples, count))
    weights /= np.sqrt(count * generator.chisquare(count - 1, (resamples, 1)))
    # Both parts vary independently, so the variance of the sum is that over images plus that over seeds.
    return np.mean(draws, axis=0) + weights @ (np.stack(means) - np.mean(means, axis=0))


def interval(draws: np.ndarray) -> np.ndarray:
    """Returns the ends `[2, …]` of the central `LEVEL` of draws `[R, …]`."""
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def estimate(mean: float, draws: np.ndarray) -> Estimate:
    """Joins a mean and its interval, of draws `[R]`."""
    return Estimate(float(mean), *interval(draws).tolist())


def share(mean: float, draws: np.ndarray, gain: float, gain_draws: np.ndarray) -> Estimate:
    """Estimates a mean and its share of a gain; without a share where the gain's interval includes 0."""
    return shares(np.array([mean]), draws[:, None], gain, gain_draws)[0]


def shares(means: np.ndarray, draws: np.ndarray, gain: float, gain_draws: np.ndarray) -> list[Estimate]:
    """Estimates `share` for means `[q]` with draws `[R, q]`."""
    numbers = _with_intervals(means, draws)
    low, high = interval(gain_draws)
    # A difference between equal numbers is rounding, which may have the same sign in every resample.
    if low <= 0 <= high or abs(gain) < _ROUNDING:
        return numbers
    # Few resamples of a sure gain have another sign. They count as a tiny gain of its sign, so their share is clipped
    # to ± `LARGEST_SHARE`, as it is when a gain tends to 0 from its side: a ratio with its sign turned would be taken
    # for a small share.
    sign = np.sign(gain)
    gains = np.where(sign * gain_draws > 0, gain_draws, sign * np.finfo(np.float32).tiny)[:, None]
    of_gain = _with_intervals(means / gain, np.clip(draws / gains, -LARGEST_SHARE, LARGEST_SHARE))
    return [dataclasses.replace(number, share=part) for number, part in zip(numbers, of_gain, strict=True)]


def _with_intervals(means: np.ndarray, draws: np.ndarray) -> list[Estimate]:
    low, high = interval(draws).tolist()
    return [Estimate(*ends) for ends in zip(means.tolist(), low, high, strict=True)]


def excludes(number: Estimate | None, threshold: float = 0.0) -> int:
    """Returns the side of a threshold on which the interval lies: 1 above, -1 below, 0 for both or no interval."""
    if number is None or number.low is None or number.high is None:
        return 0
    if number.low > threshold:
        return 1
    return -1 if number.high < threshold else 0


def with_interval(number: Estimate, write: Callable[[float], str]) -> str:
    """Writes a number with its interval, if any: `5.3 (3.1 to 7.5)`."""
    if number.low is None or number.high is None:
        return write(number.value)
    return f"{write(number.value)} ({write(number.low)} to {write(number.high)})"


def change(number: Estimate, outcome: str) -> str:
    """Writes a change with its interval, without a unit."""
    return with_interval(number, f"{{:+z.{UNITS[outcome][1]}f}}".format)


def percent(share: Estimate | None) -> str:
    """Writes a share with its interval, in whole percent."""
    if share is None:
        return "an unknown part"
    value, _, interval = with_interval(in_points(share), "{:z.0f}".format).partition(" ")
    return f"{value} % {interval}".rstrip()


def in_points(share: Estimate) -> Estimate:
    """Converts a share to percent."""
    low, high = (None if end is None else 100 * end for end in (share.low, share.high))
    return Estimate(100 * share.value, low, high)


def by_reason(reasons: Iterable[tuple[str, str | None]]) -> list[str]:
    """Writes `A, B: why`, a line for each reason, from pairs of a label and its reason, if any."""
    labels_of: dict[str, list[str]] = {}
    for label, reason in reasons:
        if reason:
            labels_of.setdefault(reason, []).append(label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in labels_of.items()]


def wilson_interval(accuracy: float, n: float) -> tuple[float, float]:
    """Computes the 95 % interval of an accuracy in percent on `n` test images (Wilson 1927).

    `(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`; the accuracy may be a mean over seeds.
    """
    # A mean over seeds may exceed the bounds by rounding, and the root below would be NaN.
    share = min(max(accuracy / 100, 0.0), 1.0)
    square = Z_95**2 / n
    centre = share + square / 2
    half = Z_95 * math.sqrt(share * (1 - share) / n + square / n / 4)
    low, high = ((centre - half) / (1 + square), (centre + half) / (1 + square))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def binomial_error(accuracy: float, images: int) -> float:
    """Computes the standard error `√(p (1 − p) / n)` of an accuracy in percent on `n` test images.

    Below 100 images it is the width of Wilson's interval, divided by 3.92: the formula gives 0 for 0 or 100 %.
    """
    if images < SMALL:
        low, high = wilson_interval(accuracy, images)
        return (high - low) / (2 * Z_95)
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / images)


def accuracy_words(accuracy: float, images: int, what: str = "test image") -> str:
    """Formats an accuracy and the number of images: "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"."""
    words = f"{accuracy:.2f} % of {counted(images, what)}"
    if images >= SMALL:
        return words
    low, high = wilson_interval(accuracy, images)
    return f"{words} (95 % interval {low:.1f} to {high:.1f})"
