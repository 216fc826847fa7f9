"""CLIP-Adapter (Gao et al. 2021), its visual adapter. Letters: see `heads`; `s = exp(logit_scale)`.

    u = r relu(W2 relu(W1 f)) + (1 - r) f          on the raw feature, r = 0.2
    logits = s unit(u) Tᵀ

`W1 [d/4, d]` and `W2 [d, d/4]` have no bias. The second relu makes the correction never negative. With one template
`T = unit(g)`.
"""

import numpy as np

from tests.reference import heads


def adapted(*, features: np.ndarray, down: np.ndarray, up: np.ndarray, ratio: float = 0.2) -> np.ndarray:
    """u [B, d] of raw features [B, d], W1 = `down` [d/4, d], W2 = `up` [d, d/4]."""
    f = heads.double(features)
    hidden = np.maximum(f @ heads.double(down).T, 0)
    return ratio * np.maximum(hidden @ heads.double(up).T, 0) + (1 - ratio) * f


def logits(
    *,
    features: np.ndarray,
    text_features: np.ndarray,
    down: np.ndarray,
    up: np.ndarray,
    scale: float,
    ratio: float = 0.2,
) -> np.ndarray:
    """[B, C] of raw features [B, d] and raw text features [S, C, d]."""
    u = adapted(features=features, down=down, up=up, ratio=ratio)
    return heads.zero_shot_logits(u, text_features, scale)
