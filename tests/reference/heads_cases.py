"""Small features for the heads: classes that overlap somewhat, lengths that differ, templates that disagree."""

from collections.abc import Callable, Sequence

import numpy as np

from tests.reference.differences import in_full

E = 3
N = 9
C = 3
S = 2
D = 8
LABELS = np.array([0, 1, 2] * 3)


def arrays(
    *, seed: int = 0, labels: Sequence[int] | np.ndarray = LABELS, passes: int = E, width: int = D, templates: int = S
) -> dict[str, np.ndarray]:
    """Raw `features` [E, N, d] of images with these labels, and raw `text_features` [S, C, d], in float64."""
    rng = np.random.default_rng(seed)
    classes = int(np.max(labels)) + 1
    text = rng.normal(size=(templates, classes, width)) + rng.normal(size=(classes, width))
    features = rng.normal(size=(passes, len(labels), width)) + 0.6 * text.mean(0)[np.asarray(labels)]
    return {"features": features, "text_features": text}


def close_to_slopes(gradient: np.ndarray, loss: Callable[[np.ndarray], float], at: np.ndarray) -> None:
    """Asserts that `gradient` is the gradient of `loss` at `at`."""
    (slopes,) = in_full(lambda x: np.array([loss(x["at"])]), {"at": at})
    np.testing.assert_allclose(gradient, slopes["at"], atol=2e-7 * np.abs(gradient).max())
