"""The arithmetic that a computation needs, counted by hand: multiplications and additions of its matrix products.

Letters as everywhere: `N` tokens, `D` width, `M` patches, `d` joint width. A product of `[m, k]` and `[k, n]` counts
`2 m k n`. What acts on single numbers (LayerNorm, softmax, activations) is left out: it is below two percent.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from clipbias.clip import TextTokens
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.tuning import Task


def dense(config: TowerConfig, tokens: int) -> int:
    """One block's weights applied to `tokens` tokens: queries, keys, values, output, and two layers of the MLP."""
    return 2 * tokens * (4 * config.width**2 + 2 * config.width * config.mlp_width)


def last_block(config: TowerConfig, tokens: int, rows: int) -> int:
    """The last block's weights: keys and values of all tokens, the rest of the rows that are read."""
    return 2 * tokens * 2 * config.width**2 + 2 * rows * (2 * config.width**2 + 2 * config.width * config.mlp_width)


def tower(
    config: TowerConfig, *, tokens: int, pairs: int, rows: int, last_pairs: int, backward_from: int | None
) -> int:
    """All blocks, forward and, where learnables act, backward to their inputs.

    Args:
      tokens: tokens in all sequences together.
      pairs: query-key pairs of one attention head in one block; each costs two products of the head's width.
      rows, last_pairs: the rows that the last block computes and their pairs.
      backward_from: the first block that gradients pass through; `None` without gradients. Products with frozen weights
        have one gradient, products of two activations have two.
    """
    inner, attention = dense(config, tokens), 4 * pairs * config.width
    last, last_attention = last_block(config, tokens, rows), 4 * last_pairs * config.width
    total = (config.layers - 1) * (inner + attention) + last + last_attention
    if backward_from is not None:
        total += (config.layers - 1 - backward_from) * (inner + 2 * attention) + last + 2 * last_attention
    return total


def vision(config: ClipConfig, batch: int, *, prompts: int = 0, backward_from: int | None = None) -> int:
    """Features of `batch` images with so many prompt tokens."""
    geometry = config.vision
    length = 1 + geometry.patches + prompts
    patches = 2 * batch * geometry.patches * 3 * geometry.patch_size**2 * geometry.width
    projection = 2 * batch * geometry.width * config.projection_width * (1 if backward_from is None else 2)
    blocks = tower(
        geometry,
        tokens=batch * length,
        pairs=batch * length**2,
        rows=batch,
        last_pairs=batch * length,
        backward_from=backward_from,
    )
    return patches + projection + blocks


def text(config: ClipConfig, tokens: TextTokens, shared: int, *, backward_from: int | None = None) -> int:
    """Features of all texts: every distinct token once, no pair that the causal mask hides."""
    ends = np.asarray(tokens.eos, np.int64)
    count = len(ends)
    # Token i sees i + 1 tokens: the shared ones once, the others of each text.
    triangle = shared * (shared + 1) // 2
    pairs = triangle + int(((ends + 1) * (ends + 2) // 2 - triangle).sum())
    projection = 2 * count * config.text.width * config.projection_width * (1 if backward_from is None else 2)
    blocks = tower(
        config.text,
        tokens=shared + int((ends + 1 - shared).sum()),
        pairs=pairs,
        rows=count,
        last_pairs=int((ends + 1).sum()),
        backward_from=backward_from,
    )
    return projection + blocks


def matmul(sizes: Sequence[int]) -> int:
    """`[m, k] @ [k, n]`."""
    return 2 * int(np.prod(sizes, dtype=np.int64))


def step(task: Task, batch: int) -> int:
    """Products that a training step needs: trimmed texts, shared prefix, gradients only where learnables act.

    Args:
      task: what is trained.
      batch: images per step.
    """
    adaptation, config = jax.eval_shape(task.method.adapt, task.shapes), task.clip.config
    prompts = 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[1]

    def first(bias: Any, changes: bool) -> int | None:
        return (0 if bias is None else 1) if changes else None  # a bias acts behind the first block

    total = vision(
        config, batch, prompts=prompts, backward_from=first(adaptation.vision_bias, adaptation.changes_vision)
    )
    if adaptation.changes_text:
        total += text(config, task.tokens, task.text.shared, backward_from=first(adaptation.text_bias, True))
    return total + 3 * matmul((batch, config.projection_width, len(task.class_names)))


def traced(function: Any, *arguments: Any, **options: Any) -> int:
    """The matrix products in a jitted function as JAX traces it, on all devices together.

    Those in loops count as often as they run. The compiler's own count (`cost_analysis`) takes the body of a loop once,
    and the layers are a loop.
    """
    return _products(
        (function if hasattr(function, "trace") else jax.jit(function)).trace(*arguments, **options).jaxpr.jaxpr
    )


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(_products, jaxprs_in_params(equation.params)))
    return total
