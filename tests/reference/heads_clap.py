"""CLAP (Silva-Rodríguez et al. 2024), and ZS-LP, which is CLAP without the penalty. Letters: see `heads`.

t_c = mean over templates of raw g                  prototypes w [C, d] start here
logits = s unit(f) unit(w)ᵀ,  s = exp(logit_scale)
loss = CE + (1/C) Σ_c λ_c ‖w_c - t_c‖²
"""

import numpy as np

from tests.reference import heads, numpy_clip


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


def losses(
    *,
    features: np.ndarray,
    labels: np.ndarray,
    prototypes: np.ndarray,
    text_features: np.ndarray,
    scale: float,
    strengths: np.ndarray | None,
) -> dict[str, float]:
    """Terms whose sum is the loss, `penalty` among them with the λ of `penalties`; ZS-LP has None of it."""
    prototypes = heads.double(prototypes)
    scores = logits(features=features, prototypes=prototypes, scale=scale)
    terms = {"cross_entropy": numpy_clip.cross_entropy(scores, np.asarray(labels))}
    if strengths is not None:
        away = prototypes - start(text_features=text_features)
        terms["penalty"] = float((heads.double(strengths) * (away**2).sum(-1)).sum() / len(prototypes))
    return terms
