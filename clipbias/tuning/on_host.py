"""Features on the host, in NumPy's float64: for closed forms, and for searches on validation images.

A search compares accuracies, which a single image changes: float64 makes the result independent of the order of sums.
"""

from collections.abc import Iterator

import jax
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.tuning.features import Samples


def unit_rows(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def text_classifier(text: np.ndarray) -> np.ndarray:
    """`T [C, d]` of texts `[S, C, d]`, float64; rows of zeros are padding for classes with fewer texts."""
    text = np.asarray(text, np.float64)
    length = np.linalg.norm(text, axis=-1, keepdims=True)
    return unit_rows((text / np.where(length > 0, length, 1)).sum(0))


def unit_passes(samples: Samples) -> Iterator[np.ndarray]:
    """`unit(f) [N, d]` of the training images, pass by pass."""
    # Lazily: float64 rows of all passes at once would take gigabytes on ImageNet.
    return map(unit_rows, samples.features)


def class_means(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean of each class's rows, `[N, d]` to `[C, d]`. Raises `ClipbiasError` for a class without a row."""
    # `np.mean` of no row would be NaN, with a warning only.
    if (missing := np.flatnonzero(np.bincount(labels, minlength=classes) == 0)).size:
        raise ClipbiasError(
            f"no training image has the label {missing[0]} of {classes} (from 0); this method needs one of every class."
        )
    return np.stack([rows[labels == label].mean(0) for label in range(classes)])


def class_rows(learned: jax.Array | np.ndarray, labels: np.ndarray, start: np.ndarray | float = 0) -> np.ndarray:
    """Rows `[C', …]` of other classes: those of `learned [C, …]` by label, and of `start` for the labels of -1."""
    # Indexing with -1 takes the last row; the next line replaces it. A fancy index copies, so `learned` stays as it is.
    rows = np.asarray(learned)[labels]
    rows[labels < 0] = start
    return rows


def validation_features(samples: Samples, per_class: int | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Validation features `[n, d]` and labels `[n]`, at most `per_class` images of a class; `None` without any."""
    # A class with more images gives the first ones in an order that the run's seed draws over all images.
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
    return float((logits.argmax(-1) == labels).mean())


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `-log p` of the labels, in nats."""
    # Minus the largest logit: `exp` of a scaled cosine of 100 overflows float32, and cached terms may be larger still.
    below = logits - logits.max(-1, keepdims=True)
    return float((np.log(np.exp(below).sum(-1)) - below[np.arange(len(labels)), labels]).mean())


def shortest(value: np.ndarray) -> float:
    """The shortest decimal number of a float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in place."""
    # In place: a copy would take 128 MB on ImageNet.
    logits -= logits.max(-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(-1, keepdims=True)
    return logits
