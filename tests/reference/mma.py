"""MMA (Yang et al. 2024): adapters beside the last blocks of both towers, which share a layer.

Letters as in `numpy_clip`; the towers are run by `inner_parts`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.inner_parts import Losses, embedded, forward, shallower, worded_tokens
from tests.reference.methods import Learnables, Reference


def mma_shapes(config: Mapping, *, blocks: int = 8, width: int = 32) -> dict[str, tuple[int, ...]]:
    """Kernels `[blocks, inputs, outputs]` and biases: `down` and `up` of each tower, `shared` of both."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tower in ("vision", "text"):
        size = config[f"{tower}_config"]["hidden_size"]
        for part, (inputs, outputs) in {"down": (size, width), "up": (width, size)}.items():
            shapes[f"{tower}/{part}/kernel"], shapes[f"{tower}/{part}/bias"] = (
                (blocks, inputs, outputs),
                (blocks, outputs),
            )
    return shapes | {"shared/kernel": (blocks, width, width), "shared/bias": (blocks, width)}


class Adapters:
    """`a (relu(relu(h Dn + b_D) S + b_S) U + b_U)` beside the last blocks of one tower."""

    def __init__(self, learnables: Learnables, tower: str, layers: int, factor: float) -> None:
        names = {"down": f"{tower}/down", "shared": "shared", "up": f"{tower}/up"}
        self._names = names
        self._values = learnables
        self._factor = factor
        self._start = layers - len(learnables["shared/bias"])

    def _layer(self, part: str, number: int, x: np.ndarray) -> np.ndarray:
        name = self._names[part]
        return x @ self._values[f"{name}/kernel"][number] + self._values[f"{name}/bias"][number]

    def forward(self, layer: int, normed: np.ndarray) -> np.ndarray:
        """What is added to a block's output."""
        number = layer - self._start
        if not 0 <= number < len(self._values["shared/bias"]):
            return np.zeros_like(normed)
        inner = np.maximum(self._layer("shared", number, np.maximum(self._layer("down", number, normed), 0)), 0)
        return self._factor * self._layer("up", number, inner)


def mma_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    factor: float = 0.001,
) -> tuple[Losses, np.ndarray]:
    """Mean cross-entropy of `s · cos`, and the logits. A step is given `1 / a` times its gradients."""
    learnables = weights.double(learnables)
    tokens = worded_tokens(clip, class_names, methods.WORDED)
    inputs = {"vision": (images, np.zeros(len(images), int)), "text": (tokens, tokens.argmax(-1))}
    features = {}
    for tower, (x, rows) in inputs.items():
        adapters = Adapters(learnables, tower, shallower(clip.config), factor)
        features[tower] = forward(clip, tower, embedded(clip, tower, x), rows, network=adapters.forward).features
    scores = numpy_clip.logits(clip.state, features["vision"], features["text"])
    return {"cross_entropy": numpy_clip.cross_entropy(scores, labels)}, scores
