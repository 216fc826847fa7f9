"""TPT (Shu et al. 2022): a context that is tuned on the views of one test image, from the rule.

The learnable is `text_context` [T, Dt]. Views are [1 + V, R, R, 3], CLIP-normalised, the image itself first.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import differences, methods, numpy_clip, optimizers, weights
from tests.reference.methods import Learnables, Reference


def entropies(scores: np.ndarray) -> np.ndarray:
    """The entropy of each row's softmax."""
    probabilities = numpy_clip.softmax(scores)
    return -(probabilities * np.log(probabilities)).sum(-1)


def most_confident(scores: np.ndarray, share: float = 0.1) -> np.ndarray:
    """The views of smallest entropy, as many as `share` of them rounded down, one at least."""
    return np.argsort(entropies(scores), kind="stable")[: max(1, int(share * len(scores)))]


def entropy(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, views: np.ndarray, surest: np.ndarray
) -> float:
    """The entropy of the surest views' mean probabilities."""
    scores = methods.task_logits(clip, "coop", class_names, learnables, views[surest])
    mean = numpy_clip.softmax(scores).mean(0)
    return float(-(mean * np.log(mean)).sum())


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
    surest = most_confident(methods.task_logits(clip, "coop", class_names, learnables, views), share)

    def gradient(values: Learnables) -> Learnables:
        return differences.in_full(lambda x: np.array([entropy(clip, class_names, x, views, surest)]), values)[0]

    return optimizers.run(optimizers.AdamW(weight_decay=decay), gradient, learnables, [rate] * steps), surest


def logits(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, **options: float
) -> np.ndarray:
    """[B, C] of images with their views [B, 1 + V, R, R, 3]: each by itself, from the same start."""
    rows = []
    for views in images:
        moved, _ = tuned(clip, class_names, learnables, views, **options)
        rows.append(methods.task_logits(clip, "coop", class_names, moved, views[:1])[0])
    return np.stack(rows)
