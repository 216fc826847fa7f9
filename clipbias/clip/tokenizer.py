"""Texts to token ids: CLIP's byte-pair encoding with the original code's cleaning, other tokenizers as they are."""

import html
import os
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import ftfy
import numpy as np

from clipbias.clip.config import TextConfig
from clipbias.errors import ClipbiasError
from clipbias.io import shorten


class Tokenizer(Protocol):
    """The part of a tokenizer of `transformers` that clipbias uses.

    Attributes:
      bos_token_id, eos_token_id, pad_token_id: the first token of CLIP's texts, the last of any text, and padding.
      cls_token_id, sep_token_id: the first and last token of BERT's texts.
      all_special_ids: the ids of these and other tokens that stand for no text.
    """

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int
    cls_token_id: int
    sep_token_id: int
    all_special_ids: Sequence[int]

    def __call__(self, texts: Sequence[str], **options: bool) -> Mapping[str, list[list[int]]]: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def convert_ids_to_tokens(self, token: int) -> str: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def save_pretrained(self, folder: str | os.PathLike) -> object: ...


def clean(text: str) -> str:
    """Cleans text as OpenAI's `SimpleTokenizer` does.

    Mis-decoded text is repaired, HTML entities are resolved, white space is collapsed, and case is lowered.

    The fast tokenizer of `transformers` leaves the first two out, which changes the ids of names such as "Caf&eacute;",
    and lowers each letter by itself, which misses the Greek sigma that ends a word.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def clean_whitespace(text: str) -> str:
    """Cleans text as open_clip does for tokenizers of Hugging Face: as `clean`, but the case stays."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def canonicalize(text: str) -> str:
    """Cleans text as open_clip does for SigLIP: lower case, without punctuation; `_` is a space."""
    text = clean_whitespace(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


CLEAN = "clean"  # the name of a tokenizer's setting, in its file
WHITESPACE = "whitespace"
CLEANING: dict[str, Callable[[str], str]] = {
    WHITESPACE: clean_whitespace,
    "canonicalize": canonicalize,
    "lower": clean,
}


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without start and end tokens. Raises `ClipbiasError` for values that are no Unicode."""
    for text in texts:
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            raise ClipbiasError(f"{text!r} is not a text that can be written in UTF-8; correct that name.") from error
    cleaned = [*texts]
    how = "lower" if is_clips(tokenizer) else getattr(tokenizer, "init_kwargs", {}).get(CLEAN)
    if how is not None:
        cleaned = [CLEANING[how](text) for text in texts]
    if not cleaned:
        return []
    try:
        return tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    except Exception as error:  # a vocabulary that lacks the pieces of a text
        raise ClipbiasError(f"the tokenizer cannot read its texts ({error}); fetch its files again.") from error


def is_clips(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is CLIP's, whose texts are cleaned here; other tokenizers clean texts themselves."""
    return type(tokenizer).__name__.startswith("CLIPTokenizer")


def check_vocabulary(tokenizer: Tokenizer, size: int) -> None:
    """Raises `ClipbiasError` if the tokenizer has ids beyond the model's `size` embeddings.

    JAX would read another row instead of failing.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise ClipbiasError(
            f"the tokenizer has a token of id {largest}, but the model has {size} tokens; they do not belong together."
        )


def check_ends(tokenizer: Tokenizer, config: TextConfig) -> None:
    """Raises `ClipbiasError` if the tokenizer lacks the special tokens that frame or fill a text."""
    names = {"eos": ("eos_token_id",), "last": ("pad_token_id",), "first": ("cls_token_id", "sep_token_id")}
    for name in names[config.pooling]:
        if not isinstance(getattr(tokenizer, name), int):
            raise ClipbiasError(f"the tokenizer has no {name.removesuffix('_id')}, which this model's texts need.")


def framed(tokenizer: Tokenizer, texts: Sequence[str], config: TextConfig) -> list[list[int]]:
    """Token ids as the model reads them: `[SOS] text [EOS]`, or `text` and what its tokenizer puts behind it."""
    if config.pooling == "first":
        return [[tokenizer.cls_token_id, *ids, config.eos_token_id] for ids in encode(tokenizer, texts)]
    if config.causal:
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [[*start, *ids, config.eos_token_id] for ids in encode(tokenizer, texts)]
    ending = [int(i) for i in tokenizer([""])["input_ids"][0]]
    return [ids + ending for ids in encode(tokenizer, texts)]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], config: TextConfig) -> np.ndarray:
    """The ids of each text, int32 `[n, N]`, padded to the longest, or to the whole context if padding is attended to.

    Raises:
      ClipbiasError: a text has more tokens than the model reads.
    """
    return pad(framed(tokenizer, texts, config), texts, config)


def pad(rows: Sequence[Sequence[int]], texts: Sequence[str], config: TextConfig) -> np.ndarray:
    """Rows of ids as one padded array; the message names one of their `texts`."""
    longest = max((len(row) for row in rows), default=0)
    context_length = config.context_length
    if longest > context_length:
        text = next(text for row, text in zip(rows, texts, strict=True) if len(row) == longest)
        shown = shorten(text)
        raise ClipbiasError(
            f"the text {shown!r} has {longest} tokens and this model reads at most {context_length}; shorten the class "
            "name or the template."
        )
    ids = np.full((len(rows), context_length if config.fills_context else longest), config.pad_token_id, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids
