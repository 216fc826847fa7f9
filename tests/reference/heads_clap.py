"""CLAP (Silva-Rodríguez et al. 2024), and ZS-LP, which is CLAP without the penalty. Letters: see `heads`.

t_c = mean over templates of raw g                  prototypes w [C, d] start here
logits = s unit(f) unit(w)ᵀ,  s = exp(logit_scale)
loss = CE + (1/C) Σ_c λ_c ‖w_c - t_c‖²
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import heads, numpy_clip, optimizers
from tests.reference.gradients import unit_backward


def start(*, text_features: np.ndarray) -> np.ndarray:
    """t [C, d], the prototypes before training: the mean of raw text features [S, C, d]."""
    return heads.double(text_features).mean(0)


def logits(*, features: np.ndarray, prototypes: np.ndarray, scale: float) -> np.ndarray:
    """[B, C] of raw features [B, d] and prototypes [C, d]."""
    return scale * heads.unit(features) @ heads.unit(prototypes).T


def penalties(*, features: np.ndarray, labels: np.ndarray, text_features: np.ndarray, scale: float) -> np.ndarray:
    """λ [C]: the mean over a class's rows of its own probability by the prototypes' start values.

    Features are raw, [E, N, d], labels [N]; all passes count.
    """
    raw, all_labels = heads.rows(features, labels)
    zero_shot = numpy_clip.softmax(logits(features=raw, prototypes=start(text_features=text_features), scale=scale))
    return np.array([zero_shot[all_labels == c, c].mean() for c in range(zero_shot.shape[1])])


def loss_and_gradient(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray,
    text_features: np.ndarray,
    scale: float,
    strengths: np.ndarray | None,
) -> tuple[dict[str, float], np.ndarray]:
    """Terms `cross_entropy` and `penalty` [their sum is the loss], and its gradient by the prototypes [C, d].

    `strengths` are the λ of `penalties`; None is ZS-LP. `w_c` gets `(2/C) λ_c (w_c - t_c)` from the penalty.
    """
    prototypes = heads.double(prototypes)
    scores = logits(features=features, prototypes=prototypes, scale=scale)
    through = scale * heads.cross_entropy_gradient(scores, labels).T @ heads.unit(features)
    gradient = unit_backward(prototypes, through)
    terms = {"cross_entropy": numpy_clip.cross_entropy(scores, labels), "penalty": 0.0}
    if strengths is not None:
        away = prototypes - start(text_features=text_features)
        strengths = heads.double(strengths) / len(prototypes)
        terms["penalty"] = float((strengths * (away**2).sum(-1)).sum())
        gradient = gradient + 2 * strengths[:, None] * away
    return terms, gradient


def train(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    text_features: np.ndarray,
    scale: float,
    epochs: Sequence[Sequence[np.ndarray]],
    learning_rate: float = 0.1,
    penalised: bool = True,
) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """Prototypes after every step, and the terms before it.

    Args:
      features: [E, N, d], raw; rows are numbered pass by pass, row e N + n is image n of pass e.
      labels: [N].
      epochs: per epoch its batches, each an array of row numbers. An epoch shuffles all E N rows and has as many
        batches as N rows alone have (`optimizers.batches_per_epoch(N, 256)`).
      learning_rate: of SGD with momentum 0.9 and no decay; 1e-5 in epoch 0, then falling along a cosine.
      penalised: False is ZS-LP.
    """
    raw, all_labels = heads.rows(features, labels)
    strengths = None
    if penalised:
        strengths = penalties(features=features, labels=labels, text_features=text_features, scale=scale)
    optimizer = optimizers.SGD(weight_decay=0.0)
    current, after, terms = {"prototypes": start(text_features=text_features)}, [], []
    for batches, rate in zip(epochs, optimizers.warmed_cosine_rates(learning_rate, len(epochs)), strict=True):
        for batch in batches:
            before, gradient = loss_and_gradient(
                features=raw[batch],
                labels=all_labels[batch],
                prototypes=current["prototypes"],
                text_features=text_features,
                scale=scale,
                strengths=strengths,
            )
            current = optimizer.step(current, {"prototypes": gradient}, rate)
            after.append(current["prototypes"])
            terms.append(before)
    return after, terms
