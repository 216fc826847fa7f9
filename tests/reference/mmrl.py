"""MMRL (Guo & Gu 2025): tokens of one space, mapped into the last blocks of both towers behind the first token.

Letters as in `numpy_clip`; the towers are run by `inner_parts`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import numpy_clip, weights
from tests.reference.inner_parts import Losses, embedded, forward, shallower, worded_tokens
from tests.reference.methods import Learnables, Reference


def mmrl_shapes(config: Mapping, *, tokens: int = 5, blocks: int = 7, space: int = 512) -> dict[str, tuple[int, ...]]:
    """`R`, a map with bias into each of the last blocks of both towers, and the projection of what is read out."""
    shapes: dict[str, tuple[int, ...]] = {"tokens": (tokens, space)}
    for tower in ("text", "vision"):
        width = config[f"{tower}_config"]["hidden_size"]
        shapes |= {f"{tower}_kernel": (blocks, space, width), f"{tower}_bias": (blocks, width)}
    return shapes | {"vision_readout": (config["vision_config"]["hidden_size"], config["projection_dim"])}


class Inserted:
    """`R W_l + b_l` behind the first token: inserted at the first of the last blocks, and replaced at the others."""

    def __init__(self, learnables: Learnables, tower: str, layers: int) -> None:
        self._space = learnables["tokens"]
        self._kernels, self._biases = learnables[f"{tower}_kernel"], learnables[f"{tower}_bias"]
        self.count, self._start = len(self._space), layers - len(self._kernels)

    def enter(self, layer: int, x: np.ndarray) -> np.ndarray:
        """The tokens at a block's input."""
        number = layer - self._start
        if not 0 <= number < len(self._kernels):
            return x
        inserted = self._space @ self._kernels[number] + self._biases[number]
        rest = x[:, 1:] if number == 0 else x[:, 1 + self.count :]
        return np.concatenate([x[:, :1], np.broadcast_to(inserted, (len(x), *inserted.shape)), rest], axis=1)


def mmrl_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    alpha: float = 0.7,
    weight: float = 0.5,
) -> tuple[Losses, np.ndarray, np.ndarray]:
    """The four terms, and the logits `z` and `z_r`, 100 times cosines each."""
    learnables = weights.double(learnables)
    config = clip.config
    tokens = worded_tokens(clip, class_names, template)
    plain = {
        "text": numpy_clip.encode_text(clip.state, config, tokens).features,
        "vision": numpy_clip.encode_image(clip.state, config, images).features,
    }
    inserted = {tower: Inserted(learnables, tower, shallower(config)) for tower in plain}
    count = inserted["text"].count
    rows = {"text": tokens.argmax(-1) + count, "vision": np.zeros(len(images), int)}
    saved = {
        tower: forward(clip, tower, embedded(clip, tower, inputs), rows[tower], enter=inserted[tower].enter)
        for tower, inputs in (("text", tokens), ("vision", images))
    }
    learned = saved["vision"].last[:, 1 : 1 + count]
    epsilon = config["vision_config"]["layer_norm_eps"]
    mean = numpy_clip.layer_norm(clip.state, numpy_clip.LAST_NORM["vision"], epsilon, learned).mean(1)
    read = mean @ learnables["vision_readout"]
    image = saved["vision"].features
    text = saved["text"].features
    f, g, r = (numpy_clip.unit(x) for x in (image, text, read))
    z, z_r = 100 * f @ g.T, 100 * r @ g.T
    f_plain, g_plain = numpy_clip.unit(plain["vision"]), numpy_clip.unit(plain["text"])
    losses = {
        "cross_entropy": alpha * numpy_clip.cross_entropy(z, labels),
        "tokens": (1 - alpha) * numpy_clip.cross_entropy(z_r, labels),
        "image": float(weight * (1 - (f * f_plain).sum(-1).mean())),
        "text": float(weight * (1 - (g * g_plain).sum(-1).mean())),
    }
    return losses, z, z_r
