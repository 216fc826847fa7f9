"""Which classes are taken for which, counted from labels and answers, and how sure an accuracy is."""

import math

import numpy as np


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (rows) are taken for which (columns), int64 `[C, C]`.

    Args:
      labels: true class numbers, int `[n]`.
      predicted: class numbers, int `[n]`; images with -1 count nowhere.
      classes: `C`.
    """
    read = predicted >= 0
    pairs = labels[read].astype(np.int64) * classes + predicted[read]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def binomial_error(accuracy: float, images: int) -> float:
    """`√(p (1 − p) / n)`: the standard error of an accuracy in percent that the choice of `n` test images makes."""
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / images)


def class_accuracies(counts: np.ndarray) -> np.ndarray:
    """The accuracy on the images of each class, in percent, float64 `[C]`; NaN for a class without images."""
    images = counts.sum(1)
    return np.where(images > 0, 100 * np.diag(counts) / np.maximum(images, 1), np.nan)


def most_confused_with(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The other class that each is most often taken for, int `[C]`, and how often, `[C]`; the first of equal ones."""
    others = counts.copy()
    np.fill_diagonal(others, -1)
    return others.argmax(1), np.maximum(others.max(1, initial=0), 0)


def least_recognised(counts: np.ndarray, most: int) -> np.ndarray:
    """The classes that are not always recognised, the least recognised first, int `[k]`, at most so many."""
    each = class_accuracies(counts)
    return np.array([label for label in np.argsort(each, kind="stable") if each[label] < 100][:most], int)
