"""Temperatures as their definition says them, in float64."""

import numpy as np
from scipy import optimize


def log_likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """[n] of logits [n, C]."""
    likelihoods = []
    for row, label in zip(np.asarray(logits, np.float64) / temperature, labels, strict=True):
        highest = max(row)
        likelihoods.append(row[label] - highest - np.log(sum(np.exp(value - highest) for value in row)))
    return np.array(likelihoods)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The most likely one, by a search over its logarithm."""

    def loss(log: float) -> float:
        return -log_likelihoods(logits, labels, np.exp(log)).sum()

    bounds = (np.log(0.01), np.log(100))
    minimum = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13, "maxiter": 500})
    ends = min((loss(end), end) for end in bounds)
    # Of separated images the loss goes on falling, by less than its rounding.
    return float(np.exp(ends[1] if ends[0] <= minimum.fun + 1e-12 else minimum.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n] log-likelihoods, each half of the images under the other's temperature.

    A half whose most likely temperature is the lowest has that of all images instead.
    """
    values = np.zeros(len(labels))
    for half in (second, ~second):
        fitted = temperature(logits[~half], labels[~half])
        if np.isclose(fitted, 0.01):
            fitted = temperature(logits, labels)
        values[half] = log_likelihoods(logits[half], labels[half], fitted)
    return values
