"""A frozen CLIP and a method as one pure classifier: the mathematics behind `Task`, without names or tokens."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import Adaptation, PackedTokens, TextTokens, encode_image, encode_packed_text, encode_text
from clipbias.clip.adaptation import NOTHING
from clipbias.clip.config import ClipConfig
from clipbias.clip.packed_text import take_sets
from clipbias.clip.params import Params
from clipbias.clip.vision import project_image
from clipbias.clip.weight_changes import drops
from clipbias.errors import ClipbiasError
from clipbias.tuning.descriptions import without_missing
from clipbias.tuning.features import Features, class_vectors, unit_length
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.test_time_method import TestTimeMethod, crops_of

# A policy of `jax.checkpoint_policies`: which results the backward pass keeps.
RematPolicy = Callable[..., object]

# What stands for the classes: tokens, or the text tower's features `[n · C, d]` where no learnable changes them.
Text = PackedTokens | TextTokens | jax.Array


@struct.dataclass
class TrainingTexts:
    """The texts of a training.

    Attributes:
      text: what stands for the classes.
      reference: features `[S' · C, d]` of a frozen teacher's texts, or `None`.
      template_tokens: the templates without class names, for a method that reads them, else `None`.
      selected: `[Q]`, the templates whose texts a step takes; `None` for all.
    """

    text: Text
    reference: jax.Array | None = None
    template_tokens: PackedTokens | None = None
    selected: jax.Array | None = None


# Features of the classes' texts `[S · C, d]`, and of the templates without class names where the method reads them.
EncodedTexts = tuple[jax.Array, jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Hashable, so that one compiled program serves every dataset, seed and step of the same shapes.

    Attributes:
      config: geometry.
      method: the adaptation method with its options.
      templates: number of templates `n` whose class features are averaged.
      dtype: compute type by name, one of `precision.DTYPES`.
      remat: what the backward pass keeps of each block, a `jax.checkpoint_policies` policy.
      class_chunks: chunks in which the text tower encodes the classes, one after another.
      counts: how many of the `n` texts each class has, where they differ (`tuning.descriptions`).
    """

    config: ClipConfig
    method: Method
    templates: int = 1
    dtype: str = "float32"
    remat: RematPolicy | None = None
    class_chunks: int = 1
    counts: tuple[int, ...] | None = None

    def image_features(self, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
        """Unit-length features `[B, d]` of normalised images `[B, R, R, 3]`."""
        return unit_length(self.whole_image_features(self.encode_images(params, self.method.adapt(learnables), images)))

    def class_features(self, params: Params, learnables: Learnables, text: Text) -> jax.Array:
        """Unit-length class features `[C, d]`, the classifier of a method without a head of its own.

        Templates are averaged as unit vectors, then the residual is added, then the sum is normalised.
        """
        adaptation = self.method.adapt(learnables)
        features = self.split_by_template(self.encode_text(params, adaptation, text))
        return class_vectors(features, adaptation.text_residual)

    def encode_images(self, params: Params, adaptation: Adaptation, images: jax.Array) -> jax.Array:
        """Features `[B, d]` of normalised images, as the tower makes them; with patches `[B, 1 + M, d]`, `[cls]` first.

        For `m` sets of vision prompts they are `[B, m, d]`.

        In place of images there may be what stands for them in a training on features: `[B, d]`, or the rows before
        the projection `[B, Dv]` where the adaptation changes that (`Sampling`). Of views of each image, `[B, 1 + V, R,
        R, 3]`, they are `[B, 1 + V, d]`.
        """
        if images.ndim == 5:
            features = self.encode_images(params, adaptation, images.reshape(-1, *images.shape[2:]))
            return features.reshape(*images.shape[:2], -1)
        if images.ndim == 4:
            options: dict[str, Any] = dict(dtype=self.dtype, remat=self.remat)
            patches = self.method.patches
            return encode_image(params, self.config, images, adaptation, patches=patches, **options)[0]
        if adaptation.changes_vision:
            return project_image(params, self.config, images, adaptation, normed=True)
        return images

    def whole_image_features(self, features: jax.Array) -> jax.Array:
        """The features of whole images `[B, d]` among those that `encode_images` gives."""
        if self.method.patches or (features.ndim == 3 and self.method.first_view):
            return features[:, 0]
        return features.mean(1) if features.ndim == 3 else features

    def encode_text(self, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
        """What the text tower makes of every text: `[S · C, d]`, not normalised, before any residual."""
        options: dict[str, Any] = dict(dtype=self.dtype, remat=self.remat)
        if isinstance(text, PackedTokens):
            features = encode_packed_text(params, self.config, text, adaptation, chunks=self.class_chunks, **options)
        elif isinstance(text, TextTokens):
            features = encode_text(params, self.config, text, adaptation, **options)[0]
        else:
            return text
        return features if self.counts is None else without_missing(features, self.counts)

    def encode_text_for(
        self, params: Params, learnables: Learnables, adaptation: Adaptation, image: jax.Array, text: Text
    ) -> jax.Array:
        """Text features `[S · C, d]`, or `[B, S · C, d]` where they depend on the images of features `[B, d]`.

        Then the text tower takes one image after another, in the backward pass again, in the memory of one. A single
        image is taken as it is.
        """
        tuned_at_test = isinstance(self.method, TestTimeMethod) and image.ndim == 3
        if not tuned_at_test and not self.method.overrides("adapt_to"):
            return self.encode_text(params, adaptation, text)
        features = image if tuned_at_test else self.whole_image_features(image)

        def one(feature: jax.Array) -> jax.Array:
            return self.encode_text(params, self.adaptation_for(params, learnables, feature, text), text)

        if tuned_at_test:
            return jax.lax.map(one, features)
        if features.shape[0] == 1:
            return one(features[0])[None]
        return jax.lax.map(jax.checkpoint(one, prevent_cse=False), features)

    def adaptation_for(self, params: Params, learnables: Learnables, image: jax.Array, text: Text) -> Adaptation:
        """What one image's texts are encoded with, of its feature `[d]`, or of its views' `[1 + V, d]`.

        `text` is what the method learns with of the views, and is not looked at without any.
        """
        if image.ndim == 1:
            return self.method.adapt_to(learnables, image)

        def logits(learned: Learnables) -> jax.Array:
            return self.head(params, learned, image, self.encode_text(params, self.method.adapt(learned), text))

        assert isinstance(self.method, TestTimeMethod), "the others see one feature of an image"
        return self.method.adapt(self.method.at_test(learnables, logits))

    def split_by_template(self, features: jax.Array, templates: int = 0) -> jax.Array:
        """`[…, S · C, d]` as `[…, S, C, d]`, with `S` so many templates, or all."""
        return features.reshape(*features.shape[:-2], templates or self.templates, -1, features.shape[-1])

    def logits(
        self, params: Params, learnables: Learnables, images: jax.Array, text: Text, mask: jax.Array | None = None
    ) -> jax.Array:
        """The method's logits `[B, C]`, `exp(logit_scale) · cos(f, g)` unless it has a head of its own.

        `mask [B]` says which of the images count, the others only fill a batch. A method that learns of each test image
        is given `images [B, 1 + V, R, R, 3]`: the image itself and crops of it (`data.transforms.test_views`).

        Raises:
          ClipbiasError: there are no crops, and the method needs them.
        """
        crops = crops_of(self.method)
        if crops and (images.ndim != 5 or images.shape[1] != 1 + crops):
            raise ClipbiasError(
                f"{type(self.method).__name__} learns of {crops} crops of each image, but the images have shape "
                f"{list(images.shape)}; give each image and its crops, [B, {1 + crops}, R, R, 3], as "
                "clipbias.data.transforms.test_views makes them."
            )
        adaptation = self.method.adapt(learnables)
        image = self.encode_images(params, adaptation, images)
        texts = self.encode_text_for(params, learnables, adaptation, image, text)
        return self.head(params, learnables, image, texts, mask)

    def head(
        self,
        params: Params,
        learnables: Learnables,
        image: jax.Array,
        text: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[B, C]` of features as the towers make them: `[B, d]` of images, of texts as of `encode_text_for`.

        SigLIP's bias is added; a softmax over classes, and with it the loss, does not see it.
        """
        with jax.default_matmul_precision("highest"):
            logits = self.method.logits(learnables, self._features(params, image, self.split_by_template(text), mask))
        return logits + params["logit_bias"] if "logit_bias" in params else logits

    def losses(
        self,
        params: Params,
        learnables: Learnables,
        images: jax.Array,
        labels: jax.Array,
        texts: TrainingTexts,
        *,
        rng: jax.Array | None = None,
        mask: jax.Array | None = None,
        encoded: EncodedTexts | None = None,
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The terms of the loss by name, `[B]` or a number each, and the logits `[B, C]`.

        Args:
          params: the frozen weights.
          learnables: as from `Task.init`.
          images: normalised, or features that stand for them (`encode_images`).
          labels: `[B]`.
          texts: what stands for the classes, and for a teacher.
          rng: key of what is random in a training step; `None` leaves that out.
          mask: `[B]`, which of the images count; the others only fill a batch.
          encoded: the result of `texts_in_training` for the same arguments; `None` computes it.
        """
        adaptation = self._in_training(learnables, rng)
        image = self.encode_images(params, adaptation, images)
        if encoded is None:
            encoded = self._encode_texts(params, learnables, adaptation, texts, image)
        text, templates = encoded
        count = self.templates if texts.selected is None else texts.selected.shape[0]
        features = self._features(params, image, self.split_by_template(text, count), mask)
        if texts.template_tokens is not None:
            features = dataclasses.replace(features, templates=templates)
        if texts.reference is not None:
            plain = self.encode_images(params, NOTHING, images) if adaptation.changes_vision else image
            reference = texts.reference.reshape(-1, features.text.shape[-2], texts.reference.shape[-1])
            features = dataclasses.replace(features, teacher=self._features(params, plain, reference))
        with jax.default_matmul_precision("highest"):
            logits = self.method.logits(learnables, features)
            return dict(self.method.losses(learnables, features, logits, labels)), logits

    def texts_in_training(
        self, params: Params, learnables: Learnables, texts: TrainingTexts, rng: jax.Array | None = None
    ) -> EncodedTexts:
        """The features of texts that depend on no image, and of the templates without class names."""
        return self._encode_texts(params, learnables, self._in_training(learnables, rng), texts, None)

    def _encode_texts(
        self,
        params: Params,
        learnables: Learnables,
        adaptation: Adaptation,
        texts: TrainingTexts,
        image: jax.Array | None,
    ) -> EncodedTexts:
        of_text, text = adaptation, texts.text
        if texts.selected is not None:
            assert isinstance(text, PackedTokens) and adaptation.text_context is not None
            text = take_sets(text, self.templates, texts.selected)
            of_text = dataclasses.replace(adaptation, text_context=adaptation.text_context[texts.selected])
        if image is None:
            features = self.encode_text(params, of_text, text)
        else:
            features = self.encode_text_for(params, learnables, of_text, image, text)
        if texts.template_tokens is None:
            return features, None
        return features, self.encode_text(params, adaptation, texts.template_tokens)

    def _in_training(self, learnables: Learnables, rng: jax.Array | None) -> Adaptation:
        return self.method.adapt(learnables) if rng is None else self.method.adapt_in_training(learnables, rng)

    def _features(self, params: Params, image: jax.Array, text: jax.Array, mask: jax.Array | None = None) -> Features:
        patches = image[:, 1:] if self.method.patches else None
        scale = jnp.exp(self.method.logit_scale(params))
        views = image if image.ndim == 3 and patches is None else None
        return Features(self.whole_image_features(image), text, scale, patches=patches, views=views, mask=mask)

    def changes_text(self, learnables: Learnables) -> bool:
        """Whether the text tower's output depends on the learnables; if not, it is computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_text

    def drops_text(self, learnables: Learnables) -> bool:
        """Whether a step of training drops inputs in the text tower, so that no two texts share a token any more."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return drops(jax.eval_shape(self.method.adapt_in_training, learnables, key).text_weights)

    def drops_vision(self, learnables: Learnables) -> bool:
        """Whether a step of training drops inputs in the vision tower, by one draw for all images of a batch."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return drops(jax.eval_shape(self.method.adapt_in_training, learnables, key).vision_weights)

    def changes_vision(self, learnables: Learnables) -> bool:
        """Whether the image features depend on the learnables; if not, those of fixed images are computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_vision


def cosine_logits(params: Params, images: jax.Array, classes: jax.Array) -> jax.Array:
    """`exp(logit_scale) · cos(f, g)` of unit-length features `[B, d]` and `[C, d]`: logits `[B, C]`, float32.

    SigLIP's bias, which moves all classes alike, is left out.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.exp(params["logit_scale"].astype(jnp.float32)) * (images @ classes.T)


def total_loss(terms: Mapping[str, jax.Array], mask: jax.Array | None = None) -> jax.Array:
    """The sum of a loss's terms; those with an entry per image `[B]` count with their mean over what `mask` keeps."""
    return sum((mean_loss(term, mask) for term in terms.values()), jnp.zeros(()))


def mean_loss(term: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """One term of a loss as a number: 0 where the mask keeps no image of the batch."""
    if jnp.ndim(term) == 0:
        return term
    return term.mean() if mask is None else jnp.where(mask, term, 0).sum() / jnp.maximum(mask.sum(), 1)
