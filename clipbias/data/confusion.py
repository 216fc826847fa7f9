"""Confusion of classes, scores by class and their means over classes, and the standard error of an accuracy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipbias.data.few_shot import SMALL, WITHIN, wilson_interval

# The numbers of `class_summary` that tables have on request.
CLASS_MEASURES = ("balanced_accuracy", "macro_f1", "worst_accuracy")


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of images by class (rows) and predicted class (columns), int64 `[C, C]`.

    `labels` and `predicted` are class numbers, int `[n]`; images that are predicted as -1 do not count.
    """
    read = predicted >= 0
    pairs = labels[read].astype(np.int64) * classes + predicted[read]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def binomial_error(accuracy: float, images: int) -> float:
    """`√(p (1 − p) / n)`: the standard error of an accuracy in percent on `n` test images.

    Of fewer than `few_shot.SMALL` images it is the half width of Wilson's interval in standard errors, never 0.
    """
    if images < SMALL:
        low, high = wilson_interval(accuracy, images)
        return (high - low) / (2 * WITHIN)
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / images)


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """The accuracy on the images of each class, in percent, float64 `[C]`; NaN for a class without images."""
    images = counts.sum(1)
    return np.where(images > 0, 100 * np.diag(counts) / np.maximum(images, 1), np.nan)


def class_precisions(counts: np.ndarray) -> np.ndarray:
    """The share of right answers among the images taken for each class, in percent, float64 `[C]`; NaN if none is."""
    answers = counts.sum(0)
    return np.where(answers > 0, 100 * np.diag(counts) / np.maximum(answers, 1), np.nan)


def class_f1(counts: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall of each class, in percent, `[C]`; NaN for a class without images."""
    images = counts.sum(1)
    total = images + counts.sum(0)
    return np.where(images > 0, 200 * np.diag(counts) / np.maximum(total, 1), np.nan)


def class_summary(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Scores that count each class alike, however many images it has; arguments as for `confusion`, of some images.

    Returns:
      `balanced_accuracy` and `macro_f1`, the means over classes of accuracy and F1; `worst_class`, the name of the
      first class of the lowest accuracy, and `worst_accuracy`; all but the name in percent. A class without images is
      left out, and `untested_classes` names them if there are any.
    """
    counts = confusion(labels, predicted, len(class_names))
    accuracies = class_accuracies(counts)
    worst = int(np.nanargmin(accuracies))
    summary: dict[str, Any] = {
        "balanced_accuracy": float(np.nanmean(accuracies)),
        "macro_f1": float(np.nanmean(class_f1(counts))),
        "worst_class": class_names[worst],
        "worst_accuracy": float(accuracies[worst]),
    }
    if untested := [class_names[label] for label in np.flatnonzero(np.isnan(accuracies)).tolist()]:
        summary["untested_classes"] = untested
    return summary


def most_confused_with(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class the most frequent wrong prediction, int `[C]`, and its number, `[C]`; the first of equal ones."""
    others = counts.copy()
    np.fill_diagonal(others, -1)
    return others.argmax(1), np.maximum(others.max(1, initial=0), 0)


def least_recognised(counts: np.ndarray, most: int) -> np.ndarray:
    """The classes with an accuracy below 100 %, the lowest first, int `[k]`, at most `most` of them."""
    accuracies = class_accuracies(counts)
    return np.array([label for label in np.argsort(accuracies, kind="stable") if accuracies[label] < 100][:most], int)
