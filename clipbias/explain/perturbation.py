"""Faithfulness: remove the patches that a map calls important, and see how soon the model fails (Chefer et al. 2021).

A patch is removed by making its pixels black before they are normalised. "positive" removes the highest values first: a
faithful map makes the accuracy fall fast. "negative" removes the lowest first: a faithful map makes it stay.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

FRACTIONS = tuple(round(0.1 * step, 1) for step in range(10))
DIRECTIONS = ("positive", "negative")


def ranks_to_remove(maps: jax.Array) -> jax.Array:
    """The turn in which each patch is removed, from 0, in both `DIRECTIONS`: `[…, B, M]` to `[…, 2, B, M]`.

    Of equal patches the first goes first.
    """
    both = jnp.stack([-maps, maps], axis=-3)
    return jnp.argsort(jnp.argsort(both, axis=-1, stable=True), axis=-1)


def removed(maps: jax.Array, fraction: float, direction: str) -> jax.Array:
    """Which of the patches `[B, M]` are gone: the share `fraction` of the highest ("positive") or lowest ones."""
    return ranks_to_remove(maps)[..., DIRECTIONS.index(direction), :, :] < round(fraction * maps.shape[-1])


def black_out(images: jax.Array, patches: jax.Array, patch_size: int) -> jax.Array:
    """`images [B, R, R, 3]` of raw pixels with the patches `[B, M]` set to 0."""
    batch, size = images.shape[:2]
    grid = size // patch_size
    mask = patches.reshape(batch, grid, grid).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    if margin := size - grid * patch_size:
        mask = jnp.pad(mask, [(0, 0), (0, margin), (0, margin)])
    return jnp.where(mask[..., None], jnp.zeros((), images.dtype), images)


def distinct_rows(gone: np.ndarray, read: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is to be classified where several maps, steps or classes remove the same patches of an image.

    Args:
      gone: which patches `[K, B, M]` each of `K` tries removes, bool.
      read: which images count, bool `[B]`.

    Returns:
      Images `[P]` and their removed patches `[P, M]`, every pair once, ordered by image; and which of them each try of
      each image is, `[K, B]`, 0 for images that do not count.
    """
    tries, _, patches = gone.shape
    images = np.flatnonzero(read).astype(np.int32)
    which = np.zeros(gone.shape[:2], np.int64)
    if not len(images):
        return images, np.zeros((0, patches), bool), which
    of_image = np.broadcast_to(images.astype(">i4"), (tries, len(images)))
    marks = np.ascontiguousarray(of_image[..., None]).view(np.uint8)
    rows = np.concatenate([marks, np.packbits(gone[:, images], axis=-1)], axis=-1)
    different, inverse = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
    which[:, images] = inverse.reshape(tries, len(images))
    numbers = np.ascontiguousarray(different[:, :4]).view(">i4")[:, 0].astype(np.int32)
    return numbers, np.unpackbits(different[:, 4:], axis=-1, count=patches).astype(bool), which


def area_under_curve(fractions: Sequence[float], accuracy: np.ndarray) -> float:
    """Mean height of the accuracy curve `[S]` over the removed share, by trapezoids."""
    x = np.asarray(fractions, np.float64)
    return float(np.trapezoid(accuracy, x) / (x[-1] - x[0]))
