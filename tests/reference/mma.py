"""MMA (Yang et al. 2024): adapters beside the last blocks of both towers, which share a layer.

Letters as in `numpy_clip`; the towers are run by `inner_parts`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.inner_parts import backward, embedded, forward, readout_backward, worded_tokens
from tests.reference.methods import Learnables, Reference


def mma_shapes(config: Mapping, *, blocks: int = 8, width: int = 32) -> dict[str, tuple[int, ...]]:
    """Kernels `[blocks, inputs, outputs]` and biases: `down` and `up` of each tower, `shared` of both."""
    found: dict[str, tuple[int, ...]] = {}
    for tower in ("vision", "text"):
        size = config[f"{tower}_config"]["hidden_size"]
        for part, (inputs, outputs) in {"down": (size, width), "up": (width, size)}.items():
            found[f"{tower}/{part}/kernel"], found[f"{tower}/{part}/bias"] = (
                (blocks, inputs, outputs),
                (blocks, outputs),
            )
    return found | {"shared/kernel": (blocks, width, width), "shared/bias": (blocks, width)}


class Adapters:
    """`a (relu(relu(h Dn + b_D) S + b_S) U + b_U)` beside the last blocks of one tower, and its derivative."""

    def __init__(self, learnables: Learnables, tower: str, layers: int, factor: float) -> None:
        names = {"down": f"{tower}/down", "shared": "shared", "up": f"{tower}/up"}
        self._names, self._values, self._factor = names, learnables, factor
        self._start = layers - len(learnables["shared/bias"])
        self.gradients: Gradients = {
            f"{name}/{leaf}": np.zeros_like(learnables[f"{name}/{leaf}"])
            for name in names.values()
            for leaf in ("kernel", "bias")
        }

    def _layer(self, part: str, number: int, x: np.ndarray) -> np.ndarray:
        name = self._names[part]
        return x @ self._values[f"{name}/kernel"][number] + self._values[f"{name}/bias"][number]

    def forward(self, layer: int, normed: np.ndarray) -> np.ndarray:
        """What is added to a block's output."""
        number = layer - self._start
        if number < 0:
            return np.zeros_like(normed)
        inner = np.maximum(self._layer("shared", number, np.maximum(self._layer("down", number, normed), 0)), 0)
        return self._factor * self._layer("up", number, inner)

    def backward(self, layer: int, normed: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """To the LayerNorm's output; the learnables' true gradients are kept in `gradients`."""
        number = layer - self._start
        if number < 0:
            return np.zeros_like(normed)
        first = self._layer("down", number, normed)
        second = self._layer("shared", number, np.maximum(first, 0))
        inputs = {"up": np.maximum(second, 0), "shared": np.maximum(first, 0), "down": normed}
        masks = {"up": second > 0, "shared": first > 0, "down": 1.0}
        gradient = self._factor * gradient
        for part, x in inputs.items():
            name = self._names[part]
            self.gradients[f"{name}/kernel"][number] += np.einsum("bni,bno->io", x, gradient)
            self.gradients[f"{name}/bias"][number] += gradient.sum((0, 1))
            gradient = gradient @ self._values[f"{name}/kernel"][number].T * masks[part]
        return gradient


def mma_loss_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    factor: float = 0.001,
) -> tuple[float, Gradients, np.ndarray]:
    """Mean cross-entropy of `s · cos`, its true gradients, and the logits. A step is given `1 / a` times these."""
    learnables = weights.double(learnables)
    tokens = worded_tokens(clip, class_names, methods.WORDED)
    inputs = {"vision": (images, np.zeros(len(images), int)), "text": (tokens, tokens.argmax(-1))}
    saved, adapters = {}, {}
    for tower, (one, rows) in inputs.items():
        adapters[tower] = Adapters(learnables, tower, clip.config[f"{tower}_config"]["num_hidden_layers"], factor)
        saved[tower] = forward(clip, tower, embedded(clip, tower, one), rows, beside=adapters[tower].forward)
    image, text = (saved[tower].features for tower in ("vision", "text"))
    scale = np.exp(clip.state["logit_scale"])
    scores = scale * numpy_clip.unit(image) @ numpy_clip.unit(text).T
    slopes = scale * gradients.cross_entropy_backward(scores, labels)
    sides = {
        "vision": gradients.unit_backward(image, slopes @ numpy_clip.unit(text)),
        "text": gradients.unit_backward(text, slopes.T @ numpy_clip.unit(image)),
    }
    found: Gradients = {}
    for tower, side in sides.items():
        start = readout_backward(clip, tower, saved[tower], side)
        backward(clip, tower, saved[tower], start, beside=adapters[tower].backward)
        for name, value in adapters[tower].gradients.items():
            found[name] = found.get(name, 0.0) + value
    return numpy_clip.cross_entropy(scores, labels), {name: found[name] for name in learnables}, scores
