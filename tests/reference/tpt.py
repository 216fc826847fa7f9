"""TPT (Shu et al. 2022): a context that is tuned on the views of one test image, from the rule and by hand.

The learnable is `text_context` [T, Dt]. Views are [1 + V, R, R, 3], CLIP-normalised, the image itself first.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, optimizers, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Learnables, Reference


def entropies(scores: np.ndarray) -> np.ndarray:
    """The entropy of each row's softmax."""
    probabilities = numpy_clip.softmax(scores)
    return -(probabilities * np.log(probabilities)).sum(-1)


def most_confident(scores: np.ndarray, share: float = 0.1) -> np.ndarray:
    """The views of smallest entropy, as many as `share` of them rounded down, one at least."""
    return np.argsort(entropies(scores), kind="stable")[: max(1, int(share * len(scores)))]


def loss_and_gradients(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, views: np.ndarray, chosen: np.ndarray
) -> tuple[float, Gradients]:
    """The entropy of the chosen views' mean probabilities and its gradient."""
    inputs = methods.prepare(clip, "coop", class_names, learnables)
    saved = methods.forward(clip, inputs, views)
    each = numpy_clip.softmax(saved.logits[chosen])
    mean = each.mean(0)
    slope = -(np.log(mean) + 1) / len(chosen)
    scores = np.zeros(saved.logits.shape)
    scores[chosen] = each * (slope - (each * slope).sum(-1, keepdims=True))
    found = gradients.pull_back(clip, inputs, saved, scores)[0]
    return float(-(mean * np.log(mean)).sum()), gradients.of_learnables(found, learnables)


def tuned(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    views: np.ndarray,
    *,
    share: float = 0.1,
    steps: int = 1,
    rate: float = 5e-3,
    decay: float = 0.01,
) -> tuple[Learnables, np.ndarray]:
    """The context after its steps of AdamW from a fresh state, and the views that it learned of."""
    learnables = weights.double(learnables)
    chosen = most_confident(methods.task_logits(clip, "coop", class_names, learnables, views), share)
    optimizer = optimizers.AdamW(weight_decay=decay)
    moved = optimizers.run(
        optimizer,
        lambda values: loss_and_gradients(clip, class_names, values, views, chosen)[1],
        learnables,
        [rate] * steps,
    )
    return moved, chosen


def logits(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, **options: float
) -> np.ndarray:
    """[B, C] of images with their views [B, 1 + V, R, R, 3]: each by itself, from the same start."""
    rows = []
    for views in images:
        moved, _ = tuned(clip, class_names, learnables, views, **options)
        rows.append(methods.task_logits(clip, "coop", class_names, moved, views[:1])[0])
    return np.stack(rows)
