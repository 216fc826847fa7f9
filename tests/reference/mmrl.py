"""MMRL (Guo & Gu 2025): tokens of one space, mapped into the last blocks of both towers behind the first token.

Letters as in `numpy_clip`; the towers are run by `inner_parts`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import gradients, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.inner_parts import Losses, backward, embedded, forward, readout_backward, worded_tokens
from tests.reference.methods import Learnables, Reference


def mmrl_shapes(config: Mapping, *, tokens: int = 5, blocks: int = 7, space: int = 512) -> dict[str, tuple[int, ...]]:
    """`R`, a map with bias into each of the last blocks of both towers, and the projection of what is read out."""
    found: dict[str, tuple[int, ...]] = {"tokens": (tokens, space)}
    for tower in ("text", "vision"):
        width = config[f"{tower}_config"]["hidden_size"]
        found |= {f"{tower}_kernel": (blocks, space, width), f"{tower}_bias": (blocks, width)}
    return found | {"vision_readout": (config["vision_config"]["hidden_size"], config["projection_dim"])}


class Inserted:
    """`R W_l + b_l` behind the first token: inserted at the first of the last blocks, and replaced at the others."""

    def __init__(self, learnables: Learnables, tower: str, layers: int) -> None:
        self._space, self._tower = learnables["tokens"], tower
        self._kernels, self._biases = learnables[f"{tower}_kernel"], learnables[f"{tower}_bias"]
        self.count, self._start = len(self._space), layers - len(self._kernels)
        self.gradients: Gradients = {
            "tokens": np.zeros_like(self._space),
            f"{tower}_kernel": np.zeros_like(self._kernels),
            f"{tower}_bias": np.zeros_like(self._biases),
        }

    def enter(self, layer: int, x: np.ndarray) -> np.ndarray:
        """The tokens at a block's input."""
        number = layer - self._start
        if number < 0:
            return x
        own = self._space @ self._kernels[number] + self._biases[number]
        rest = x[:, 1:] if number == 0 else x[:, 1 + self.count :]
        return np.concatenate([x[:, :1], np.broadcast_to(own, (len(x), *own.shape)), rest], axis=1)

    def leave(self, layer: int, x: np.ndarray) -> np.ndarray:
        """From their gradient to that of the block before; those of the learnables are kept in `gradients`."""
        number, slots = layer - self._start, slice(1, 1 + self.count)
        if number < 0:
            return x
        own = x[:, slots].sum(0)
        self.gradients["tokens"] += own @ self._kernels[number].T
        self.gradients[f"{self._tower}_kernel"][number] = self._space.T @ own
        self.gradients[f"{self._tower}_bias"][number] = own.sum(0)
        if number == 0:
            return np.concatenate([x[:, :1], x[:, 1 + self.count :]], axis=1)
        x[:, slots] = 0.0
        return x


def mmrl_losses_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    alpha: float = 0.7,
    weight: float = 0.5,
) -> tuple[Losses, Gradients, np.ndarray, np.ndarray]:
    """The four terms, the gradient of their sum, and the logits `z` and `z_r`, 100 times cosines each."""
    learnables, config = weights.double(learnables), clip.config
    tokens = worded_tokens(clip, class_names, template)
    plain = {
        "text": numpy_clip.encode_text(clip.state, config, tokens).features,
        "vision": numpy_clip.encode_image(clip.state, config, images).features,
    }
    inserted = {tower: Inserted(learnables, tower, config[f"{tower}_config"]["num_hidden_layers"]) for tower in plain}
    count = inserted["text"].count
    rows = {"text": tokens.argmax(-1) + count, "vision": np.zeros(len(images), int)}
    saved = {
        tower: forward(clip, tower, embedded(clip, tower, inputs), rows[tower], enter=inserted[tower].enter)
        for tower, inputs in (("text", tokens), ("vision", images))
    }
    epsilon, norm = config["vision_config"]["layer_norm_eps"], "vision_model.post_layernorm"
    own = saved["vision"].last[:, 1 : 1 + count]
    mean = numpy_clip.layer_norm(clip.state, norm, epsilon, own).mean(1)
    read = mean @ learnables["vision_readout"]
    image, text = saved["vision"].features, saved["text"].features
    f, g, r = (numpy_clip.unit(x) for x in (image, text, read))
    z, z_r = 100 * f @ g.T, 100 * r @ g.T
    f_plain, g_plain = numpy_clip.unit(plain["vision"]), numpy_clip.unit(plain["text"])
    losses = {
        "cross_entropy": alpha * numpy_clip.cross_entropy(z, labels),
        "tokens": (1 - alpha) * numpy_clip.cross_entropy(z_r, labels),
        "image": float(weight * (1 - (f * f_plain).sum(-1).mean())),
        "text": float(weight * (1 - (g * g_plain).sum(-1).mean())),
    }
    slope = 100 * alpha * gradients.cross_entropy_backward(z, labels)
    slope_r = 100 * (1 - alpha) * gradients.cross_entropy_backward(z_r, labels)
    of_image = gradients.unit_backward(image, slope @ g - weight * f_plain / len(f))
    of_text = gradients.unit_backward(text, slope.T @ f + slope_r.T @ r - weight * g_plain / len(g))
    of_read = gradients.unit_backward(read, slope_r @ g)
    found: Gradients = {"vision_readout": mean.T @ of_read}
    of_mean = np.repeat((of_read @ learnables["vision_readout"].T)[:, None] / count, count, axis=1)
    last = {
        "vision": readout_backward(clip, "vision", saved["vision"], of_image),
        "text": readout_backward(clip, "text", saved["text"], of_text),
    }
    last["vision"][:, 1 : 1 + count] += gradients.layer_norm_backward(clip.state, norm, epsilon, own, of_mean)
    for tower, x in last.items():
        backward(clip, tower, saved[tower], x, leave=inserted[tower].leave)
        for name, value in inserted[tower].gradients.items():
            found[name] = found.get(name, 0.0) + value
    return losses, {name: found[name] for name in learnables}, z, z_r
