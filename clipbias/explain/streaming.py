"""Gradients with respect to attention, one layer at a time, reduced before the next layer is touched.

One scan forward keeps of each block what is needed to differentiate it: some multiple of its tokens `[B, N, D]`, or the
tokens of every so many-th block, from which the others are computed again. One scan backward differentiates a block by
its tokens and by its attention probabilities, hands both the probabilities `A` and `G = ∂y/∂A` to the reductions, and
forgets them. Neither `A` nor `G` is ever stacked over layers, nor is any matrix of tokens by tokens multiplied by
another.

The last block is read at one row, so only that row of it is computed. A reduction therefore starts from one row and
continues with whole matrices, from the last layer to the first.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import TextTokens, layers, scan, tower
from clipbias.clip.config import TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.tower import TowerInput
from clipbias.clip.vision import embed_image, project_image
from clipbias.explain.reductions import LastRow, Reduction
from clipbias.explain.targets import first_layer, own_pair_logits, pair_logits, target_adaptation, target_text
from clipbias.tuning import Classifier, Learnables
from clipbias.tuning.features import unit_length


@struct.dataclass
class Relevancy:
    """Maps over the tokens of an image and of a prompt text, for given targets.

    Attributes:
      vision: `[B, M + V]`: patches row by row, then prompts.
      text: `[B, N]`: SOS, context, class name, '.'; 0 from EOS on. `[B, n, N]` for an ensemble of `n` templates.
      scores: `[B]`: the scaled logits that were explained.

    With several targets per image each has a further axis `K` after `B`; by layer, maps have one of layers before the
    tokens.
    """

    vision: jax.Array
    text: jax.Array
    scores: jax.Array


@struct.dataclass
class Kept:
    """What a block is differentiated by.

    Attributes:
      tokens: `[B, N, D]` at the block's input, before prompts are put in.
      middle: `[B, N, D]` between the block's halves.
      qkv: queries, keys and values `[B, N, 3D]`.
      hidden: `[B, N, mlp_width]` before the activation.
    """

    tokens: jax.Array
    middle: jax.Array
    qkv: jax.Array
    hidden: jax.Array


def layer_at(inputs: TowerInput, index: int | jax.Array) -> scan.LayerInput:
    """One layer's weights. Scanning over numbers, not over `weights[:-1]`, spares a copy of nearly the whole model."""
    return jax.tree.map(lambda leaf: leaf[index], inputs.layers)


def attend(
    qkv: jax.Array, tap: jax.Array | float, weights: Any, inputs: TowerInput, config: TowerConfig
) -> tuple[jax.Array, jax.Array]:
    """The attention's output `[B, N, D]` and its probabilities `[B, H, N, N]`, a `tap` added to them."""
    # Heads before tokens, so that the products of both passes read their operands as they lie.
    q, k, v = (layers.split_heads(part, config.heads).swapaxes(1, 2) for part in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if inputs.causal:
        scores = jnp.where(tower.causal_mask(q.shape[2]), scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1) + tap
    heads = jnp.einsum("BHNM,BHMK->BHNK", probabilities.astype(v.dtype), v).swapaxes(1, 2)
    return layers.dense(heads.reshape(*heads.shape[:2], -1), weights["out"]), probabilities


def block_forward(
    tokens: jax.Array, index: int | jax.Array, inputs: TowerInput, config: TowerConfig
) -> tuple[jax.Array, Kept]:
    """Advances `tokens [B, N, D]` by one block."""
    layer = layer_at(inputs, index)
    tower.refuse_inserted(inputs)
    x = tower.put_prompts(tokens, layer, inputs.prompt_rows)
    qkv = layers.queries_keys_values(x, layer.weights, config)
    middle = x + attend(qkv, 0.0, layer.weights, inputs, config)[0]
    hidden = layers.mlp_hidden(middle, layer.weights, config)
    output = middle + layers.mlp_output(hidden, layer.weights, config)
    output = tower.add_beside(output, x, layer, config)
    output = tower.add_bias(output, layer, inputs.bias_rows)
    return output, Kept(tokens, middle, qkv, hidden)


def run_blocks(
    tokens: jax.Array, first: jax.Array, end: jax.Array, inputs: TowerInput, config: TowerConfig
) -> jax.Array:
    """Advances `tokens [B, N, D]` by the blocks from `first` up to `end`, which is not run, and keeps nothing."""
    return jax.lax.fori_loop(first, end, lambda index, x: block_forward(x, index, inputs, config)[0], tokens)


def run_forward(inputs: TowerInput, config: TowerConfig, recompute: int) -> tuple[Kept | jax.Array, jax.Array]:
    """All blocks but the last.

    Returns:
      What is kept, stacked: a `Kept` of every block, or with `recompute` the tokens at the input of every so many-th;
      and the tokens `[B, N, D]` that reach the last block.
    """
    count = config.layers - 1

    def step(tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Kept | jax.Array]:
        output, kept = block_forward(tokens, index, inputs, config)
        return output, tokens if recompute else kept

    def segment(tokens: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        return run_blocks(tokens, first, jnp.minimum(first + recompute, count), inputs, config), tokens

    kept: Kept | jax.Array
    if recompute > 1:
        tokens, kept = jax.lax.scan(segment, inputs.tokens, jnp.arange(0, count, recompute))
    else:
        tokens, kept = jax.lax.scan(step, inputs.tokens, jnp.arange(count))
    return kept, tokens


def kept_at(kept: Kept | jax.Array, index: jax.Array, inputs: TowerInput, config: TowerConfig, recompute: int) -> Kept:
    """What block `index` is differentiated by, computed again where `run_forward` did not keep it."""
    if isinstance(kept, Kept):
        return jax.tree.map(lambda leaf: leaf[index], kept)
    segment = index // recompute
    tokens = kept[segment]
    if recompute > 1:
        tokens = run_blocks(tokens, segment * recompute, index, inputs, config)
    return block_forward(tokens, index, inputs, config)[1]


def block_backward(
    kept: Kept, layer: scan.LayerInput, inputs: TowerInput, config: TowerConfig
) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], jax.Array]:
    """Differentiates one block where the forward pass left it, piece by piece.

    Every piece starts from what was kept, and its own product is not needed to differentiate it: the compiler leaves it
    out, and no matrix product of the forward pass is repeated here but `q kᵀ`.

    Returns:
      A function from the gradient of the block's output to that of its tokens and of its attention; and the attention
      probabilities `[B, H, N, N]`.
    """
    weights = layer.weights

    def enter(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        x = tower.put_prompts(tokens, layer, inputs.prompt_rows)
        return x, layers.queries_keys_values(x, weights, config), tower.beside(x, layer, config)

    _, pull_enter = jax.vjp(enter, kept.tokens)
    batch, length = kept.tokens.shape[:2]
    tap = jnp.zeros((batch, config.heads, length, length), jnp.float32)
    _, pull_attend, probabilities = jax.vjp(
        lambda qkv, tap: attend(qkv, tap, weights, inputs, config), kept.qkv, tap, has_aux=True
    )
    _, pull_hidden = jax.vjp(lambda middle: layers.mlp_hidden(middle, weights, config), kept.middle)
    _, pull_mlp = jax.vjp(lambda hidden: layers.mlp_output(hidden, weights, config), kept.hidden)

    def pull(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        middle = gradient + pull_hidden(*pull_mlp(gradient))[0]
        qkv, attention = pull_attend(middle)
        return pull_enter((middle, qkv, None if layer.adapters is None else gradient))[0], attention

    return pull, probabilities


def last_rows(tokens: jax.Array, tap: jax.Array, inputs: TowerInput, config: TowerConfig) -> tuple[jax.Array, LastRow]:
    """The last block at the readout row alone: its output `[B, D]` and what reductions start from.

    Args:
      tap: added to that row's attention probabilities, `[B, H, N]`.
    """
    last = layer_at(inputs, config.layers - 1)
    tokens = tower.put_prompts(tokens, last, inputs.prompt_rows)
    place, number = jnp.arange(tokens.shape[1]), jnp.asarray(inputs.readout)[:, None]
    visible = place <= number if inputs.causal else None
    seen: LastRow | None = None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal seen
        mask = None if visible is None else visible[:, None, None, :]
        attention = layers.attention_probabilities(q[:, None], k, mask)[:, :, 0] + tap
        others = place != number if visible is None else place < number
        seen = LastRow(attention, _cosine(q, k), number[:, 0], others)
        return jnp.einsum("BHM,BMHK->BHK", attention.astype(v.dtype), v)

    rows = layers.block_rows(tokens, last.weights, config, lambda x: tower.take_rows(x, inputs.readout), attend)
    assert seen is not None
    rows = tower.add_beside(rows, tower.take_rows(tokens, inputs.readout), last, config)
    return tower.add_bias(rows, last, inputs.bias_row_read), seen


def _cosine(q: jax.Array, k: jax.Array) -> jax.Array:
    """Of a query `[B, H, K]` and keys `[B, N, H, K]`, each as one vector over all heads: `[B, N]`."""
    query, keys = (unit_length(x.reshape(*x.shape[:-2], -1).astype(jnp.float32)) for x in (q, k))
    return jnp.einsum("BD,BND->BN", query, keys)


def last_block(
    tokens: jax.Array, inputs: TowerInput, config: TowerConfig, readout: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, jax.Array]], LastRow]:
    """The last block at the readout row, and the feature that is read there.

    Returns:
      The features; a function from their gradient to those of `tokens` and of the row's attention; that row.
    """

    def run(tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, LastRow]:
        rows, seen = last_rows(tokens, tap, inputs, config)
        return readout(rows), seen

    tap = jnp.zeros((tokens.shape[0], config.heads, tokens.shape[1]), jnp.float32)
    return jax.vjp(run, tokens, tap, has_aux=True)


def reduce_backward(
    inputs: TowerInput,
    config: TowerConfig,
    kept: Kept | jax.Array,
    row: LastRow,
    gradients: tuple[jax.Array, jax.Array],
    reductions: Mapping[str, Reduction],
    start_layer: int,
    recompute: int,
    by_layer: bool,
) -> dict[str, jax.Array]:
    """Runs the reductions from the last layer down to `start_layer`.

    Args:
      kept: from `run_forward`.
      row: the readout row in the last layer.
      gradients: for each of `K` targets, of the tokens that reach the last block `[K, B, N, D]` and of the row's
        attention `[K, B, H, N]`.
      start_layer: the lowest layer, from 0.
      by_layer: whether all maps on the way are kept.

    Returns:
      For each reduction its map `[K, B, N]`; by layer `[K, B, L − start_layer, N]`, of what each layer and those above
      it give.
    """
    token_gradients, row_gradients = gradients
    states = {
        name: jax.vmap(lambda g, r=reduction: r.first(row, g))(row_gradients) for name, reduction in reductions.items()
    }

    def step(carry: tuple[jax.Array, dict[str, jax.Array]], index: jax.Array) -> tuple[Any, Any]:
        here = kept_at(kept, index, inputs, config, recompute)
        pull, probabilities = block_backward(here, layer_at(inputs, index), inputs, config)

        def one(gradient: jax.Array, states: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
            gradient, attention_gradient = pull(gradient)
            return gradient, {
                name: reduction.step(states[name], probabilities, attention_gradient)
                for name, reduction in reductions.items()
            }

        gradients, states = jax.vmap(one)(*carry)
        return (gradients, states), states if by_layer else None

    last, lower = states, None
    if start_layer < config.layers - 1:
        below = jnp.arange(start_layer, config.layers - 1)
        (_, states), lower = jax.lax.scan(step, (token_gradients, states), below, reverse=True)
    length = inputs.tokens.shape[1]
    influential = inputs.readout + 1 if inputs.causal else jnp.full_like(inputs.readout, length)
    count = config.layers - start_layer

    def finish(states: dict[str, jax.Array], layers: int) -> dict[str, jax.Array]:
        return {
            name: jax.vmap(lambda state, r=reduction: r.finish(state, layers, influential))(states[name])
            for name, reduction in reductions.items()
        }

    if not by_layer:
        return finish(states, count)
    each = [finish(jax.tree.map(lambda x, i=i: x[i], lower), count - i) for i in range(count - 1)]
    return jax.tree.map(lambda *maps: jnp.stack(maps, 2), *each, finish(last, 1))


@with_precision
def stream(
    classifier: Classifier,
    reductions: Mapping[str, Reduction],
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array,
    tokens: TextTokens,
    every: jax.Array | None = None,
    *,
    start_layer: int = 0,
    recompute: int = 0,
    by_layer: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> dict[str, Relevancy]:
    """The maps that `reductions` make of images `[B, R, R, 3]` and target classes `[B, K]`, by name.

    Args:
      classifier: of the task.
      tokens: of all the task's texts; only the targets' texts are run.
      every: text features of all classes `[n · C, d]`, for a method with a head of its own; `None` without one.
      start_layer: the first layer that counts, in both towers; negative counts from the end.
      recompute: 0 keeps what every block is differentiated by; `n` keeps the tokens of every `n`-th block alone.
      by_layer: whether there is a map for each layer that could be the first.
      dtype: compute type.
    """
    config, templates = classifier.config, classifier.templates
    batch, per_image = targets.shape
    adaptation = target_adaptation(classifier, learnables, targets.reshape(-1))
    text = target_text(tokens, targets.reshape(-1), templates)
    vision_input = embed_image(params, config, images, adaptation, dtype=dtype)
    text_input = embed_text(params, config, text, adaptation, dtype=dtype)
    vision_kept, vision_tokens = run_forward(vision_input, config.vision, recompute)
    text_kept, text_tokens = run_forward(text_input, config.text, recompute)
    image_features, pull_image, image_row = last_block(
        vision_tokens, vision_input, config.vision, lambda rows: project_image(params, config, rows, adaptation)
    )
    text_features, pull_text, text_row = last_block(
        text_tokens, text_input, config.text, lambda rows: project_text(params, config, rows, adaptation)
    )

    def score(image: jax.Array, text: jax.Array) -> jax.Array:
        if every is None:
            scale = jnp.exp(classifier.method.logit_scale(params))
            return pair_logits(scale, image, text, adaptation.text_residual, templates)
        return own_pair_logits(classifier, params, learnables, image, text, every, targets)

    logits, pull = jax.vjp(score, image_features, text_features)
    # Every pair has its own text but shares its image, so the image gets one gradient per target and the texts one.
    each = jnp.broadcast_to(jnp.eye(per_image)[:, None], (per_image, batch, per_image))
    image_gradients = jax.vmap(lambda y: pull_image(pull(y)[0]))(each)
    text_gradients = jax.tree.map(lambda x: x[None], pull_text(pull(jnp.ones_like(logits))[1]))
    vision_first = first_layer(start_layer, config.vision, "vision")
    text_first = first_layer(start_layer, config.text, "text")
    vision = reduce_backward(
        vision_input,
        config.vision,
        vision_kept,
        image_row,
        image_gradients,
        reductions,
        vision_first,
        recompute,
        by_layer,
    )
    words = reduce_backward(
        text_input, config.text, text_kept, text_row, text_gradients, reductions, text_first, recompute, by_layer
    )
    before_end = jnp.arange(text.ids.shape[1]) < text.eos[:, None]
    if by_layer:
        before_end = before_end[:, None]
    shape = (batch, per_image, *((templates,) if templates > 1 else ()))
    return {
        name: Relevancy(
            vision=jnp.moveaxis(vision[name], 0, 1)[..., 1:],
            text=jnp.where(before_end, words[name][0], 0).reshape(*shape, *words[name].shape[2:]),
            scores=logits,
        )
        for name in reductions
    }
