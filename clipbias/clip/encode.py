"""From pictures and words to features, in batches of one compiled program: the methods of `Clip` of these names."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import check_int
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import settle
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.text import as_tokens, encode_text
from clipbias.clip.vision import encode_image
from clipbias.data.transforms import test_image
from clipbias.data.user_images import list_images, to_rgb
from clipbias.errors import ClipbiasError

# Texts are filled up to a multiple of so many tokens, so that few programs serve all lengths.
_TOKENS = 8


def is_normalised(images: Any) -> bool:
    """Whether images are what `Clip.preprocess` returned, an array of floating point, and not pictures."""
    return jnp.issubdtype(getattr(images, "dtype", np.uint8), jnp.floating)


def check_images(images: Any, size: int) -> None:
    """Refuses what a vision tower would take for images and that are none; looks at type and shape alone.

    Args:
      images: `[B, R, R, 3]`, or crops of each `[B, 1 + V, R, R, 3]`.
      size: `R`.

    Raises:
      ClipbiasError: they are of whole numbers, which are not normalised, or have another shape.
    """
    shape, dtype = np.shape(images), getattr(images, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ClipbiasError(
            f"the images are {dtype}, so they are not normalised; give clip.preprocess(images), or of pixels "
            f"[B, {size}, {size}, 3] clip.preprocessing.normalize(images)."
        )
    if len(shape) not in (4, 5) or shape[-3:] != (size, size, 3):
        hint = "; of a single one, images[None]" if shape == (size, size, 3) else ", as clip.preprocess makes them"
        raise ClipbiasError(f"the images have shape {list(shape)}; give [B, {size}, {size}, 3]{hint}.")


def preprocess(config: ClipConfig, preprocessing: Preprocessing, images: Any) -> np.ndarray:
    """See `Clip.preprocess`."""
    given, single = list_images(images)
    pixels = _pixels(given, range(len(given)), preprocessing.side)
    normalised = np.asarray(preprocessing.normalize(pixels))
    return normalised[0] if single else normalised


def _pixels(given: Sequence[Any], numbers: Sequence[int], size: int) -> np.ndarray:
    """Pictures as the model sees them, uint8 `[B, R, R, 3]`."""
    found = np.zeros((len(numbers), size, size, 3), np.uint8)
    for place, number in enumerate(numbers):
        found[place] = test_image(to_rgb(given[number], f"image {number}"), size)
    return found


def image_batches(preprocessing: Preprocessing, images: Any, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of images of equal shapes, and how many of each count: the last one is filled up.

    Args:
      preprocessing: of the model.
      images: as for `Clip.encode_images`.
      batch_size: images at a time; fewer where there are fewer.

    Yields:
      uint8 pictures `[b, R, R, 3]`, or what was normalised already, float.
    """
    check_int("batch_size", batch_size, lowest=1)
    size, ready = preprocessing.side, is_normalised(images)
    if ready:
        images = images[None] if np.shape(images) == (size, size, 3) else images
        check_images(images, size)
    given = images if ready else list_images(images)[0]
    rows = min(batch_size, len(given))
    for start in range(0, len(given), rows or 1):
        numbers = range(start, min(start + rows, len(given)))
        batch = np.asarray(given[start : numbers.stop]) if ready else _pixels(given, numbers, size)
        yield np.pad(batch, [(0, rows - len(batch))] + [(0, 0)] * (batch.ndim - 1)), len(batch)


def encode_images(
    params: Params,
    config: ClipConfig,
    preprocessing: Preprocessing,
    images: Any,
    *,
    batch_size: int,
    normalize: bool,
    dtype: str,
) -> np.ndarray:
    """See `Clip.encode_images`."""
    run = functools.partial(_image_features, config, preprocessing, settle(dtype), normalize, params)
    return _joined(run, image_batches(preprocessing, images, batch_size), config.projection_width)


def encode_ids(
    params: Params, config: ClipConfig, ids: np.ndarray, *, batch_size: int, normalize: bool, dtype: str
) -> np.ndarray:
    """Text features of ids `[n, N]` as from `Clip.tokenize`; see `Clip.encode_texts`."""
    dtype = settle(dtype)
    check_int("batch_size", batch_size, lowest=1)
    longest = min(-(-ids.shape[1] // _TOKENS) * _TOKENS, config.text.context_length)
    ids = np.pad(ids, [(0, 0), (0, longest - ids.shape[1])])
    rows = min(batch_size, len(ids))

    def batches() -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, len(ids), rows or 1):
            batch = ids[start : start + rows]
            yield np.pad(batch, [(0, rows - len(batch)), (0, 0)], mode="edge"), len(batch)

    run = functools.partial(_text_features, config, dtype, normalize, params)
    return _joined(run, batches(), config.projection_width)


def _joined(run: Callable[[Any], jax.Array], batches: Iterator[tuple[np.ndarray, int]], width: int) -> np.ndarray:
    found = [np.asarray(run(batch))[:count] for batch, count in batches]
    return np.concatenate(found) if found else np.zeros((0, width), np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _image_features(
    config: ClipConfig, preprocessing: Preprocessing, dtype: str, normalize: bool, params: Params, images: jax.Array
) -> jax.Array:
    if images.dtype == jnp.uint8:
        images = preprocessing.normalize(images)
    features = encode_image(params, config, images, dtype=dtype)[0]
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True) if normalize else features


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _text_features(config: ClipConfig, dtype: str, normalize: bool, params: Params, ids: jax.Array) -> jax.Array:
    features = encode_text(params, config, as_tokens(ids, config), dtype=dtype)[0]
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True) if normalize else features
