"""A method bound to a frozen CLIP and class names: what a user calls."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import jax
from absl import logging

from clipbias.checks import shown
from clipbias.clip import Clip, PackedTokens, pack
from clipbias.clip.adaptation import NOTHING, Adaptation
from clipbias.clip.encode import check_images
from clipbias.clip.params import Params
from clipbias.clip.precision import settle
from clipbias.clip.weight_changes import check_changes
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning.classifier import Classifier, Text, total_loss
from clipbias.tuning.descriptions import Descriptions, as_descriptions, described_texts, take_templates
from clipbias.tuning.feature_method import FeatureMethod
from clipbias.tuning.learnables import check_order, parameter_count
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.prompt_tokens import ClassTexts, template_texts, template_tokens, text_layout, without_template
from clipbias.tuning.registry import method_options, name_of, resolve

DEFAULT_TEMPLATE = "a photo of a {}."

# Texts that each device takes at once where nothing is learned in the text tower, so that it only runs forward. All of
# an ensemble's (80 templates of 1000 classes) would need tens of gigabytes.
TEXTS_AT_ONCE = 4000


class HasClasses(Protocol):
    """What a task takes of a dataset (`clipbias.data.Dataset`). One with a `name` decides the method's options, too."""

    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def template(self) -> str: ...
    @property
    def descriptions(self) -> Any: ...


class Task:
    """A method bound to classes.

    All computations are pure functions of `params` and `learnables`, to be jitted, differentiated, vectorised and
    sharded by the caller. The frozen weights are an argument on purpose: a closure over them would become constants of
    the program.

        task = Task(clip, "bias", ["cat", "dog"])
        learnables = task.init(seed=0)
        logits = jax.jit(task.logits)(clip.params, learnables, images)

    Made of a dataset it is the task that `clipbias train` has there, with the options that the method's authors take
    for it: `Task(clip, "mmrl", clipbias.data.load("eurosat", "/data"), shots=16)`.

    Attributes:
      clip: the frozen model.
      method: the method with its options.
      method_name: the name that it is made by again.
      class_names: the `C` classes, as given.
      template: the dataset's own template, for methods that use it (zero-shot, TaskRes).
      descriptions: texts of each class that stand in place of the template; `None` where there are none, or the method
        has a prompt of its own.
      prompt: what the class names stand in. Many methods have a prompt of their own, whatever the template.
      teacher_prompt: the same for the method's frozen teacher, `None` where it has none. It may follow the template
        where `prompt` does not (KgCoOp, ProGrad, TCP).
      texts: the prompt texts, template after template.
      tokens: their tokens, padded to the longest: `TextTokens`, `[n · C, N]`.
      text: the same, every distinct token once: `PackedTokens`.
      template_tokens: tokens of the templates without class names, if the method needs them, else `None`.
      classifier: the mathematics without names.
    """

    def __init__(
        self,
        clip: Clip,
        method: str | Method,
        class_names: Sequence[str] | HasClasses,
        *,
        template: str | None = None,
        shots: int = 0,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
        method_name: str | None = None,
        dtype: str = "float32",
        remat: Any = None,
        groups: int = 1,
        chunks: int = 1,
        **options: Any,
    ) -> None:
        """Binds a method to classes.

        Args:
          clip: from `clipbias.load`.
          method: a name (see `tuning.registry.resolve`) or a `Method`.
          class_names: the classes; `_` counts as a space. Or a dataset: then its template, its descriptions and the
            options of the method's authors for it hold, unless others are given.
          template: the dataset's own template, with `{}` for the class name; "a photo of a {}." without one.
          shots: training images per class, 0 for all, on which some of the authors' options for a dataset depend.
          descriptions: texts by class name, for a classifier of frozen texts and for a method's teacher in place of
            their templates (see `tuning.descriptions`).
          free_text: whether `class_names` are texts of any kind, such as "a dog on grass", which no template is put
            around. A context that the method learns stands before them.
          method_name: what a `Method` goes by in an adapter's file; `None` for the preset or the program it fits best.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for what this device takes by itself.
          remat: a `jax.checkpoint_policies` policy for the backward pass.
          groups: devices that share the classes (the size of the mesh's `data` axis).
          chunks: parts in which each device takes its classes, one after another: less memory, one more forward pass of
            the texts.
          **options: the method's options.

        Raises:
          ClipbiasError: unknown method or option, a name or template that cannot be used, a text that is too long.
        """
        if isinstance(class_names, str):
            raise ClipbiasError(f"class_names is the text {shown(class_names)}; give a list of names.")
        is_given, dataset, source = template is not None, None, cast("Any", class_names)
        if hasattr(source, "class_names"):
            dataset = getattr(source, "name", None)
            template = source.template if template is None else template
            descriptions = source.descriptions if descriptions is None else descriptions
            source = source.class_names
        if isinstance(method, str):
            self.method_name, method = method, resolve(method, options, dataset=dataset, shots=shots)
        elif options:
            raise ClipbiasError(f"options {sorted(options)} go with a method's name; this method already has its own.")
        else:
            self.method_name = method_name or name_of(method) or type(method).__name__
        given = as_descriptions(descriptions)
        if free_text and given is not None:
            raise ClipbiasError("descriptions are texts of classes; give them or texts of your own, not both.")
        self.clip, self.method, self.class_names = clip, method, tuple[str, ...](source)
        self.template = template = DEFAULT_TEMPLATE if template is None else template
        self._given: dict[str, Any] = dict(descriptions=given, free_text=free_text, dtype=settle(dtype))

        prompt = method.text(template, clip)
        self.prompt = without_template(prompt) if free_text else prompt
        self.teacher_prompt = method.reference(template, clip)
        if is_given and not free_text:
            self._warn_of_teacher()
        self.shapes = jax.eval_shape(self._init, jax.random.key(0))
        adaptation = jax.eval_shape(method.adapt, self.shapes)
        _check_family(method, adaptation, clip)

        takes = given is not None and not adaptation.changes_text and take_templates(method, clip)
        self.descriptions: dict[str, list[str]] | None = None
        self._described: ClassTexts | None = None
        if given is not None and (takes or self.teacher_prompt is not None):
            self._described = described_texts(clip, given, self.class_names)
            self.descriptions = given.of(self.class_names) if takes else None
        bound = self._described if takes else None
        bound = bound or template_texts(clip, self.class_names, self.prompt)
        self.texts, self.tokens, count = bound.texts, bound.tokens, bound.most
        if not adaptation.changes_text:
            chunks = max(chunks, math.ceil(len(self.texts) / (groups * TEXTS_AT_ONCE)))
        self.classifier = Classifier(clip.config, method, count, settle(dtype), remat, chunks, bound.differing)
        sets, specific = text_layout(adaptation, self.prompt, count, len(self.texts))
        self.template_tokens: PackedTokens | None = None
        if method.reads_templates:
            self.template_tokens = pack(template_tokens(clip, self.prompt), class_specific=specific, sets=sets)
        self.text: PackedTokens = pack(self.tokens, groups=groups * chunks, class_specific=specific, sets=sets)
        self._groups = groups

    def _warn_of_teacher(self) -> None:
        """Says where a template was given that only the frozen teacher takes."""
        teacher, own = self.teacher_prompt, self.prompt.templates
        if teacher is None or self.template not in teacher.templates or any(x.endswith(self.template) for x in own):
            return
        logging.warning(
            "The template %r is the text of %s's frozen teacher alone; class names stand in %r (task.prompt).",
            *(self.template, self.method_name, own[0]),
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

    def again(self, method: Method, **memory: Any) -> "Task":
        """The same classes and texts bound to another method, such as that of a stage of training.

        Args:
          method: the method with its options.
          **memory: `remat`, `groups` and `chunks`, as for `Task`.
        """
        return Task(self.clip, method, self, **self._given, **memory)

    def _init(self, rng: jax.Array) -> Learnables:
        return self.method.init(rng, self.clip, self.class_names)

    def init(self, seed: int = 0) -> Learnables:
        """Initial learnables, a dictionary of float32 arrays."""
        return self.read_classes(self._init(jax.random.key(seed)))

    def read_classes(self, learnables: Learnables) -> Learnables:
        """Learnables with what the method makes of its frozen teacher's features of these classes, if anything."""
        if not self.method.overrides("read_classes"):
            return learnables
        reference = self.reference_features(self.clip.params)
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
          text: what `text_features` or `fixed_text` returned, to skip the text tower.

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
        """The method's loss, the mean cross-entropy of `logits` with integer `labels [B]` unless it has its own.

        What is random in training, such as dropout, is left out. `reference` is what `reference_features` returned, to
        compute it once.
        """
        check_order(params, learnables)
        self._check_images(images)
        text = self.text if text is None else text
        reference = self.reference_features(params) if reference is None else reference
        given = (images, labels, text, reference)
        return total_loss(self.classifier.losses(params, learnables, *given, template_tokens=self.template_tokens)[0])

    def text_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """What the text tower makes of all texts, `[n · C, d]`: `logits` and `loss` take it in place of the texts."""
        check_order(params, learnables)
        self._check_shared_texts()
        return _text_features(self.classifier, params, learnables, self.text)

    def plain_text_features(self, params: Params) -> jax.Array:
        """The same of plain CLIP, whatever was learned; contexts are the texts' own words."""
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

    def fixed_text(self, params: Params, learnables: Learnables) -> Text:
        """The text tower's features `[n · C, d]` where no learnable changes them, else the tokens."""
        return self.text if self.classifier.changes_text(learnables) else self.text_features(params, learnables)

    def _check_images(self, images: Any) -> None:
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
    def reference_texts(self) -> int:
        """How many texts `S' · C` the method's frozen teacher has, 0 where it has none."""
        return 0 if self._teacher is None else len(self._teacher.texts)

    def reference_features(self, params: Params) -> jax.Array | None:
        """Features `[S' · C, d]` of the texts of the method's frozen teacher, or `None` where it has none."""
        if self._teacher is None:
            return None
        chunks = math.ceil(len(self._teacher.texts) / (self._groups * TEXTS_AT_ONCE))
        classifier = dataclasses.replace(self.classifier, counts=self._teacher.differing, chunks=chunks)
        return _plain_text_features(classifier, params, pack(self._teacher.tokens, groups=self._groups * chunks))

    def options(self) -> dict[str, Any]:
        """The method's options as plain values, such that `make_method(name, **options)` makes it again."""
        return method_options(self.method)


def _check_family(method: Method, adaptation: Adaptation, clip: Clip) -> None:
    """Raises `ClipbiasError` for a method that needs a part of CLIP which the model's family lacks."""
    name = type(method).__name__
    if method.patches and clip.config.vision.pooling == "attention":
        raise ClipbiasError(
            f"{name} reads features of patches, which a model with a pooling head has not; take another."
        )
    if adaptation.text_tokens is not None and not clip.config.text.causal:
        raise ClipbiasError(
            f"{name} inserts tokens that all texts share, which needs a causal text tower; take another."
        )
    if clip.config.vision.pooling == "attention":
        for tower in ("vision", "text"):
            check_changes(getattr(adaptation, f"{tower}_weights"), clip.params[tower], f"{name}'s {tower}_weights")


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, learnables: Learnables, text: Text) -> jax.Array:
    return classifier.encode_text(params, classifier.method.adapt(learnables), text)


@jax.jit(static_argnums=0)
def _plain_text_features(classifier: Classifier, params: Params, text: Text) -> jax.Array:
    return classifier.encode_text(params, NOTHING, text)
