"""Visual prompting (Bahng et al. 2022): a frame of pixels on the normalised image, from the rule.

Learnables: `vision_up` and `vision_down` [p, R, 3], `vision_left` and `vision_right` [R - 2p, p, 3].
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Inputs, Learnables, Reference


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


def logits(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """[B, C] of plain CLIP on the framed images."""
    tokens = clip.tokenizer.tokenize(texts(class_names))
    embeddings = numpy_clip.token_embeddings(clip.state, tokens)
    inputs = Inputs(tokens, embeddings, np.zeros((len(tokens), 0), int), {}, None, None, None, 0.0)
    return methods.forward(clip, inputs, framed(weights.double(learnables), images)).logits


def rates(rate: float, warm: int, steps: int) -> list[float]:
    """`rate (t + 1) / W` for the first `W` steps, then a cosine over those that are left."""
    return [
        rate * (t + 1) / warm if t < warm else rate * 0.5 * (1 + np.cos(np.pi * (t - warm) / (steps - warm)))
        for t in range(steps)
    ]
