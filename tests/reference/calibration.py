"""Temperatures, interactions, shares of seeds and reduced-rank maps as their definitions say them, in float64."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import optimize


def log_likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """[n] of logits [n, C]."""
    likelihoods = []
    for row, label in zip(np.asarray(logits, np.float64) / temperature, labels, strict=True):
        highest = max(row)
        likelihoods.append(row[label] - highest - np.log(sum(np.exp(value - highest) for value in row)))
    return np.array(likelihoods)


def temperature(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """The most likely one for images that count so often, by a search over its logarithm."""

    def loss(log: float) -> float:
        return -counts @ log_likelihoods(logits, labels, np.exp(log))

    bounds = (np.log(0.01), np.log(100))
    minimum = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13, "maxiter": 500})
    ends = min((loss(end), end) for end in bounds)
    # Of separated images the loss goes on falling, by less than its rounding.
    return float(np.exp(ends[1] if ends[0] <= minimum.fun + 1e-12 else minimum.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, second: np.ndarray, counts: np.ndarray) -> float:
    """The mean log-likelihood of a resample, each half of its images under the other's temperature.

    A half whose most likely temperature is the lowest has that of all images instead.
    """
    total = 0.0
    for half in (second, ~second):
        fitted = temperature(logits[~half], labels[~half], counts[~half])
        if np.isclose(fitted, 0.01):
            fitted = temperature(logits, labels, counts)
        total += counts[half] @ log_likelihoods(logits[half], labels[half], fitted)
    return total / counts.sum()


def moebius(outcome: dict[str, np.ndarray], effects: Sequence[str]) -> dict[str, np.ndarray]:
    """By names joined with " × ": what remains of a set's gain after all its smaller sets' terms are taken away."""
    terms: dict[tuple[int, ...], np.ndarray] = {}
    for size in range(len(effects) + 1):
        for subset in itertools.combinations(range(len(effects)), size):
            letters = "".join("P" if i in subset else "R" for i in range(len(effects)))
            smaller = [terms[part] for k in range(size) for part in itertools.combinations(subset, k)]
            terms[subset] = np.asarray(outcome[letters], np.float64) - sum(smaller, np.zeros(()))
    return {" × ".join(effects[i] for i in subset): term for subset, term in terms.items() if len(subset) > 1}
