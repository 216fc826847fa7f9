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
from clipbias.explain.statistics import Moments
from clipbias.explain.tokens import Roles


def prompt_probabilities(view: LayerView, roles: Roles) -> jax.Array:
    """The attention probabilities `[B, H, N, N]` with every key but the prompts set to 0."""
    return jnp.where(roles.prompts[..., None, None, :], view.probabilities, 0)


def parts(view: LayerView, roles: Roles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The input part and the prompt part of the heads' outputs, `[B, N, H, K]` each, and the mass `m [B, H, N]`."""
    on_prompts = prompt_probabilities(view, roles)
    input_part = view.heads_output(view.probabilities - on_prompts)
    return input_part, view.heads_output(on_prompts), on_prompts.sum(-1)


def observe_parts(roles: Roles, readout: jax.Array, mask: jax.Array | None = None) -> Observe:
    """Statistics of Eq. 12 for every layer.

    Args:
      roles: of the tokens.
      readout: `[B]`, the row of `[cls]` or EOS.
      mask: `[B]`, which samples count in the averages over samples.

    Returns:
      An observer of a dictionary, per sample: `prompt_mass [B, H]` over queries, `readout_mass [B, H]`,
      `mass_by_query [B, H, N]`, `norm_ratio [B]`; and averaged over samples: `heads` and `part`, `Moments` of the
      prompt part per token, before the output projection `[N, H, K]` and after it `[N, D]`.
    """

    def observe(view: LayerView) -> dict[str, Any]:
        input_part, prompt_part, mass = parts(view, roles)
        projected = view.project(prompt_part).astype(jnp.float32)
        norms = jnp.linalg.norm(projected, axis=-1)
        ratio = norms / jnp.maximum(jnp.linalg.norm(view.project(input_part).astype(jnp.float32), axis=-1), 1e-12)
        batch, length = view.tokens.shape[:2]
        counted = jnp.broadcast_to(roles.queries, (batch, length))
        if mask is not None:
            counted = counted & mask[:, None]
        return {
            "prompt_mass": mass.mean(-1, where=roles.queries[..., None, :]),
            "readout_mass": jnp.take_along_axis(mass, readout[:, None, None], axis=2)[..., 0],
            "mass_by_query": mass,
            "norm_ratio": ratio.mean(-1, where=roles.queries),
            "heads": Moments.of(prompt_part, counted),
            "part": Moments.of(projected, counted),
        }

    return observe


def mean_parts(heads: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The dataset mean of the prompt part, token by token `[L, N, H, K]` and over all tokens `[L, 1, H, K]`.

    Args:
      heads: `Moments` of `[L, N, H, K]` with counts `[L, N]`.
    """
    count = np.asarray(heads.count, np.float64)[..., None, None]
    mean = np.asarray(heads.mean, np.float64)
    overall = (count * mean).sum(1, keepdims=True) / np.maximum(count.sum(1, keepdims=True), 1)
    return mean.astype(np.float32), overall.astype(np.float32)


def constancy(part: Moments, bias: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of a bias the prompt part is, per layer.

    Args:
      part: `Moments` of the projected prompt part, `[L, N, D]` with counts `[L, N]`.
      bias: learned biases `[L, D]` by name, of the same tower.

    Returns:
      - `constancy [L]`: the share of its mean square that its mean over samples, token by token, explains;
      - `bias_likeness [L]`: the share that one vector for all tokens explains, which is never more;
      - `bias_cosine {name: [L]}`: the cosine between this vector and a learned bias.
    """
    count = np.asarray(part.count, np.float64)[..., None]
    mean, squares = np.asarray(part.mean, np.float64), np.asarray(part.squares, np.float64)
    samples = count.sum((1, 2))
    between = (count * np.square(mean)).sum((1, 2))
    total = np.maximum(between + squares.sum((1, 2)), np.finfo(np.float64).tiny)
    vector = (count * mean).sum(1) / np.maximum(samples, 1)[:, None]
    return {
        "constancy": between / total,
        "bias_likeness": samples * np.square(vector).sum(-1) / total,
        "bias_cosine": {name: _cosine(vector, np.asarray(value, np.float64)) for name, value in bias.items()},
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(scale, np.finfo(np.float64).tiny)
