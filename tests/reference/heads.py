"""What the heads on CLIP's features have in common.

Letters: `E` augmented passes, `N` training images, `n = E N` rows, `B` images, `C` classes, `S` templates, `d` joint
width; `f` image features and `g` text features as the towers give them (raw); `unit(x) = x / ‖x‖`; `V [B, C]` one-hot
labels; `CE` mean cross-entropy. Everything is float64 whatever comes in.
"""

from typing import Any

import numpy as np

from tests.reference import numpy_clip


def double(x: Any) -> np.ndarray:
    """Any array as float64."""
    return np.asarray(x, np.float64)


def unit(x: Any) -> np.ndarray:
    """`x / ‖x‖` over the last axis, in float64."""
    return numpy_clip.unit(double(x))


def zero_shot_classifier(text_features: np.ndarray) -> np.ndarray:
    """`T_c = unit(mean over templates of unit(g))`, raw [S, C, d] -> [C, d]."""
    return unit(unit(text_features).mean(0))


def zero_shot_logits(features: np.ndarray, text_features: np.ndarray, scale: float = 100.0) -> np.ndarray:
    """`scale · unit(f) Tᵀ`, raw [B, d] and raw [S, C, d] -> [B, C]."""
    return scale * unit(features) @ zero_shot_classifier(text_features).T


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """V: [N] -> [N, C]."""
    return np.eye(classes)[np.asarray(labels)]


def rows(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All passes under each other: [E, N, d] and [N] -> [E N, d] and [E N]."""
    features = double(features)
    return features.reshape(-1, features.shape[-1]), np.tile(np.asarray(labels), len(features))


def mean_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log p of the labels."""
    scores = double(scores)
    losses = [np.logaddexp.reduce(row) - row[label] for row, label in zip(scores, labels, strict=True)]
    return float(np.mean(losses))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of rows of [B, C] whose largest logit (the first of equals) is at the label."""
    return float((logits.argmax(-1) == np.asarray(labels)).mean())


def cross_entropy_gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """d CE / d logits: `(softmax(logits) - V) / B`, [B, C]."""
    return (numpy_clip.softmax(logits) - one_hot(labels, logits.shape[1])) / len(logits)
