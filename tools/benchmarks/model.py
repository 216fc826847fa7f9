"""A CLIP of any geometry with random weights, and class names of lengths as in ImageNet: nothing is downloaded."""

import dataclasses
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip import Clip, checkpoint
from clipbias.clip.config import (
    MODELS,
    ClipConfig,
    TextConfig,
    TowerSizes,
    VisionConfig,
    bert_text,
    siglip_sizes,
    siglip_text,
    siglip_vision,
    to_hugging_face,
)
from clipbias.clip.open_clip import pe_vision
from clipbias.clip.params import Params, empty_params
from clipbias.clip.preprocess import family_preprocessing
from clipbias.errors import ClipbiasError
from clipbias.io import write_tensors, write_text

# How many of ImageNet's 1000 class names (`clipbias/assets/imagenet_classes.txt`) have so many tokens in CLIP's own
# byte-pair encoding; counted with the published vocabulary.
NAME_LENGTHS = {1: 246, 2: 508, 3: 154, 4: 50, 5: 22, 6: 10, 7: 8, 9: 1, 12: 1}


def _geometry(
    vision: tuple[int, int, int, int, int], text: tuple[int, int, int], joint: int, *, vocabulary: int = 49408
) -> ClipConfig:
    """From `(width, layers, heads, image size, patch size)`, `(width, layers, heads)` and the joint width."""
    width, layers, heads, image_size, patch_size = vision
    return ClipConfig(
        vision=VisionConfig(width, layers, heads, 4 * width, image_size=image_size, patch_size=patch_size),
        text=TextConfig(*text, 4 * text[0], vocabulary_size=vocabulary, context_length=77, eos_token_id=vocabulary - 1),
        projection_width=joint,
    )


def _siglip(vision: tuple[int, int, int, int, int], text: tuple[int, int, int]) -> ClipConfig:
    """From the same sizes; the text width is the joint width."""
    width, layers, heads, image_size, patch_size = vision
    text_width, depth, text_heads = text
    end = 1
    square: dict[str, Any] = dict(image_size=image_size, patch_size=patch_size)
    words: dict[str, Any] = dict(vocabulary_size=32000, context_length=64, eos_token_id=end, pad_token_id=end)
    images = siglip_vision(siglip_sizes(width, layers, heads=heads), **square)
    texts = siglip_text(siglip_sizes(text_width, depth, heads=text_heads), **words)
    return ClipConfig(images, texts, width, "siglip")


def _perception_encoder() -> ClipConfig:
    """PE-Core-B16-224."""
    text = TextConfig(1024, 24, 16, 4096, "gelu", vocabulary_size=49408, context_length=32, eos_token_id=49407)
    return ClipConfig(pe_vision(768, 12, 12, 3072, image_size=224, patch_size=16), text, 1024, "pe")


def _with_bert(family: str, vocabulary: int) -> ClipConfig:
    """Chinese-CLIP or BiomedCLIP with a ViT-B/16 and a BERT-base."""
    base = TowerSizes(width=768, layers=12, heads=12, mlp_width=3072, activation="gelu", layer_norm_epsilon=1e-12)
    hidden = 640 if family == "biomed_clip" else 0
    text = bert_text(base, vocabulary_size=vocabulary, context_length=512, projection_hidden=hidden)
    vision = VisionConfig(768, 12, 12, 3072, image_size=224, patch_size=16)
    if family == "biomed_clip":
        vision = dataclasses.replace(
            vision, activation="gelu", layer_norm_epsilon=1e-6, pre_norm=False, patch_bias=True
        )
    return ClipConfig(vision, text, 512, family)


GEOMETRIES = {
    "tiny": _geometry((64, 2, 2, 32, 8), (32, 2, 2), 32, vocabulary=512),
    "ViT-B/32": _geometry((768, 12, 12, 224, 32), (512, 12, 8), 512),
    "ViT-B/16": _geometry((768, 12, 12, 224, 16), (512, 12, 8), 512),
    "SigLIP-B/16": _siglip((768, 12, 12, 224, 16), (768, 12, 12)),
    "PE-Core-B/16": _perception_encoder(),
    "BiomedCLIP": _with_bert("biomed_clip", 30522),
    "Chinese-CLIP-B/16": _with_bert("chinese_clip", 21128),
    "MetaCLIP2-B/16": dataclasses.replace(_geometry((768, 12, 12, 224, 16), (512, 12, 8), 512), family="metaclip_2"),
    "ViT-L/14": _geometry((1024, 24, 16, 224, 14), (768, 12, 12), 768),
    "ViT-L/14@336": _geometry((1024, 24, 16, 336, 14), (768, 12, 12), 768),
}


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Stands in for a tokenizer: one token per word or mark, whatever the vocabulary's size."""

    vocabulary_size: int

    @property
    def bos_token_id(self) -> int:
        return self.vocabulary_size - 2

    @property
    def eos_token_id(self) -> int:
        return self.vocabulary_size - 1

    cls_token_id = bos_token_id
    sep_token_id = eos_token_id
    pad_token_id = 0

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        words = (re.findall(r"\w+|[^\w\s]", text) for text in texts)
        return {"input_ids": [[self._id(word) for word in line] for line in words]}

    def _id(self, word: str) -> int:
        """The id of a word: its number where it has one, so that the names of `class_names` are distinct."""
        number = re.search(r"\d+$", word)
        return (zlib.crc32(word.encode()) if number is None else int(number[0])) % self.bos_token_id


def geometry(name: str, *, layers: int = 0) -> ClipConfig:
    """A geometry by name; `layers` makes both towers shallower, to try things quickly.

    Raises:
      ClipbiasError: there is no geometry of that name.
    """
    if name not in GEOMETRIES:
        raise ClipbiasError(f"there is no geometry {name!r}; choose one of {', '.join(GEOMETRIES)}.")
    config = GEOMETRIES[name]
    if not layers:
        return config
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, layers=layers),
        text=dataclasses.replace(config.text, layers=layers),
    )


def random_clip(config: ClipConfig) -> Clip:
    """A frozen model with random weights on the default device, made without more memory than it has itself."""
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: np.ndarray) -> None:
        kind = path[-1].key
        if kind == "logit_scale":
            leaf[...] = np.log(1 / 0.07)
        elif kind == "scale":
            leaf[...] = 1
        elif kind != "bias":
            rng.standard_normal(out=leaf, dtype=np.float32)
            leaf *= leaf.shape[-2] ** -0.5 if kind in ("kernel", "projection", "patch_embedding") else 0.02

    params = empty_params(config)
    jax.tree_util.tree_map_with_path(fill, params)
    return clip_of(config, jax.device_put(params))


def clip_of(config: ClipConfig, params: Params) -> Clip:
    """A model with these weights, and a tokenizer that needs no files."""
    tokenizer: Any = WordTokenizer(config.text.vocabulary_size)
    return Clip(params, config, tokenizer, family_preprocessing(config), "random", "random")


def write_weights(folder: Path, config: ClipConfig) -> Clip:
    """Writes `random_clip` under the names of its family, for PyTorch, and returns it."""
    clip = random_clip(config)
    write_tensors(folder / "model.safetensors", checkpoint.to_tensors(config, clip.params), {"format": "pt"})
    if config.family in MODELS:
        write_text(folder / "config.json", json.dumps(to_hugging_face(config)))
    return clip


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=3` as `{"name": 3}`."""
    return {name: int(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def class_names(count: int) -> list[str]:
    """`count` distinct names whose numbers of tokens are spread as ImageNet's are, in random order."""
    lengths = np.repeat(list(NAME_LENGTHS), list(NAME_LENGTHS.values()))
    quantiles = ((np.arange(count) + 0.5) / count * len(lengths)).astype(int)
    shuffled = np.random.default_rng(0).permutation(lengths[quantiles])
    return [" ".join([f"name{index}", *["of"] * (length - 1)]) for index, length in enumerate(shuffled)]


def random_views(config: ClipConfig, count: int, crops: int) -> np.ndarray:
    """Images with their crops `[count, 1 + crops, R, R, 3]`, as for a test of one image after another.

    They are noise of different colours, which keeps the views' logits apart: rounding then does not decide which of
    them count.
    """
    noise = random_images(config, count, 1 + crops)
    colours = np.random.default_rng(0).integers(0, 256, (count, 1 + crops, 1, 1, 3))
    return ((noise + 3 * colours) // 4).astype(np.uint8)


def random_images(config: ClipConfig, *shape: int) -> np.ndarray:
    """Noise as uint8 images `[*shape, R, R, 3]`."""
    size = config.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (*shape, size, size, 3), np.uint8)
