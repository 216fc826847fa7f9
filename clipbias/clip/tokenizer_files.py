"""A tokenizer from the files of a model's folder, or CLIP's own."""

import gzip
import importlib.util
import logging
import os
import re
import string
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from clipbias.clip.tokenizer import CLEAN, Tokenizer
from clipbias.errors import ClipbiasError
from clipbias.io import check_file, reason, shorten

FILES = (
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
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt"))


def read_tokenizer(folder: Path, family: str = "clip", cleaning: str | None = None) -> Tokenizer:
    """The tokenizer of `transformers` in a folder: CLIP's, or that of another family.

    Args:
      folder: holds its files.
      family: of the model.
      cleaning: one of `tokenizer.CLEANING`, with which open_clip cleans texts; the files that are saved name it.

    Raises:
      ClipbiasError: there is none, it is damaged, or it may not or cannot be read.
    """
    if not has_tokenizer(folder):
        raise ClipbiasError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt).")
    for name in FILES:
        if (folder / name).exists():
            check_file(folder / name)
    try:
        loaded = _class(folder, family).from_pretrained(str(folder), local_files_only=True)
        if family == "siglip" and loaded.is_fast:
            _lower_case(loaded.backend_tokenizer)
            if cleaning == "canonicalize":
                _remove_punctuation(loaded.backend_tokenizer)
        if not isinstance(loaded.model_max_length, int):
            raise ValueError(f"its model_max_length is {loaded.model_max_length!r}")
        ids = loaded(["a photo of a cat."], add_special_tokens=False, verbose=False)["input_ids"][0]
        if not ids or not all(isinstance(i, int) for i in ids):
            raise ValueError("it lacks tokens")
        if cleaning is not None:
            loaded.init_kwargs[CLEAN] = cleaning
        return loaded
    except ClipbiasError:
        raise
    except Exception as error:  # whatever the tokenizer library raises on a damaged file
        if isinstance(error, OSError) and error.errno:  # of the file system's own, which is no damage
            raise ClipbiasError(f"cannot read {error.filename or folder}: {reason(error)}; see to the file.") from error
        words = shorten(" ".join(str(error).split()), 300)
        raise ClipbiasError(f"the tokenizer in {folder} cannot be read ({words}); fetch it again.") from error


def _class(folder: Path, family: str) -> Any:
    """The class that reads a family's tokenizer: SigLIP's is a sentencepiece model, others' a `tokenizer.json`."""
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


def _lower_case(backend: Any) -> None:
    """Lower-cases a tokenizer's texts, as in SigLIP's training. The tokenizer of SigLIP 2, Gemma's, does not."""
    from tokenizers import normalizers

    normalizer = backend.normalizer
    if "Lowercase" in repr(normalizer):
        return
    steps = [normalizers.Lowercase()]
    if normalizer:
        steps.append(normalizer)
    backend.normalizer = normalizers.Sequence(steps)


def _remove_punctuation(backend: Any) -> None:
    """Cleans a tokenizer's texts as `tokenizer.canonicalize`, for programs that read the files that are saved of it."""
    from tokenizers import Regex, normalizers

    steps = [
        normalizers.Replace("_", " "),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        backend.normalizer,
    ]
    backend.normalizer = normalizers.Sequence(steps)


def clip_tokenizer() -> Tokenizer:
    """CLIP's own byte-pair encoding of 49,408 tokens, which nearly every CLIP model was trained with."""
    text = gzip.decompress((resources.files("clipbias") / "assets" / MERGES).read_bytes()).decode("utf-8")
    alphabet = list(_byte_alphabet())
    # The vocabulary holds every byte twice (inside a word and at its end), the merges, and two special tokens.
    merges = [tuple(line.split()) for line in text.splitlines()[1:]]
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return import_transformers().CLIPTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=77)


def _byte_alphabet() -> str:
    """A printable letter for every byte, in the order of CLIP's vocabulary: itself, or one beyond 255."""
    codes: list[int] = []
    for first, last in ("!~", "¡¬", "®ÿ"):
        codes.extend(range(ord(first), ord(last) + 1))
    codes.extend(range(256, 512 - len(codes)))
    return "".join(map(chr, codes))


def import_transformers() -> ModuleType:
    """Imports `transformers` without its advice about frameworks that are not needed here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import transformers
    finally:
        logger.setLevel(level)
    return transformers
