"""Descriptions of classes in place of a template, as in CuPL (Pratt et al. 2023, What does a platypus look like?).

    {"cat": ["A cat has whiskers and pointed ears.", "A small animal with soft fur."], "dog": ["A dog has a snout."]}

They are what a classifier is made of whose text no learnable changes and is the dataset's own template or an ensemble
of templates (zero-shot, TaskRes, the heads on features), and the texts of a frozen teacher (KgCoOp, ProGrad,
PromptSRC). A method that learns in the text tower, or has a text of its own for every dataset, keeps its prompt.

Classes may have different numbers of texts: where a class has fewer than another, rows of zeros stand for the rest,
which `features.average_texts` leaves out.
"""

from collections.abc import Sequence

import jax
import numpy as np

from clipbias.clip import Clip
from clipbias.clip.text import text_tokens
from clipbias.clip.tokenizer import framed, pad
from clipbias.data.descriptions import Descriptions
from clipbias.errors import ClipbiasError
from clipbias.io import shorten
from clipbias.tuning.method import Method
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.prompt_tokens import ClassTexts


def take_templates(method: Method, clip: Clip) -> bool:
    """Whether a method's text is the dataset's own template, or an ensemble: descriptions then take its place."""
    marker = "something whose template is {}."
    text: PromptText = method.text(marker, clip)
    return text.context_tokens == 0 and (len(text.templates) > 1 or marker in text.templates)


def described_texts(clip: Clip, descriptions: Descriptions, class_names: Sequence[str]) -> ClassTexts:
    """The texts of a task's classes. Raises `ClipbiasError` for a class without one, or a text that is too long."""
    if not class_names:
        raise ClipbiasError("there are no class names; a task needs at least one.")
    by_class = [descriptions.of([name])[name] for name in class_names]
    counts = tuple(map(len, by_class))
    # A class with fewer texts repeats its first one; `without_missing` removes the copies.
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
    ids = pad(rows, texts, clip.config.text)
    return ClassTexts(tuple(texts), text_tokens(ids, np.full_like(ids, -1), clip.config.text), counts)


def without_missing(features: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Features `[n · C, d]` with zeros for the missing texts of classes with fewer texts."""
    present = np.arange(features.shape[0] // len(counts))[:, None] < np.asarray(counts)
    return features * present.reshape(-1, 1)
