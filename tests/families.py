"""Small models of all families but CLIP in several geometries, with the numbers of their owners' code.

Weights and inputs are drawn by their names. `tools/reference/write_families.py` of commit 4ca177e7 gave the owners'
code the same ones and wrote what it computes.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import clipbias
from clipbias.clip import Clip, open_clip

DATA = Path(__file__).parent / "data_files"
FURTHER = DATA / "geometries"
TEXTS = ("a photo of a cat.", "a photo of a Dog.", "a photo of a golden retriever.", "a photo of a big bird.")
CLASSES = ("cat", "Dog", "golden_retriever", "big bird")
LABELS = (2, 0, 3)
METHODS = ("bias", "bias_by_kind", "ivlp", "taskres", "clip_lora")
RATE, STEPS = 0.05, 3
ADDED = 0.1  # larger ones make texts alike, so that gradients are differences of nearly equal numbers
# A vocabulary of BERT's: pieces of words, Chinese characters, punctuation.
BERT_WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("photo", "of", "cat", "dog", "golden", "bird", "big", "##ing", "##ed", "##er"),
    *"一张的照片猫狗鸟",
]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a model.

    Attributes:
      width, heads, layers, patch, image: of the vision tower. SigLIP's features are as wide as its tokens.
      text_width, text_heads, text_layers, length: of the text tower.
      joint: the width of other families' features.
      quick_gelu: whether a MetaCLIP 2 has it; the other families have one activation each.
      mlp_ratio: how much wider an MLP is than its tokens, but in PE's text tower, where it is 4.
    """

    width: int = 16
    heads: int = 2
    layers: int = 3
    patch: int = 2
    image: int = 8
    text_width: int = 12
    text_heads: int = 3
    text_layers: int = 3
    length: int = 32
    joint: int = 10
    quick_gelu: bool = True
    mlp_ratio: int = 2


# The first one's folder is complete, for tests that load it; the others' weights are drawn when they are needed.
_GEOMETRIES = (
    Geometry(),
    Geometry(24, 3, 2, 4, 12, 16, 2, 4, joint=8, quick_gelu=False),
    Geometry(32, 4, 4, 2, 6, 24, 4, 2, length=31, joint=12),
)
_MARGIN = Geometry(image=9)  # as in SigLIP's largest models, the patches leave a margin
# Owners' own files have no number of heads, which are 64 wide and at least one.
_ONE_HEAD = Geometry(heads=1, text_heads=1)
GEOMETRIES: dict[str, tuple[Geometry, ...]] = {
    **dict.fromkeys(("metaclip_2", "biomed_clip"), _GEOMETRIES),
    **dict.fromkeys(("siglip", "siglip_2"), (_MARGIN, *_GEOMETRIES[1:])),
    "chinese_clip": (_ONE_HEAD, *_GEOMETRIES[1:]),
    # The pooling head has eight heads, and a head turns channels in pairs by rows and by columns.
    "pe": (_ONE_HEAD, Geometry(32, 2, 2, 4, 12, 24, 2, 4), Geometry(64, 4, 4, 2, 6, 16, 4, 2, joint=12)),
}
# Further forms of these: in open_clip's files, or with another tokenizer.
FORMS = {
    "siglip_open_clip": "siglip",
    "siglip_2_open_clip": "siglip_2",
    "metaclip_2_open_clip": "metaclip_2",
    "metaclip_2_mt5": "metaclip_2",
}
GEOMETRIES |= {form: GEOMETRIES[family] for form, family in FORMS.items()}
FAMILIES = tuple(family for family in GEOMETRIES if family not in FORMS)
EVERY = [(family, number) for family, geometries in GEOMETRIES.items() for number in range(1, 1 + len(geometries))]
# The folder of a family's tokenizer, where it has none of its own.
TOKENIZERS = FORMS | {"metaclip_2_mt5": "siglip"}
NOT_TOKENIZERS = ("config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors")


def drawn(name: str, shape: tuple[int, ...], scale: float = 0.3) -> np.ndarray:
    """Random numbers that depend on a name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.normal(scale=scale, size=shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a model, larger than training starts from, so that every part counts."""
    if name in ("logit_scale", "logit_bias"):
        return np.full(shape, 2.0 if name == "logit_scale" else -3.0, np.float32)
    if name.endswith("trunk.head.bias"):  # which a Perception Encoder does not have
        return np.zeros(shape, np.float32)
    is_norm = name.endswith("weight") and len(shape) == 1
    return drawn(name, shape) + np.float32(is_norm)


def images_of(geometry: Geometry) -> np.ndarray:
    """Normalised images `[B, R, R, 3]`."""
    return drawn("images", (len(LABELS), geometry.image, geometry.image, 3), 1.0)


def shapes_of(geometry: Geometry, kinds: tuple[int, int], features: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the learnables of each method, and under "added" those of an adaptation with all parts.

    Args:
      geometry: of the model.
      kinds: of tokens in the vision and text tower.
      features: the width of features.
    """
    widths = {"vision": geometry.width, "text": geometry.text_width}
    layers = {"vision": geometry.layers, "text": geometry.text_layers}
    depth = min(layers.values())
    biases = {f"{tower}_bias": (layers[tower], width) for tower, width in widths.items()}
    by_kind = {f"{tower}_bias": (layers[tower], n, widths[tower]) for tower, n in zip(widths, kinds, strict=True)}
    prompts: dict[str, tuple[int, ...]] = {"text_context": (2, widths["text"])}
    prompts["text_prompts"] = (depth - 1, 2, widths["text"])
    prompts["vision_prompts"] = (depth, 2, widths["vision"])
    pairs: dict[str, tuple[int, ...]] = {}
    for tower, width in widths.items():
        pairs[f"lora.{tower}.down"] = (layers[tower], 3, width, 2)
        pairs[f"lora.{tower}.up"] = (layers[tower], 3, 2, width)
    return {
        "added": {**biases, **prompts},
        "bias": dict[str, tuple[int, ...]](biases),
        "bias_by_kind": dict[str, tuple[int, ...]](by_kind),
        "ivlp": prompts,
        "taskres": {"text_residual": (len(CLASSES), features)},
        "clip_lora": pairs,
    }


def kinds_of(family: str) -> tuple[int, int]:
    """Kinds of tokens in both towers: in the vision tower a single one where a pooling head reads it."""
    return (1 if "siglip" in family or family == "pe" else 2), 2


def features_of(family: str, geometry: Geometry) -> int:
    """The width of features."""
    return geometry.width if "siglip" in family else geometry.joint


def start_of(family: str, geometry: Geometry, part: str) -> Arrays:
    """A method's learnables before training, or the arrays of an adaptation ("added")."""
    shapes = shapes_of(geometry, kinds_of(family), features_of(family, geometry))[part]
    return {name: drawn(f"{part}.{name}", shape, ADDED) for name, shape in shapes.items()}


def size_of(geometry: Geometry) -> str:
    """The word for these sizes in the name of timm's tower."""
    return f"test{geometry.width}"


@contextlib.contextmanager
def sizes(geometry: Geometry) -> Iterator[None]:
    """Sizes that open_clip's file only names are those of a small model."""
    towers = {size_of(geometry): (geometry.width, geometry.layers, geometry.heads, 2 * geometry.width)}
    text = geometry.text_width
    constants: dict[str, Any] = {
        "BERT_BASE": (text, geometry.text_layers, geometry.text_heads, 2 * text),
        "BERT_VOCABULARY": len(BERT_WORDS),
        "BERT_POSITIONS": geometry.length,
    }
    with mock.patch.dict(open_clip.TIMM_SIZES, towers), mock.patch.multiple(open_clip, **constants):
        yield


def load(folder: Path, geometry: Geometry) -> Clip:
    """A model of these sizes."""
    with sizes(geometry):
        return clipbias.load(folder)


def load_first(family: str) -> Clip:
    """The complete model of a family's first geometry."""
    return load(DATA / family, GEOMETRIES[family][0])


def folder_of(family: str, number: int) -> Path:
    """Where the expected numbers lie, with a complete model or with its configuration alone."""
    return DATA / family if number == 1 and family in FAMILIES else FURTHER / f"{family}-{number}"


def tokenizer_files(family: str) -> list[Path]:
    """Files of a family's tokenizer."""
    names = (*NOT_TOKENIZERS, "expected.safetensors")
    return [path for path in (DATA / TOKENIZERS.get(family, family)).iterdir() if path.name not in names]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A small model, and the numbers of its owner's code."""

    clip: Clip
    family: str
    geometry: Geometry
    expected: Arrays

    @property
    def images(self) -> np.ndarray:
        return images_of(self.geometry)


@functools.cache
def _read(family: str, number: int, folder: Path) -> Reference:
    """A model whose missing files are made in `folder`."""
    source = folder_of(family, number)
    geometry = GEOMETRIES[family][number - 1]
    expected = safetensors.numpy.load_file(source / "expected.safetensors")
    if source.parent == DATA:
        return Reference(load(source, geometry), family, geometry, expected)
    folder = folder / source.name
    folder.mkdir()
    for path in (*source.iterdir(), *tokenizer_files(family)):
        shutil.copy(path, folder)
    with safetensors.safe_open(source / "expected.safetensors", framework="numpy") as file:
        shapes = json.loads(file.metadata()["tensors"])
    name = NOT_TOKENIZERS[3] if (folder / "open_clip_config.json").exists() else NOT_TOKENIZERS[1]
    tensors = {tensor: weight(tensor, tuple(shape)) for tensor, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})
    return Reference(load(folder, geometry), family, geometry, expected)


def reference(family: str, number: int, folder: Path) -> Reference:
    """The model of a geometry, counted from 1. Skips the test where its tokenizer needs a package that is missing."""
    if (DATA / TOKENIZERS.get(family, family) / "spiece.model").exists() and not importlib.util.find_spec(
        "sentencepiece"
    ):
        pytest.skip("SigLIP's tokenizer is sentencepiece's")
    return _read(family, number, folder)


def difference(actual: Any, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected number."""
    assert np.shape(actual) == expected.shape, (np.shape(actual), expected.shape)
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


def trained(model: Reference, method: str) -> dict[str, Any]:
    """A method's learnables after training by the owner's code, as the package has them."""
    prefix = f"{method}.after."
    return as_learnables({k.removeprefix(prefix): x for k, x in model.expected.items() if k.startswith(prefix)})


def as_learnables(flat: Arrays) -> dict[str, Any]:
    """Arrays by name as the package has a method's learnables."""
    if "lora.vision.down" not in flat:
        return {name: jnp.asarray(x) for name, x in flat.items()}
    pairs = {tower: {part: flat[f"lora.{tower}.{part}"] for part in ("down", "up")} for tower in ("vision", "text")}
    return jax.tree.map(jnp.asarray, {tower: {"qkv": pair} for tower, pair in pairs.items()})


def task_of(model: Reference, method: str) -> clipbias.Task:
    """A method with the sizes of `shapes_of`."""
    options: dict[str, Any] = {"text_tokens": 2, "vision_tokens": 2} if method == "ivlp" else {}
    if method == "ivlp":
        options["depth"] = model.clip.config.common_blocks
    return clipbias.Task(model.clip, method, CLASSES, **options)
