"""How much a classifier's confidence can be trusted, and how well it tells images of another dataset apart.

Calibration: the expected calibration error in 15 bins of equal width (Guo et al. 2017), its adaptive form in 15 bins
of equally many images (Nixon et al. 2019, of the predicted class), and the temperature that Guo et al. fit on
validation images. Out-of-distribution detection: AUROC and FPR95 of the largest probability (Hendrycks, Gimpel 2017)
and of the largest logit (Hendrycks et al. 2022).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipbias.data import Split
from clipbias.data.few_shot import MAX_VAL_SHOTS
from clipbias.data.held_out import FEWEST_TO_CALIBRATE
from clipbias.data.protocols import validation_outside_test

BINS = 15
# Where a temperature is looked for.
COLDEST = 1e-2
HOTTEST = 1e2
# Numbers held at once in float64: images by forms by temperatures by classes.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a classifier says of `n` images.

    Attributes:
      correct: whether the predicted class is the label, bool `[n]`; meaningless for images of other classes.
      other_odds: `Σ exp(z_j - z_max)` over the classes that are not predicted, `[n]`: the largest probability is
        `1 / (1 + other_odds)`, but these odds still differ where that is rounded to 1.
      highest: the largest logit, `[n]`.
      other_odds_at: the same with logits over the temperature, or `None` where none was fitted.
    """

    correct: np.ndarray
    other_odds: np.ndarray
    highest: np.ndarray
    other_odds_at: np.ndarray | None = None


def confidence(other_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.asarray(other_odds, np.float64))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """`Σ_b n_b / n · |accuracy_b - confidence_b|` over bins of equal width, closed on the right; 0 … 1."""
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(number, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The same over bins of equally many images by rising confidence, the first ones larger by one where it is uneven.

    Equally confident images count as rising from wrong to right, so that their order does not matter.
    """
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    gaps = (correct - confidence)[np.lexsort((correct, confidence))]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def log_likelihoods(logits: np.ndarray, labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Log-likelihoods of the true class in nats, with their first two derivatives by `s = -log(temperature)`.

    Of logits `[n, K, C]`, labels `[n]` and values of `s` `[n or 1, K or 1, G]` float64 `[n, K, G, 3]`.
    """
    n, forms, classes = logits.shape
    labels = np.asarray(labels)[:, None, None]
    results = np.empty((n, forms, at.shape[-1], 3))
    size = max(1, _AT_ONCE // (forms * at.shape[-1] * classes))
    for rows in (slice(start, start + size) for start in range(0, n, size)):
        z = np.asarray(logits[rows], np.float64)
        z = z - np.take_along_axis(z, labels[rows], axis=-1)
        scaled = z[:, :, None] * np.exp(at[rows] if len(at) > 1 else at)[..., None]
        highest = scaled.max(-1, keepdims=True)
        weights = np.exp(scaled - highest)
        total = weights.sum(-1)
        mean = (weights * scaled).sum(-1) / total
        square = (weights * np.square(scaled)).sum(-1) / total
        results[rows] = np.stack([-highest[..., 0] - np.log(total), -mean, -mean - (square - mean**2)], axis=-1)
    return results


def temperature_images(evaluated: Split, validation: Split | None) -> Split | None:
    """The images that a temperature is fitted on, whoever evaluates: at most 4 of a class, none that is evaluated."""
    others = validation_outside_test(evaluated, validation)
    if others is None:
        return None
    order = np.random.default_rng(0).permutation(len(others))
    by_class = [order[others.labels[order] == label][:MAX_VAL_SHOTS] for label in np.unique(others.labels)]
    return others.subset(np.sort(np.concatenate(by_class)))


def fit_temperatures(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The temperature `[K]` of greatest likelihood for logits `[n, K, C]`, between `COLDEST` and `HOTTEST`.

    The likelihood has one maximum, since its logarithm is concave in the inverse temperature.
    """
    ends = -np.log([HOTTEST, COLDEST])
    low, high = (np.full(logits.shape[1], end) for end in ends)
    at = np.zeros(logits.shape[1])
    for _ in range(60):  # Newton's method, and bisection where it leaves the bounds
        _, slope, curve = log_likelihoods(logits, labels, at[None, :, None]).sum(0)[:, 0].T
        low = np.where(slope > 0, at, low)
        high = np.where(slope > 0, high, at)
        newton = at - slope / np.where(curve < 0, curve, -1)
        following = np.where((curve < 0) & (newton >= low) & (newton <= high), newton, (low + high) / 2)
        done = np.abs(following - at).max() < 1e-12
        at = following
        if done:
            break
    slopes = log_likelihoods(logits, labels, ends[None, None]).sum(0)[:, :, 1]
    # Far out a positive slope underflows to zero.
    return np.where(slopes[:, 0] < 0, HOTTEST, np.where(slopes[:, 1] >= 0, COLDEST, np.exp(-at)))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature of logits `[n, C]` with the smallest mean cross-entropy with labels `[n]` (Guo et al. 2017).

    `None` where that has no minimum between 0.01 and 100, as when every image is right, and of fewer than ten images.
    """
    if len(labels) < FEWEST_TO_CALIBRATE:
        return None
    (fitted,) = fit_temperatures(logits[:, None], labels)
    return float(fitted) if COLDEST < fitted < HOTTEST else None


def calibration(outcome: Outcome, temperature: float | None = None) -> dict[str, float]:
    """`ece` and `adaptive_ece` in percent, and where a temperature was fitted it and both at it."""

    def errors(other_odds: np.ndarray, suffix: str) -> dict[str, float]:
        sure = confidence(other_odds)
        return {
            f"ece{suffix}": 100 * expected_calibration_error(sure, outcome.correct),
            f"adaptive_ece{suffix}": 100 * adaptive_calibration_error(sure, outcome.correct),
        }

    results = errors(outcome.other_odds, "")
    if outcome.other_odds_at is not None and temperature is not None:
        results |= {"temperature": temperature, **errors(outcome.other_odds_at, "_at_temperature")}
    return results


def auroc(inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray) -> float:
    """How often a score of an image inside is above that of one outside, a tie counting half; 0 … 1."""
    inside = np.asarray(inside)
    outside = np.sort(outside)
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / 2 / len(outside))


def false_positive_rate(
    inside: Sequence[float] | np.ndarray, outside: Sequence[float] | np.ndarray, accepted: float = 0.95
) -> float:
    """The share of outside images that pass the highest threshold which a share `accepted` of inside images passes."""
    from clipbias.tuning.conformal import lowest_accepted  # who draws results alone loads no model

    return float((np.asarray(outside) >= lowest_accepted(np.asarray(inside), accepted)).mean())


def detection(inside: Outcome, outside: Outcome) -> dict[str, dict[str, float]]:
    """AUROC and FPR95 in percent of both scores, images inside counting as positive."""
    scores = {"max_softmax": (-inside.other_odds, -outside.other_odds), "max_logit": (inside.highest, outside.highest)}
    return {
        name: {"auroc": 100 * auroc(*pair), "fpr95": 100 * false_positive_rate(*pair)} for name, pair in scores.items()
    }
