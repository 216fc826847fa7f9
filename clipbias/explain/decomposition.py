"""The attention's output by source (Eq. 12, Fig. 1): what comes from input tokens and what comes from prompts.

    attention_out_i = W_o cat_h(Σ_{j input} A_ij v_j) + W_o cat_h(Σ_{k prompt} A_ik v_k) + b_o

Per head the input part is `(1 − m_ih)` times the output renormalised over the input tokens, where `m_ih` is the
attention that query `i` spends on prompts. If prompts are a bias, the prompt part is the same for every sample.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import LayerView
from clipbias.clip.tower import Observe
from clipbias.explain.attention import Roles
from clipbias.explain.statistics import Moments


def prompt_probabilities(view: LayerView, roles: Roles) -> jax.Array:
    """The attention probabilities `[B, H, N, N]` with every key but the prompts set to 0."""
    return jnp.where(roles.prompts[..., None, None, :], view.probabilities, 0)


def parts(view: LayerView, roles: Roles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The input part and the prompt part of the heads' outputs, `[B, N, H, K]` each, and the mass `m [B, H, N]`."""
    on_prompts = prompt_probabilities(view, roles)
    input_part = view.heads_output(view.probabilities - on_prompts)
    return input_part, view.heads_output(on_prompts), on_prompts.sum(-1)


def observe_parts(roles: Roles, pooled: jax.Array | None, mask: jax.Array | None = None) -> Observe:
    """Statistics of Eq. 12 for every layer.

    Args:
      roles: of the tokens.
      pooled: `[B]`, the row of `[cls]` or EOS; `None` in a tower that is read by a pooling head.
      mask: `[B]`, which samples count in the averages over samples.

    Returns:
      An observer of a dictionary, per sample: `prompt_mass [B, H]` over queries, `pooled_mass [B, H]` of that row,
      `norm_share [B]`, the prompt part's norm over the sum of both norms; and averaged over samples, as `Moments`:
      `part`, the prompt part per token after the output projection `[N, D]`; `total [D]`, its
      sum over a sample's queries; `tokens`, the number of these.
    """

    def observe(view: LayerView) -> dict[str, Any]:
        input_part, prompt_part, mass = parts(view, roles)
        projected = view.project(prompt_part).astype(jnp.float32)
        norms = jnp.linalg.norm(projected, axis=-1)
        both = norms + jnp.linalg.norm(view.project(input_part).astype(jnp.float32), axis=-1)
        share = norms / jnp.maximum(both, jnp.finfo(jnp.float32).tiny)
        batch, length = view.tokens.shape[:2]
        counted = jnp.broadcast_to(roles.queries, (batch, length))
        if mask is not None:
            counted = counted & mask[:, None]
        rows = None if pooled is None else pooled[:, None, None]
        return {
            "prompt_mass": mass.mean(-1, where=roles.queries[..., None, :]),
            **({} if rows is None else {"pooled_mass": jnp.take_along_axis(mass, rows, axis=2)[..., 0]}),
            "norm_share": share.mean(-1, where=roles.queries),
            "part": Moments.of(projected, counted),
            "total": Moments.of(jnp.where(counted[..., None], projected, 0).sum(1), mask),
            "tokens": Moments.of(counted.sum(-1), mask),
        }

    return observe


def constancy(totals: Mapping[str, Moments], bias: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of a bias the prompt part is, per layer, without the share that chance adds.

    A mean of few samples is longer than the true one: `n` samples of pure noise have a mean whose square is `1/n` of
    theirs. So squares of means are estimated from products of two different samples, which chance does not lengthen.
    For a token `j` that counts in `n_j` samples `x_ij` with mean `x̄_j`,

        |μ_j|² ≈ |x̄_j|² − Σ_i |x_ij − x̄_j|² / (n_j (n_j − 1)),

    and for one vector for all tokens, from each sample's sum `u_i` over its `m_i` tokens, because tokens of one sample
    vary together,

        |v|² ≈ (|Σ_i u_i|² − Σ_i |u_i|²) / ((Σ_i m_i)² − Σ_i m_i²).

    Both are divided by the mean square of the part. An estimate can fall a little below 0, and the second a little
    above the first.

    Args:
      totals: what `observe_parts` saw: `part` `[L, N, D]` with counts `[L, N]`, `total [L, D]` and `tokens [L]`.
      bias: learned biases `[L, D]` by name, of the same tower.

    Returns:
      - `constancy [L]`: the share of its mean square that its mean over samples, token by token, explains, over the
        tokens that count in two samples or more; NaN without any;
      - `bias_likeness [L]`: the share that one vector for all tokens explains; NaN below two samples;
      - `bias_cosine {name: [L]}`: the cosine between this vector and a learned bias.
    """
    part = totals["part"]
    count = np.asarray(part.count, np.float64)
    mean = np.asarray(part.mean, np.float64)
    length = np.square(mean).sum(-1)
    spread = np.asarray(part.squares, np.float64).sum(-1)
    square = count * length + spread  # `Σ_i |x_ij|²` of each token
    repeated = count > 1
    of_mean = np.where(repeated, count * length - spread / np.maximum(count - 1, 1), 0).sum(-1)
    tiny = np.finfo(np.float64).tiny
    of_repeated = np.maximum((repeated * square).sum(-1), tiny)
    vector = (count[..., None] * mean).sum(1) / np.maximum(count.sum(1), 1)[:, None]
    pairs = _product_of_two(totals["tokens"])
    one_vector = _product_of_two(totals["total"]) / np.where(pairs > 0, pairs, np.nan)
    return {
        "constancy": of_mean / np.where(repeated.any(-1), of_repeated, np.nan),
        "bias_likeness": one_vector * count.sum(-1) / np.maximum(square.sum(-1), tiny),
        "bias_cosine": {name: _cosine(vector, np.asarray(value, np.float64)) for name, value in bias.items()},
    }


def _product_of_two(sums: Moments) -> np.ndarray:
    """`|Σ_i x_i|² − Σ_i |x_i|²` of samples `x [L, …]`, which is the sum over pairs of different ones: `[L]`."""
    count = np.asarray(sums.count, np.float64)
    squares = [np.square(np.asarray(sums.mean, np.float64)), np.asarray(sums.squares, np.float64)]
    length, spread = (x.reshape(len(x), -1).sum(-1) for x in squares)
    return count * (count - 1) * length - spread


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(scale, np.finfo(np.float64).tiny)
