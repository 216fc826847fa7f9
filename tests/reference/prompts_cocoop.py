"""CoCoOp (Zhou et al. 2022): a context that a small network shifts for each image, from the rule.

Learnables: `text_context` [T, Dt], `text_hidden_kernel` [d, d/16], `text_hidden_bias`, `text_output_kernel`
[d/16, Dt], `text_output_bias`. The text tower runs for each image by itself, all texts whole.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Learnables, Reference


def shift(learnables: Learnables, feature: np.ndarray) -> np.ndarray:
    """`π = W2 relu(W1 unit(f) + b1) + b2` of a feature [d]."""
    before = numpy_clip.unit(feature) @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    return np.maximum(before, 0) @ learnables["text_output_kernel"] + learnables["text_output_bias"]


def shifted(clip: Reference, class_names: Sequence[str], learnables: Learnables, feature: np.ndarray) -> methods.Inputs:
    """The inputs of the text tower for one image: the same vector is added to every token of the context."""
    context = learnables["text_context"] + shift(learnables, feature)
    return methods.prepare(clip, "coop", class_names, {"text_context": context})


def logits(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """[B, C], image by image."""
    learnables = weights.double(learnables)
    features = numpy_clip.encode_image(clip.state, clip.config, images).features
    return np.concatenate(
        [
            methods.forward(clip, shifted(clip, class_names, learnables, feature), images[b : b + 1]).logits
            for b, feature in enumerate(features)
        ]
    )
