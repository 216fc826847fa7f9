"""Visual prompting (Bahng et al. 2022): a frame of pixels on the normalised image, from the rule and by hand.

Learnables: `vision_up` and `vision_down` [p, R, 3], `vision_left` and `vision_right` [R - 2p, p, 3].
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Forward, Inputs, Learnables, Reference


def texts(class_names: Sequence[str]) -> list[str]:
    """Lower-case names, in which `_` and `-` are spaces, and no full stop."""
    return [f"This is a photo of a {name.lower().replace('_', ' ').replace('-', ' ')}" for name in class_names]


def framed(learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """The images with the strips added where they lie; nothing is cut or replaced."""
    width, side = learnables["vision_up"].shape[:2]
    shown = np.array(images, np.float64)
    shown[:, :width] += learnables["vision_up"]
    shown[:, side - width :] += learnables["vision_down"]
    shown[:, width : side - width, :width] += learnables["vision_left"]
    shown[:, width : side - width, side - width :] += learnables["vision_right"]
    return shown


def forward(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray
) -> tuple[Inputs, Forward]:
    """What goes into plain CLIP, and what it makes of it."""
    tokens = clip.tokenizer.tokenize(texts(class_names))
    embeddings = numpy_clip.token_embeddings(clip.state, tokens)
    inputs = Inputs(tokens, embeddings, np.zeros((len(tokens), 0), int), {}, None, None, None, 0.0)
    return inputs, methods.forward(clip, inputs, framed(learnables, images))


def loss_and_gradients(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], Gradients]:
    """The mean cross-entropy and the gradient of each strip."""
    learnables = weights.double(learnables)
    _, saved = forward(clip, class_names, learnables, images)
    scores = gradients.cross_entropy_backward(saved.logits, labels)
    image, _ = gradients.logits_backward(clip, saved, scores)
    tokens = gradients.tower_backward(clip, "vision", saved.vision, image, (), slice(0, 0), gradients.no_listener)[0]
    kernel, side = clip.state["vision_model.embeddings.patch_embedding.weight"], images.shape[1]
    size = clip.config["vision_config"]["patch_size"]
    pixels = np.zeros((side, side, 3))
    for index, gradient in enumerate(tokens[:, 1:].sum(0)):
        row, column = (size * at for at in divmod(index, side // size))
        window = (gradient @ kernel.reshape(len(kernel), -1)).reshape(3, size, size)
        pixels[row : row + size, column : column + size] = window.transpose(1, 2, 0)
    width = len(learnables["vision_up"])
    inner, far = slice(width, side - width), slice(side - width, side)
    found = {
        "vision_up": pixels[:width],
        "vision_down": pixels[far],
        "vision_left": pixels[inner, :width],
        "vision_right": pixels[inner, far],
    }
    return {"cross_entropy": numpy_clip.cross_entropy(saved.logits, labels)}, found


def rates(rate: float, warm: int, steps: int) -> list[float]:
    """`rate (t + 1) / W` for the first `W` steps, then a cosine over those that are left."""
    return [
        rate * (t + 1) / warm if t < warm else rate * 0.5 * (1 + np.cos(np.pi * (t - warm) / (steps - warm)))
        for t in range(steps)
    ]
