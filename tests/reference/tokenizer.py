"""OpenAI's `SimpleTokenizer` in plain Python, reading the files of a Hugging Face checkpoint."""

import html
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import regex

START = "<|startoftext|>"
END = "<|endoftext|>"
PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def byte_alphabet() -> dict[int, str]:
    """Byte -> printable character: printable Latin-1 stands for itself, the rest is moved past U+0100."""
    alphabet = {}
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    for byte in printable:
        alphabet[byte] = chr(byte)
    unprintable = 0
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + unprintable)
            unprintable += 1
    return alphabet


def clean(text: str) -> str:
    """`basic_clean`, `whitespace_clean` and lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


class SimpleTokenizer:
    """Byte-pair encoding as OpenAI's CLIP does it."""

    def __init__(self, folder: str | os.PathLike, context_length: int = 77):
        folder = Path(folder)
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
        merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.alphabet = byte_alphabet()
        self.context_length = context_length

    def merge(self, word: str) -> list[str]:
        """The pieces of one word: the earliest learned merge first, everywhere, until none applies."""
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, float("inf")))
            if best not in self.ranks:
                break
            merged = []
            i = 0
            while i < len(pieces):
                if tuple(pieces[i : i + 2]) == best:
                    merged.append(pieces[i] + pieces[i + 1])
                    i += 2
                else:
                    merged.append(pieces[i])
                    i += 1
            pieces = merged
        return pieces

    def encode(self, text: str) -> list[int]:
        """Ids without start and end."""
        ids = []
        for word in PATTERN.findall(clean(text)):
            if word in (START, END):
                ids.append(self.ids[word])
                continue
            characters = "".join(self.alphabet[byte] for byte in word.encode("utf-8"))
            ids.extend(self.ids[piece] for piece in self.merge(characters))
        return ids

    def tokenize(self, texts: Sequence[str], *, pad: int | None = None) -> np.ndarray:
        """[n, N] ids: start, text, end, then `pad` (0 in OpenAI's code; Hugging Face pads with the end)."""
        pad = self.ids[END] if pad is None else pad
        rows = np.full((len(texts), self.context_length), pad, np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.ids[START], *self.encode(text), self.ids[END]]
            row[: len(ids)] = ids
        return rows
