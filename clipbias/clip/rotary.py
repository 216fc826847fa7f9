"""Perception Encoder's rotary positions (Bolya et al. 2025): queries and keys turn by their patch's row and column.

A head's first half turns by columns, its second half by rows, both counted from 1; neighbouring channels are a pair.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.config import VisionConfig

BASE = 10_000.0  # of the wave lengths


def angles(config: VisionConfig, tokens: int) -> np.ndarray:
    """The angle of every pair of channels, `[N, K / 2]`. `[cls]`, and prompts behind the patches, do not turn."""
    pairs = config.width // config.heads // 4
    frequencies = BASE ** (-np.arange(pairs) / pairs)
    places = np.arange(config.patches)
    columns, rows = 1 + places % config.grid, 1 + places // config.grid
    of_patches = np.concatenate([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)
    behind = tokens - config.tokens
    return np.pad(of_patches, [(config.first_patch, behind), (0, 0)])


def rotate(heads: jax.Array, config: VisionConfig) -> jax.Array:
    """Queries or keys `[..., N, H, K]` turned by the positions of their tokens: each pair `a + ib` by `exp(iφ)`."""
    table = angles(config, heads.shape[-3])[:, None]
    cosine, sine = (jnp.asarray(part, jnp.float32) for part in (np.cos(table), np.sin(table)))
    pairs = heads.astype(jnp.float32).reshape(*heads.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return turned.reshape(heads.shape).astype(heads.dtype)
