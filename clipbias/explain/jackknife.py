"""How sure it is that what prompts add is a bias: the statistics of `constancy` with each sample left out once.

These are ratios of squares of means, not means over samples, so that no moments give their errors. The jackknife
(Tukey 1958) does: with `θ_i` the statistic of all samples but the `i`-th of `n`, its standard error is

    √((n − 1)/n · Σ_i (θ_i − θ̄)²).

No sample is kept for it. Squares of sums without a sample follow from its products with the sums of all, which a second
pass over the samples takes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import LayerView
from clipbias.clip.tower import Observe
from clipbias.explain.decomposition import TokenSquares, parts
from clipbias.explain.statistics import Moments
from clipbias.explain.tokens import Roles


def observe_products(roles: Roles, totals: Mapping[str, Moments], bias: Mapping[str, np.ndarray]) -> Observe:
    """Products of each sample's prompt part with what `observe_parts` found of all.

    Args:
      roles: of the tokens, as for `observe_parts`.
      totals: what that observer saw of all samples.
      bias: learned biases `[L, D]` by name, of the same tower.

    Returns:
      An observer of a dictionary of `[B]`, with `x_j` a sample's part at token `j`, `T_j` and `n_j` the sum and number
      of all samples' there, `u = Σ_j x_j` and `T = Σ_j T_j`: `constant`, what the sample's absence takes from the
      numerator of `constancy`, `repeated`, what from its denominator; `square`, `Σ_j |x_j|²`; `tokens`, their number;
      `with_all`, `u · T`; `self`, `|u|²`; and `bias/{name}`, `u` times each bias.
    """
    part = totals["part"]
    count = np.asarray(part.count, np.float64)
    sums = count[..., None] * np.asarray(part.mean, np.float64)
    squares = np.asarray(part.squares, np.float64).sum(-1) + (np.square(sums).sum(-1) / np.maximum(count, 1))
    products = np.square(sums).sum(-1) - squares  # of pairs of different samples
    # Without one of two samples no pair is left of a token, which then counts no more.
    more_than_two = count > 2
    fixed = np.where(
        more_than_two, -products / np.maximum((count - 1) * (count - 2), 1), np.where(count == 2, products, 0)
    )
    weight = np.where(more_than_two, 2 / np.maximum(count - 2, 1), 0)
    of_all = _sums(totals["total"])
    known = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32),
        {
            "sums": sums,
            "fixed": fixed,
            "weight": weight,
            "more_than_two": more_than_two,
            "all": of_all,
            "pair": np.where(count == 2, squares, 0),
            "bias": dict(bias),
        },
    )

    def observe(view: LayerView) -> dict[str, jax.Array]:
        here = jax.tree.map(lambda leaf: leaf[view.index], known)
        prompt_part = view.project(parts(view, roles)[1]).astype(jnp.float32)
        counted = jnp.broadcast_to(roles.queries, prompt_part.shape[:2])
        prompt_part = jnp.where(counted[..., None], prompt_part, 0)
        square = jnp.square(prompt_part).sum(-1)
        whole = prompt_part.sum(1)
        with_others = (prompt_part * (here["sums"] - prompt_part)).sum(-1)
        return {
            "constant": jnp.where(counted, here["fixed"] + here["weight"] * with_others, 0).sum(-1),
            "repeated": jnp.where(counted, here["more_than_two"] * square + here["pair"], 0).sum(-1),
            "square": square.sum(-1),
            "tokens": counted.sum(-1).astype(jnp.float32),
            "with_all": whole @ here["all"],
            "self": jnp.square(whole).sum(-1),
            **{f"bias/{name}": whole @ vector for name, vector in here["bias"].items()},
        }

    return observe


def left_out(
    totals: Mapping[str, Moments], rows: Mapping[str, np.ndarray], bias: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`constancy`, `bias_likeness` and `bias_cosine/{name}` without each of `n` samples: `[n, L]`.

    Args:
      totals: of `observe_parts`.
      rows: of `observe_products`, `[n, L]` each.
      bias: learned biases `[L, D]` by name.
    """
    sample = {name: np.asarray(values, np.float64) for name, values in rows.items()}
    squares = TokenSquares.of(totals["part"])
    tokens = _sums(totals["tokens"])
    of_all = _sums(totals["total"])
    pairs_of_tokens = np.square(tokens) - _squares(totals["tokens"])
    pairs = np.square(of_all).sum(-1) - _squares(totals["total"])
    rest = tokens - sample["tokens"]
    # Squares of sums without a sample, over pairs of different ones: its products with the others go, twice.
    without = pairs - 2 * (sample["with_all"] - sample["self"])
    without_tokens = pairs_of_tokens - 2 * sample["tokens"] * (tokens - sample["tokens"])
    norm = np.sqrt(np.maximum(np.square(of_all).sum(-1) - 2 * sample["with_all"] + sample["self"], 0))
    statistics = {
        "constancy": _ratio(squares.of_mean - sample["constant"], squares.of_repeated - sample["repeated"]),
        "bias_likeness": _ratio(without * rest, without_tokens * (squares.square.sum(-1) - sample["square"])),
    }
    for name, values in bias.items():
        vector = np.asarray(values, np.float64)
        along = (of_all * vector).sum(-1) - sample[f"bias/{name}"]
        statistics[f"bias_cosine/{name}"] = _ratio(along, norm * np.linalg.norm(vector, axis=-1))
    return statistics


def standard_error(values: np.ndarray) -> np.ndarray:
    """The jackknife's, of a statistic without each of `n` samples `[n, …]`; NaN below three samples."""
    count = len(values)
    if count < 3:  # of two, one alone is left, which is constant
        return np.full(values.shape[1:], np.nan)
    return np.sqrt((count - 1) / count * np.square(values - values.mean(0)).sum(0))


def _ratio(part: Any, whole: Any) -> np.ndarray:
    return np.asarray(part / np.where(whole > 0, whole, np.nan))


def _sums(moments: Moments) -> np.ndarray:
    """`Σ_i x_i`, from moments whose count has leading axes of the mean."""
    count = np.asarray(moments.count, np.float64)
    mean = np.asarray(moments.mean, np.float64)
    return count.reshape(count.shape + (1,) * (mean.ndim - count.ndim)) * mean


def _squares(moments: Moments) -> np.ndarray:
    """`Σ_i |x_i|²`: `[L]`."""
    count = np.asarray(moments.count, np.float64)
    mean = np.asarray(moments.mean, np.float64)
    spread = np.asarray(moments.squares, np.float64)
    length, spread = (x.reshape(len(x), -1).sum(-1) for x in (np.square(mean), spread))
    return count * length + spread
