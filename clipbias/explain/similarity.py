"""Prompts and patches in the same space (Fig. 6): how near each patch token is to the prompt tokens of its layer."""

import jax
import jax.numpy as jnp

from clipbias.clip import LayerView
from clipbias.clip.tower import Observe
from clipbias.explain.attention import cls_map
from clipbias.explain.statistics import stretched


def prompt_distances(tokens: jax.Array, patches: int, first: int = 1) -> jax.Array:
    """`‖p_k − x_j‖₂` between the prompts and the patch tokens at a block's input: `[B, N, D]` to `[B, V, M]`.

    `first` tokens stand before the patches.
    """
    x = tokens[:, first : first + patches]
    prompts = tokens[:, first + patches :]
    differences = (prompts[:, :, None] - x[:, None]).astype(jnp.float32)
    return jnp.sqrt(jnp.square(differences).sum(-1))


def observe_similarity(patches: int, *, prompts: int, first: int = 1) -> Observe:
    """`{"cls": [B, M]}`, attention of `[cls]` if there is one, and with prompts `{"distance": [B, M]}`, their mean."""

    def observe(view: LayerView) -> dict[str, jax.Array]:
        seen = {"cls": cls_map(view, patches)} if first else {}
        if prompts:
            seen["distance"] = prompt_distances(view.tokens, patches, first).mean(1)
        return seen

    return observe


def to_image(maps: jax.Array, image_size: int) -> jax.Array:
    """Patch maps `[…, M]` at image size, bilinear with half-pixel centres, scaled to 0 … 1: `[…, R, R]`."""
    *leading, patches = maps.shape
    side = round(patches**0.5)
    shape = (*leading, image_size, image_size)
    images = jax.image.resize(maps.reshape(*leading, side, side), shape, "bilinear")
    return stretched(images.reshape(*leading, -1)).reshape(shape)
