"""A frozen CLIP and a method as one pure classifier: the mathematics of `Task`, without class names or tokenizer."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import Adaptation, PackedTokens, TextTokens, encode_image, encode_packed_text, encode_text
from clipbias.clip.adaptation import NOTHING
from clipbias.clip.config import ClipConfig
from clipbias.clip.packing import take_sets
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

# Texts of the classes: tokens, or the text tower's features `[n · C, d]` if no learnable changes them.
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
        """Features `[B, d]` of normalised images, not normalised; with patches `[B, 1 + M, d]`, `[cls]` first.

        With `m` sets of vision prompts they are `[B, m, d]`, and for views `[B, 1 + V, R, R, 3]` they are `[B, 1 + V,
        d]`. In training on features, `images` are features `[B, d]`, which are returned; or the tower's outputs before
        the projection `[B, Dv]`, if the adaptation changes the projection (`Sampling`).
        """
        if images.ndim == 5:
            features = self.encode_images(params, adaptation, images.reshape(-1, *images.shape[2:]))
            return features.reshape(*images.shape[:2], -1)
        if images.ndim == 4:
            features, _ = encode_image(
                params,
                self.config,
                images,
                adaptation,
                patches=self.method.patches,
                dtype=self.dtype,
                remat=self.remat,
            )
            return features
        if adaptation.changes_vision:
            return project_image(params, self.config, images, adaptation, normed=True)
        return images

    def whole_image_features(self, features: jax.Array) -> jax.Array:
        """The features of whole images `[B, d]`, from those of `encode_images`."""
        if self.method.patches or (features.ndim == 3 and self.method.first_view):
            return features[:, 0]
        return features.mean(1) if features.ndim == 3 else features

    def encode_text(self, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
        """Features of every text `[S · C, d]`, not normalised, before any residual."""
        if isinstance(text, PackedTokens):
            features = encode_packed_text(
                params,
                self.config,
                text,
                adaptation,
                chunks=self.class_chunks,
                dtype=self.dtype,
                remat=self.remat,
            )
        elif isinstance(text, TextTokens):
            features, _ = encode_text(params, self.config, text, adaptation, dtype=self.dtype, remat=self.remat)
        else:
            return text
        return features if self.counts is None else without_missing(features, self.counts)

    def encode_text_for(
        self, params: Params, learnables: Learnables, adaptation: Adaptation, image: jax.Array, text: Text
    ) -> jax.Array:
        """Text features `[S · C, d]`, or `[B, S · C, d]` if they depend on the image features `[B, d]`.

        In that case the text tower runs for one image after another, and again in the backward pass, to need the memory
        of one image. A single image needs no loop.
        """
        tuned_at_test = isinstance(self.method, TestTimeMethod) and image.ndim == 3
        if not tuned_at_test and not self.method.overrides("adapt_to"):
            return self.encode_text(params, adaptation, text)
        features = image if tuned_at_test else self.whole_image_features(image)

        def encode_text_for_one(feature: jax.Array) -> jax.Array:
            return self.encode_text(params, self.adaptation_for(params, learnables, feature, text), text)

        if tuned_at_test:
            return jax.lax.map(encode_text_for_one, features)
        if features.shape[0] == 1:
            return encode_text_for_one(features[0])[None]
        return jax.lax.map(jax.checkpoint(encode_text_for_one, prevent_cse=False), features)

    def adaptation_for(self, params: Params, learnables: Learnables, image: jax.Array, text: Text) -> Adaptation:
        """The adaptation for the texts of one image, from its feature `[d]` or those of its views `[1 + V, d]`.

        `text` is used only with views, to learn from them.
        """
        if image.ndim == 1:
            return self.method.adapt_to(learnables, image)

        def logits(tuned: Learnables) -> jax.Array:
            return self.head(params, tuned, image, self.encode_text(params, self.method.adapt(tuned), text))

        assert isinstance(self.method, TestTimeMethod), "other methods use one feature of an image"
        return self.method.adapt(self.method.at_test(learnables, logits))

    def split_by_template(self, features: jax.Array, templates: int | None = None) -> jax.Array:
        """`[…, S · C, d]` as `[…, S, C, d]`, with `S` templates; `None` for all."""
        count = self.templates if templates is None else templates
        return features.reshape(*features.shape[:-2], count, -1, features.shape[-1])

    def logits(
        self, params: Params, learnables: Learnables, images: jax.Array, text: Text, mask: jax.Array | None = None
    ) -> jax.Array:
        """The method's logits `[B, C]`, `exp(logit_scale) · cos(f, g)` unless it has a head of its own.

        `mask [B]` is false for rows that only fill the batch. A method that learns on each test image needs `images [B,
        1 + V, R, R, 3]`: the image itself and crops of it (`data.transforms.test_views`).

        Raises:
          ClipbiasError: the method needs crops, and there are none.
        """
        crops = crops_of(self.method)
        if crops and (images.ndim != 5 or images.shape[1] != 1 + crops):
            raise ClipbiasError(
                f"{type(self.method).__name__} learns from {crops} crops of each image, but the images have shape "
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
        """Logits `[B, C]` from features that are not normalised: `[B, d]` of images, and those of `encode_text_for`.

        SigLIP's bias is added. It does not change a softmax over classes, nor the loss.
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
        """
        adaptation = self._in_training(learnables, rng)
        image = self.encode_images(params, adaptation, images)
        text, templates = self._encode_texts(params, learnables, adaptation, texts, image)
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

    def _encode_texts(
        self,
        params: Params,
        learnables: Learnables,
        adaptation: Adaptation,
        texts: TrainingTexts,
        image: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The features of texts, and of the templates without class names where the method asks for them."""
        text_adaptation = adaptation
        text = texts.text
        if texts.selected is not None:
            assert isinstance(text, PackedTokens) and adaptation.text_context is not None
            text = take_sets(text, self.templates, texts.selected)
            text_adaptation = dataclasses.replace(adaptation, text_context=adaptation.text_context[texts.selected])
        features = self.encode_text_for(params, learnables, text_adaptation, image, text)
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
        """Whether a training step uses dropout in the text tower, so that no two texts share a token."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return drops(jax.eval_shape(self.method.adapt_in_training, learnables, key).text_weights)

    def changes_vision(self, learnables: Learnables) -> bool:
        """Whether the image features depend on the learnables; if not, they are computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_vision


def cosine_logits(params: Params, images: jax.Array, classes: jax.Array) -> jax.Array:
    """`exp(logit_scale) · cos(f, g)` of unit-length features `[B, d]` and `[C, d]`: logits `[B, C]`, float32.

    SigLIP's bias, the same for all classes, is left out.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.exp(params["logit_scale"].astype(jnp.float32)) * (images @ classes.T)


def total_loss(terms: Mapping[str, jax.Array], mask: jax.Array | None = None) -> jax.Array:
    """The sum of the loss terms. Terms with an entry per image `[B]` are averaged over the images of `mask`."""
    return sum((mean_loss(term, mask) for term in terms.values()), jnp.zeros(()))


def mean_loss(term: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """A loss term as a number: 0 if the mask has no image."""
    if jnp.ndim(term) == 0:
        return term
    return term.mean() if mask is None else jnp.where(mask, term, 0).sum() / jnp.maximum(mask.sum(), 1)
