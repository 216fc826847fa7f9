"""CoCoOp (Zhou et al. 2022): a context that a small network shifts for each image, from the rule and by hand.

Learnables: `text_context` [T, Dt], `text_hidden_kernel` [d, d/16], `text_hidden_bias`, `text_output_kernel`
[d/16, Dt], `text_output_bias`. The text tower runs for each image by itself, all texts whole.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Learnables, Reference


def shift(learnables: Learnables, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`π = W2 relu(W1 unit(f) + b1) + b2` of a feature [d], and what goes into the relu."""
    before = numpy_clip.unit(feature) @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    return np.maximum(before, 0) @ learnables["text_output_kernel"] + learnables["text_output_bias"], before


def shifted(clip: Reference, class_names: Sequence[str], learnables: Learnables, feature: np.ndarray) -> methods.Inputs:
    """The inputs of the text tower for one image: the same vector is added to every token of the context."""
    context = learnables["text_context"] + shift(learnables, feature)[0]
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


def loss_and_gradients(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], Gradients]:
    """The mean cross-entropy and the gradient of each learnable."""
    learnables = weights.double(learnables)
    found = {name: np.zeros(value.shape) for name, value in learnables.items()}
    loss = 0.0
    for b, label in enumerate(labels):
        one = images[b : b + 1]
        feature = numpy_clip.encode_image(clip.state, clip.config, one).features[0]
        inputs = shifted(clip, class_names, learnables, feature)
        saved = methods.forward(clip, inputs, one)
        loss += numpy_clip.cross_entropy(saved.logits, np.array([label])) / len(labels)
        scores = gradients.cross_entropy_backward(saved.logits, np.array([label])) / len(labels)
        context = gradients.pull_back(clip, inputs, saved, scores)[0]["text_context"].sum(0)
        found["text_context"] += context
        pulled = context.sum(0)
        before = shift(learnables, feature)[1]
        found["text_output_bias"] += pulled
        found["text_output_kernel"] += np.outer(np.maximum(before, 0), pulled)
        hidden = (learnables["text_output_kernel"] @ pulled) * (before > 0)
        found["text_hidden_bias"] += hidden
        found["text_hidden_kernel"] += np.outer(numpy_clip.unit(feature), hidden)
    return {"cross_entropy": loss}, found
