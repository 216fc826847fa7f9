"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022). Letters: see `heads`; x = unit(f) of an image.

    keys_n = unit(mean over passes of f_{n,e})                 the mean is of raw features
    logits = 100 x Tᵀ + α exp(-β (1 - x keysᵀ)) V

Tip-Adapter-F trains the keys, which are normalised only at the start, with CE of the same logits.
"""

from collections.abc import Iterator

import numpy as np

from tests.reference import heads


def cache(*, features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys [N, d] and values V [N, C] of raw features [E, N, d] and labels [N]."""
    return heads.unit(heads.double(features).mean(0)), heads.one_hot(labels, classes)


def logits(
    *,
    features: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    text_features: np.ndarray,
    alpha: float,
    beta: float,
) -> np.ndarray:
    """[B, C] of raw features [B, d], keys [N, d], values [N, C] and raw text features [S, C, d]."""
    affinity = heads.unit(features) @ heads.double(keys).T
    return heads.zero_shot_logits(features, text_features) + alpha * np.exp(-beta * (1 - affinity)) @ values


def grid(beta_max: float, alpha_max: float) -> Iterator[tuple[float, float]]:
    """(α, β) in the order of the search: 200 β outside, 20 α inside, neither maximum reached."""
    for i in range(200):
        for j in range(20):
            yield 0.1 + j * (alpha_max - 0.1) / 20, 0.1 + i * (beta_max - 0.1) / 200


def search(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    text_features: np.ndarray,
    beta_max: float,
    alpha_max: float,
    start: tuple[float, float] = (0.0, 0.0),
    few: bool = False,
) -> tuple[float, float, float]:
    """α, β and accuracy of the first grid point that no later one beats, on features [B, d] and labels [B].

    A point replaces the best so far only if it is strictly better. With `few` images one of the same accuracy is better
    if its loss is lower. `start` (α, β) stays where none has any image right.
    """
    plain = heads.zero_shot_logits(features, text_features)
    distance = 1 - heads.unit(features) @ heads.double(keys).T
    alpha, beta = start
    best = 0.0
    lowest = np.inf
    for new_alpha, new_beta in grid(beta_max, alpha_max):
        scores = plain + new_alpha * np.exp(-new_beta * distance) @ values
        accuracy = heads.accuracy(scores, labels)
        loss = heads.mean_loss(scores, labels)
        if accuracy > best or (few and accuracy == best > 0 and loss < lowest):
            alpha = new_alpha
            beta = new_beta
            best = accuracy
            lowest = loss
    return alpha, beta, best
