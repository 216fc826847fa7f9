"""How sure a mean over images is, what share it is of another, and both in words.

Intervals are percentiles of the bootstrap (Efron 1979): images are drawn with replacement, all numbers of a study from
the same draws, so that differences and shares stay paired.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
LARGEST_SHARE = 10.0
# Limits of the verdict: a share surely above the first is the main part, one surely below the second a minor one.
MAIN_SHARE = 0.5
MINOR_SHARE = 0.25
# Outcomes by name, their units, and digits.
OUTCOMES = ("accuracy", "log_likelihood")
UNITS = {"accuracy": ("points", 1), "log_likelihood": ("nats", 3)}
# Counts of one round of draws, rows by images: bounds the memory, whatever the dataset's size.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    # low, high: `None` where there is no interval.
    low: float | None = None
    high: float | None = None
    # Of a gain; `None` where the gain's interval includes 0, or where it is no part of one.
    share: "Estimate | None" = None


@functools.lru_cache(maxsize=1)
def draw_counts(n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample holds each of `n` images: uint8 `[resamples, n]`. A seed always draws the same."""
    generator = np.random.default_rng(seed)
    rounds = max(1, _AT_ONCE // n)
    counts = np.empty((resamples, n), np.uint8)  # a count above 255 never happens: its probability is below 1e-500
    for start in range(0, resamples, rounds):
        part = counts[start : start + rounds]
        rows = generator.integers(0, n, part.shape) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(rows.ravel(), minlength=part.size).reshape(part.shape)
    counts.setflags(write=False)  # all who ask get the same array
    return counts


def weigh(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums `[RESAMPLES, q]` of `values [n, q]` over the images of every resample, in float64 and bounded memory."""
    rounds = max(1, _AT_ONCE // max(len(values), 1))
    parts = [counts[start : start + rounds].astype(np.float64) @ values for start in range(0, len(counts), rounds)]
    return np.concatenate(parts)


def resample(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Means `[RESAMPLES, q]` of `values [n, q]` over rows drawn with replacement; a seed draws the same rows always."""
    values = np.asarray(values, np.float64)
    return weigh(draw_counts(len(values), seed=seed), values) / len(values)


def cross(means: Sequence[np.ndarray], draws: Sequence[np.ndarray], *, seed: int = 0) -> np.ndarray:
    """Resamples `[R, q]` of seeds and images crossed, of means `[q]` and draws `[R, q]` of each on the same images.

    One seed alone keeps its resamples of images. Seeds are too few for a bootstrap of their own: its intervals cover
    49 % for two seeds and 86 % for five where seeds are all of the variance. So to the mean of the seeds' resamples
    comes a weighted sum of the seeds' deviations, with weights that make it Student's t times the standard error over
    seeds, in every linear combination of the numbers. A factor for the interval alone would do that at one level.
    """
    if len(draws) == 1:
        return draws[0]
    count = len(draws)
    # Not the stream of those who draw from the seed itself, such as the images.
    generator = np.random.default_rng([seed, 1])
    resamples = len(draws[0])
    weights = generator.normal(size=(resamples, count))
    weights /= np.sqrt(count * generator.chisquare(count - 1, (resamples, 1)))
    return np.mean(draws, axis=0) + weights @ (np.stack(means) - np.mean(means, axis=0))


def interval(draws: np.ndarray) -> np.ndarray:
    """The central `LEVEL` of draws `[R, …]`: its ends `[2, …]`."""
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def estimate(mean: float, draws: np.ndarray) -> Estimate:
    """A mean with its interval."""
    low, high = interval(draws).tolist()
    return Estimate(float(mean), low, high)


def share(mean: float, draws: np.ndarray, gain: float, gain_draws: np.ndarray) -> Estimate:
    """A mean with its interval, and as a share of a gain; without a share where the gain's interval includes 0."""
    return shares(np.array([mean]), draws[:, None], gain, gain_draws)[0]


def shares(means: np.ndarray, draws: np.ndarray, gain: float, gain_draws: np.ndarray) -> list[Estimate]:
    """`share` of each of some means `[q]` with their draws `[R, q]`."""
    numbers = _with_intervals(means, draws)
    low, high = interval(gain_draws)
    if low <= 0 <= high:
        return numbers
    # In a resample at most `LARGEST_SHARE`: what a share tends to as the gain tends to 0 from its side.
    sign = np.sign(gain)
    gains = np.where(sign * gain_draws > 0, gain_draws, sign * np.finfo(np.float32).tiny)[:, None]
    of_gain = _with_intervals(means / gain, np.clip(draws / gains, -LARGEST_SHARE, LARGEST_SHARE))
    return [dataclasses.replace(number, share=part) for number, part in zip(numbers, of_gain, strict=True)]


def _with_intervals(means: np.ndarray, draws: np.ndarray) -> list[Estimate]:
    low, high = interval(draws).tolist()
    return [Estimate(*ends) for ends in zip(means.tolist(), low, high, strict=True)]


def excludes(number: Estimate | None, threshold: float = 0.0) -> int:
    """On which side of a threshold the interval lies: 1 above, -1 below, 0 where it includes it or there is none."""
    if number is None or number.low is None or number.high is None:
        return 0
    if number.low > threshold:
        return 1
    return -1 if number.high < threshold else 0


def with_interval(number: Estimate, text: Callable[[float], str]) -> str:
    """`5.3 (3.1 to 7.5)`: a number with its interval, where it has any."""
    if number.low is None or number.high is None:
        return text(number.value)
    return f"{text(number.value)} ({text(number.low)} to {text(number.high)})"


def change(number: Estimate, outcome: str) -> str:
    """A change with its interval, without its unit."""
    return with_interval(number, f"{{:+z.{UNITS[outcome][1]}f}}".format)


def amount(number: Estimate, outcome: str) -> str:
    """A change with its unit and interval."""
    value, _, interval = change(number, outcome).partition(" ")
    return " ".join(filter(None, [value, UNITS[outcome][0], interval]))


def percent(share: Estimate | None) -> str:
    """A share of a gain with its interval, in whole percent."""
    if share is None:
        return "an unknown part"
    value, _, interval = with_interval(in_points(share), "{:z.0f}".format).partition(" ")
    return f"{value} % {interval}".rstrip()


def in_points(share: Estimate) -> Estimate:
    """A share of images in percent."""
    low, high = (None if end is None else 100 * end for end in (share.low, share.high))
    return Estimate(100 * share.value, low, high)


def by_reason(reasons: Iterable[tuple[str, str | None]]) -> list[str]:
    """`A, B: why`, one line for each reason, of pairs of a label and a reason; without one there is nothing to say."""
    labels: dict[str, list[str]] = {}
    for label, reason in reasons:
        if reason:
            labels.setdefault(reason, []).append(label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in labels.items()]
