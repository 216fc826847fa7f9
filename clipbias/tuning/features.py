"""Features of images and texts, and functions that heads and losses share."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from clipbias.checks import Choices, Range

# Below this number of validation images many settings have the same accuracy.
FEW_IMAGES = 100


def unit_length(x: jax.Array) -> jax.Array:
    """`x / ‖x‖₂` over the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def average_texts(text: jax.Array) -> jax.Array:
    """The classifier of `S` texts per class, `[S, C, d]` to `[C, d]`: the mean of unit vectors times their mean length.

    Rows of zeros are padding for classes with fewer texts (`tuning.prompts`).
    """
    # Cosines do not see the length, but TaskRes's residual does: one text stays raw, and given twice is that text.
    if text.shape[0] == 1:
        return text[0]
    # `where` inside the division: 0/0 of the padding would make NaN, also in gradients of the other rows.
    length = jnp.linalg.norm(text, axis=-1, keepdims=True)
    return (text / jnp.where(length > 0, length, 1)).sum(0) * length.sum(0) / (length > 0).sum(0) ** 2


def class_vectors(text: jax.Array, residual: jax.Array | None) -> jax.Array:
    """Unit-length classes `[C, d]` of texts `[S, C, d]`: `average_texts`, plus a residual, normalised."""
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
      views: several features of an image: `[B, m, d]` of `m` sets of vision prompts, of which `image` is the mean; or
        `[B, 2, d]` with `Adaptation.vision_readout`, the image's feature, and that of the inserted tokens.
      templates: `[S, d]`, features of the `S` templates without class names, in losses if `Method.reads_templates`.
      mask: bool `[B]`, false for rows that only fill the batch, which a head over the whole batch must leave out.
      teacher: the same features from plain CLIP, with the texts of `Method.teacher_text`, in losses.
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
    """

    passes: Annotated[int, Range(0, 10_000)] = 1  # for `FeatureMethod.support`; 0 for one pass without augmentation
    crop: Annotated[float, Range(0, 1)] = 0.08  # smallest share of an image that a crop covers
    # Passes for training. "fresh": a new pass for each epoch, after those of `support`. "again": pass `e mod passes` in
    # epoch `e`. "pooled": an epoch shuffles the rows of all passes, and ends after as many batches as one pass has.
    training: Annotated[str, Choices(("fresh", "again", "pooled"))] = "fresh"
    projected: bool = True  # features of the tower, `[d]`; else its output before the projection, `[Dv]`
    validation: bool = False  # whether `support` and `finish` also get validation images


@dataclasses.dataclass(frozen=True)
class Samples:
    """Features of a run's images, on the host, not normalised.

    Attributes:
      features: `[E, N, d]` float32, `E` passes over `N` training images (see `Sampling`), with labels int32 `[N]`.
      text: `[S, C, d]` float32, the frozen text features.
      scale: `exp(logit_scale)`.
      validation: `[n, d]`, without augmentation, with labels int32 `[n]`, if `Sampling.validation` asks for them.
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
        # Equal accuracies are common then, and the lower loss decides between them.
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
