"""Class names and a method's prompt text as tokens."""

from collections.abc import Sequence

import numpy as np

from clipbias.checks import check_text
from clipbias.clip import Clip, TextTokens
from clipbias.clip.tokenizer import encode, pad
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import PromptText


def name_in_prompt(name: str) -> str:
    """The name as it stands in a prompt: `_` becomes a space. Raises `ClipbiasError` for what is no text."""
    if not isinstance(name, str):
        raise ClipbiasError(f"the class name {name!r} is not a text; write it in quotes.")
    return name.replace("_", " ")


def prompt_texts(class_names: Sequence[str], template: str) -> list[str]:
    """`template` with each class name in place of `{}`."""
    if check_text("the template", template).count("{}") != 1:
        raise ClipbiasError(f"the template {template!r} must contain '{{}}' exactly once, for the class name.")
    return [template.replace("{}", name_in_prompt(name)) for name in class_names]


def prompt_tokens(clip: Clip, class_names: Sequence[str], text: PromptText) -> TextTokens:
    """Tokens of every template's texts, template after template: `[n · C, N]` with `N` the longest text.

    A class name in the middle or front moves the tokens of the text whose name is at the end, as CoOp's code does, so
    that the name's own tokens stay the same.

    Raises:
      ClipbiasError: no class names, an empty one, a template without `{}`, or a text that is too long for the model.
    """
    if not class_names:
        raise ClipbiasError("there are no class names; a task needs at least one.")
    name_lengths = [len(ids) for ids in encode(clip.tokenizer, [name_in_prompt(name) for name in class_names])]
    if 0 in name_lengths:  # nothing but white space and control characters
        raise ClipbiasError(f"class {name_lengths.index(0)} has an empty name; give every class a name.")
    texts = [t for template in text.templates for t in prompt_texts(class_names, template)]
    tokenizer, count = clip.tokenizer, text.context_tokens
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encode(tokenizer, texts)]
    before = {"end": count, "middle": count // 2, "front": 0}[text.position]
    contexts = []
    for i, row in enumerate(rows):
        context = [-1] * len(row)
        context[1 : 1 + count] = range(count)
        name = slice(1 + count, 1 + count + name_lengths[i % len(class_names)])

        def move(values: list[int], name: slice = name) -> list[int]:
            prefix, suffix = values[1 : 1 + before], values[1 + before : 1 + count]
            return [values[0], *prefix, *values[name], *suffix, *values[name.stop :]]

        rows[i], context = move(row), move(context)
        contexts.append(context)
    ids = pad(rows, texts, clip.config.text.context_length)
    context_rows = np.full_like(ids, -1)
    for i, context in enumerate(contexts):
        context_rows[i, : len(context)] = context
    eos = np.argmax(ids == tokenizer.eos_token_id, axis=1).astype(np.int32)
    return TextTokens(ids, context_rows, eos)
