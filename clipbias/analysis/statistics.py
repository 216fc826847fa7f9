"""Averages over a dataset in constant memory: mean, standard error, count; mergeable.

A batch is reduced on the device (`Moments.of`, traced, so it is sharded with its input). Batches are merged on the host
in float64 by Chan's formula.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.stats import rankdata

from clipbias.analysis.results import Average


def _widen(x: Any, ndim: int) -> Any:
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


@struct.dataclass
class Moments:
    """Count, mean and sum of squared deviations of samples of any shape (Welford 1962; Chan et al. 1983).

    `count` is a scalar, or an array over the leading axes of `mean` where parts of a sample may be missing. `squares`
    is `None` where only means are needed.
    """

    count: Any
    mean: Any
    squares: Any

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array | None = None) -> "Moments":
        """Computes moments of `values [B, …]` where `mask`, over one or more of their leading axes, is true."""
        # A mask over more axes counts each part of a sample by itself, such as a token that short texts lack.
        mask = jnp.ones(values.shape[:1]) if mask is None else mask.astype(jnp.float32)
        weight = _widen(mask, values.ndim)
        count = mask.sum(0)
        # Masked values may be NaN, and 0 · NaN is NaN: they are replaced, not weighted.
        values = jnp.where(weight > 0, values, 0).astype(jnp.float32)
        # Two passes over the batch, mean first: deviations from it keep their digits in float32.
        mean = values.sum(0) / jnp.maximum(_widen(count, values.ndim - 1), 1)
        return cls(count, mean, (weight * jnp.square(values - mean)).sum(0))

    @classmethod
    def of_groups(cls, values: jax.Array, members: jax.Array) -> "Moments":
        """Computes means of `values [B, …]` over groups, `[G, …]`; `members [B, G]` are bool. An empty group has 0."""
        weights = members.astype(jnp.float32)
        count = weights.sum(0)
        # One product for all groups: a mask for each would hold the values as often.
        sums = jnp.tensordot(weights, values.astype(jnp.float32), axes=(0, 0))
        return cls(count, sums / jnp.maximum(_widen(count, sums.ndim), 1), None)

    def merge(self, other: "Moments") -> "Moments":
        """Joins two groups of samples, in float64 on the host."""
        # Chan's formula: squares stay deviations from the mean. `Σx² − n x̄²` would cancel for means far from 0.
        mine, theirs = (jax.tree.map(lambda x: np.asarray(x, np.float64), m) for m in (self, other))
        total = mine.count + theirs.count
        share = _widen(theirs.count / np.maximum(total, 1), mine.mean.ndim)
        delta = theirs.mean - mine.mean
        if mine.squares is None:
            return Moments(total, mine.mean + delta * share, None)
        # `δ² n₁ n₂ / n`, with n₂ / n computed first, so that an empty side divides by 1 and adds nothing.
        between = np.square(delta) * share * _widen(mine.count, mine.mean.ndim)
        return Moments(total, mine.mean + delta * share, mine.squares + theirs.squares + between)

    def joined(self) -> "Moments":
        """Joins groups of samples that are stacked on a leading axis, in traced code."""
        count = self.count.sum(0)
        weight = _widen(self.count, self.mean.ndim)
        mean = (weight * self.mean).sum(0) / jnp.maximum(_widen(count, self.mean.ndim - 1), 1)
        return Moments(count, mean, (self.squares + weight * jnp.square(self.mean - mean)).sum(0))

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the mean; NaN below two samples."""
        squares = np.asarray(self.squares, np.float64)
        count = _widen(np.asarray(self.count, np.float64), squares.ndim)
        # `s / √n` with the unbiased variance.
        return np.where(count < 2, np.nan, np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1)))

    @property
    def samples(self) -> int:
        return int(np.max(self.count, initial=0))

    @property
    def average(self) -> Average:
        return Average(np.asarray(self.mean, np.float32), np.asarray(self.standard_error, np.float32))


Totals = dict[str, Moments]


def merge(totals: Mapping[str, Moments], batch: Mapping[str, Moments]) -> Totals:
    """Joins a batch's moments with totals, by name; names may be new."""
    merged = dict(totals)
    for name, moments in batch.items():
        merged[name] = merged[name].merge(moments) if name in merged else moments
    return merged


def divided_by_sum(rows: jax.Array, visible: jax.Array | None = None) -> jax.Array:
    """Divides rows `[..., N]`, none below 0, by their sums over `visible` tokens; a row of zeros stays."""
    # Masked before the sum, so that a row sums to 1 over its visible tokens.
    if visible is not None:
        rows = jnp.where(visible, rows, 0)
    return _ratio(rows, rows.sum(-1, keepdims=True))


def stretched(rows: jax.Array) -> jax.Array:
    """Scales rows `[..., N]` to 0 at their smallest number and 1 at their largest."""
    low = rows.min(-1, keepdims=True)
    return _ratio(rows - low, rows.max(-1, keepdims=True) - low)


def _ratio(rows: jax.Array, by: jax.Array) -> jax.Array:
    return rows / jnp.where(by > 0, by, 1)


def rank_correlation(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes Spearman's ρ along the last axis; equal values share their mean rank; 0 where one side is constant."""
    # Pearson's correlation of ranks: the shortcut `1 − 6 Σd² / (n³ − n)` is wrong where values are equal.
    a, b = (r - r.mean(-1, keepdims=True) for r in (rankdata(x, axis=-1), rankdata(y, axis=-1)))
    scale = jnp.sqrt(jnp.square(a).sum(-1) * jnp.square(b).sum(-1))
    return (a * b).sum(-1) / jnp.where(scale > 0, scale, 1)


def total_variation(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the total variation of two distributions along the last axis, each divided by its sum first."""
    return jnp.abs(divided_by_sum(x) - divided_by_sum(y)).sum(-1) / 2
