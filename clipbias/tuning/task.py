"""A method bound to a frozen CLIP and class names: what a user calls."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from clipbias.checks import shown
from clipbias.clip import Clip, PackedTokens, TextTokens, pack
from clipbias.clip.adaptation import NOTHING
from clipbias.clip.encode import check_images
from clipbias.clip.params import Params
from clipbias.clip.precision import settle
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning.classifier import Classifier, Text, total_loss
from clipbias.tuning.descriptions import ClassTexts, Descriptions, as_descriptions, class_texts, take_templates
from clipbias.tuning.learnables import parameter_count
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.prompt_tokens import nameless_tokens, prompt_texts, prompt_tokens, without_template
from clipbias.tuning.registry import make_method, method_options

DEFAULT_TEMPLATE = "a photo of a {}."

# Texts that each device takes at once where nothing is learned in the text tower, so that it only runs forward. All of
# an ensemble's (80 templates of 1000 classes) would need tens of gigabytes.
TEXTS_AT_ONCE = 4000


class Task:
    """A method bound to classes.

    All computations are pure functions of `params` and `learnables`, to be jitted, differentiated, vectorised and
    sharded by the caller. The frozen weights are an argument on purpose: a closure over them would become constants of
    the program.

        task = Task(clip, "bias", ["cat", "dog"])
        learnables = task.init(seed=0)
        logits = jax.jit(task.logits)(clip.params, learnables, images)

    Attributes:
      clip: the frozen model.
      method: the method with its options.
      method_name: what it was asked for by.
      class_names: the `C` classes, as given.
      template: the dataset's own template, for methods that use it (zero-shot, TaskRes).
      descriptions: texts of each class that stand in place of the template; `None` where there are none, or the method
        has a prompt of its own.
      prompt: what the class names stand in.
      texts: the prompt texts, template after template.
      tokens: their tokens, padded to the longest: `TextTokens`, `[n · C, N]`.
      text: the same, every distinct token once: `PackedTokens`.
      nameless: the templates without a class name, likewise, for a method that asks for them, else `None`.
      classifier: the mathematics without names.
    """

    def __init__(
        self,
        clip: Clip,
        method: str | Method,
        class_names: Sequence[str],
        *,
        template: str = DEFAULT_TEMPLATE,
        descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None,
        free_text: bool = False,
        dtype: str = "float32",
        remat: Any = None,
        groups: int = 1,
        chunks: int = 1,
        **options: Any,
    ) -> None:
        """Binds a method to classes.

        Args:
          clip: from `clipbias.load`.
          method: a name (see `tuning.registry.make_method`) or a `Method`.
          class_names: the classes; `_` counts as a space.
          template: the dataset's own template, with `{}` for the class name.
          descriptions: texts by class name, for a classifier of frozen texts and for a method's teacher in place of
            their templates (see `tuning.descriptions`).
          free_text: whether `class_names` are texts of any kind, such as "a dog on grass", which no template is put
            around. A context that the method learns stands before them.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for what this device takes by itself.
          remat: a `jax.checkpoint_policies` policy for the backward pass.
          groups: devices that share the classes (the size of the mesh's `data` axis).
          chunks: parts in which each device takes its classes, one after another: less memory, one more forward pass of
            the texts.
          **options: the method's options.

        Raises:
          ClipbiasError: unknown method or option, a name or template that cannot be used, a text that is too long.
        """
        dtype = settle(dtype)
        self.method_name = method if isinstance(method, str) else type(method).__name__
        if isinstance(method, str):
            method = make_method(method, **options)
        elif options:
            raise ClipbiasError(f"options {sorted(options)} go with a method's name; this method already has its own.")
        if isinstance(class_names, str):
            raise ClipbiasError(f"class_names is the text {shown(class_names)}; give a list of names.")
        self.clip, self.method = clip, method
        self.class_names, self.template = tuple(class_names), template
        given = as_descriptions(descriptions)
        self._given: dict[str, Any] = dict(descriptions=given, free_text=free_text, dtype=dtype)
        if free_text and given is not None:
            raise ClipbiasError("descriptions are texts of classes; give them or texts of your own, not both.")
        text = self.prompt = without_template(method.text(template, clip)) if free_text else method.text(template, clip)
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        adaptation = jax.eval_shape(method.adapt, shapes)
        self.descriptions: dict[str, list[str]] | None = None
        described: ClassTexts | None = None
        if given is not None and not adaptation.changes_text and take_templates(method, clip):
            self.descriptions, described = given.of(self.class_names), class_texts(clip, given, self.class_names)
        self.tokens: TextTokens
        if described is None:
            self.texts = tuple(prompt_texts(self.class_names, text))
            self.tokens, count, counts = prompt_tokens(clip, self.class_names, text), len(text.templates), None
        else:
            self.texts, self.tokens, count, counts = (
                described.texts,
                described.tokens,
                described.most,
                described.differing,
            )
        if not adaptation.changes_text:
            chunks = max(chunks, math.ceil(len(self.texts) / (groups * TEXTS_AT_ONCE)))
        self.classifier = Classifier(clip.config, method, count, dtype, remat, chunks, counts)
        for name in ("text_context", "text_prompts", "text_class_prompts"):
            learned = getattr(adaptation, name)
            if learned is not None and learned.shape[-2] != text.context_tokens:
                raise ClipbiasError(
                    f"the method's {name} have {learned.shape[-2]} tokens, but its text() keeps "
                    f"{text.context_tokens} places for them; set PromptText.context_tokens."
                )
        context, sets, specific = adaptation.text_context, 1, False
        if context is not None and len(context.shape) == 3:
            if context.shape[0] not in (count, len(self.texts)):
                raise ClipbiasError(
                    f"the method's text_context holds {context.shape[0]} contexts, but its task has {len(self.texts)} "
                    f"texts of {count} templates; give one for each of these or of those."
                )
            # Contexts of templates are sets of texts; others are of single texts.
            sets, specific = (count, False) if context.shape[0] == count else (1, True)
        specific = specific or adaptation.text_class_prompts is not None
        self.nameless: PackedTokens | None = None
        if method.nameless:
            self.nameless = pack(nameless_tokens(clip, text), class_specific=specific, sets=sets)
        self.text: PackedTokens = pack(self.tokens, groups=groups * chunks, class_specific=specific, sets=sets)
        self.shapes = shapes
        self._groups = groups
        self._reference = method.reference(template, clip)
        self._teacher: ClassTexts | None = None
        if self._reference is not None and given is not None:
            self._teacher = described or class_texts(clip, given, self.class_names)

    def __repr__(self) -> str:
        names = ", ".join(map(printable, self.class_names[:3]))
        names += f", … ({len(self.class_names)} classes)" if len(self.class_names) > 3 else ""
        count = parameter_count(self.shapes)["total"]
        return f"Task({self.method_name!r} of {self.clip.source!r} for {names}; {count:,} parameters)"

    def again(self, method: Method, **memory: Any) -> "Task":
        """The same classes and texts bound to another method, such as that of a stage of training.

        Args:
          method: the method with its options.
          **memory: `remat`, `groups` and `chunks`, as for `Task`.
        """
        return Task(self.clip, method, self.class_names, template=self.template, **self._given, **memory)

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
          ClipbiasError: the images are not normalised, or of another shape.
        """
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
        self._check_images(images)
        text = self.text if text is None else text
        reference = self.reference_features(params) if reference is None else reference
        given = (images, labels, text, reference)
        return total_loss(self.classifier.losses(params, learnables, *given, nameless=self.nameless)[0])

    def text_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """What the text tower makes of all texts, `[n · C, d]`: `logits` and `loss` take it in place of the texts."""
        self._check_shared_texts()
        return _text_features(self.classifier, params, learnables, self.text)

    def plain_text_features(self, params: Params) -> jax.Array:
        """The same of plain CLIP, whatever was learned; contexts are the texts' own words."""
        return _plain_text_features(self.classifier, params, self.text)

    def class_features(self, params: Params, learnables: Learnables) -> jax.Array:
        """Unit-length class features `[C, d]`, the classifier of a method without a head of its own."""
        self._check_shared_texts()
        return self.classifier.class_features(params, learnables, self.text)

    def _check_images(self, images: Any) -> None:
        if jax.numpy.ndim(images) != 2 or self.method.sampling() is None:
            check_images(images, self.clip.config.vision.image_size)

    def _check_shared_texts(self) -> None:
        if self.method.conditional:
            raise ClipbiasError(
                f"the texts of {type(self.method).__name__} depend on the image, so its classes have no features of "
                "their own; take `task.logits` of images."
            )

    def image_features(self, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
        """Unit-length image features `[B, d]` of normalised images `[B, R, R, 3]`."""
        self._check_images(images)
        return self.classifier.image_features(params, learnables, images)

    def fixed_text(self, params: Params, learnables: Learnables) -> Text:
        """The text tower's features `[n · C, d]` where no learnable changes them, else the tokens."""
        if self.classifier.changes_text(learnables):
            return self.text
        return self.text_features(params, learnables)

    def reference_features(self, params: Params) -> jax.Array | None:
        """Features `[S' · C, d]` of the texts of the method's frozen teacher, or `None` where it has none."""
        if self._reference is None:
            return None
        if self._teacher is None:
            tokens, counts = prompt_tokens(self.clip, self.class_names, self._reference), None
        else:
            tokens, counts = self._teacher.tokens, self._teacher.differing
        chunks = math.ceil(len(tokens.ids) / (self._groups * TEXTS_AT_ONCE))
        classifier = dataclasses.replace(self.classifier, counts=counts, chunks=chunks)
        return _plain_text_features(classifier, params, pack(tokens, groups=self._groups * chunks))

    @property
    def reference_texts(self) -> int:
        """How many texts `S' · C` the method's frozen teacher has, 0 where it has none."""
        if self._reference is None:
            return 0
        if self._teacher is not None:
            return len(self._teacher.texts)
        return len(self._reference.templates) * len(self.class_names)

    def options(self) -> dict[str, Any]:
        """The method's options as plain values, such that `make_method(name, **options)` makes it again."""
        return method_options(self.method)


@jax.jit(static_argnums=0)
def _text_features(classifier: Classifier, params: Params, learnables: Learnables, text: Text) -> jax.Array:
    return classifier.encode_text(params, classifier.method.adapt(learnables), text)


@jax.jit(static_argnums=0)
def _plain_text_features(classifier: Classifier, params: Params, text: Text) -> jax.Array:
    return classifier.encode_text(params, NOTHING, text)
