"""Affine maps of low rank that stand for what a method adds to a token, from sums over tokens alone.

Per layer, what a tuned block gives beyond the frozen one is regressed on the block's input token. The best map of rank
`r` under a ridge penalty is the full ridge fit, projected on the first `r` principal directions of what it predicts
(Mukherjee and Zhu 2011).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# The penalty is this share of the inputs' mean variance, set before any result was seen.
RIDGE = 1e-3


@struct.dataclass
class Products:
    """Sums over pairs of an input token `x` and what is added to it `y`, layer by layer; mergeable like `Moments`.

    Attributes:
      count: `[L]`.
      inputs, outputs: means, `[L, D]`.
      squares: sums of products of the inputs' deviations, `[L, D, D]`.
      crosses: of deviations of inputs and outputs, `[L, D, D]`.
    """

    count: Any
    inputs: Any
    outputs: Any
    squares: Any
    crosses: Any

    @classmethod
    def of(cls, inputs: jax.Array, outputs: jax.Array, mask: jax.Array) -> "Products":
        """Of one layer's tokens `[B, N, D]`, counting where `mask [B, N]` is true; traced."""
        counted = mask.reshape(-1, 1)
        x, y = (jnp.where(counted, z.reshape(-1, z.shape[-1]), 0).astype(jnp.float32) for z in (inputs, outputs))
        count = counted.sum().astype(jnp.float32)
        means = [z.sum(0) / jnp.maximum(count, 1) for z in (x, y)]
        x, y = (jnp.where(counted, z - mean, 0) for z, mean in zip((x, y), means, strict=True))
        return cls(count, means[0], means[1], x.T @ x, x.T @ y)

    def merge(self, other: "Products") -> "Products":
        """Both together, in float64 on the host."""
        mine, theirs = (jax.tree.map(lambda x: np.asarray(x, np.float64), block_map) for block_map in (self, other))
        count = mine.count + theirs.count
        share = (theirs.count / np.maximum(count, 1))[..., None]
        apart = [theirs.inputs - mine.inputs, theirs.outputs - mine.outputs]
        between = (share * mine.count[..., None])[..., None]
        return Products(
            count,
            mine.inputs + share * apart[0],
            mine.outputs + share * apart[1],
            mine.squares + theirs.squares + between * apart[0][..., :, None] * apart[0][..., None, :],
            mine.crosses + theirs.crosses + between * apart[0][..., :, None] * apart[1][..., None, :],
        )

    def joined(self) -> "Products":
        """Those of several groups, stacked on a leading axis, as one; traced."""
        count = self.count.sum(0)
        weight = self.count[..., None]
        means = [(weight * z).sum(0) / jnp.maximum(count, 1)[..., None] for z in (self.inputs, self.outputs)]
        x = self.inputs - means[0]
        y = self.outputs - means[1]
        between = [weight[..., None] * x[..., :, None] * z[..., None, :] for z in (x, y)]
        return Products(
            count, means[0], means[1], (self.squares + between[0]).sum(0), (self.crosses + between[1]).sum(0)
        )


def low_rank(products: Products, rank: int, *, ridge: float = RIDGE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The map `y ≈ (x @ down) @ up + shift` of each layer: `[L, D, rank]`, `[L, rank, D]` and `[L, D]`, float32.

    Args:
      products: of the layers.
      rank: the most that the map may have.
      ridge: penalty of the squared weights, as a share of the mean variance of the inputs' numbers.
    """
    layers = zip(products.inputs, products.outputs, products.squares, products.crosses, strict=True)
    layer_maps = [_low_rank(*(np.asarray(z, np.float64) for z in layer), rank=rank, ridge=ridge) for layer in layers]
    down, up, shift = (np.stack(part).astype(np.float32) for part in zip(*layer_maps, strict=True))
    return down, up, shift


def _low_rank(
    inputs: np.ndarray,
    outputs: np.ndarray,
    squares: np.ndarray,
    crosses: np.ndarray,
    *,
    rank: int,
    ridge: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    width = len(squares)
    penalty = ridge * max(np.trace(squares) / width, np.finfo(np.float32).tiny)
    full = np.linalg.solve(squares + penalty * np.eye(width), crosses)
    # What the fit predicts, with its penalty, has these squares over the outputs.
    predicted = crosses.T @ full
    directions = np.linalg.eigh((predicted + predicted.T) / 2)[1][:, ::-1][:, :rank]
    down = full @ directions
    up = directions.T
    return down, up, outputs - inputs @ down @ up
