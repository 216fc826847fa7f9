"""Calibration of a classifier's confidence, and detection of images of other datasets.

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
from clipbias.data.held_out import FEWEST_TO_CALIBRATE, rows_by_class, subset_of_rows
from clipbias.data.protocols import validation_outside_test

BINS = 15
# Bounds of a fitted temperature.
COLDEST = 1e-2
HOTTEST = 1e2
# Numbers held at once in float64: images by forms by temperatures by classes.
_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a classifier for `n` images.

    Attributes:
      correct: whether the predicted class is the label, bool `[n]`; meaningless for images of other classes.
      other_odds: `Σ exp(z_j - z_max)` over the other classes, `[n]`; the largest probability is `1 / (1 + other_odds)`.
      highest: the largest logit, `[n]`.
      other_odds_at: the odds of logits over the temperature, if there is one.
    """

    correct: np.ndarray
    other_odds: np.ndarray
    highest: np.ndarray
    other_odds_at: np.ndarray | None = None


def confidence(other_odds: np.ndarray) -> np.ndarray:
    # Of odds and not of a probability: odds still differ where float32 rounds the probability to 1.
    return 1 / (1 + np.asarray(other_odds, np.float64))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """`Σ_b n_b / n · |accuracy_b - confidence_b|` over bins of equal width, closed on the right; 0 … 1."""
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    # A confidence of 1 lies in the last bin. A bin's gap is a sum: its weight `n_b / n` is in it.
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(number, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def adaptive_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Returns the same error over bins of equally many images by rising confidence; 0 … 1."""
    # Of equally confident images the wrong ones come first, so that the order of the images decides nothing.
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, np.float64)
    gaps = (correct - confidence)[np.lexsort((correct, confidence))]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def log_likelihoods(logits: np.ndarray, labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns log-likelihoods of the labels `[n]` in nats with two derivatives by `s = -log T`, float64 `[n, K, G, 3]`.

    Logits are `[n, K, C]`, and values of `s` `[n or 1, K or 1, G]`.
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
        # With `z` less the label's logit and `E` the mean under the softmax of `u = z exp(s)`, `log p = -log Σ exp(u)`
        # has the derivatives `-E[u]` and `-E[u] - Var[u]` by `s`.
        mean = (weights * scaled).sum(-1) / total
        square = (weights * np.square(scaled)).sum(-1) / total
        results[rows] = np.stack([-highest[..., 0] - np.log(total), -mean, -mean - (square - mean**2)], axis=-1)
    return results


def temperature_images(evaluated: Split, validation: Split | None) -> Split | None:
    """Returns the images that fit a temperature: at most 4 of a class, and no evaluated one."""
    # With a constant seed, so that every command fits the same temperature.
    if (others := validation_outside_test(evaluated, validation)) is None:
        return None
    return subset_of_rows(others, [rows[:MAX_VAL_SHOTS] for rows in rows_by_class(others, seed=0)])


def fit_temperatures(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fits the temperatures `[K]` of greatest likelihood for logits `[n, K, C]`, between `COLDEST` and `HOTTEST`."""
    # The log-likelihood is concave in the inverse temperature, so it has one maximum. Newton's method finds it in a few
    # steps; bisection keeps it within the bounds.
    ends = -np.log([HOTTEST, COLDEST])
    low, high = (np.full(logits.shape[1], end) for end in ends)
    at = np.zeros(logits.shape[1])
    for _ in range(60):
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
    """Fits the temperature of logits `[n, C]` to labels `[n]` (Guo et al. 2017).

    `None` for fewer than ten images, or without a minimum in 0.01 … 100, as when every image is right.
    """
    if len(labels) < FEWEST_TO_CALIBRATE:
        return None
    (fitted,) = fit_temperatures(logits[:, None], labels)
    return float(fitted) if COLDEST < fitted < HOTTEST else None


def calibration(outcome: Outcome, temperature: float | None = None) -> dict[str, float]:
    """Returns `ece` and `adaptive_ece` in percent; with a temperature also it and both errors at it."""

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
    """Returns how often an inside image scores above an outside one; ties count half; 0 … 1."""
    # Mann and Whitney's U over all pairs, by ranks.
    inside = np.asarray(inside)
    outside = np.sort(outside)
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / 2 / len(outside))


def detection(inside: Outcome, outside: Outcome) -> dict[str, dict[str, float]]:
    """Returns AUROC and FPR95 in percent for both scores; inside images are the positive ones."""
    from clipbias.tuning.conformal import lowest_accepted  # who draws results alone loads no model

    scores = {"max_softmax": (-inside.other_odds, -outside.other_odds), "max_logit": (inside.highest, outside.highest)}
    # FPR95: the share of outside images above the highest threshold that 95 % of the inside images pass.
    return {
        name: {"auroc": 100 * auroc(near, far), "fpr95": 100 * float((far >= lowest_accepted(near, 0.95)).mean())}
        for name, (near, far) in scores.items()
    }
