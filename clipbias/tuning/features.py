"""What a head, a loss and a closed form are made of: features of images and texts."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.checks import Choices, Range


def unit_length(x: jax.Array) -> jax.Array:
    """`x / ‖x‖₂` over the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def average_texts(text: jax.Array) -> jax.Array:
    """The classifier of `S` texts per class, `[S, C, d]` to `[C, d]`: the mean of unit vectors, not normalised again.

    One text is returned as it is. Rows of zeros stand for texts that a class has fewer than others
    (`tuning.descriptions`).
    """
    if text.shape[0] == 1:
        return text[0]
    length = jnp.linalg.norm(text, axis=-1, keepdims=True)
    return (text / jnp.where(length > 0, length, 1)).sum(0) / (length > 0).sum(0)


def class_vectors(text: jax.Array, residual: jax.Array | None) -> jax.Array:
    """Unit-length classes `[C, d]` of texts `[S, C, d]`: averaged as unit vectors, a residual added, and normalised."""
    classes = average_texts(text)
    return unit_length(classes if residual is None else classes + residual)


def average_raw_texts(text: jax.Array) -> jax.Array:
    """The mean `[C, d]` of `S` texts per class as they are, `[S, C, d]`, without rows of zeros (`average_texts`)."""
    return text.sum(0) / (text != 0).any(-1, keepdims=True).sum(0)


@struct.dataclass
class Features:
    """What a head and a loss see. Features are as the towers make them, not of unit length.

    Attributes:
      image: `[B, d]`.
      text: `[S, C, d]`, `S` texts of each class; `[B, S, C, d]` where they depend on the image (`Method.adapt_to`).
      scale: what cosines are multiplied by, `exp(logit_scale)` or the number of the method's authors.
      patches: `[B, M, d]`, features of the patches as `[cls]` has them, for a method that asks for them
        (`Method.patches`), else `None`.
      views: `[B, m, d]`, features of the `m` passes over an image where the vision prompts are so many sets, and then
        `image` is their mean; or `[B, 2, d]`, its own and that of tokens which `Adaptation.vision_readout` reads; else
        `None`.
      templates: `[S, d]`, features of the `S` templates without a class name, for losses of methods that ask for them
        (`Method.reads_templates`), else `None`.
      mask: bool `[B]`, which of the images count; the others only fill a batch. `None` where all do. A head whose
        logits of one image depend on the others of its batch leaves those out.
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
    """Which features of the training images a method is made of, all computed by the frozen vision tower.

    A pass goes over all training images, each augmented anew; what an image becomes in a pass depends on the seed, the
    number of the pass and the image alone.

    Attributes:
      passes: those that `Method.support` is given; 0 for one pass of the images as they are evaluated.
      crop: smallest share of an image that a crop covers.
      training: which passes the epochs of a training on features take: "fresh" ones, another one for each epoch after
        those of `support`; "again", pass `e mod passes` in epoch `e`; or "pooled", epochs that shuffle the rows of all
        passes together and end after as many batches as one pass has.
      projected: whether features are the tower's, `[d]`; else its output row before the projection, `[Dv]`.
      validation: whether `support` and `finish` are given validation images, too.
    """

    passes: Annotated[int, Range(0, 10_000)] = 1
    crop: Annotated[float, Range(0, 1)] = 0.08
    training: Annotated[str, Choices(("fresh", "again", "pooled"))] = "fresh"
    projected: bool = True
    validation: bool = False


@dataclasses.dataclass(frozen=True)
class Samples:
    """Features of a run's images, on the host, as the tower makes them.

    Attributes:
      features: `[E, N, d]` float32, `E` passes over `N` training images (see `Sampling`).
      labels: int32 `[N]`.
      text: `[S, C, d]` float32, the class features that no learnable changes.
      scale: `exp(logit_scale)`.
      validation: `[n, d]`, of images as they are evaluated; `None` where there are none, or none were asked for.
      validation_labels: int32 `[n]`.
      seed: of the run.
    """

    features: np.ndarray
    labels: np.ndarray
    text: np.ndarray
    scale: float
    validation: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
    seed: int = 0

    @property
    def shots(self) -> int:
        """`K`, the most training images that a class has."""
        return int(np.bincount(self.labels).max())
