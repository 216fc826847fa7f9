"""Confusion matrices, scores by class and their means, and the standard error of an accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Numbers of `class_summary` for tables.
CLASS_MEASURES = ("balanced_accuracy", "macro_f1", "worst_accuracy")


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts images by class (rows) and prediction (columns), int64 `[C, C]`, of numbers int `[n]`; without -1."""
    read = predicted >= 0
    # One `bincount` over pairs: a loop over ImageNet's images would take seconds.
    pairs = labels[read].astype(np.int64) * classes + predicted[read]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """Computes the accuracy of each class (recall) in percent, float64 `[C]`; NaN for a class without images."""
    images = counts.sum(1)
    # `where` computes both branches, so that the divisor must never be 0.
    return np.where(images > 0, 100 * np.diag(counts) / np.maximum(images, 1), np.nan)


def class_precisions(counts: np.ndarray) -> np.ndarray:
    """Computes the precision of each class in percent, float64 `[C]`; NaN for a class that is never predicted."""
    return class_accuracies(counts.T)


def class_f1(counts: np.ndarray) -> np.ndarray:
    """Computes F1, the harmonic mean of precision and recall, in percent, `[C]`; NaN for a class without images."""
    images = counts.sum(1)
    # 2 TP / (2 TP + FP + FN), which needs no precision: that of a class that is never predicted is 0 / 0.
    return np.where(images > 0, 200 * np.diag(counts) / np.maximum(images + counts.sum(0), 1), np.nan)


def class_summary(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Computes scores that weight all classes equally; arguments as for `confusion`, at least one image.

    Returns:
      `balanced_accuracy` and `macro_f1`, means over classes; `worst_class`, the first name of the lowest accuracy, and
      `worst_accuracy`; in percent. Classes without images are left out and named in `untested_classes`, if any.
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
    """Returns each class's most frequent wrong prediction (the first of equal ones) and its count, int `[C]` each."""
    others = counts.copy()
    np.fill_diagonal(others, -1)
    return others.argmax(1), np.maximum(others.max(1, initial=0), 0)


def least_recognised(counts: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` classes with an accuracy below 100 %, the lowest first, int `[k]`."""
    accuracies = class_accuracies(counts)
    # Stable, so that equal classes keep their order; NaN, of classes without images, is not below 100.
    return np.array([label for label in np.argsort(accuracies, kind="stable") if accuracies[label] < 100][:most], int)
