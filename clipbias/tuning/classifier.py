"""A frozen CLIP and a method as one pure classifier: the mathematics behind `Task`, without names or tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipbias.clip import PackedTokens, TextTokens, encode_image, encode_packed_text, encode_text
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.tuning.method import Learnables, Method

# What stands for the classes: tokens, or the text tower's features `[n · C, d]` where no learnable changes them.
Text = PackedTokens | TextTokens | jax.Array


def unit_length(x: jax.Array) -> jax.Array:
    """`x / ‖x‖₂` over the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Hashable, so that one compiled program serves every dataset, seed and step of the same shapes.

    Attributes:
      config: geometry.
      method: the adaptation method with its options.
      templates: number of templates `n` whose class features are averaged.
      dtype: compute type.
      remat: what the backward pass keeps of each block, a `jax.checkpoint_policies` policy.
      chunks: parts in which the text tower takes the classes, one after another.
    """

    config: ClipConfig
    method: Method
    templates: int = 1
    dtype: str = "float32"
    remat: Callable[..., Any] | None = None
    chunks: int = 1

    def image_features(self, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
        """Unit-length features `[B, d]` of normalised images `[B, R, R, 3]`."""
        adaptation = self.method.adapt(learnables)
        features, _ = encode_image(
            params, self.config, images, adaptation, dtype=jnp.dtype(self.dtype), remat=self.remat
        )
        return unit_length(features)

    def text_features(self, params: Params, learnables: Learnables, text: Text) -> jax.Array:
        """What the text tower makes of every text: `[n · C, d]`, not normalised, before any residual."""
        options: dict[str, Any] = dict(dtype=jnp.dtype(self.dtype), remat=self.remat)
        if isinstance(text, PackedTokens):
            adaptation = self.method.adapt(learnables)
            return encode_packed_text(params, self.config, text, adaptation, chunks=self.chunks, **options)
        if isinstance(text, TextTokens):
            return encode_text(params, self.config, text, self.method.adapt(learnables), **options)[0]
        return text

    def class_features(self, params: Params, learnables: Learnables, text: Text) -> jax.Array:
        """Unit-length class features `[C, d]`.

        Templates are averaged as unit vectors, then the residual is added, then the sum is normalised.
        """
        features = self.text_features(params, learnables, text)
        if self.templates > 1:
            features = unit_length(features).reshape(self.templates, -1, features.shape[-1]).mean(0)
        residual = self.method.adapt(learnables).text_residual
        return unit_length(features if residual is None else features + residual)

    def logits(self, params: Params, learnables: Learnables, images: jax.Array, text: Text) -> jax.Array:
        """`exp(logit_scale) · cos(f, g)`: `[B, C]`."""
        return cosine_logits(
            params, self.image_features(params, learnables, images), self.class_features(params, learnables, text)
        )

    def changes_text(self, learnables: Learnables) -> bool:
        """Whether the text tower's output depends on the learnables; if not, it is computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_text

    def changes_vision(self, learnables: Learnables) -> bool:
        """Whether the image features depend on the learnables; if not, those of fixed images are computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_vision


@with_precision
def cosine_logits(
    params: Params, images: jax.Array, classes: jax.Array, *, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """`exp(logit_scale) · cos(f, g)` of unit-length features `[B, d]` and `[C, d]`: logits `[B, C]`, float32."""
    return jnp.exp(params["logit_scale"].astype(jnp.float32)) * (images.astype(dtype) @ classes.astype(dtype).T)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `[B, C]` and integer labels `[B]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
