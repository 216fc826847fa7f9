"""Features of pictures and texts in batches of one compiled program, for the methods of `Clip`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from clipbias.checks import check_int
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.text import as_tokens, encode_text
from clipbias.clip.vision import encode_image
from clipbias.data.dataset import Split
from clipbias.data.images import pictures
from clipbias.data.pipeline import test_batches
from clipbias.data.transforms import level_advice
from clipbias.data.user_images import Pictures, UserImages, as_array, image_list, list_images
from clipbias.errors import ClipbiasError

# Texts are padded to a multiple of this number of tokens, so that few compiled programs serve all lengths.
_TOKENS = 8


def check_images(array: ArrayLike, size: int) -> None:
    """Raises `ClipbiasError` for arrays but float `[B, R, R, 3]` of that `size`; with crops `[B, 1 + V, R, R, 3]`."""
    shape = np.shape(array)
    dtype = getattr(array, "dtype", None)
    # Before the type: torch's types are none of NumPy's, and the message would name the wrong cause.
    if hasattr(array, "detach"):
        raise ClipbiasError("the images are a torch tensor; give jax.numpy.asarray(images.detach().cpu()).")
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ClipbiasError(
            f"the images are {dtype}, so they are not normalised; give clip.preprocess(images), or for pixels "
            f"[B, {size}, {size}, 3] clip.preprocessing.normalize(images)."
        )
    if len(shape) not in (4, 5) or shape[-3:] != (size, size, 3):
        hint = "; for one image, images[None]" if shape == (size, size, 3) else ", as clip.preprocess returns them"
        raise ClipbiasError(f"the images have shape {list(shape)}; give [B, {size}, {size}, 3]{hint}.")


def check_normalised(images: np.ndarray, size: int, *, sure: bool) -> None:
    """Raises `ClipbiasError` for levels (not if `sure` that there are none), another shape, NaN or infinite numbers."""
    lowest, highest = (float(images.min()), float(images.max())) if images.size else (-1.0, 1.0)
    if not np.isfinite([lowest, highest]).all():
        raise ClipbiasError("the images hold NaN or infinite numbers; give the result of clip.preprocess.")
    # Before the shape: pictures of levels may have any size.
    if images.ndim > 2 and not sure and (advice := level_advice(images)):
        raise ClipbiasError(
            f"the images are numbers from {lowest:g} to {highest:g}, so they look like levels and not like the result "
            f"of clip.preprocess; give uint8 levels, {advice}; or normalised=True if they are normalised."
        )
    check_images(images, size)


def as_images(images: Pictures) -> np.ndarray | Split:
    """Returns floating-point arrays, which are normalised, as they are; other images as an image list."""
    array = images if isinstance(images, Split) else as_array(images)
    return array if jnp.issubdtype(getattr(array, "dtype", np.uint8), jnp.floating) else image_list(array)


def preprocess(preprocessing: Preprocessing, images: Pictures) -> np.ndarray:
    """See `Clip.preprocess`."""
    listed, single = (images, False) if isinstance(images, Split) else list_images(images)
    split = image_list(listed)
    normalised = np.asarray(preprocessing.normalize(pictures(split, range(len(split)), preprocessing.resizing)))
    return normalised[0] if single else normalised


@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Batches of equal shapes: images `[b, R, R, 3]` or `[b, 1 + V, R, R, 3]`, and a mask `[b]`, False for padding."""

    normalised: bool  # float; else levels from 0 to 255
    count: int  # of images
    batches: Iterator[tuple[np.ndarray, np.ndarray]]
    errors: Mapping[int, str]  # messages of unreadable images by their number; grows as batches are read

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.batches


def image_batches(
    preprocessing: Preprocessing,
    images: Pictures,
    batch_size: int,
    *,
    normalised: bool = False,
    crops: int = 0,
    mixed: bool = False,
    on_error: str = "raise",
) -> ImageBatches:
    """Reads images in batches of at most `batch_size` with their crops; other arguments as for `pipeline.test_batches`.

    Raises `ClipbiasError` for other objects than images, and for crops of normalised images.
    """
    check_int("batch_size", batch_size, lowest=1)
    side = preprocessing.image_size
    array = as_images(images)
    # The batch size bounds the images in memory, and crops are images.
    rows = max(1, batch_size // (1 + crops))
    if isinstance(array, Split):
        source = UserImages(array)
        rows = max(1, min(rows, len(source)))
        decoded = test_batches(
            source, resizing=preprocessing.resizing, batch_size=rows, on_error=on_error, crops=crops, mixed=mixed
        )
        return ImageBatches(False, len(source), ((each["images"], each["mask"]) for each in decoded), source.errors)
    if crops:
        raise ClipbiasError("the method takes crops of whole pictures; give pictures, not normalised images.")
    # A single image is a batch of one.
    array = array[None] if array.shape == (side, side, 3) else array
    check_normalised(array, side, sure=normalised)
    rows = max(1, min(rows, len(array)))

    def padded() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # Equal shapes, the last batch padded with zeros: another shape would compile another program.
        for start in range(0, len(array), rows):
            batch = np.zeros((rows, *array.shape[1:]), np.float32)
            count = len(array[start : start + rows])
            batch[:count] = array[start : start + rows]
            yield batch, np.arange(rows) < count

    return ImageBatches(True, len(array), padded(), {})


def text_batches(ids: np.ndarray, config: ClipConfig, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts ids `[n, N]` into batches of equal shapes, the last one padded, and their masks, bool `[b]`."""
    longest = min(-(-ids.shape[1] // _TOKENS) * _TOKENS, config.text.context_length)
    ids = np.pad(ids, [(0, 0), (0, longest - ids.shape[1])], constant_values=config.text.pad_token_id)
    rows = min(batch_size, len(ids))
    for start in range(0, len(ids), rows or 1):
        batch = ids[start : start + rows]
        # A copy of the last text as padding: a row of zeros would have no end-of-text token.
        yield np.pad(batch, [(0, rows - len(batch)), (0, 0)], mode="edge"), np.arange(rows) < len(batch)


def all_features(
    run: Callable[[np.ndarray], jax.Array], batches: Iterable[tuple[np.ndarray, np.ndarray]], width: int
) -> np.ndarray:
    """Runs all batches; returns their features `[n, width]` without padding."""
    # Features go to the host batch by batch, so that a device holds one batch of a large set.
    rows = [np.asarray(run(batch))[mask] for batch, mask in batches]
    return np.concatenate(rows) if rows else np.zeros((0, width), np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def image_features(
    config: ClipConfig, preprocessing: Preprocessing, dtype: str, normalize: bool, params: Params, images: jax.Array
) -> jax.Array:
    """Computes features `[b, d]` of normalised images, or of uint8 levels."""
    # Levels are normalised on the device: bytes take a quarter of the transfer of float32.
    if images.dtype == jnp.uint8:
        images = preprocessing.normalize(images)
    features = encode_image(params, config, images, dtype=dtype)[0]
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True) if normalize else features


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def text_features(config: ClipConfig, dtype: str, normalize: bool, params: Params, ids: jax.Array) -> jax.Array:
    """Computes features `[b, d]` of ids `[b, N]`."""
    features = encode_text(params, config, as_tokens(ids, config), dtype=dtype)[0]
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True) if normalize else features
