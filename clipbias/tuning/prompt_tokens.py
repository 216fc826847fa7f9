"""Class names, or texts in place of them, and a method's prompt text as tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipbias.checks import check_text
from clipbias.clip import Adaptation, Clip, TextTokens
from clipbias.clip.text import text_tokens
from clipbias.clip.tokenizer import encode, framed, pad
from clipbias.data.class_names import name_in_prompt
from clipbias.errors import ClipbiasError
from clipbias.tuning.prompt_text import PromptText


@dataclasses.dataclass(frozen=True)
class ClassTexts:
    """The texts of some classes, as many places for each as the class with the most has texts.

    Attributes:
      texts: `n · C`, the first of every class, then the second, …; a class with fewer repeats its first.
      tokens: theirs, `[n · C, N]`.
      counts: how many texts each class has, `C`; the features of the others count as zeros.
    """

    texts: tuple[str, ...]
    tokens: TextTokens
    counts: tuple[int, ...]

    @property
    def most(self) -> int:
        """`n`."""
        return max(self.counts)

    @property
    def differing(self) -> tuple[int, ...] | None:
        """`counts` where they differ."""
        return self.counts if len(set(self.counts)) > 1 else None


def names_in_prompt(names: Sequence[str], text: PromptText) -> list[str]:
    """The names as they stand in a prompt. Raises `ClipbiasError` for what is no text."""
    return [name_in_prompt(name, text.spaces) for name in names]


def name_tokens(clip: Clip, names: Sequence[str], text: PromptText) -> list[int]:
    """How many tokens each name has in a prompt, behind a space: some tokenizers cut a text's first word otherwise."""
    spaced = (f" {name}" if name.strip() else "" for name in names_in_prompt(names, text))
    return [len(ids) for ids in encode(clip.tokenizer, [*spaced])]


def without_template(text: PromptText) -> PromptText:
    """The prompt that texts of a user's own stand in: alone, or after the context where a method learns one."""
    if not text.context_tokens:
        return PromptText(("{}",), spaces="")
    before = (template.partition("{}")[0] + "{}" for template in text.templates)
    return dataclasses.replace(text, templates=tuple(before), spaces="")


def prompt_texts(class_names: Sequence[str], text: PromptText) -> list[str]:
    """Each template with each class name in place of `{}`, template after template."""
    for template in text.templates:
        if check_text("the template", template).count("{}") != 1:
            raise ClipbiasError(f"the template {template!r} must contain '{{}}' exactly once, for the class name.")
    names = names_in_prompt(class_names, text)
    return [template.replace("{}", name) for template in text.templates for name in names]


def template_texts(clip: Clip, class_names: Sequence[str], text: PromptText) -> ClassTexts:
    """Every template's texts, template after template, and their tokens `[n · C, N]` with `N` the longest text.

    A class name in the middle or front moves the tokens of the text whose name is at the end, as CoOp's code does, so
    that the name's own tokens stay the same.

    Raises:
      ClipbiasError: no class names, an empty one, a template without `{}`, or a text that is too long for the model.
    """
    if not class_names:
        raise ClipbiasError("there are no class names; a task needs at least one.")
    name_lengths = name_tokens(clip, class_names, text)
    if 0 in name_lengths:  # nothing but white space and control characters
        raise ClipbiasError(f"class {name_lengths.index(0)} has an empty name; give every class a name.")
    texts = prompt_texts(class_names, text)
    count = text.context_tokens
    first = clip.config.text.first_word
    rows = framed(clip.tokenizer, texts, clip.config.text)
    contexts = []
    for i, row in enumerate(rows):
        context = [-1] * len(row)
        context[first : first + count] = range(count)
        name = slice(first + count, first + count + name_lengths[i % len(class_names)])
        before = first + text.before[i // len(class_names)]

        def move(values: list[int], name: slice = name, before: int = before) -> list[int]:
            return values[:before] + values[name] + values[before : first + count] + values[name.stop :]

        rows[i] = move(row)
        contexts.append(move(context))
    counts = (len(text.templates),) * len(class_names)
    return ClassTexts(tuple(texts), _padded(clip, rows, texts, contexts), counts)


def text_layout(adaptation: Adaptation, prompt: PromptText, templates: int, texts: int) -> tuple[int, bool]:
    """How texts share tokens (`clip.pack`): in how many sets with a context each, and whether each has its own.

    Raises:
      ClipbiasError: the method's contexts are not those of its texts.
    """
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
    # Contexts of templates are sets of texts; others are of single texts.
    return (templates, specific) if context.shape[0] == templates else (1, True)


def template_tokens(clip: Clip, text: PromptText) -> TextTokens:
    """Tokens of the templates without a class name, the context after SOS: `[n, N]`."""
    first = clip.config.text.first_word
    texts = [template.replace(" {}", "").replace("{}", "") for template in text.templates]
    rows = framed(clip.tokenizer, texts, clip.config.text)
    contexts = []
    for row in rows:
        context = [-1] * len(row)
        context[first : first + text.context_tokens] = range(text.context_tokens)
        contexts.append(context)
    return _padded(clip, rows, texts, contexts)


def _padded(
    clip: Clip, rows: Sequence[list[int]], texts: Sequence[str], contexts: Sequence[Sequence[int]]
) -> TextTokens:
    ids = pad(rows, texts, clip.config.text)
    context_rows = np.full_like(ids, -1)
    for i, context in enumerate(contexts):
        context_rows[i, : len(context)] = context
    return text_tokens(ids, context_rows, clip.config.text)
