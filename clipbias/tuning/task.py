"""A method bound to a frozen CLIP and class names."""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from clipbias.checks import shown
from clipbias.clip import Clip, PackedTokens, pack
from clipbias.clip.adaptation import NOTHING, Adaptation
from clipbias.clip.encode import check_images
from clipbias.clip.params import Params
from clipbias.clip.precision import resolve
from clipbias.data.descriptions import Descriptions, as_descriptions
from clipbias.data.user_images import label_numbers
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning.classes import Classes, ClassList, check_distinct
from clipbias.tuning.classifier import Classifier, RematPolicy, Text, TrainingTexts, total_loss
from clipbias.tuning.descriptions import described_texts, take_templates
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.learnables import check_order, parameter_count
from clipbias.tuning.method import Learnables, Method, check_family
from clipbias.tuning.prompt_tokens import ClassTexts, template_texts, template_tokens, text_layout, without_template
from clipbias.tuning.registry import method_options, name_of, resolve_method

# Texts that a device encodes at once if the text tower has no learnables and only runs forward. All texts of an
# ensemble (80 templates of 1000 classes) would need tens of gigabytes.
TEXTS_AT_ONCE = 4000


class Task:
    """A method bound to a frozen CLIP and classes.

    All computations are pure functions of `params` and `learnables`, to be jitted, differentiated, vectorised and
    sharded by the caller. The frozen weights are an argument on purpose: a closure over them would become constants of
    the program.

        task = Task(clip, "bias", ["cat", "dog"])
        learnables = task.init(seed=0)
        logits = jax.jit(task.logits)(clip.params, learnables, images)

    Made from a dataset, it is the task that `clipbias train` uses there, with the options of the method's authors for
    this dataset: `Task(clip, "mmrl", clipbias.data.load("eurosat", "/data"), shots=16)`.

    Attributes:
      clip: the frozen model.
      method: the method with its options.
      method_name: the method's name in adapter files.
      class_names: the `C` classes, as given.
      template: the dataset's own template, for methods that use it (zero-shot, TaskRes).
      descriptions: texts of each class in place of the template; `None` if there are none, or the method has its own
        prompt.
      prompt: the text around each class name. Many methods have their own prompt, whatever the template.
      teacher_prompt: the text around each class name for the method's frozen teacher; `None` without a teacher. It may
        follow the template where `prompt` does not (KgCoOp, ProGrad, TCP).
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
          clip: from `clipbias.load`.
          method: a name (see `tuning.registry.resolve_method`) or a `Method`.
          class_names: the classes; `_` counts as a space. Or a dataset: it provides the template, the descriptions and
            the authors' options of the method, as far as the other arguments do not.
          template: the dataset's own template, with `{}` for the class name; by default "a photo of a {}.".
          shots: training images per class, `None` for all. Some authors' options for a dataset depend on it.
          descriptions: texts by class name. They replace the templates of frozen texts and of a method's teacher (see
            `tuning.descriptions`).
          free_text: whether `class_names` are whole texts, such as "a dog on grass", used without a template. If the
            method learns a context, it stands before them.
          method_name: name of a `Method` in adapter files; `None` selects the preset or program that fits best.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for this device's default.
          **options: the method's options; one that is `None` is not set.

        Raises:
          ClipbiasError: `clip` is no model; unknown method or option; a name or template that cannot be used, or a
            name that occurs twice; a text that is too long; a compute type that this device lacks.
        """
        if not isinstance(clip, Clip):
            raise ClipbiasError(f"the first argument is {shown(clip)} and no model; give what clipbias.load returned.")
        classes = Classes.of(class_names)
        if isinstance(method, str):
            self.method_name = method
            set_options = {option: value for option, value in options.items() if value is not None}
            self.method = resolve_method(method, set_options, dataset=classes.name, shots=shots)
        elif options:
            raise ClipbiasError(f"options {sorted(options)} go with a method's name; this method already has its own.")
        else:
            self.method_name = method_name or name_of(method) or type(method).__name__
            self.method = method
        self.clip = clip
        self.class_names = classes.class_names
        self.template = classes.template if template is None else template
        self._dtype = resolve(dtype)
        self._free_text = free_text
        self._class_texts = as_descriptions(classes.descriptions if descriptions is None else descriptions)
        if free_text and self._class_texts is not None:
            raise ClipbiasError("descriptions are texts of classes; give them or texts of your own, not both.")

        prompt = self.method.text(self.template, clip)
        self.prompt = without_template(prompt) if free_text else prompt
        self.teacher_prompt = self.method.teacher_text(self.template, clip)
        if template is not None and not free_text:
            self._warn_of_teacher()
        self.shapes = jax.eval_shape(self._init, jax.random.key(0))
        self._bind_texts(jax.eval_shape(self.method.adapt, self.shapes))
        if not isinstance(class_names, ClassList):
            self._check_distinct()

    def _check_distinct(self) -> None:
        if self.descriptions is None:
            check_distinct(self.class_names, np.asarray(self.tokens.ids))

    def _bind_texts(self, adaptation: Adaptation) -> None:
        """Tokenizes the texts of all classes. `adaptation` holds shapes only."""
        check_family(self.method, adaptation, self.clip)
        descriptions = self._class_texts
        frozen_text = not adaptation.changes_text
        uses_descriptions = descriptions is not None and frozen_text and take_templates(self.method, self.clip)
        self.descriptions: dict[str, list[str]] | None = None
        self._described: ClassTexts | None = None
        if descriptions is not None and (uses_descriptions or self.teacher_prompt is not None):
            self._described = described_texts(self.clip, descriptions, self.class_names)
            self.descriptions = descriptions.of(self.class_names) if uses_descriptions else None
        bound = self._described if uses_descriptions else None
        bound = bound or template_texts(self.clip, self.class_names, self.prompt)
        self.texts = bound.texts
        self.tokens = bound.tokens
        self._text_sets, self._class_specific = text_layout(adaptation, self.prompt, bound.most, len(self.texts))
        self._frozen_text = frozen_text
        self._class_shards = 1
        self.classifier = Classifier(
            config=self.clip.config,
            method=self.method,
            templates=bound.most,
            dtype=self._dtype,
            class_chunks=self._chunks_at_least(1),
            counts=bound.differing,
        )

    def _chunks_at_least(self, class_chunks: int) -> int:
        """Class chunks: more than asked for where a frozen text tower would encode too many texts at once."""
        if not self._frozen_text:
            return class_chunks
        return max(class_chunks, math.ceil(len(self.texts) / (self._class_shards * TEXTS_AT_ONCE)))

    @functools.cached_property
    def text(self) -> PackedTokens:
        """`tokens` with every distinct token once. Each device has its share of the classes, in `class_chunks`."""
        groups = self._class_shards * self.classifier.class_chunks
        return pack(self.tokens, groups=groups, class_specific=self._class_specific, sets=self._text_sets)

    @functools.cached_property
    def template_tokens(self) -> PackedTokens | None:
        """Tokens of the templates without class names, if the method needs them."""
        if not self.method.reads_templates:
            return None
        tokens = template_tokens(self.clip, self.prompt)
        return pack(tokens, class_specific=self._class_specific, sets=self._text_sets)

    def with_memory(
        self, *, remat: RematPolicy | None = None, class_chunks: int = 1, class_shards: int | None = None
    ) -> "Task":
        """The same task with other memory settings. Results are the same; the compiled program differs.

        Args:
          remat: a `jax.checkpoint_policies` policy for the backward pass; `None` keeps all products.
          class_chunks: each device encodes its classes in so many chunks, one after another. More than one chunk needs
            less memory and one more forward pass of the texts.
          class_shards: devices that share the classes, the size of the mesh's `data` axis; `None` leaves it unchanged.
        """
        task = copy.copy(self)
        task.__dict__.pop("text", None)  # packed again, for the new chunks and shards
        if class_shards is not None:
            task._class_shards = class_shards
        chunks = task._chunks_at_least(class_chunks)
        task.classifier = dataclasses.replace(self.classifier, remat=remat, class_chunks=chunks)
        return task

    def with_method(self, method: Method) -> "Task":
        """The same classes, texts and class shards with another method, such as that of a training stage."""
        task = Task(
            self.clip,
            method,
            self,
            descriptions=self._class_texts,
            free_text=self._free_text,
            dtype=self._dtype,
        )
        return task.with_memory(class_shards=self._class_shards)

    def with_classes(
        self,
        class_names: Sequence[str] | ClassList,
        *,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
    ) -> "Task":
        """The same method and template with other classes. Learnables may not fit them: see `tuning.transfer`.

        Args:
          class_names: the classes, or a dataset with them; with `free_text` whole texts.
          descriptions: as for `Task`; by default those of this task, unless with `free_text`.
          free_text: as for `Task`.
        """
        if descriptions is None and not free_text:
            descriptions = self._class_texts
        task = Task(
            self.clip,
            self.method,
            Classes(Classes.of(class_names).class_names, self.template),
            descriptions=descriptions,
            free_text=free_text,
            method_name=self.method_name,
            dtype=self._dtype,
        )
        if not isinstance(class_names, ClassList):
            task._check_distinct()
        return task.with_memory(class_shards=self._class_shards)

    def _warn_of_teacher(self) -> None:
        """Warns if only the frozen teacher uses the template that the caller gave."""
        teacher = self.teacher_prompt
        prompts = self.prompt.templates
        if teacher is None or self.template not in teacher.templates:
            return
        if any(prompt.endswith(self.template) for prompt in prompts):
            return
        logging.warning(
            "Only %s's frozen teacher uses the template %r; class names stand in %r (task.prompt).",
            self.method_name,
            self.template,
            prompts[0],
        )

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
        if not self.method.overrides("read_classes"):
            return learnables
        reference = self.teacher_features(self.clip.params)
        assert reference is not None, "a method that reads the classes has a teacher"
        text = reference.reshape(-1, len(self.class_names), reference.shape[-1])
        return self.method.read_classes(learnables, text)

    def logits(self, params: Params, learnables: Learnables, images: jax.Array, text: Text | None = None) -> jax.Array:
        """Logits `[B, C]`: `exp(logit_scale) · cos(f, g)`, unless the method has a head of its own.

        Args:
          params: the frozen weights, `clip.params`.
          learnables: as from `init`.
          images: `[B, R, R, 3]` float32, normalised (`clip.preprocessing.normalize`); for a method that is trained on
            features, these may stand in their place, `[B, d]` (`Sampling`).
          text: what `text_features` or `text_input` returned, to skip the text tower.

        Raises:
          ClipbiasError: the images are not normalised, or of another shape; or params and learnables are swapped.
        """
        check_order(params, learnables)
        self._check_images(images)
        return self.classifier.logits(params, learnables, images, self.text if text is None else text)

    def loss(
        self,
        params: Params,
        learnables: Learnables,
        images: jax.Array,
        labels: jax.Array,
        text: Text | None = None,
        reference: jax.Array | None = None,
    ) -> jax.Array:
        """The method's loss: by default the mean cross-entropy of `logits` with integer `labels [B]`.

        Randomness in training, such as dropout, is left out. `reference` is what `teacher_features` returned, to
        compute it once.

        Raises:
          ClipbiasError: as for `logits`; or labels are not one for each image, or outside of a trace are no class.
        """
        check_order(params, learnables)
        self._check_images(images)
        if np.shape(labels) != np.shape(images)[:1]:
            raise ClipbiasError(
                f"there are {len(images)} images and labels of shape {list(np.shape(labels))}; give the number of its "
                "class for each image, [B]."
            )
        if not isinstance(labels, jax.core.Tracer):
            label_numbers(labels, self.class_names)
        text = self.text if text is None else text
        reference = self.teacher_features(params) if reference is None else reference
        texts = TrainingTexts(text, reference, self.template_tokens)
        terms, _ = self.classifier.losses(params, learnables, images, labels, texts)
        return total_loss(terms)

    def text_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """Features of all texts, `[n · C, d]`; `logits` and `loss` accept them as `text`."""
        check_order(params, learnables)
        self._check_shared_texts()
        return _text_features(self.classifier, params, learnables, self.text)

    def plain_text_features(self, params: Params) -> jax.Array:
        """Text features of plain CLIP; contexts are the words of the texts."""
        return _plain_text_features(self.classifier, params, self.text)

    def class_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """Unit-length class features `[C, d]`, the classifier of a method without a head of its own."""
        check_order(params, learnables)
        self._check_shared_texts()
        return self.classifier.class_features(params, learnables, self.text)

    def image_features(self, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
        """Unit-length image features `[B, d]` of normalised images `[B, R, R, 3]`."""
        check_order(params, learnables)
        self._check_images(images)
        return self.classifier.image_features(params, learnables, images)

    def text_input(self, params: Params, learnables: Learnables) -> Text:
        """The `text` of `logits`: features `[n · C, d]` if no learnable changes them, else tokens."""
        return self.text if self.classifier.changes_text(learnables) else self.text_features(params, learnables)

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
        return self._described or template_texts(self.clip, self.class_names, self.teacher_prompt)

    @property
    def teacher_text_count(self) -> int:
        """Number of texts `S' · C` of the method's frozen teacher; 0 without a teacher."""
        return 0 if self._teacher is None else len(self._teacher.texts)

    def teacher_features(self, params: Params) -> jax.Array | None:
        """Text features `[S' · C, d]` of the method's frozen teacher; `None` without a teacher."""
        if self._teacher is None:
            return None
        chunks = math.ceil(len(self._teacher.texts) / (self._class_shards * TEXTS_AT_ONCE))
        classifier = dataclasses.replace(self.classifier, counts=self._teacher.differing, class_chunks=chunks)
        text = pack(self._teacher.tokens, groups=self._class_shards * chunks)
        return _plain_text_features(classifier, params, text)

    def options(self) -> dict[str, Any]:
        """The method's options as plain values, such that `make_method(name, **options)` makes it again."""
        return method_options(self.method)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, learnables: Learnables, text: Text) -> jax.Array:
    return classifier.encode_text(params, classifier.method.adapt(learnables), text)


@jax.jit(static_argnums=0)
def _plain_text_features(classifier: Classifier, params: Params, text: Text) -> jax.Array:
    return classifier.encode_text(params, NOTHING, text)
