"""Gradients with respect to attention, one layer at a time, reduced before the next layer is touched.

One scan forward keeps of each block what is needed to differentiate it: some multiple of its tokens `[B, N, D]`, or the
tokens of every so many-th block, from which the others are computed again. One scan backward differentiates a block by
its tokens and by its attention probabilities, hands both the probabilities `A` and `G = ∂y/∂A` to the reductions, and
forgets them. Neither `A` nor `G` is ever stacked over layers, nor is any matrix of tokens by tokens multiplied by
another.

The last block is read at one row, so only that row of it is computed. A reduction therefore starts from one row and
continues with whole matrices, from the last layer to the first. Where a pooling head reads the tokens, its query is
that row, and the last block counts as a whole.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import Adaptation, TextTokens, layers
from clipbias.clip.block import run_block
from clipbias.clip.config import ClipConfig, TowerConfig, VisionConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.tower import TowerInput
from clipbias.clip.vision import embed_image, pool_image, project_image
from clipbias.explain.blocks import Saved, block_backward, layer_at, run_forward, saved_at, whole_blocks
from clipbias.explain.reductions import REDUCTIONS, LastRow
from clipbias.explain.targets import (
    first_layer,
    image_contexts,
    own_pair_logits,
    pair_logits,
    target_adaptation,
    target_text,
)
from clipbias.tuning import Classifier, Learnables
from clipbias.tuning.features import unit_length

States = dict[str, jax.Array]  # of reductions, by the names of their maps
_Carry = tuple[jax.Array, States]


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


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How maps are computed; see `relevancy.relevancy`.

    Attributes:
      maps: names of `reductions.REDUCTIONS`.
      start_layer: the first layer that counts, in both towers; negative counts from the end.
      chunk: so many images at a time; `None` all at once.
      recompute: 0 keeps what every block is differentiated by; `n` keeps the tokens of every `n`-th block alone.
      by_layer: whether there is a map for each layer that could be the first.
    """

    maps: tuple[str, ...] = tuple(REDUCTIONS)
    start_layer: int = 0
    chunk: int | None = None
    recompute: int = 0
    by_layer: bool = False


@dataclasses.dataclass(frozen=True)
class TowerPass:
    """A tower's forward pass.

    Attributes:
      inputs: the tower up to its first block.
      config: its geometry.
      saved: what `run_forward` saved of the blocks.
      features: as they are read out, `[B, d]`.
      pull: from the features' gradient to those of the tokens that reach the last block and of the row's attention.
      row: the pooled row in the last layer.
    """

    inputs: TowerInput
    config: TowerConfig
    saved: Saved | jax.Array
    features: jax.Array
    pull: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    row: LastRow


def last_rows(tokens: jax.Array, tap: jax.Array, inputs: TowerInput, config: TowerConfig) -> tuple[jax.Array, LastRow]:
    """The last block at the pooled row alone: its output `[B, D]` and what reductions start from.

    Args:
      tokens: `[B, N, D]` at its input.
      tap: added to that row's attention probabilities, `[B, H, N]`.
      inputs: of the tower.
      config: likewise.
    """
    places = jnp.arange(tokens.shape[1])
    number = jnp.asarray(inputs.pooled)[:, None]
    visible = inputs.pooled_visible(tokens.shape[1])
    row: LastRow | None = None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        nonlocal row
        mask = None if visible is None else visible[:, None, None, :]
        attention = layers.attention_probabilities(q[:, None], k, mask)[:, :, 0] + tap
        others = places != number if visible is None else visible & (places != number)
        row = LastRow(attention, _cosine(q, k), number[:, 0], others)
        return jnp.einsum("BHM,BMHK->BHK", attention.astype(v.dtype), v)

    rows = run_block(tokens, layer_at(inputs, config.layers - 1), config, inputs.pooled_hooks(attend))
    assert row is not None
    return rows, row


def pooling_row(
    tokens: jax.Array, tap: jax.Array, params: Params, config: ClipConfig, adaptation: Adaptation
) -> tuple[jax.Array, LastRow]:
    """The pooling head's feature `[B, d]` of the last block's tokens, and its query as the row to start from."""
    count = config.vision.tokens
    length = tokens.shape[1]
    feature, attention, query, keys = pool_image(params, config, tokens, adaptation, tap[..., :count])
    padding = [(0, 0), (0, length - count)]
    others = jnp.broadcast_to(jnp.arange(length) < count, (tokens.shape[0], length))
    row = LastRow(jnp.pad(attention, [(0, 0), *padding]), jnp.pad(_cosine(query, keys), padding), None, others)
    return feature.astype(jnp.float32), row


def _cosine(q: jax.Array, k: jax.Array) -> jax.Array:
    """Of a query `[B, H, K]` and keys `[B, N, H, K]`, each as one vector over all heads: `[B, N]`."""
    query, keys = (unit_length(x.reshape(*x.shape[:-2], -1).astype(jnp.float32)) for x in (q, k))
    return jnp.einsum("BD,BND->BN", query, keys)


def run_tower(
    inputs: TowerInput,
    config: TowerConfig,
    recompute: int,
    project: Callable[[jax.Array], jax.Array],
    head: Callable[[jax.Array, jax.Array], tuple[jax.Array, LastRow]] | None = None,
) -> TowerPass:
    """Runs a tower forward: its last block at the pooled row, and the feature that `project` makes of it.

    Where a pooling `head` reads all tokens, it takes those behind the last block, and what to add to its attention.
    """
    saved, tokens = run_forward(inputs, config, recompute)

    def run(tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, LastRow]:
        if head is not None and inputs.pooled is None:
            return head(tokens, tap)
        rows, row = last_rows(tokens, tap, inputs, config)
        return project(rows), row

    heads = config.pool_heads if isinstance(config, VisionConfig) and inputs.pooled is None else config.heads
    tap = jnp.zeros((tokens.shape[0], heads, tokens.shape[1]), jnp.float32)
    features, pull, row = jax.vjp(run, tokens, tap, has_aux=True)
    return TowerPass(inputs, config, saved, features, pull, row)


def reduce_backward(
    tower_pass: TowerPass, gradients: tuple[jax.Array, jax.Array], options: MapOptions
) -> dict[str, jax.Array]:
    """Runs the reductions from the last layer down to `start_layer`.

    Args:
      tower_pass: from `run_tower`.
      gradients: for each of `K` targets, of the tokens that reach the last block `[K, B, N, D]` and of the row's
        attention `[K, B, H, N]`.
      options: which maps, and of which layers.

    Returns:
      For each reduction its map `[K, B, N]`; by layer `[K, B, L − start_layer, N]`, of what each layer and those above
      it give.
    """
    inputs = tower_pass.inputs
    config = tower_pass.config
    start_layer = first_layer(options.start_layer, config)
    reductions = {name: REDUCTIONS[name] for name in options.maps}
    token_gradients, row_gradients = gradients
    states = {
        name: jax.vmap(lambda g, r=reduction: r.first(tower_pass.row, g))(row_gradients)
        for name, reduction in reductions.items()
    }

    def step(carry: _Carry, index: jax.Array) -> tuple[_Carry, States | None]:
        saved = saved_at(tower_pass.saved, index, inputs, config, options.recompute)
        pull, probabilities = block_backward(saved, layer_at(inputs, index), inputs, config)

        def step_target(gradient: jax.Array, states: States) -> tuple[jax.Array, States]:
            gradient, attention_gradient = pull(gradient)
            return gradient, {
                name: reduction.step(states[name], probabilities, attention_gradient)
                for name, reduction in reductions.items()
            }

        gradients, states = jax.vmap(step_target)(*carry)
        return (gradients, states), states if options.by_layer else None

    last = states
    lower = None
    top = whole_blocks(inputs, config)
    if start_layer < top:
        below = jnp.arange(start_layer, top)
        (_, states), lower = jax.lax.scan(step, (token_gradients, states), below, reverse=True)
    batch, length = inputs.tokens.shape[:2]
    influential = jnp.full(batch, length) if inputs.visible is None else inputs.visible.sum(-1)
    if inputs.causal:
        influential = jnp.asarray(inputs.pooled) + 1
    count = top + 1 - start_layer

    def finish(states: States, layers: int) -> States:
        return {
            name: jax.vmap(lambda state, r=reduction: r.finish(state, layers, influential))(states[name])
            for name, reduction in reductions.items()
        }

    if not options.by_layer:
        return finish(states, count)
    by_layer = [finish(jax.tree.map(lambda x, i=i: x[i], lower), count - i) for i in range(count - 1)]
    if inputs.pooled is not None:
        by_layer.append(finish(last, 1))
    return jax.tree.map(lambda *maps: jnp.stack(maps, 2), *by_layer)


def _before_end(text: TextTokens, by_layer: bool) -> jax.Array:
    """Which tokens are read before the end of their text, `[T, n]`, or `[T, 1, n]` for maps by layer."""
    before_end = jnp.arange(text.ids.shape[1]) < jnp.asarray(text.end)[:, None]
    return before_end[:, None] if by_layer else before_end


@with_precision
def compute_maps(
    classifier: Classifier,
    options: MapOptions,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array,
    tokens: TextTokens,
    class_features: jax.Array | None = None,
    *,
    dtype: str = "float32",
) -> dict[str, Relevancy]:
    """The maps that `options` name of images `[B, R, R, 3]` and target classes `[B, K]`.

    Args:
      classifier: of the task.
      options: which maps, and how they are computed.
      params: the frozen weights.
      learnables: as from `task.init`.
      images: normalised.
      targets: the classes that are explained in each image.
      tokens: of all the task's texts; only the targets' texts are run.
      class_features: text features of all classes `[n · C, d]`, for a method with a head of its own; else `None`.
      dtype: compute type by name.
    """
    config = classifier.config
    templates = classifier.templates
    batch, per_image = targets.shape
    adaptation = target_adaptation(classifier, learnables, targets.reshape(-1))
    text = target_text(tokens, targets.reshape(-1), templates)
    vision_pass = run_tower(
        embed_image(params, config, images, adaptation, dtype=dtype),
        config.vision,
        options.recompute,
        project=lambda rows: project_image(params, config, rows, adaptation),
        head=lambda tokens, tap: pooling_row(tokens, tap, params, config, adaptation),
    )
    if classifier.method.overrides("adapt_to"):
        context = image_contexts(classifier, learnables, vision_pass.features, per_image)
        adaptation = dataclasses.replace(adaptation, text_context=context)
    text_pass = run_tower(
        embed_text(params, config, text, adaptation, dtype=dtype),
        config.text,
        options.recompute,
        project=lambda rows: project_text(params, config, rows, adaptation),
    )

    def score(image: jax.Array, text: jax.Array) -> jax.Array:
        if class_features is None:
            scale = jnp.exp(classifier.method.logit_scale(params))
            return pair_logits(scale, image, text, adaptation.text_residual, templates)
        return own_pair_logits(classifier, params, learnables, image, text, class_features, targets)

    logits, pull = jax.vjp(score, vision_pass.features, text_pass.features)
    # Every pair has its own text but shares its image, so the image gets one gradient per target and the texts one.
    each = jnp.broadcast_to(jnp.eye(per_image)[:, None], (per_image, batch, per_image))
    image_gradients = jax.vmap(lambda y: vision_pass.pull(pull(y)[0]))(each)
    text_gradients = jax.tree.map(lambda x: x[None], text_pass.pull(pull(jnp.ones_like(logits))[1]))
    vision = reduce_backward(vision_pass, image_gradients, options)
    words = reduce_backward(text_pass, text_gradients, options)
    before_end = _before_end(text, options.by_layer)
    shape = (batch, per_image) if templates == 1 else (batch, per_image, templates)
    return {
        name: Relevancy(
            vision=jnp.moveaxis(vision[name], 0, 1)[..., config.vision.first_patch :],
            text=jnp.where(before_end, words[name][0], 0).reshape(*shape, *words[name].shape[2:]),
            scores=logits,
        )
        for name in options.maps
    }
