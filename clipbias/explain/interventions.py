"""A causal test of what prompts do: keep one part of their effect, take the other away, and classify.

In every layer and head, with `m` the attention that a query spends on prompts, `r` its output renormalised over the
input tokens and `p` the prompts' part, a prompted model computes

    (1 − m) r + p.

Softmax keeps the ratios between input tokens whatever else is in it, so within a layer prompts do exactly two things:
they scale the input part by `1 − m` (re-weighting) and they add `p` (values). The variants switch both independently, a
two by two design whose corners are `full` and `none`:

    full                (1 − m) r + p       the tuned model
    values_only         r + p               attention among inputs as if no prompt were there, prompt values added
    reweighting_only    (1 − m) r           prompts take attention away but their values are zero
    none                r                   for image prompts this is CLIP itself
    mean_per_token      (1 − m) r + p̄_i     the prompt part is a constant of each token position
    mean                (1 − m) r + p̄       the prompt part is a constant of the layer: a bias

"As in CLIP" is thus meant layer by layer, given the tokens that reach the layer: `r` is what CLIP's attention makes of
those tokens. Tokens that earlier layers changed are still attended to differently. `frozen` shuts that path as well:

    frozen              r₀ + p              `r₀`: this layer's values under the attention that the unprompted model has
                                            for the same sample

Dataset means are taken over the samples at hand and use no labels. Only the queries of input tokens are touched;
prompts go on attending as they did.
"""

import jax
import jax.numpy as jnp

from clipbias.clip import LayerView
from clipbias.clip.tower import Intervene
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import renormalise
from clipbias.explain.decomposition import parts, prompt_probabilities
from clipbias.explain.results import INTERVENTIONS
from clipbias.explain.tokens import Roles


def input_attention(view: LayerView, roles: Roles) -> jax.Array:
    """Attention over the input tokens alone, `[B, H, N, N]`; a query that sees only prompts gets nothing."""
    return renormalise(view.probabilities - prompt_probabilities(view, roles))


def intervention(name: str, roles: Roles, mean: jax.Array | None = None) -> Intervene:
    """The function to pass as `intervene` to `encode_image` or `encode_text`.

    "frozen" needs the unprompted model beside the prompted one: pass every sample twice (`twice`), and take the second
    half of the features.

    Args:
      name: one of `INTERVENTIONS`.
      roles: of the tokens; for "frozen" of the samples once.
      mean: for "mean_per_token" and "mean": `[L, N or 1, H, K]`, from `decomposition.mean_parts`.
    """
    if name not in INTERVENTIONS:
        raise ClipbiasError(f"unknown intervention {name!r}; choose from {', '.join(INTERVENTIONS)}.")
    if name.startswith("mean") and mean is None:
        raise ClipbiasError(f"the intervention {name!r} needs the dataset mean of the prompt part.")
    if name == "frozen":
        return _frozen(Roles(twice(roles.prompts), twice(roles.queries)) if roles.prompts.ndim == 2 else roles)

    def intervene(view: LayerView) -> jax.Array:
        input_part, prompt_part, _ = parts(view, roles)
        full = input_part + prompt_part
        if name in ("values_only", "none"):
            input_part = view.heads_output(input_attention(view, roles))
        if name in ("reweighting_only", "none"):
            prompt_part = jnp.zeros_like(prompt_part)
        if name.startswith("mean"):
            prompt_part = jnp.asarray(mean)[view.index].astype(prompt_part.dtype)
        return jnp.where(roles.queries[..., None, None], input_part + prompt_part, full)

    return intervene


def _frozen(roles: Roles) -> Intervene:
    """The first half of the batch is the unprompted model, the second takes its attention over the input tokens."""

    def intervene(view: LayerView) -> jax.Array:
        input_part, prompt_part, _ = parts(view, roles)
        half = view.tokens.shape[0] // 2
        unprompted = input_attention(view, roles)[:half]
        changed = view.heads_output(twice(unprompted))
        changed = changed + prompt_part.at[:half].set(0)
        return jnp.where(roles.queries[..., None, None], changed, input_part + prompt_part)

    return intervene


def twice(x: jax.Array) -> jax.Array:
    """`[B, …]` to `[2B, …]`: every sample again, in the same order."""
    return jnp.concatenate([x, x])
