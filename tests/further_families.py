"""Small models of Perception Encoder, BiomedCLIP and Chinese-CLIP, and how far clipbias is from their owners' code.

`tools/reference/write_further_families.py` writes them with the expected numbers.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, encode_image, encode_packed_text, encode_text, open_clip_timm, pack
from clipbias.clip.text import as_tokens

DATA = Path(__file__).parent / "data_files"
FAMILIES = ("pe", "biomed_clip", "chinese_clip")
TEXTS = ("a photo of a cat.", "a photo of a dog.", "a photo of a golden retriever.", "a photo of a big bird.")
CLASSES = ("cat", "dog", "golden_retriever", "big bird")
LABELS = (2, 0, 3)
RATE, STEPS = 0.05, 3
# A vocabulary of BERT's: pieces of words, Chinese characters, punctuation.
BERT_WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("photo", "of", "cat", "dog", "golden", "bird", "big", "##ing", "##ed", "##er"),
    *"一张的照片猫狗鸟",
]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a small model; its MLPs are twice as wide as its tokens, but PE's text tower's."""

    width: int = 16
    text_width: int = 12
    heads: int = 1
    text_heads: int = 1
    patch: int = 2
    layers: int = 3
    image: int = 8
    length: int = 32


def size_of(geometry: Geometry) -> str:
    """The word for these sizes in the name of timm's tower."""
    return f"test{geometry.width}"


@contextlib.contextmanager
def sizes(geometry: Geometry | None = None) -> Iterator[None]:
    """Sizes that open_clip's file only names are those of a small model."""
    own = geometry or Geometry()
    text = own.text_width
    towers = {size_of(own): (own.width, own.layers, own.heads, 2 * own.width)}
    bert = (text, own.layers, own.text_heads, 2 * text)
    constants: dict[str, Any] = {
        "BERT_BASE": bert,
        "BERT_VOCABULARY": len(BERT_WORDS),
        "BERT_POSITIONS": own.length,
    }
    with mock.patch.dict(open_clip_timm.SIZES, towers), mock.patch.multiple(open_clip_timm, **constants):
        yield


def load(folder: Path, geometry: Geometry | None = None) -> Clip:
    """A model of these sizes."""
    with sizes(geometry):
        return clipbias.load(folder)


def difference(actual: Any, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected number."""
    assert np.shape(actual) == expected.shape, (np.shape(actual), expected.shape)
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@functools.partial(jax.jit, static_argnums=0)
def outputs(config: Any, params: Any, images: Any, ids: Any, added: Any, packed: Any) -> dict[str, Any]:
    """Features, and loss, logits and gradients of an adaptation with texts in both layouts."""

    def loss(added: Any, whole: bool) -> Any:
        adaptation = Adaptation(**added)
        image = encode_image(params, config, images, adaptation)[0]
        if whole:
            text = encode_text(params, config, ids, adaptation)[0]
        else:
            text = encode_packed_text(params, config, packed, adaptation)
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = jnp.exp(params["logit_scale"]) * image @ text.T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.array(LABELS)[:, None], 1).mean(), logits

    found = {"image_features": encode_image(params, config, images)[0]}
    found["text_features"] = encode_text(params, config, as_tokens(ids, config))[0]
    for whole in (True, False):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(added, whole)
        found |= {f"{whole}.{k}": v for k, v in {"adapted.loss": value, "adapted.logits": logits}.items()}
        found |= {f"{whole}.gradient.{name}": leaf for name, leaf in gradients.items()}
    return found


def pass_errors(clip: Clip, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest relative errors of features, logits and gradients."""
    ids = expected["tokens"].astype(np.int32)
    added = {name.removeprefix("added."): x for name, x in expected.items() if name.startswith("added.")}
    packed = pack(as_tokens(ids, clip.config, 2), groups=3)
    errors: dict[str, float] = {}
    for name, value in outputs(clip.config, clip.params, expected["images"], ids, added, packed).items():
        plain = name.removeprefix("True.").removeprefix("False.")
        kind = "gradients" if "gradient" in plain else plain.partition(".")[2] or "features"
        errors[kind] = max(errors.get(kind, 0.0), difference(value, expected[plain]))
    return errors


def learned(expected: dict[str, np.ndarray], method: str, when: str) -> dict[str, Any]:
    """A method's learnables as the package has them."""
    prefix = f"{method}.{when}."
    flat = {name.removeprefix(prefix): jnp.asarray(x) for name, x in expected.items() if name.startswith(prefix)}
    if method != "clip_lora":
        return flat
    pairs = {tower: {part: flat[f"lora.{tower}.{part}"] for part in ("down", "up")} for tower in ("vision", "text")}
    return {tower: {"qkv": pair} for tower, pair in pairs.items()}


def training_error(clip: Clip, expected: dict[str, np.ndarray], method: str) -> float:
    """The largest relative error of a method's learnables after three steps of SGD."""
    options: dict[str, Any] = {"text_tokens": 2, "vision_tokens": 2} if method == "ivlp" else {}
    if method == "ivlp":
        options["depth"] = clip.config.common_blocks
    task = clipbias.Task(clip, method, CLASSES, **options)
    learnables, wanted = learned(expected, method, "before"), learned(expected, method, "after")
    assert jax.tree.map(jnp.shape, learnables) == jax.tree.map(jnp.shape, jax.eval_shape(task.init))

    @jax.jit
    def step(learnables: Any, velocity: Any) -> tuple[Any, Any, jax.Array]:
        labels = jnp.array(LABELS)
        loss, found = jax.value_and_grad(task.loss, argnums=1)(clip.params, learnables, expected["images"], labels)
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 5e-4 * p, velocity, found, learnables)
        return jax.tree.map(lambda p, v: p - RATE * v, learnables, velocity), velocity, loss

    velocity = jax.tree.map(jnp.zeros_like, learnables)
    for _ in range(STEPS):
        learnables, velocity, loss = step(learnables, velocity)
    errors = [abs(float(loss) - float(expected[f"{method}.loss"]))]
    pairs = zip(jax.tree.leaves(learnables), jax.tree.leaves(wanted), strict=True)
    return max(*errors, *(difference(one, np.asarray(other)) for one, other in pairs))


def check(folder: Path, geometry: Geometry) -> str:
    """All errors of a folder in a line."""
    clip = load(folder, geometry)
    expected = safetensors.numpy.load_file(folder / "expected.safetensors")
    errors = pass_errors(clip, expected)
    errors |= {method: training_error(clip, expected, method) for method in ("bias", "ivlp", "clip_lora")}
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
