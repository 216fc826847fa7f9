"""Texts to token ids: CLIP's byte-pair encoding with OpenAI's cleaning, and the tokenizers of other families."""

import gzip
import html
import importlib.util
import json
import logging
import os
import re
import string
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import ftfy
import numpy as np

from clipbias.clip.config import TextConfig
from clipbias.errors import ClipbiasError
from clipbias.io import check_file, shorten

# A tokenizer of transformers, whose classes declare no types of their attributes.
Tokenizer: TypeAlias = Any


def clean(text: str) -> str:
    """Cleans text as OpenAI's `SimpleTokenizer` does: repaired, entities resolved, spaces collapsed, lower case."""
    # transformers' fast tokenizer does not repair text or resolve entities, which changes the ids of names such as
    # "Caf&eacute;"; and it lowers letters one by one, which misses the Greek sigma that ends a word.
    return clean_whitespace(text).lower()


def clean_whitespace(text: str) -> str:
    """Cleans text as open_clip does for tokenizers of Hugging Face: as `clean`, but the case stays."""
    # Twice, as OpenAI's code does: scraped texts contain `&amp;eacute;`.
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def canonicalize(text: str) -> str:
    """Cleans text as open_clip does for SigLIP: lower case, without punctuation; `_` is a space."""
    text = clean_whitespace(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


CLEAN = "clean"  # open_clip's setting in a tokenizer's file
WHITESPACE = "whitespace"
CLEANING: dict[str, Callable[[str], str]] = {WHITESPACE: clean_whitespace, "canonicalize": canonicalize, "lower": clean}


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Returns each text's token ids without start and end. Raises `ClipbiasError` for a text that is no Unicode."""
    for text in texts:
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            raise ClipbiasError(f"{text!r} cannot be written in UTF-8; correct that name.") from error
    # CLIP's cleaning is OpenAI's; a tokenizer of open_clip names its cleaning in its file.
    how = "lower" if is_clips(tokenizer) else getattr(tokenizer, "init_kwargs", {}).get(CLEAN)
    cleaned = [text if how is None else CLEANING[how](text) for text in texts]
    if not cleaned:
        return []
    try:
        return tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    except Exception as error:  # a vocabulary that lacks the pieces of a text
        raise ClipbiasError(f"the tokenizer cannot read its texts ({error}); fetch its files again.") from error


def is_clips(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is CLIP's, so that `encode` cleans its texts; other tokenizers clean texts themselves."""
    return type(tokenizer).__name__.startswith("CLIPTokenizer")


# Texts on which tokenizers differ: case, white space, `_`, entities, composed letters, wrong decodings, scripts.
_PROBES = (
    "A Photo of a  cat.",
    "ice_cream, T-shirt",
    "Caf&eacute; caf\u00e9 cafe\u0301",
    "Ï€ ΣΑΣ",
    "don't <b>",
    "猫 🐈",
)
_PIECES = 4096  # pieces of the vocabulary that are tokenized as texts


def behaviour(tokenizer: Tokenizer) -> list[object]:
    """Returns a tokenizer's vocabulary and its ids for sample texts: the content of its identity."""
    # Files cannot identify it: several formats store one tokenizer, and a library's code cleans its texts. Ids of
    # pieces of the vocabulary tell other merges apart, ids of the probes other cleaning.
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in vocabulary[:: max(1, len(vocabulary) // _PIECES)]]
    words = [piece.replace("</w>", "").replace("▁", " ").removeprefix("##") for piece in pieces]
    ids = tokenizer(words, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    known = json.dumps([vocabulary, ids, encode(tokenizer, _PROBES)])
    return [known, tokenizer.bos_token_id, tokenizer([""])["input_ids"]]


def check_tokenizer(tokenizer: Tokenizer, config: TextConfig) -> None:
    """Raises `ClipbiasError` if it lacks start, end or padding tokens, or has ids beyond the embeddings."""
    names = {"eos": ("eos_token_id",), "last": ("pad_token_id",), "first": ("cls_token_id", "sep_token_id")}
    # transformers returns `None` for a missing token, which would fail far from here.
    for name in names[config.pooling]:
        if not isinstance(getattr(tokenizer, name), int):
            raise ClipbiasError(f"the tokenizer has no {name.removesuffix('_id')}, which this model's texts need.")
    largest = max(tokenizer.get_vocab().values())
    size = config.vocabulary_size
    if largest >= size:  # JAX would read the last row instead of failing
        raise ClipbiasError(
            f"the tokenizer has a token of id {largest}, but the model has {size} tokens; they do not belong together."
        )


def framed(tokenizer: Tokenizer, texts: Sequence[str], config: TextConfig) -> list[list[int]]:
    """Returns token ids as the model reads them: `[SOS] text [EOS]`, or a text with its tokenizer's ending."""
    if config.pooling == "first":
        return [[tokenizer.cls_token_id, *ids, config.eos_token_id] for ids in encode(tokenizer, texts)]
    # Framed here, since the model's configuration decides the end token.
    if config.causal:
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [[*start, *ids, config.eos_token_id] for ids in encode(tokenizer, texts)]
    ending = [int(i) for i in tokenizer([""])["input_ids"][0]]
    return [ids + ending for ids in encode(tokenizer, texts)]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], config: TextConfig) -> np.ndarray:
    """Returns padded ids, int32 `[n, N]`; SigLIP's fill the context. Raises `ClipbiasError` for too many tokens."""
    return pad(framed(tokenizer, texts, config), texts, config)


def pad(token_ids: Sequence[Sequence[int]], texts: Sequence[str], config: TextConfig) -> np.ndarray:
    """Pads lists of ids to one array; the error quotes one of their `texts`."""
    longest = max((len(ids) for ids in token_ids), default=0)
    context_length = config.context_length
    if longest > context_length:
        text = next(text for ids, text in zip(token_ids, texts, strict=True) if len(ids) == longest)
        raise ClipbiasError(
            f"the text {shorten(text)!r} has {longest} tokens and this model reads at most {context_length}; shorten "
            "the class name or the template."
        )
    # SigLIP attends to padding, so its features depend on the length; other towers ignore it, and shorter is faster.
    length = context_length if config.pooling == "last" else longest
    padded = np.full((len(token_ids), length), config.pad_token_id, np.int32)
    for i, ids in enumerate(token_ids):
        padded[i, : len(ids)] = ids
    return padded


# A tokenizer's files.

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.txt",
)
CLIP_VOCABULARY = 49408
# The byte-pair merges that CLIP uses, the first fifth of OpenAI's list (github.com/openai/CLIP, MIT licence).
MERGES = "bpe_simple_vocab_16e6.txt.gz"


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt"))


def read_tokenizer(folder: Path, family: str = "clip", cleaning: str | None = None) -> Tokenizer:
    """Reads transformers' tokenizer from a folder, with open_clip's `cleaning` of texts. Raises `ClipbiasError`."""
    if not has_tokenizer(folder):
        raise ClipbiasError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt).")
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            check_file(folder / name)
    try:
        loaded = _class(folder, family).from_pretrained(str(folder), local_files_only=True)
        # The slow tokenizer cleans texts in its own code.
        if family == "siglip" and loaded.is_fast:
            _clean_in_backend(loaded.backend_tokenizer, punctuation=cleaning != "canonicalize")
        if not isinstance(loaded.model_max_length, int):
            raise ValueError(f"its model_max_length is {loaded.model_max_length!r}")
        # Damaged files often load, and fail or return nothing at the first text.
        ids = loaded(["a photo of a cat."], add_special_tokens=False, verbose=False)["input_ids"][0]
        if not ids or not all(isinstance(i, int) for i in ids):
            raise ValueError("it lacks tokens")
        if cleaning is not None:
            loaded.init_kwargs[CLEAN] = cleaning
        return loaded
    except ClipbiasError:
        raise
    except Exception as error:  # transformers raises many types for damaged files
        words = shorten(" ".join(str(error).split()), 300)
        raise ClipbiasError(f"the tokenizer in {folder} cannot be read ({words}); fetch it again.") from error


def _class(folder: Path, family: str) -> Any:
    transformers = import_transformers()
    if family in ("clip", "pe"):
        return transformers.CLIPTokenizerFast
    if family in ("chinese_clip", "biomed_clip"):
        return transformers.BertTokenizerFast
    if family in ("siglip", "metaclip_2") and (folder / "spiece.model").exists():
        if importlib.util.find_spec("sentencepiece"):
            return transformers.SiglipTokenizer
        if not (folder / "tokenizer.json").exists():
            raise ClipbiasError(f"{folder / 'spiece.model'} needs a package; run `pip install sentencepiece protobuf`.")
    return transformers.PreTrainedTokenizerFast


def _clean_in_backend(backend: Any, *, punctuation: bool) -> None:
    """Lower-cases SigLIP's texts as in its training; without `punctuation`, cleans them as `canonicalize` does."""
    from tokenizers import Regex, normalizers

    normalizer = backend.normalizer
    if "Lowercase" not in repr(normalizer):  # the tokenizer of SigLIP 2, Gemma's, does not
        steps = [normalizers.Lowercase(), normalizer] if normalizer else [normalizers.Lowercase()]
        backend.normalizer = normalizers.Sequence(steps)
    # `encode` has canonicalized texts before; this is for programs that read the files that are saved of it.
    if not punctuation:
        steps = [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            backend.normalizer,
        ]
        backend.normalizer = normalizers.Sequence(steps)


def clip_tokenizer() -> Tokenizer:
    """Returns CLIP's byte-pair encoding of 49,408 tokens, with which nearly every CLIP was trained."""
    text = gzip.decompress((resources.files("clipbias") / "assets" / MERGES).read_bytes()).decode("utf-8")
    # A printable letter for every byte, in the order of the vocabulary: itself, or one beyond 255.
    codes = [code for first, last in ("!~", "¡¬", "®ÿ") for code in range(ord(first), ord(last) + 1)]
    alphabet = [*map(chr, codes), *map(chr, range(256, 512 - len(codes)))]
    # The vocabulary holds every byte twice (inside a word and at its end), the merges, and two special tokens.
    merges = [tuple(line.split()) for line in text.splitlines()[1:]]
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return import_transformers().CLIPTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=77)


def import_transformers() -> ModuleType:
    """Imports `transformers` without its advice to install other frameworks."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import transformers
    finally:
        logger.setLevel(level)
    return transformers
