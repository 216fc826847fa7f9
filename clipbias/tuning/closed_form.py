"""Shared functions of heads on frozen features: cosines, class means, accuracy.

Functions on NumPy arrays compute in float64 on the host. A search compares accuracies, which one image can change:
float64 makes the result independent of the order of sums.
"""

from collections.abc import Iterator

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Features, Samples, average_texts, unit_length

# Factor of the cosines in methods whose authors use a fixed number instead of `exp(logit_scale)`.
COSINE_SCALE = 100.0


def cosines(features: Features) -> jax.Array:
    """`x Tᵀ [B, C]`: `x = unit(f)`, `T` the zero-shot classifier, unit vectors averaged over texts."""
    return unit_length(features.image) @ unit_length(average_texts(features.text)).T


def unit_rows(x: np.ndarray) -> np.ndarray:
    """`x / ‖x‖₂` over the last axis, float64."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def text_classifier(text: np.ndarray) -> np.ndarray:
    """`T [C, d]` of texts `[S, C, d]`, float64; rows of zeros are padding for classes with fewer texts."""
    text = np.asarray(text, np.float64)
    length = np.linalg.norm(text, axis=-1, keepdims=True)
    return unit_rows((text / np.where(length > 0, length, 1)).sum(0))


def unit_passes(samples: Samples) -> Iterator[np.ndarray]:
    """`unit(f) [N, d]` of the training images, pass by pass. All passes at once would take gigabytes on ImageNet."""
    return map(unit_rows, samples.features)


def class_means(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean of each class's rows, `[N, d]` to `[C, d]`.

    Raises:
      ClipbiasError: a class has no row.
    """
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if missing.size:
        raise ClipbiasError(
            f"class {missing[0] + 1} of {classes} has no training image, and this method needs one of every class."
        )
    return np.stack([rows[labels == label].mean(0) for label in range(classes)])


def validation_features(samples: Samples, per_class: int | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Validation features `[n, d]` and labels `[n]`, at most `per_class` images of a class; `None` without any.

    A class with more images gives those that come first in an order drawn with the run's seed.
    """
    features = samples.validation
    labels = samples.validation_labels
    if features is None or labels is None or not len(labels):
        return None
    if per_class is None:
        return features, labels
    order = np.random.default_rng(samples.seed).permutation(len(labels))
    rows = np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])
    return features[rows], labels[rows]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit is that of their class. Among equal logits the first one counts."""
    return float((logits.argmax(-1) == labels).mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `-log p` of the labels, in nats."""
    below = logits - logits.max(-1, keepdims=True)
    return float((np.log(np.exp(below).sum(-1)) - below[np.arange(len(labels)), labels]).mean())


def shortest(value: np.ndarray) -> float:
    """A float32 as the shortest decimal number that it is: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in place: a copy would take 128 MB on ImageNet."""
    logits -= logits.max(-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(-1, keepdims=True)
    return logits
