"""A method bound to a frozen CLIP and class names.

`Classifier` is the pure mathematics, without class names or tokenizer; `Task` binds it to texts.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.checks import shown
from clipbias.clip import Adaptation, Clip, TextTokens, encode_text
from clipbias.clip.adaptation import NOTHING
from clipbias.clip.config import ClipConfig
from clipbias.clip.encode import check_images
from clipbias.clip.layers import drops
from clipbias.clip.packed_text import PackedTokens, encode_packed_text, pack, take_sets
from clipbias.clip.params import Params
from clipbias.clip.precision import resolve
from clipbias.clip.vision import encode_image, project_image
from clipbias.data.dataset import Descriptions, as_descriptions
from clipbias.data.user_images import Labels, label_numbers
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.terminal import printable
from clipbias.tuning import prompts
from clipbias.tuning.features import Features, class_vectors, cross_entropy, unit_length
from clipbias.tuning.method import (
    FeatureMethod,
    Learnables,
    Method,
    TestTimeMethod,
    check_family,
    crops_of,
    flatten,
    parameter_count,
    without_constants,
)
from clipbias.tuning.prompts import Classes, ClassList, ClassTexts
from clipbias.tuning.registry import method_options, name_of, option_types, resolve_method, source_digest

# A policy of `jax.checkpoint_policies`: which results the backward pass keeps.
RematPolicy = Callable[..., object]

# Texts of the classes: tokens, or the text tower's features `[n · C, d]` if no learnable changes them.
Text = PackedTokens | TextTokens | jax.Array


@struct.dataclass
class TrainingTexts:
    """Texts of the classes in training, and features `[S' · C, d]` of a frozen teacher's texts.

    `template_tokens` are the templates without class names; `selected`, `[Q]`, those whose texts a step takes.
    """

    text: Text
    reference: jax.Array | None = None
    template_tokens: PackedTokens | None = None
    selected: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The computations of a task, without class names: hashable, so that equal shapes share one compiled program.

    Attributes:
      templates: number of templates `n` whose class features are averaged.
      remat: policy of `jax.checkpoint_policies` for the blocks; `None` keeps all products.
      class_chunks: number of chunks in which the text tower encodes the classes, one after another.
      counts: number of texts of each class, `[C]`, where they differ (`tuning.prompts`).
    """

    config: ClipConfig
    method: Method
    templates: int = 1
    dtype: str = "float32"
    remat: RematPolicy | None = None
    class_chunks: int = 1
    counts: tuple[int, ...] | None = None

    def encode_images(self, params: Params, adaptation: Adaptation, images: jax.Array) -> jax.Array:
        """Features `[B, d]` of normalised images, not normalised; with patches `[B, 1 + M, d]`, `[cls]` first.

        With `m` sets of vision prompts they are `[B, m, d]`, of views `[B, 1 + V, R, R, 3]` `[B, 1 + V, d]`. In
        training on features, `images` are these, `[B, d]`, or the tower's outputs before the projection, `[B, Dv]`.
        """
        if images.ndim == 5:
            # Views join the batch: one pass of the tower for all of them.
            features = self.encode_images(params, adaptation, images.reshape(-1, *images.shape[2:]))
            return features.reshape(*images.shape[:2], -1)
        if images.ndim == 4:
            return encode_image(
                params, self.config, images, adaptation, patches=self.method.patches, dtype=self.dtype, remat=self.remat
            )[0]
        # Features in place of images: the tower ran once, before the training. Only a changed projection remains.
        if adaptation.changes_vision:
            return project_image(params, self.config, images, adaptation, normed=True)
        return images

    def whole_image_features(self, features: jax.Array) -> jax.Array:
        if self.method.patches or (features.ndim == 3 and self.method.first_view):
            return features[:, 0]
        return features.mean(1) if features.ndim == 3 else features

    def encode_text(self, params: Params, adaptation: Adaptation, text: Text) -> jax.Array:
        """Features of every text `[S · C, d]`, not normalised, before any residual."""
        if isinstance(text, PackedTokens):
            features = encode_packed_text(
                params, self.config, text, adaptation, chunks=self.class_chunks, dtype=self.dtype, remat=self.remat
            )
        elif isinstance(text, TextTokens):
            features, _ = encode_text(params, self.config, text, adaptation, dtype=self.dtype, remat=self.remat)
        else:
            return text
        return features if self.counts is None else prompts.without_missing(features, self.counts)

    def encode_text_for(
        self, params: Params, learnables: Learnables, adaptation: Adaptation, image: jax.Array, text: Text
    ) -> jax.Array:
        """Text features `[S · C, d]`, or `[B, S · C, d]` if they depend on the image features `[B, d]`."""
        tuned_at_test = isinstance(self.method, TestTimeMethod) and image.ndim == 3
        if not tuned_at_test and self.method.adapt_to is None:
            return self.encode_text(params, adaptation, text)
        features = image if tuned_at_test else self.whole_image_features(image)

        def encode_text_for_one(feature: jax.Array) -> jax.Array:
            return self.encode_text(params, self.adaptation_for(params, learnables, feature, text), text)

        # `lax.map`, not `vmap`: the text tower runs for one image after another, in the memory of one image. In
        # training `checkpoint` runs it again in the backward pass; else the residuals of all images would be kept. CSE
        # cannot merge both runs across iterations of a scan, so `prevent_cse` would only cost time. A single image
        # needs no loop.
        if tuned_at_test:
            return jax.lax.map(encode_text_for_one, features)
        if features.shape[0] == 1:
            return encode_text_for_one(features[0])[None]
        return jax.lax.map(jax.checkpoint(encode_text_for_one, prevent_cse=False), features)

    def adaptation_for(self, params: Params, learnables: Learnables, image: jax.Array, text: Text) -> Adaptation:
        """The adaptation for the texts of one image, from its feature `[d]` or those of its views `[1 + V, d]`."""
        if image.ndim == 1:
            assert self.method.adapt_to is not None, "the texts of other methods do not depend on the image"
            return self.method.adapt_to(learnables, image)

        # Test-time tuning: the views are encoded, and what is learned from them changes the texts alone.
        def logits(learned: Learnables) -> jax.Array:
            return self.head(params, learned, image, self.encode_text(params, self.method.adapt(learned), text))

        assert isinstance(self.method, TestTimeMethod), "other methods use one feature of an image"
        return self.method.adapt(self.method.at_test(learnables, logits))

    def split_by_template(self, features: jax.Array, templates: int | None = None) -> jax.Array:
        """`[…, S · C, d]` as `[…, S, C, d]`, with `S` templates; `None` for all."""
        count = self.templates if templates is None else templates
        return features.reshape(*features.shape[:-2], count, -1, features.shape[-1])

    def logits(
        self, params: Params, learnables: Learnables, images: jax.Array, text: Text, mask: jax.Array | None = None
    ) -> jax.Array:
        """The method's logits `[B, C]`; `mask [B]` is false for rows that only fill the batch.

        A method that learns on each test image needs it and its crops, `[B, 1 + V, R, R, 3]`.
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
        self, params: Params, learnables: Learnables, image: jax.Array, text: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits `[B, C]` from features that are not normalised: `[B, d]` of images, and those of `encode_text_for`."""
        # Cosines times 100 amplify rounding: in TF32 or bfloat16 products, close classes would swap.
        logits_of = self.method.logits or self.method.cosine_logits
        with jax.default_matmul_precision("highest"):
            logits = logits_of(learnables, self._features(params, image, self.split_by_template(text), mask))
        # SigLIP's bias: the same for all classes, so it changes neither the softmax over classes nor the loss.
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

        Images are normalised, or features that stand for them. Without a key nothing is random.
        """
        # Each tower runs once. The image comes first: the texts of conditional methods depend on it.
        method = self.method
        adaptation = method.adapt(learnables) if rng is None else method.adapt_in_training(learnables, rng)
        image = self.encode_images(params, adaptation, images)
        # Of several templates a step may take some: their tokens with their contexts, so that both stay aligned.
        text_adaptation = adaptation
        text = texts.text
        count = self.templates
        if texts.selected is not None:
            assert isinstance(text, PackedTokens) and adaptation.text_context is not None
            text = take_sets(text, self.templates, texts.selected)
            text_adaptation = dataclasses.replace(adaptation, text_context=adaptation.text_context[texts.selected])
            count = texts.selected.shape[0]
        of_texts = self.encode_text_for(params, learnables, text_adaptation, image, text)
        # Templates without class names go through the tower with all contexts, whatever the step selects.
        templates = None
        if texts.template_tokens is not None:
            templates = self.encode_text(params, adaptation, texts.template_tokens)
        features = self._features(params, image, self.split_by_template(of_texts, count), mask)
        if templates is not None:
            features = dataclasses.replace(features, templates=templates)
        if texts.reference is not None:
            # The teacher is plain CLIP on the same augmented images. Where no learnable changes the vision tower, its
            # features are those of the student: no second pass.
            plain = self.encode_images(params, NOTHING, images) if adaptation.changes_vision else image
            reference = texts.reference.reshape(-1, features.text.shape[-2], texts.reference.shape[-1])
            features = dataclasses.replace(features, teacher=self._features(params, plain, reference))
        with jax.default_matmul_precision("highest"):
            logits = (method.logits or method.cosine_logits)(learnables, features)
            if method.losses is None:
                return {"cross_entropy": cross_entropy(logits, labels)}, logits
            return dict(method.losses(learnables, features, logits, labels)), logits

    def _features(self, params: Params, image: jax.Array, text: jax.Array, mask: jax.Array | None = None) -> Features:
        # Three dimensions are `[cls]` with patches if the method reads patches, else views.
        patches = image[:, 1:] if self.method.patches else None
        scale = jnp.exp(self.method.logit_scale(params))
        views = image if image.ndim == 3 and patches is None else None
        return Features(self.whole_image_features(image), text, scale, patches=patches, views=views, mask=mask)

    def changes_text(self, learnables: Learnables) -> bool:
        """Whether the text tower's output depends on the learnables; if not, it is computed once."""
        # Shapes decide, without a computation: `adapt` returns `None` for each part of CLIP that it leaves alone.
        return jax.eval_shape(self.method.adapt, learnables).changes_text

    def drops_text(self, learnables: Learnables) -> bool:
        # A mask per token, in training steps alone: no two texts share a token then.
        key = jax.eval_shape(lambda: jax.random.key(0))
        return drops(jax.eval_shape(self.method.adapt_in_training, learnables, key).text_weights)

    def changes_vision(self, learnables: Learnables) -> bool:
        """Whether the image features depend on the learnables; if not, they are computed once."""
        return jax.eval_shape(self.method.adapt, learnables).changes_vision


def cosine_logits(params: Params, images: jax.Array, classes: jax.Array) -> jax.Array:
    """`exp(logit_scale) · cos(f, g)` of unit-length features `[B, d]` and `[C, d]`: logits `[B, C]`, float32."""
    # Without SigLIP's bias, which is the same for all classes.
    with jax.default_matmul_precision("highest"):
        return jnp.exp(params["logit_scale"].astype(jnp.float32)) * (images @ classes.T)


def mean_loss(term: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """A loss term as a number: 0 if the mask has no image."""
    # `where`, not a product: a padded row may be NaN, and `NaN · 0` is NaN. The maximum avoids 0/0.
    if jnp.ndim(term) == 0:
        return term
    return term.mean() if mask is None else jnp.where(mask, term, 0).sum() / jnp.maximum(mask.sum(), 1)


# Texts that a device encodes at once if the text tower has no learnables. All texts of an ensemble (80 templates of
# 1000 classes) would need tens of gigabytes.
TEXTS_AT_ONCE = 4000


def task_identity(clip: Clip, method: Method, classes: Classes, dtype: str) -> str:
    """Identity of a task: all that its computations depend on beside the learnables."""
    return identity([clip, method, source_digest(type(method)), classes, dtype])


class Task:
    """A method bound to a frozen CLIP and classes.

    All computations are pure functions of `params` and `learnables`: the caller jits, differentiates, vectorises and
    shards them. The frozen weights are an argument: a closure over them would make them constants of the program.

        task = Task(clip, "bias", ["cat", "dog"])
        learnables = task.init(seed=0)
        logits = jax.jit(task.logits)(clip.params, learnables, images)

    Made from a dataset, it is the task that `clipbias train` uses there, with the options of the method's authors for
    this dataset: `Task(clip, "mmrl", clipbias.data.load("eurosat", "/data"), shots=16)`.

    Attributes:
      method_name: the method's name in adapter files.
      classes: names, template, descriptions and free text, as they were given.
      descriptions: texts of each class, where the method reads them.
      prompt: the text around each class name; many methods have their own, whatever the template.
      teacher_prompt: likewise for the method's frozen teacher, if it has one.
      shapes: shapes and dtypes of the learnables.
      texts: the prompt texts, template after template.
      tokens: their tokens, padded to the longest: `TextTokens`, `[n · C, N]`.
      classifier: the same computations without names and tokenizer.
    """

    def __init__(
        self,
        clip: Clip,
        method: str | Method,
        class_names: Sequence[str] | ClassList,
        *,
        template: str | None = None,
        shots: int | None = None,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
        method_name: str | None = None,
        dtype: str = "float32",
        **options: object,
    ) -> None:
        """Binds a method to classes.

        Args:
          clip: the frozen model, from `clipbias.load`.
          method: a name (see `tuning.registry.resolve_method`) or a `Method`.
          class_names: the classes; `_` counts as a space. Or a dataset: it provides the template, the descriptions and
            the authors' options of the method, as far as the other arguments do not.
          template: the dataset's own template, with `{}` for the class name; by default "a photo of a {}.".
          shots: training images per class, `None` for all. Some authors' options for a dataset depend on it.
          descriptions: texts by class name, in place of the templates of frozen texts and of a method's teacher.
          free_text: whether `class_names` are whole texts, without a template but behind a learned context.
          method_name: name of a `Method` in adapter files; `None` selects the preset or program that fits best.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for this device's default.
          **options: the method's options; `None` leaves an option unset.

        Raises:
          ClipbiasError: `clip` is not a model; the method or an option is unknown; a name or template cannot be used,
            or a name occurs twice; a text is too long; the device lacks the compute type; `jax_enable_x64` is on.
        """
        if jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
            raise ClipbiasError(
                "jax_enable_x64 is on, with which random starts and results are others; clipbias computes in float32: "
                "make its calls within `with jax.enable_x64(False):`."
            )
        if not isinstance(clip, Clip):
            raise ClipbiasError(f"the first argument is {shown(clip)} and no model; give what clipbias.load returned.")
        if free_text and template is not None:
            raise ClipbiasError("free texts have no template around them; leave out either.")
        classes = Classes.of(class_names)
        self.classes = dataclasses.replace(
            classes,
            template=classes.template if template is None else template,
            descriptions=classes.descriptions if descriptions is None else as_descriptions(descriptions),
            free_text=free_text or classes.free_text,
        )
        if isinstance(method, str):
            self.method_name = method
            # An option without a value keeps its default; one that the method does not have is refused.
            set_options = {
                option: value
                for option, value in options.items()
                if value is not None or option not in option_types(method)
            }
            self.method = resolve_method(method, set_options, dataset=classes.name, shots=shots)
        elif not isinstance(method, Method):
            raise ClipbiasError(f"the method is {shown(method)}; give its name, or an object of its class.")
        elif options:
            raise ClipbiasError(f"options {sorted(options)} go with a method's name; this method already has its own.")
        else:
            self.method_name = method_name or name_of(method) or type(method).__name__
            self.method = method
        self.clip = clip
        self.method = self.method.bind(clip.config)
        self._dtype = resolve(dtype)
        prompt = self.method.text(self.template, clip)
        self.prompt = prompts.without_template(prompt) if self.classes.free_text else prompt
        self.teacher_prompt = self.method.teacher_text(self.template, clip)
        # Shapes alone: a task of a large model costs no memory before `init`.
        self.shapes = jax.eval_shape(self._init, jax.random.key(0))
        if self.method.trains and not jax.tree.leaves(without_constants(self.shapes)):
            raise ClipbiasError(f"{self.method_name!r} has nothing to learn with these options; change them.")
        self._bind_texts(jax.eval_shape(self.method.adapt, self.shapes))
        # Datasets of the literature have equal names (ImageNet's two "missile"); a user's list must not.
        if not isinstance(class_names, ClassList):
            self._check_distinct()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The `C` classes."""
        return self.classes.class_names

    @property
    def template(self) -> str:
        """The dataset's own template."""
        return self.classes.template

    @functools.cached_property
    def identity(self) -> str:
        """Identity: equal tasks compute the same of equal learnables, whatever their memory settings."""
        return task_identity(self.clip, self.method, self.classes, self._dtype)

    @property
    def unread(self) -> tuple[str, ...]:
        """Those of "template" and "descriptions" of the classes that neither the method nor its teacher reads."""
        if self.method.unlabelled:  # zero-shot CLIP, which reads both, labels its images
            return ()
        templates = (*self.prompt.templates, *(self.teacher_prompt.templates if self.teacher_prompt else ()))
        by_name = {
            "template": not self.classes.free_text and self.template not in templates,
            "descriptions": self.classes.descriptions is not None and self._described is None,
        }
        return tuple(name for name, is_unread in by_name.items() if is_unread)

    def _check_distinct(self) -> None:
        # Equal texts have equal logits: the second class would never be predicted.
        texts: Iterable[Hashable] = (row.tobytes() for row in np.asarray(self.tokens.ids))
        if self.descriptions is not None:
            texts = (tuple(sorted(of_class)) for of_class in self.descriptions.values())
        first: dict[Hashable, str] = {}
        for name, text in zip(self.class_names, texts, strict=False):  # templates behind the first say nothing new
            if (other := first.setdefault(text, name)) == name:
                continue
            if self.descriptions is not None:
                raise ClipbiasError(f"the classes {other!r} and {name!r} have the same descriptions; write others.")
            raise ClipbiasError(
                f"the model reads the class names {shown(other)} and {shown(name)} as the same text; leave out or "
                "rename one."
            )

    def _bind_texts(self, adaptation: Adaptation) -> None:
        # `adaptation` has shapes alone: they say which texts the learnables change, before any is encoded.
        check_family(self.method, adaptation, self.clip)
        if not self.class_names:
            raise ClipbiasError("there are no class names; a task needs at least one.")
        # Descriptions replace frozen texts, and those of a teacher. A learned context keeps its own words.
        descriptions = self.classes.descriptions
        frozen_text = not adaptation.changes_text
        uses_descriptions = descriptions is not None and frozen_text and prompts.take_templates(self.method, self.clip)
        self.descriptions: dict[str, list[str]] | None = None
        self._described: ClassTexts | None = None
        if descriptions is not None and (uses_descriptions or self.teacher_prompt is not None):
            self._described = prompts.described_texts(self.clip, descriptions, self.class_names)
            self.descriptions = descriptions.of(self.class_names) if uses_descriptions else None
        bound = self._described if uses_descriptions else None
        bound = bound or prompts.template_texts(self.clip, self.class_names, self.prompt)
        self.texts = bound.texts
        self.tokens = bound.tokens
        templates = len(self.texts) // len(self.class_names)
        self._text_sets, self._class_specific = prompts.text_layout(adaptation, self.prompt, templates, len(self.texts))
        self._frozen_text = frozen_text
        self._class_shards = 1
        self.classifier = Classifier(
            config=self.clip.config,
            method=self.method,
            templates=templates,
            dtype=self._dtype,
            class_chunks=self._chunks_at_least(1),
            counts=bound.counts,
        )

    def _chunks_at_least(self, class_chunks: int) -> int:
        # A frozen text tower encodes all texts in one forward pass, whose activations must fit.
        if not self._frozen_text:
            return class_chunks
        return max(class_chunks, math.ceil(len(self.texts) / (self._class_shards * TEXTS_AT_ONCE)))

    @functools.cached_property
    def text(self) -> PackedTokens:
        """`tokens` with every distinct token once, in groups: one for each device and chunk."""
        # Texts that begin alike share keys and values, since the tower is causal. Behind the shared first tokens each
        # group has its own, so that no device needs another's rows.
        groups = self._class_shards * self.classifier.class_chunks
        return pack(self.tokens, groups=groups, class_specific=self._class_specific, sets=self._text_sets)

    @functools.cached_property
    def template_tokens(self) -> PackedTokens | None:
        """Tokens of the templates without class names, if the method reads them."""
        if not self.method.reads_templates:
            return None
        tokens = prompts.template_tokens(self.clip, self.prompt)
        return pack(tokens, class_specific=self._class_specific, sets=self._text_sets)

    def with_memory(
        self, *, remat: RematPolicy | None = None, class_chunks: int = 1, class_shards: int | None = None
    ) -> "Task":
        """The same task with other memory settings (see `Classifier`): equal results of another compiled program.

        `class_shards` devices, the size of the mesh's `data` axis, share the classes; `None` leaves it unchanged.
        """
        task = copy.copy(self)
        # The cached tokens are packed for the old chunks and shards.
        task.__dict__.pop("text", None)
        if class_shards is not None:
            task._class_shards = class_shards
        chunks = task._chunks_at_least(class_chunks)
        task.classifier = dataclasses.replace(self.classifier, remat=remat, class_chunks=chunks)
        return task

    def with_method(self, method: Method) -> "Task":
        """The same classes, texts and class shards with another method, such as that of a training stage."""
        return Task(self.clip, method, self.classes, dtype=self._dtype).with_memory(class_shards=self._class_shards)

    def with_classes(
        self,
        class_names: Sequence[str] | ClassList,
        *,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool | None = None,
    ) -> "Task":
        """The same method with other classes. Learnables may not fit them: see `tuned.transfer`."""
        # Template, descriptions and `free_text` stay, unless a dataset brings classes that are new here.
        given, own = Classes.of(class_names), self.classes
        # Names are compared as the model reads them: "maine_coon" is a known class if "maine coon" is.
        names = dataclasses.replace(given, descriptions=None, free_text=own.free_text).names_as_read
        stays = not isinstance(class_names, ClassList) or {*names} <= {*own.names_as_read}
        if free_text is None:
            free_text = given.free_text or (stays and own.free_text)
        if descriptions is None and not free_text:
            descriptions = given.descriptions or own.descriptions
        template = own.template if stays else given.template
        classes = Classes(given.class_names, template, as_descriptions(descriptions), free_text)
        task = Task(self.clip, self.method, classes, method_name=self.method_name, dtype=self._dtype)
        if not isinstance(class_names, ClassList):
            task._check_distinct()
        return task.with_memory(class_shards=self._class_shards)

    def __repr__(self) -> str:
        names = ", ".join(map(printable, self.class_names[:3]))
        names += f", … ({len(self.class_names)} classes)" if len(self.class_names) > 3 else ""
        prompt = "descriptions" if self.descriptions is not None else f"prompt {printable(str(self.prompt))}"
        teacher = "" if self.teacher_prompt is None else f", teacher {printable(str(self.teacher_prompt))}"
        count = parameter_count(self.shapes)["total"]
        return (
            f"Task({self.method_name!r} of {self.clip.source!r} for {names}; {prompt}{teacher}; {count:,} parameters)"
        )

    def _init(self, rng: jax.Array) -> Learnables:
        return self.method.init(rng, self.clip, self.class_names)

    def init(self, seed: int = 0) -> Learnables:
        """Initial learnables, a dictionary of float32 arrays."""
        return self.read_classes(self._init(jax.random.key(seed)))

    def read_classes(self, learnables: Learnables) -> Learnables:
        """Learnables with the arrays that the method makes from its teacher's features of these classes, if any."""
        # Apart from `init`, which must stay cheap to trace for its shapes: this runs the text tower.
        if self.method.read_classes is None:
            return learnables
        reference = self.teacher_features(self.clip.params)
        assert reference is not None, "a method that reads the classes has a teacher"
        return self.method.read_classes(learnables, reference.reshape(-1, len(self.class_names), reference.shape[-1]))

    def logits(self, params: Params, learnables: Learnables, images: jax.Array, text: Text | None = None) -> jax.Array:
        """Logits `[B, C]`: `exp(logit_scale) · cos(f, g)`, unless the method has a head of its own.

        Args:
          params: the frozen weights, `clip.params`.
          learnables: as from `init`.
          images: `[B, R, R, 3]` float32, normalised (`clip.preprocessing.normalize`), or features `[B, d]` for a method
            that is trained on them.
          text: a result of `text_features` or `text_input`, to skip the text tower.

        Raises:
          ClipbiasError: the images are not normalised, or of another shape; or the learnables are another method's.
        """
        self.check_arguments(params, learnables)
        self._check_images(images)
        return self.classifier.logits(params, learnables, images, self.text if text is None else text)

    def loss(
        self,
        params: Params,
        learnables: Learnables,
        images: jax.Array,
        labels: jax.Array | Labels,
        text: Text | None = None,
        reference: jax.Array | None = None,
    ) -> jax.Array:
        """The method's loss, by default the mean cross-entropy with `labels [B]`; without randomness as of dropout."""
        self.check_arguments(params, learnables)
        self._check_images(images)
        # Inside `jit` labels are numbers already, and cannot be looked up by name.
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(labels))
        labels = jnp.asarray(labels if is_traced else label_numbers(labels, self.class_names))
        # A label that is no class must not pass unseen: `take` gives NaN past the end, but counts from the end below 0.
        labels = jnp.where(labels < 0, jnp.int32(len(self.class_names)), labels)
        if np.shape(labels) != np.shape(images)[:1]:
            raise ClipbiasError(
                f"there are {len(images)} images and labels of shape {list(np.shape(labels))}; give the number of its "
                "class for each image, [B]."
            )
        text = self.text if text is None else text
        reference = self.teacher_features(params) if reference is None else reference
        texts = TrainingTexts(text, reference, self.template_tokens)
        terms, _ = self.classifier.losses(params, learnables, images, labels, texts)
        return sum(map(mean_loss, terms.values()), jnp.zeros(()))

    def text_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """Features of all texts, `[n · C, d]`, which `logits` and `loss` accept as `text`."""
        self.check_arguments(params, learnables)
        self._check_shared_texts()
        return _text_features(self.classifier, params, learnables, self.text)

    def plain_text_features(self, params: Params) -> jax.Array:
        """Text features of plain CLIP; contexts are the words of the texts."""
        return _plain_text_features(self.classifier, params, self.text)

    def class_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """Unit-length class features `[C, d]`, the classifier of a method without a head of its own."""
        self.check_arguments(params, learnables)
        self._check_shared_texts()
        adaptation = self.method.adapt(learnables)
        features = self.classifier.encode_text(params, adaptation, self.text)
        return class_vectors(self.classifier.split_by_template(features), adaptation.text_residual)

    def image_features(self, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
        """Unit-length features `[B, d]` of normalised images `[B, R, R, 3]`."""
        self.check_arguments(params, learnables)
        self._check_images(images)
        features = self.classifier.encode_images(params, self.method.adapt(learnables), images)
        return unit_length(self.classifier.whole_image_features(features))

    def text_input(self, params: Params, learnables: Learnables) -> Text:
        """The `text` of `logits`: features `[n · C, d]` if no learnable changes them, else tokens."""
        return self.text if self.classifier.changes_text(learnables) else self.text_features(params, learnables)

    def check_arguments(self, params: Params, learnables: Learnables) -> None:
        """Raises `ClipbiasError` if these are no frozen weights, or the learnables are not of this method."""
        if not isinstance(params, Mapping) or "logit_scale" not in params:
            raise ClipbiasError("the first argument is not the frozen weights; give clip.params, then the learnables.")
        self.check_learnables(learnables)

    def check_learnables(self, learnables: Learnables) -> None:
        names = flatten(self.shapes).keys()
        if not isinstance(learnables, Mapping) or flatten(learnables).keys() != names:
            raise ClipbiasError(
                f"the learnables do not belong to {type(self.method).__name__}, which has "
                f"{', '.join(names) or 'none: {}'}; give those of clipbias.fit or task.init."
            )

    def _check_images(self, images: jax.Array) -> None:
        if jax.numpy.ndim(images) != 2 or not isinstance(self.method, FeatureMethod):
            check_images(images, self.clip.config.vision.image_size)

    def _check_shared_texts(self) -> None:
        if self.method.conditional:
            raise ClipbiasError(
                f"the texts of {type(self.method).__name__} depend on the image, so its classes have no features of "
                "their own; take `task.logits` of images."
            )

    @functools.cached_property
    def _teacher(self) -> ClassTexts | None:
        if self.teacher_prompt is None:
            return None
        return self._described or prompts.template_texts(self.clip, self.class_names, self.teacher_prompt)

    @property
    def teacher_text_count(self) -> int:
        """Number of texts `S' · C` of the method's frozen teacher; 0 without a teacher."""
        return 0 if self._teacher is None else len(self._teacher.texts)

    def teacher_features(self, params: Params) -> jax.Array | None:
        """Text features `[S' · C, d]` of the method's frozen teacher; `None` without a teacher."""
        if self._teacher is None:
            return None
        # Sixty templates of 1000 classes: in chunks, as the frozen texts of a student (`_chunks_at_least`).
        chunks = math.ceil(len(self._teacher.texts) / (self._class_shards * TEXTS_AT_ONCE))
        classifier = dataclasses.replace(self.classifier, counts=self._teacher.counts, class_chunks=chunks)
        return _plain_text_features(classifier, params, pack(self._teacher.tokens, groups=self._class_shards * chunks))

    def options(self) -> dict[str, Any]:
        """The method's options as plain values: `make_method(name, **options)` makes it again."""
        return method_options(self.method)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, learnables: Learnables, text: Text) -> jax.Array:
    return classifier.encode_text(params, classifier.method.adapt(learnables), text)


@jax.jit(static_argnums=0)
def _plain_text_features(classifier: Classifier, params: Params, text: Text) -> jax.Array:
    return classifier.encode_text(params, NOTHING, text)
