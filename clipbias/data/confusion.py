"""Confusion of classes, accuracy by class, and the standard error of an accuracy."""

import math

import numpy as np

from clipbias.data.counts import SMALL, WITHIN, wilson_interval


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of images by class (rows) and predicted class (columns), int64 `[C, C]`.

    Args:
      labels: true class numbers, int `[n]`.
      predicted: class numbers, int `[n]`; images with -1 do not count.
      classes: `C`.
    """
    read = predicted >= 0
    pairs = labels[read].astype(np.int64) * classes + predicted[read]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def binomial_error(accuracy: float, images: int) -> float:
    """`√(p (1 − p) / n)`: the standard error of an accuracy in percent on `n` test images.

    Of fewer than `counts.SMALL` images it is the half width of Wilson's interval in standard errors, which is never 0.
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


def most_confused_with(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class the most frequent wrong prediction, int `[C]`, and its number, `[C]`; the first of equal ones."""
    others = counts.copy()
    np.fill_diagonal(others, -1)
    return others.argmax(1), np.maximum(others.max(1, initial=0), 0)


def least_recognised(counts: np.ndarray, most: int) -> np.ndarray:
    """The classes with an accuracy below 100 %, the lowest first, int `[k]`, at most `most` of them."""
    accuracies = class_accuracies(counts)
    return np.array([label for label in np.argsort(accuracies, kind="stable") if accuracies[label] < 100][:most], int)
