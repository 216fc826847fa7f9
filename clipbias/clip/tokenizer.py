"""CLIP's byte-pair encoding, with the text cleaning of the original code."""

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import numpy as np

from clipbias.errors import ClipbiasError


def clean(text: str) -> str:
    """Repairs mis-decoded text, resolves HTML entities, collapses white space and lowers case, as OpenAI's
    `SimpleTokenizer` does.

    The fast tokenizer of `transformers` leaves the first two out, which changes the ids of names such as "Caf&eacute;",
    and lowers each letter by itself, which misses the Greek sigma that ends a word.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without start and end tokens."""
    cleaned = [clean(text) for text in texts]
    if not cleaned:
        return []
    return tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


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
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise ClipbiasError(
            f"the text {shown!r} has {longest} tokens and this model reads at most {context_length}; shorten the class "
            "name or the template."
        )
    ids = np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids
