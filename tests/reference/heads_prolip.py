"""ProLIP (Fahes et al. 2024): the vision projection alone is tuned. Letters: see `heads`; `Dv` the tower's width.

f = z W,  z [N, Dv] after the last LayerNorm, W [Dv, d] starting at CLIP's projection W⁰
loss = CE(100 unit(f) Tᵀ) + λ Σ (W - W⁰)²          a sum over all entries, λ = 1/K
"""

import numpy as np

from tests.reference import heads, numpy_clip, optimizers
from tests.reference.gradients import unit_backward


def logits(*, hidden: np.ndarray, projection: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """[B, C] of z [B, Dv], W [Dv, d] and raw text features [S, C, d]."""
    return heads.zero_shot_logits(heads.double(hidden) @ heads.double(projection), text_features)


def loss_and_gradient(
    *,
    hidden: np.ndarray,
    labels: np.ndarray,
    projection: np.ndarray,
    original: np.ndarray,
    text_features: np.ndarray,
    strength: float,
) -> tuple[dict[str, float], np.ndarray]:
    """Terms `cross_entropy` and `penalty` [their sum is the loss], and its gradient by W [Dv, d].

    `strength` is λ; `original` is W⁰.
    """
    z, projection = heads.double(hidden), heads.double(projection)
    scores = logits(hidden=z, projection=projection, text_features=text_features)
    through = 100 * heads.cross_entropy_gradient(scores, labels) @ heads.zero_shot_classifier(text_features)
    away = projection - heads.double(original)
    gradient = z.T @ unit_backward(z @ projection, through) + 2 * strength * away
    penalty = strength * float((away**2).sum())
    return {"cross_entropy": numpy_clip.cross_entropy(scores, labels), "penalty": penalty}, gradient


def train(
    *,
    hidden: np.ndarray,
    labels: np.ndarray,
    original: np.ndarray,
    text_features: np.ndarray,
    shots: int,
    steps: int = 300,
    learning_rate: float = 1e-5,
) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """W after every step, and the terms before it; z [E, N, Dv] of all passes.

    Each step sees all images of one pass: step t, from 0, that of pass t + 1 modulo E. Adam with eps 1e-4 and no
    decay; the rate falls along a cosine to 0 over all steps.
    """
    z = heads.double(hidden)
    optimizer = optimizers.Adam(epsilon=1e-4)
    current, after, terms = {"projection": heads.double(original)}, [], []
    for step, rate in enumerate(optimizers.cosine_rates(learning_rate, steps)):
        before, gradient = loss_and_gradient(
            hidden=z[(step + 1) % len(z)],
            labels=labels,
            projection=current["projection"],
            original=original,
            text_features=text_features,
            strength=1 / shots,
        )
        current = optimizer.step(current, {"projection": gradient}, rate)
        after.append(current["projection"])
        terms.append(before)
    return after, terms
