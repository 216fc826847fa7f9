"""A tiny CLIP for tests: a tokenizer learned from a few words, and checkpoints in Hugging Face format."""

import contextlib
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy

from tests.reference import weights
from tests.reference.methods import Reference
from tests.reference.tokenizer import END, START, SimpleTokenizer, byte_alphabet

# Every word of the usual templates becomes one token; the others are cut into pieces.
CORPUS = "a photo of a photo of the cat dog bird maine coon golden retriever satellite texture type painting"


def short(values: Iterable[Any], *always: Any, unpack: bool = False) -> list[Any]:
    """Values of `pytest.mark.parametrize`, of which all but those that are kept are for long tests.

    With `unpack`, each is a tuple, of a value for each name.
    """
    return [
        pytest.param(*(value if unpack else (value,)), marks=() if value in always else pytest.mark.long)
        for value in values
    ]


@contextlib.contextmanager
def signal_at(where: Any, name: str, call: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """This process gets a signal at the given call of a function."""
    original, calls = getattr(where, name), itertools.count(1)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(number)
        return original(*arguments, **options)

    with mock.patch.object(where, name, called):
        yield


def learn_merges(corpus: str, count: int) -> list[tuple[str, str]]:
    """The first `count` byte-pair merges of `corpus`: the most frequent pair first, ties by spelling."""
    words = [[*word[:-1], word[-1] + "</w>"] for word in corpus.split()]
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


def write_tokenizer(folder: str | os.PathLike, *, context_length: int) -> int:
    """Writes a tokenizer's files as `CLIPTokenizerFast` reads them; returns the vocabulary's size."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(CORPUS, 90)
    alphabet = list(byte_alphabet().values())
    vocabulary = [*alphabet, *(character + "</w>" for character in alphabet), *(a + b for a, b in merges), START, END]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocab)


def tiny_geometry(folder: str | os.PathLike, **sizes: Any) -> dict:
    """Writes the tokenizer to `folder`; returns a config with its vocabulary; `sizes` override."""
    context_length = sizes.pop("context_length", 24)
    settings: dict[str, Any] = {
        "vision": (24, 3, 2),
        "text": (16, 3, 2),
        "projection": 12,
        "image_size": 16,
        "patch_size": 4,
    } | sizes
    vocabulary = write_tokenizer(folder, context_length=context_length)
    return weights.geometry(vocabulary=vocabulary, context_length=context_length, **settings)


def write_checkpoint(folder: str | os.PathLike, config: Mapping, state: Mapping[str, np.ndarray]) -> None:
    """Adds config, weights and preprocessing to a folder that already holds the tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    size = config["vision_config"]["image_size"]
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1))
    arrays = {name: np.array(value, order="C") for name, value in state.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_checkpoint(folder: str | os.PathLike, *, seed: int = 0, **sizes: Any) -> Reference:
    """Writes a random checkpoint that `clipbias.load(folder)` reads; returns the reference's view of it."""
    config = tiny_geometry(folder, **sizes)
    state = weights.random_state_dict(config, seed)
    write_checkpoint(folder, config, state)
    tokenizer = SimpleTokenizer(folder, config["text_config"]["max_position_embeddings"])
    return Reference(weights.double(state), config, tokenizer)


def random_images(config: Mapping, count: int, seed: int = 0) -> np.ndarray:
    """[B, R, R, 3] float32 of mean 0 and variance 1, as normalised images are."""
    size = config["vision_config"]["image_size"]
    return weights.deterministic_uniform(2000 + seed, 0, (count, size, size, 3))


def random_tokens(config: Mapping, lengths: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """[n, N] ids: start, so many words drawn at random, end, and ends to fill the context."""
    text = config["text_config"]
    rows = np.full((len(lengths), text["max_position_embeddings"]), text["eos_token_id"], np.int64)
    rows[:, 0] = text["bos_token_id"]
    for stream, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        bits = np.random.Philox(key=[3000 + seed, stream]).random_raw(length)
        row[1 : 1 + length] = bits % np.uint64(text["bos_token_id"])
    return rows


def adapter_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What an adapter's file says of itself."""
    return json.loads(metadata["clipbias"])
