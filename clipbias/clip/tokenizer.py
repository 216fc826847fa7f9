"""CLIP's byte-pair encoding, with the text cleaning of the original code."""

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import shorten


def clean(text: str) -> str:
    """Cleans text as OpenAI's `SimpleTokenizer` does.

    Mis-decoded text is repaired, HTML entities are resolved, white space is collapsed, and case is lowered.

    The fast tokenizer of `transformers` leaves the first two out, which changes the ids of names such as "Caf&eacute;",
    and lowers each letter by itself, which misses the Greek sigma that ends a word.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without start and end tokens. Raises `ClipbiasError` for what is no Unicode text."""
    for text in texts:
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            raise ClipbiasError(f"{text!r} is not a text that can be written in UTF-8; correct that name.") from error
    cleaned = [clean(text) for text in texts]
    if not cleaned:
        return []
    try:
        return tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    except Exception as error:  # a vocabulary that lacks the pieces of a text
        raise ClipbiasError(f"the tokenizer cannot read its texts ({error}); fetch its files again.") from error


def check_vocabulary(tokenizer: Any, size: int) -> None:
    """Raises `ClipbiasError` where a tokenizer gives ids that a model with `size` embeddings has not: JAX would read
    another row instead of failing.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise ClipbiasError(
            f"the tokenizer has a token of id {largest}, but the model has {size} tokens; they do not belong together."
        )


def tokenize(tokenizer: Any, texts: Sequence[str], context_length: int) -> np.ndarray:
    """`[SOS] text [EOS]` for each text, padded with 0 as far as the longest: int32 `[n, N]`, `N <= context_length`.

    Raises:
      ClipbiasError: a text has more tokens than the model reads.
    """
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encode(tokenizer, texts)]
    return pad(rows, texts, context_length)


def pad(rows: Sequence[Sequence[int]], texts: Sequence[str], context_length: int) -> np.ndarray:
    """Rows of ids as one array padded with 0; `texts` is what they came from, for the message."""
    longest = max((len(row) for row in rows), default=0)
    if longest > context_length:
        text = next(text for row, text in zip(rows, texts, strict=True) if len(row) == longest)
        shown = shorten(text)
        raise ClipbiasError(
            f"the text {shown!r} has {longest} tokens and this model reads at most {context_length}; shorten the class "
            "name or the template."
        )
    ids = np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids
