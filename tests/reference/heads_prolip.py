"""ProLIP (Fahes et al. 2024): the vision projection alone is tuned. Letters: see `heads`; `Dv` the tower's width.

f = z W,  z [N, Dv] after the last LayerNorm, W [Dv, d] starting at CLIP's projection W⁰
loss = CE(100 unit(f) Tᵀ) + λ Σ (W - W⁰)²          a sum over all entries, λ = 1/K
"""

import numpy as np

from tests.reference import heads, numpy_clip


def logits(*, hidden: np.ndarray, projection: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """[B, C] of z [B, Dv], W [Dv, d] and raw text features [S, C, d]."""
    return heads.zero_shot_logits(heads.double(hidden) @ heads.double(projection), text_features)


def losses(
    *,
    hidden: np.ndarray,
    labels: np.ndarray,
    projection: np.ndarray,
    original: np.ndarray,
    text_features: np.ndarray,
    strength: float,
) -> dict[str, float]:
    """Terms `cross_entropy` and `penalty`: their sum is the loss. `strength` is λ; `original` is W⁰."""
    scores = logits(hidden=hidden, projection=projection, text_features=text_features)
    away = heads.double(projection) - heads.double(original)
    penalty = strength * float((away**2).sum())
    return {"cross_entropy": numpy_clip.cross_entropy(scores, np.asarray(labels)), "penalty": penalty}
