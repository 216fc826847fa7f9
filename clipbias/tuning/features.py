"""Features of images and texts, and functions that heads, losses and closed forms share.

Functions on NumPy arrays compute in float64 on the host. A search compares accuracies, which a single image changes:
float64 makes the result independent of the order of sums.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from clipbias.checks import Choices, Range
from clipbias.errors import ClipbiasError

# Below this number of validation images many settings have the same accuracy.
FEW_IMAGES = 100


def unit_length(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def average_texts(text: jax.Array) -> jax.Array:
    """The classifier of `S` texts per class, `[S, C, d]` to `[C, d]`: the mean of unit vectors, not normalised again.

    Rows of zeros are padding for classes with fewer texts (`tuning.prompts`).
    """
    # A single text stays raw: TaskRes adds its residual to the raw feature, and cosines do not see the length.
    if text.shape[0] == 1:
        return text[0]
    # `where` inside the division: 0/0 of the padding would make NaN, also in gradients of the other rows.
    length = jnp.linalg.norm(text, axis=-1, keepdims=True)
    return (text / jnp.where(length > 0, length, 1)).sum(0) / (length > 0).sum(0)


def class_vectors(text: jax.Array, residual: jax.Array | None) -> jax.Array:
    """Unit-length classes `[C, d]` of texts `[S, C, d]`: averaged as unit vectors, a residual added, and normalised."""
    classes = average_texts(text)
    return unit_length(classes if residual is None else classes + residual)


def average_raw_texts(text: jax.Array) -> jax.Array:
    """The mean `[C, d]` of `S` raw text features per class, `[S, C, d]`, without rows of zeros (`average_texts`)."""
    return text.sum(0) / (text != 0).any(-1, keepdims=True).sum(0)


@struct.dataclass
class Features:
    """Inputs of a head and a loss. Features are not normalised.

    Attributes:
      image: `[B, d]`.
      text: `[S, C, d]`, `S` texts of each class; `[B, S, C, d]` where they depend on the image (`Method.adapt_to`).
      scale: factor of the cosines, `exp(logit_scale)` or the number of the method's authors.
      patches: `[B, M, d]`, features of the patches, if `Method.patches`; else `None`.
      views: several features of an image, else `None`. With `m` sets of vision prompts `[B, m, d]`, one per set, and
        `image` is their mean. With `Adaptation.vision_readout` `[B, 2, d]`: the image's feature, and that of the
        inserted tokens.
      templates: `[S, d]`, features of the `S` templates without class names, in losses if `Method.reads_templates`;
        else `None`.
      mask: bool `[B]`, false for rows that only fill the batch; `None` if all rows are images. A head whose logits
        depend on the other images of the batch must leave these rows out.
      teacher: the same features from plain CLIP, with the texts of `Method.teacher_text`; `None` if the method has no
        teacher, and outside losses.
    """

    image: jax.Array
    text: jax.Array
    scale: jax.Array
    teacher: "Features | None" = None
    patches: jax.Array | None = None
    views: jax.Array | None = None
    templates: jax.Array | None = None
    mask: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The features of the training images that a method uses, from the frozen vision tower.

    A pass covers all training images, with augmentations that depend on the seed, the pass and the image alone.

    Attributes:
      passes: number of passes for `FeatureMethod.support`; 0 for one pass without augmentation.
      crop: smallest share of an image that a crop covers.
      training: passes for training on features. "fresh": a new pass for each epoch, after those of `support`. "again":
        pass `e mod passes` in epoch `e`. "pooled": an epoch shuffles the rows of all passes, and ends after as many
        batches as one pass has.
      projected: whether features are those of the tower, `[d]`; else its output before the projection, `[Dv]`.
      validation: whether `support` and `finish` also get validation images.
    """

    passes: Annotated[int, Range(0, 10_000)] = 1
    crop: Annotated[float, Range(0, 1)] = 0.08
    training: Annotated[str, Choices(("fresh", "again", "pooled"))] = "fresh"
    projected: bool = True
    validation: bool = False


@dataclasses.dataclass(frozen=True)
class Samples:
    """Features of a run's images, on the host, not normalised.

    Attributes:
      features: `[E, N, d]` float32, `E` passes over `N` training images (see `Sampling`).
      labels: int32 `[N]`.
      text: `[S, C, d]` float32, the frozen text features.
      scale: `exp(logit_scale)`.
      validation: `[n, d]`, without augmentation; `None` if there are none, or `Sampling.validation` is off.
      validation_labels: int32 `[n]`.
    """

    features: np.ndarray
    labels: np.ndarray
    text: np.ndarray
    scale: float
    validation: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    seed: int = 0

    @property
    def few_validation_images(self) -> bool:
        """Whether the lower loss decides between equal accuracies, which are common among few validation images."""
        return self.validation_labels is not None and len(self.validation_labels) < FEW_IMAGES

    @property
    def shots(self) -> int:
        """`K`, the largest number of training images of a class."""
        return int(np.bincount(self.labels).max())


# Factor of the cosines in methods whose authors use a fixed number instead of `exp(logit_scale)`, which is
# nearly 100 in OpenAI's models.
COSINE_SCALE = 100.0


# `-log p` of each image's label, `[B]`, from logits `[B, C]` and labels `[B]`.
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def cosines(features: Features) -> jax.Array:
    """`x Tᵀ [B, C]`: `x = unit(f)`, `T` the zero-shot classifier, unit vectors averaged over texts."""
    return unit_length(features.image) @ unit_length(average_texts(features.text)).T


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
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if missing.size:
        raise ClipbiasError(
            f"class {missing[0] + 1} of {classes} has no training image, and this method needs one of every class."
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
