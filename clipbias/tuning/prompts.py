"""Prompt texts and their tokens: classes, templates and ensembles, learned contexts, and descriptions of classes."""

import collections
import dataclasses
import functools
import importlib.resources
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range, check_class_names, check_text, shown
from clipbias.clip import Adaptation, Clip, TextTokens
from clipbias.clip.text import text_tokens
from clipbias.clip.tokenizer import encode, framed, pad
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data.catalog import name_in_prompt
from clipbias.data.dataset import Descriptions as Descriptions
from clipbias.data.dataset import as_descriptions
from clipbias.data.dataset import read_descriptions as read_descriptions
from clipbias.errors import ClipbiasError
from clipbias.identity import counted_by, identity, no_effect, parts
from clipbias.io import shorten
from clipbias.tuning.features import Features, unit_length
from clipbias.tuning.method import Kind, Learnables, Method, PromptText, Tokens


@dataclasses.dataclass(frozen=True)
class ClassTexts:
    """Class texts, padded to the longest list: `n` texts for each of `C` classes.

    `texts`, with tokens `[n · C, N]`, are the first text of every class, then the second, …; a class with fewer than
    `n` texts repeats its first. `counts [C]` are the numbers of texts, where they differ.
    """

    texts: Sequence[str]
    tokens: TextTokens
    counts: tuple[int, ...] | None = None


def names_in_prompt(names: Sequence[str], prompt: PromptText) -> list[str]:
    return [name_in_prompt(name, prompt.spaces) for name in names]


def name_tokens(clip: Clip, names: Sequence[str], prompt: PromptText) -> list[list[int]]:
    # Behind a space, as in a prompt: some tokenizers split the first word of a text differently.
    return encode(clip.tokenizer, [f" {name}" if name.strip() else "" for name in names_in_prompt(names, prompt)])


def without_template(prompt: PromptText) -> PromptText:
    # For free text: the text alone, or behind the learned context.
    if not prompt.context_tokens:
        return PromptText(("{}",), spaces="")
    before = (template.partition("{}")[0] + "{}" for template in prompt.templates)
    return dataclasses.replace(prompt, templates=tuple(before), spaces="")


def template_texts(clip: Clip, class_names: Sequence[str], prompt: PromptText) -> ClassTexts:
    """Texts, template after template. Raises `ClipbiasError` for an empty name, or a template or text of no use."""
    name_lengths = [len(ids) for ids in name_tokens(clip, class_names, prompt)]
    if 0 in name_lengths:  # nothing but white space and control characters
        raise ClipbiasError(f"class {name_lengths.index(0)} has an empty name; give every class a name.")
    for template in prompt.templates:
        if check_text("the template", template).count("{}") != 1:
            raise ClipbiasError(f"the template {template!r} must contain '{{}}' exactly once, for the class name.")
    # A class name in the middle or front moves tokens of the text whose name is at the end, as CoOp's code does: the
    # tokens of the name stay the same, wherever it stands. Context rows move with their tokens.
    in_prompt = names_in_prompt(class_names, prompt)
    texts = [template.replace("{}", name) for template in prompt.templates for name in in_prompt]
    count = prompt.context_tokens
    first = clip.config.text.first_word
    # Each token knows its row of the context, -1 for none: the tower inserts learned rows there before positions.
    rows = framed(clip.tokenizer, texts, clip.config.text)
    contexts = _context_rows(clip, rows, count)
    for i, row in enumerate(rows):
        name = slice(first + count, first + count + name_lengths[i % len(class_names)])
        before = first + prompt.before[i // len(class_names)]
        rows[i], contexts[i] = (
            items[:before] + items[name] + items[before : first + count] + items[name.stop :]
            for items in (row, contexts[i])
        )
    return ClassTexts(tuple(texts), _padded(clip, rows, texts, contexts))


def text_layout(adaptation: Adaptation, prompt: PromptText, templates: int, texts: int) -> tuple[int, bool]:
    """Layout of shared tokens (`clip.pack`): number of sets with a context each, and whether each text has its own."""
    for name in ("text_context", "text_prompts", "text_class_prompts"):
        learned = getattr(adaptation, name)
        if learned is not None and learned.shape[-2] != prompt.context_tokens:
            raise ClipbiasError(
                f"the method's {name} have {learned.shape[-2]} tokens, but its text() keeps {prompt.context_tokens} "
                "places for them; set PromptText.context_tokens."
            )
    context = adaptation.text_context
    specific = adaptation.text_class_prompts is not None
    if context is None or len(context.shape) < 3:
        return 1, specific
    if context.shape[0] not in (templates, texts):
        raise ClipbiasError(
            f"the method's text_context holds {context.shape[0]} contexts, but its task has {texts} texts of "
            f"{templates} templates; give one for each of these or of those."
        )
    # A context per template is shared by the classes of that template; any other context belongs to a single text, and
    # no two texts share a token behind it.
    return (templates, specific) if context.shape[0] == templates else (1, True)


def template_tokens(clip: Clip, prompt: PromptText) -> TextTokens:
    """Tokens of the templates without a class name, the context after SOS: `[n, N]`."""
    texts = [template.replace(" {}", "").replace("{}", "") for template in prompt.templates]
    rows = framed(clip.tokenizer, texts, clip.config.text)
    return _padded(clip, rows, texts, _context_rows(clip, rows, prompt.context_tokens))


def _context_rows(clip: Clip, id_lists: Sequence[list[int]], count: int) -> list[list[int]]:
    first = clip.config.text.first_word
    return [[i - first if first <= i < first + count else -1 for i in range(len(row))] for row in id_lists]


def _padded(
    clip: Clip, id_lists: Sequence[list[int]], texts: Sequence[str], contexts: Sequence[Sequence[int]]
) -> TextTokens:
    ids = pad(id_lists, texts, clip.config.text)
    context_rows = np.full_like(ids, -1)
    for i, context in enumerate(contexts):
        context_rows[i, : len(context)] = context
    return text_tokens(ids, context_rows, clip.config.text)


# The best seven templates on ImageNet, selected by CLIP's authors and used in CoOp's zero-shot baseline.
IMAGENET_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

CHOICES = ("dataset", "imagenet_select", "imagenet_select_and_dataset", "imagenet_60", "imagenet_full")


def imagenet_full() -> tuple[str, ...]:
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_templates.txt").read_text("utf-8")
    return tuple(text.splitlines())


def choose_templates(choice: str | tuple[str, ...], dataset_template: str) -> tuple[str, ...]:
    """The templates of one of `CHOICES`, or those with `{}` that are given; a `ClipbiasError` for another choice."""
    if not isinstance(choice, str):
        if not choice:
            raise ClipbiasError("there is no template; give at least one with '{}' for the class name.")
        return tuple(choice)
    if "{}" in choice:
        return (choice,)
    full = imagenet_full()
    named = {
        "dataset": (dataset_template,),
        "imagenet_select": IMAGENET_SELECT,
        # CoOp's zero-shot ensemble for all datasets but ImageNet.
        "imagenet_select_and_dataset": (*IMAGENET_SELECT, dataset_template),
        # Of PromptSRC's teacher: its authors use the first sixty.
        "imagenet_60": full[:60],
        "imagenet_full": full,
    }
    if choice in named:
        return named[choice]
    raise ClipbiasError(
        f"unknown templates {choice!r}; choose from {', '.join(CHOICES)}, or write templates with '{{}}'."
    )


POSITIONS = ("end", "middle", "front")  # of a class name among its context
STANDARD_DEVIATION = 0.02  # of prompt tokens with random initial values


def random_prompts(rng: jax.Array, *shape: int) -> jax.Array:
    return STANDARD_DEVIATION * jax.random.normal(rng, shape)


def initial_linear(rng: jax.Array, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Kernel `[inputs, outputs]` and bias `[outputs]` initialised as in torch.nn.Linear: uniform within ±1/√inputs."""
    kernel, bias = jax.random.split(rng)
    # torch's `kaiming_uniform_(a=√5)` is this bound for the kernel, and the bias has it too.
    bound = inputs**-0.5
    return (
        jax.random.uniform(kernel, (inputs, outputs), minval=-bound, maxval=bound),
        jax.random.uniform(bias, (outputs,), minval=-bound, maxval=bound),
    )


def word_ids(words: str, clip: Clip) -> Sequence[int]:
    return encode(clip.tokenizer, [words])[0]


def initial_context(rng: jax.Array, clip: Clip, words: str, tokens: int) -> jax.Array:
    """`[T, Dt]`: the embeddings of the first `T` tokens of `words`; N(0, 0.02) if `words` has fewer tokens."""
    # Fewer words than tokens: random rows for all, as CoOp does, not words that are padded.
    ids = word_ids(words, clip)
    if 0 < tokens <= len(ids):
        return jnp.asarray(clip.params["text"]["token_embedding"][np.asarray(ids[:tokens])], jnp.float32)
    return random_prompts(rng, tokens, clip.config.text.width)


def context_text(clip: Clip, words: str, tokens: int, position: str = "end") -> PromptText:
    """The prompt text around a context of `T` tokens: the words themselves, or as many placeholders "X"."""
    count = len(word_ids(words, clip))
    # Placeholders: words that are not learned would stay in place when the class name moves to the middle or front.
    if tokens > count or (position != "end" and tokens < count):
        words = " ".join(["X"] * tokens)
    return PromptText((f"{words} {{}}.",), context_tokens=tokens, position=position)


Sets = Annotated[int, Range(1, 100)]


@dataclasses.dataclass(frozen=True)
class ContextSets(Method):
    """`S = sets` contexts `[S, T, Dt]` for all classes, from N(0, 0.02), each a text with every class name."""

    kind = Kind.PROMPTS

    tokens: Tokens = 16
    sets: Sets = 4

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"text_context": random_prompts(rng, self.sets, self.tokens, clip.config.text.width)}

    def text(self, template: str, clip: Clip) -> PromptText:
        prompt = context_text(clip, "", self.tokens)
        return dataclasses.replace(prompt, templates=prompt.templates * self.sets)

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        # The mean of the contexts' logits is the logit of their mean unit feature, which is not normalised again:
        # classes whose contexts disagree have shorter means, and lower logits.
        return features.scale * (unit_length(features.image) @ unit_length(features.text).mean(0).T)


@dataclasses.dataclass(frozen=True)
class FrozenTowers(Method):
    """A method that changes only the head; texts use one of `CHOICES`, or templates with `{}`."""

    # No part of CLIP changes: features of texts, and of images without augmentation, are computed once.
    kind = Kind.HEAD

    templates: str | tuple[str, ...] = "dataset"

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))


@runtime_checkable
class ClassList(Protocol):
    """Classes and their prompt template: a `clipbias.data.Dataset`, a `Task` or a tuned model."""

    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def template(self) -> str: ...
    @property
    def descriptions(self) -> Descriptions | Mapping[str, Sequence[str]] | None: ...


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a task, with all that makes their texts except the method's own prompt. A `ClassList` itself.

    Attributes:
      class_names: names in order; `_` and space are the same.
      template: prompt with `{}` for the name.
      descriptions: texts of each class in place of the template, or `None`.
      free_text: whether the names are whole texts, without a template.
      name: dataset whose authors' options a method takes.
    """

    class_names: tuple[str, ...] = dataclasses.field(metadata=counted_by(operator.attrgetter("names_as_read")))
    template: str = DEFAULT_TEMPLATE
    descriptions: Descriptions | None = dataclasses.field(
        default=None,
        metadata=counted_by(
            lambda classes: classes.descriptions and [*classes.descriptions.of(classes.class_names).values()]
        ),
    )
    free_text: bool = False
    name: str | None = dataclasses.field(default=None, metadata=no_effect("a method holds the options that it names"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "descriptions", as_descriptions(self.descriptions))
        if self.free_text and self.descriptions is not None:
            raise ClipbiasError("descriptions are texts of classes; give them or texts of your own, not both.")

    @property
    def names_as_read(self) -> list[str]:
        """The names as they stand in a prompt."""
        return list(self.class_names) if self.free_text else [name_in_prompt(name) for name in self.class_names]

    @functools.cached_property
    def identity(self) -> str:
        """Identity of the classes: all that changes their texts."""
        return identity(parts(self))

    @classmethod
    def of(cls, classes: "Sequence[str] | ClassList") -> "Classes":
        """From a list of names, a dataset or a task. Raises `ClipbiasError` for repeated names, or without order."""
        # A task or a tuned model carries its classes whole: nothing that changes their texts is lost on the way.
        own = classes if isinstance(classes, Classes) else getattr(classes, "classes", None)
        if isinstance(own, Classes):
            return own
        if not isinstance(classes, ClassList):
            check_class_names(classes)
            try:
                counts = collections.Counter(classes)
            except TypeError as error:  # names that cannot be hashed
                raise ClipbiasError(f"class_names is {shown(classes)}; give a list of names.") from error
            for repeated, count in counts.items():
                if count > 1:
                    raise ClipbiasError(
                        f"the class name {shown(repeated)} occurs {count} times; give each class a name of its own, or "
                        "the whole dataset where two of its classes share a name."
                    )
            # NumPy's strings show their type in messages.
            return cls(tuple(str(name) if isinstance(name, str) else name for name in classes))
        name = getattr(classes, "name", None)
        return cls(tuple(classes.class_names), classes.template, as_descriptions(classes.descriptions), name=name)


# Descriptions of classes in place of a template, as in CuPL (Pratt et al. 2023, What does a platypus look like?).


def take_templates(method: Method, clip: Clip) -> bool:
    # Descriptions take the place of a text that is the dataset's own template, or an ensemble. A template that nobody
    # writes shows whether the method passes it on.
    marker = "something whose template is {}."
    prompt: PromptText = method.text(marker, clip)
    return prompt.context_tokens == 0 and (len(prompt.templates) > 1 or marker in prompt.templates)


def described_texts(clip: Clip, descriptions: Descriptions, class_names: Sequence[str]) -> ClassTexts:
    """The descriptions of classes as texts. Raises `ClipbiasError` for a class without a text, or a text too long."""
    by_class = [descriptions.of([name])[name] for name in class_names]
    counts = tuple(map(len, by_class))
    # Arrays need as many texts for each class: a class with fewer repeats its first, and `without_missing` replaces the
    # copies' features by zeros, which `features.average_texts` leaves out.
    texts = [
        class_texts[i] if i < len(class_texts) else class_texts[0]
        for i in range(max(counts))
        for class_texts in by_class
    ]
    longest = clip.config.text.context_length
    rows = framed(clip.tokenizer, texts, clip.config.text)
    for i, row in enumerate(rows):
        if len(row) > longest:
            raise ClipbiasError(
                f"{descriptions.source} have a text of {len(row)} tokens for the class "
                f"{shorten(class_names[i % len(class_names)])!r}, {shorten(texts[i])!r}, and this model reads at most "
                f"{longest}; shorten it."
            )
    differing = counts if len(set(counts)) > 1 else None
    return ClassTexts(tuple(texts), _padded(clip, rows, texts, contexts=()), differing)


def without_missing(features: jax.Array, counts: Sequence[int]) -> jax.Array:
    present = np.arange(features.shape[0] // len(counts))[:, None] < np.asarray(counts)
    return features * present.reshape(-1, 1)
