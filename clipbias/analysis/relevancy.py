"""Maps of what a class is based on, as reductions of attention and its gradient (Eq. 13 to 16; Chefer, Gur, Wolf 2021).

The target is a class's logit `y`, `exp(logit_scale) · cos(f, g)` unless the method has a head of its own, and each
branch counts by itself. Relevancy is

    Ā_l = mean_h relu(∂y/∂A_l ⊙ A_l),    R ← R + Ā_l R,    first layer to last, R = I at the start,

read at the row of `[cls]` or EOS. That row is `e (I + Ā_L) … (I + Ā_1)`: a row vector that starts at the last layer,
which is where gradients come from, so one backward scan yields it. A head of one's own is differentiated by the image's
features and by those of the target's texts; the texts of the other classes and whatever else it holds stay fixed.

One scan forward keeps of each block what is needed to differentiate it: some multiple of its tokens `[B, N, D]`, or
these tokens alone, from which the rest is computed again. One scan backward differentiates a block by its tokens and by
its attention probabilities, hands both the probabilities `A` and `G = ∂y/∂A` to the reductions, and forgets them.
Neither `A` nor `G` is ever stacked over layers, nor is any matrix of tokens by tokens multiplied by another. The last
block is read at one row, so only that row of it is computed. A reduction therefore starts from one row and continues
with whole matrices, from the last layer to the first. Where a pooling head reads the tokens, its query is that row, and
the last block counts as a whole.

- `relevancy`: as above.
- `attention`: the last layer's attention of the pooled row, mean over heads.
- `rollout` (Abnar, Zuidema 2020): the pooled row of `Â_L … Â_1`, `Â = (mean_h A + I)` with rows that sum to 1.
- `legrad` (Bousselham et al. 2024), from the gradient of the final score alone: `relu(∂y/∂A)`, mean over layers, heads
  and queries. Their full method sums such a map over scores read at every layer.
- `grad_eclip` (Zhao et al. 2024, Gradient-based Visual Explanation for Transformer-based CLIP): in the last layer,
  `relu(λ_j Σ_c w_c v_jc)` with `w = ∂y/∂o` of the heads' outputs `o` of the pooled row, `v` the values, and `λ` the
  cosines of the row's query and each key over all heads, scaled to [0, 1] over the tokens that the map covers. Since
  `o = Σ_j A_j v_j` in each head, `Σ_c w_c v_jc` is the sum over heads of `∂y/∂A_j`, so `A` and `G` say all but `λ`.
  The layers are the authors' for images; for texts they add up some of the last ones. Their code runs that layer as
  one single head, and so explains another model than the one that classifies; here it keeps its heads.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.analysis.model import why_no_maps
from clipbias.checks import check_int, shown
from clipbias.clip import Adaptation, TextTokens, block, layers, tower
from clipbias.clip.block import Record, Tap, run_block
from clipbias.clip.config import ClipConfig, TextConfig, TowerConfig, VisionConfig
from clipbias.clip.encode import check_images
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.tower import TowerInput
from clipbias.clip.vision import embed_image, pool_image, project_image
from clipbias.errors import ClipbiasError
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.features import unit_length
from clipbias.tuning.task import Text

# What a block is differentiated by: its tokens `[B, N, D]` before prompts are put in, by this name, and what it
# computes of them by the names `layers.KEPT`.
Saved = dict[str, jax.Array]
TOKENS = "tokens"


@jax.custom_jvp
def _as_saved(computed: jax.Array, saved: jax.Array) -> jax.Array:
    """`saved`, with the gradient of `computed`, whose value is then not needed: the compiler leaves it out."""
    return saved


@_as_saved.defjvp
def _change_as_computed(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]


@dataclasses.dataclass(frozen=True)
class _Tower:
    """A tower whose blocks are differentiated one at a time."""

    inputs: TowerInput  # up to its first block
    config: TowerConfig
    recompute: bool  # as of `MapOptions`

    @property
    def whole_blocks(self) -> int:
        """How many blocks are needed at all rows: all but the last, which is read at one, or all for a pooling head."""
        return self.config.layers - (self.inputs.pooled is not None)

    def layer(self, index: int | jax.Array) -> block.LayerInput:
        """One layer's weights. Scanning over numbers, not over `weights[:-1]`, spares a copy of nearly all of them."""
        return jax.tree.map(lambda leaf: leaf[index], self.inputs.layers)

    def observe(
        self, tokens: jax.Array, index: int | jax.Array, keep: Tap, tap: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Advances `tokens [B, N, D]` by one block; returns its attention probabilities `[B, H, N, N]`, too.

        A `tap` is added to them.
        """
        tower.refuse_inserted(self.inputs)
        seen = Record()

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # Heads before tokens, so that the products of both passes read their operands as they lie.
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
            mask = self.inputs.mask(q.shape[2])
            if mask is not None:
                scores = jnp.where(mask, scores, -jnp.inf)
            probabilities = jax.nn.softmax(scores, axis=-1)
            seen["probabilities"] = probabilities if tap is None else probabilities + tap
            heads = jnp.einsum("BHNM,BHMK->BHNK", seen["probabilities"].astype(v.dtype), v)
            return heads.swapaxes(1, 2)

        hooks = dataclasses.replace(self.inputs.hooks(attend), tap=keep)
        return run_block(tokens, self.layer(index), self.config, hooks), seen["probabilities"]

    def block(self, tokens: jax.Array, index: int | jax.Array) -> tuple[jax.Array, Saved]:
        """Advances `tokens [B, N, D]` by one block; returns what it is differentiated by, too."""
        seen = Record()
        output, _ = self.observe(tokens, index, seen)
        return output, {TOKENS: tokens} | {name: seen[name] for name in layers.KEPT}

    def forward(self) -> tuple[Saved | jax.Array, jax.Array]:
        """All blocks but the last, and that too where a pooling head reads all its rows.

        Returns what is saved of every block, stacked, a `Saved`, or with `recompute` its tokens alone; and the tokens
        `[B, N, D]` that reach the last block, or that head.
        """

        def step(tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Saved | jax.Array]:
            output, saved = self.block(tokens, index)
            return output, tokens if self.recompute else saved

        tokens, saved = jax.lax.scan(step, self.inputs.tokens, jnp.arange(self.whole_blocks))
        return saved, tokens

    def backward(
        self, saved: Saved, index: jax.Array
    ) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], jax.Array]:
        """Differentiates one block where the forward pass left it.

        Every part of it starts from what was saved, so that no matrix product of the forward pass is repeated but
        `q kᵀ`. Returns a function from the gradient of the block's output to that of its tokens and of its attention;
        and the attention probabilities `[B, H, N, N]`.
        """

        def put_back(computed: jax.Array, name: str) -> jax.Array:
            return _as_saved(computed, saved[name]) if name in saved else computed

        batch, length = saved[TOKENS].shape[:2]
        tap = jnp.zeros((batch, self.config.heads, length, length), jnp.float32)
        _, pull, probabilities = jax.vjp(
            lambda tokens, tap: self.observe(tokens, index, put_back, tap), saved[TOKENS], tap, has_aux=True
        )
        return pull, probabilities

    def last_rows(self, tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, "LastRow"]:
        """The last block at the pooled row alone, of tokens `[B, N, D]` at its input.

        Returns its output `[B, D]` and what reductions start from; `tap [B, H, N]` is added to the row's attention.
        """
        places = jnp.arange(tokens.shape[1])
        number = jnp.asarray(self.inputs.pooled)[:, None]
        visible = self.inputs.pooled_visible(tokens.shape[1])
        row: LastRow | None = None

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal row
            mask = None if visible is None else visible[:, None, None, :]
            attention = layers.attention_probabilities(q[:, None], k, mask)[:, :, 0] + tap
            others = places != number if visible is None else visible & (places != number)
            row = LastRow(attention, _cosine(q, k), number[:, 0], others)
            return jnp.einsum("BHM,BMHK->BHK", attention.astype(v.dtype), v)

        last = self.layer(self.config.layers - 1)
        rows = run_block(tokens, last, self.config, self.inputs.pooled_hooks(attend))
        assert row is not None
        return rows, row


@struct.dataclass
class LastRow:
    """The pooled row of the last layer."""

    attention: jax.Array  # its probabilities `[B, H, N]`
    cosine: jax.Array  # of its query and each key, all heads together, `[B, N]` float32
    number: jax.Array | None  # the row `[B]`; `None` where it is no token's, but a pooling head's
    others: jax.Array  # which other tokens it sees, bool `[B, N]`


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is kept of the attention and its gradient, as a function of the layers seen so far. Hashable."""

    # From the last layer's pooled row and the gradient `[B, H, N]` of its probabilities to a state of any shape that
    # starts with `B`.
    first: Callable[[LastRow, jax.Array], jax.Array]
    # From the state, and `A` and `G` of the layer below, `[B, H, N, N]` each, to the next state; by default the last
    # layer counts alone.
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = lambda state, attention, gradient: state
    # From the state, the number of layers and the number of tokens that have an influence `[B]`, to a map `[B, N]`.
    finish: Callable[[jax.Array, int, jax.Array], jax.Array] = lambda state, layers, tokens: state


def _unit_row(row: LastRow) -> jax.Array | float:
    """`e`: `[B, N]`; nothing for a row that is no token's."""
    return 0.0 if row.number is None else jax.nn.one_hot(row.number, row.attention.shape[-1])


def _relevancy_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    """`r (I + Ā)`: `[B, N]`."""
    heads = attention.shape[1]
    return row + jnp.einsum("BN,BHNM->BM", row, jax.nn.relu(gradient * attention)) / heads


def _rollout_first(row: LastRow, gradient: jax.Array) -> jax.Array:
    passed = row.attention.mean(1)
    # Attention rows sum to 1, so halving is what normalises `mean_h A + I`.
    return passed if row.number is None else (_unit_row(row) + passed) / 2


def _rollout_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    return (row + jnp.einsum("BN,BHNM->BM", row, attention) / attention.shape[1]) / 2


def _grad_eclip(row: LastRow, gradient: jax.Array) -> jax.Array:
    """`relu(λ_j Σ_h ∂y/∂A_hj)` of the other tokens that the row sees; keys that are all alike have λ = 1."""
    low = jnp.where(row.others, row.cosine, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(row.others, row.cosine, -jnp.inf).max(-1, keepdims=True)
    weight = jnp.where(high > low, (row.cosine - low) / jnp.where(high > low, high - low, 1), 1)
    return jnp.where(row.others, jax.nn.relu(weight * gradient.sum(1)), 0)


REDUCTIONS = {
    "relevancy": Reduction(
        first=lambda row, gradient: _unit_row(row) + jax.nn.relu(gradient * row.attention).mean(1), step=_relevancy_step
    ),
    "attention": Reduction(lambda row, gradient: row.attention.mean(1)),
    "rollout": Reduction(_rollout_first, _rollout_step),
    "legrad": Reduction(
        first=lambda row, gradient: jax.nn.relu(gradient).mean(1),
        step=lambda total, attention, gradient: total + jax.nn.relu(gradient).mean(1).sum(1),
        finish=lambda total, layers, tokens: total / (layers * tokens[:, None]),
    ),
    "grad_eclip": Reduction(_grad_eclip),
}
# Those that depend on the class that is explained.
OF_TARGET = ("relevancy", "legrad", "grad_eclip")

States = dict[str, jax.Array]  # of reductions, by the names of their maps


@struct.dataclass
class Relevancy:
    """Maps over the tokens of an image and of a prompt text, for given targets.

    Attributes:
      vision: `[B, M + V]`: patches row by row, then prompts.
      text: `[B, N]`: SOS, context, class name, '.'; 0 from EOS on. `[B, n, N]` for an ensemble of `n` templates.
      scores: `[B]`: the scaled logits that were explained.

    With several targets per image each has a further axis `K` after `B`.
    """

    vision: jax.Array
    text: jax.Array
    scores: jax.Array


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How maps are computed; see `relevancy`."""

    maps: tuple[str, ...] = tuple(REDUCTIONS)  # their names
    start_layer: int = 0  # the first layer that counts, in both towers; negative counts from the end
    chunk: int | None = None  # so many images at a time; `None` all at once
    recompute: bool = False  # whether blocks' intermediate tokens are computed twice, and not kept


@dataclasses.dataclass(frozen=True)
class TowerPass:
    """A tower's forward pass."""

    tower: _Tower
    saved: Saved | jax.Array  # what its blocks are differentiated by
    features: jax.Array  # as they are read out, `[B, d]`
    # From the features' gradient to those of the tokens that reach the last block and of the row's attention.
    pull: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    row: LastRow  # the pooled row in the last layer


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
    observed: _Tower,
    project: Callable[[jax.Array], jax.Array],
    head: Callable[[jax.Array, jax.Array], tuple[jax.Array, LastRow]] | None = None,
) -> TowerPass:
    """Runs a tower forward: its last block at the pooled row, and the feature that `project` makes of it.

    A pooling `head` takes all tokens behind the last block, and what to add to its attention.
    """
    saved, tokens = observed.forward()
    config, is_pooled = observed.config, observed.inputs.pooled is not None

    def run(tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, LastRow]:
        if head is not None and not is_pooled:
            return head(tokens, tap)
        rows, row = observed.last_rows(tokens, tap)
        return project(rows), row

    heads = config.pool_heads if isinstance(config, VisionConfig) and not is_pooled else config.heads
    tap = jnp.zeros((tokens.shape[0], heads, tokens.shape[1]), jnp.float32)
    features, pull, row = jax.vjp(run, tokens, tap, has_aux=True)
    return TowerPass(observed, saved, features, pull, row)


def reduce_backward(
    tower_pass: TowerPass, gradients: tuple[jax.Array, jax.Array], options: MapOptions
) -> dict[str, jax.Array]:
    """Runs the reductions from the last layer down to `start_layer`; returns the map `[K, B, N]` of each.

    `gradients` are, for each of `K` targets, of the tokens that reach the last block `[K, B, N, D]` and of the row's
    attention `[K, B, H, N]`.
    """
    observed = tower_pass.tower
    inputs = observed.inputs
    start_layer = first_layer(options.start_layer, observed.config)
    reductions = {name: REDUCTIONS[name] for name in options.maps}
    token_gradients, row_gradients = gradients
    states = {
        name: jax.vmap(lambda g, r=reduction: r.first(tower_pass.row, g))(row_gradients)
        for name, reduction in reductions.items()
    }

    def step(carry: tuple[jax.Array, States], index: jax.Array) -> tuple[tuple[jax.Array, States], None]:
        if isinstance(tower_pass.saved, dict):
            saved = jax.tree.map(lambda leaf: leaf[index], tower_pass.saved)
        else:  # computed again where the forward pass did not keep it
            saved = observed.block(tower_pass.saved[index], index)[1]
        pull, probabilities = observed.backward(saved, index)

        def step_target(gradient: jax.Array, states: States) -> tuple[jax.Array, States]:
            gradient, attention_gradient = pull(gradient)
            return gradient, {
                name: reduction.step(states[name], probabilities, attention_gradient)
                for name, reduction in reductions.items()
            }

        return jax.vmap(step_target)(*carry), None

    top = observed.whole_blocks
    if start_layer < top:
        below = jnp.arange(start_layer, top)
        (_, states), _ = jax.lax.scan(step, (token_gradients, states), below, reverse=True)
    batch, length = inputs.tokens.shape[:2]
    influential = jnp.full(batch, length) if inputs.visible is None else inputs.visible.sum(-1)
    if inputs.causal:
        influential = jnp.asarray(inputs.pooled) + 1
    return {
        name: jax.vmap(lambda state, r=reduction: r.finish(state, top + 1 - start_layer, influential))(states[name])
        for name, reduction in reductions.items()
    }


def check_targets(task: Task, images: jax.Array, targets: jax.Array | Sequence[int]) -> jax.Array:
    """Targets as an int array `[B]` or `[B, K]`; what can be checked without their values is."""
    last = len(task.class_names) - 1
    try:
        targets = jnp.asarray(targets)
    except (TypeError, ValueError) as error:
        raise ClipbiasError(f"targets are {shown(targets)}; give class numbers (0 … {last}).") from error
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ClipbiasError(f"targets are {targets.dtype}; give class numbers (0 … {last}).")
    if targets.ndim not in (1, 2) or targets.shape[0] != images.shape[0] or targets.size == 0:
        raise ClipbiasError(
            f"targets have shape {targets.shape} for {images.shape[0]} images; expected [B], or [B, K] for K classes "
            "per image."
        )
    if not isinstance(targets, jax.core.Tracer) and targets.is_fully_addressable:
        low, high = np.asarray(targets).min(), np.asarray(targets).max()
        if low < 0 or high > last:
            raise ClipbiasError(f"targets go from {low} to {high}; the task has classes 0 … {last}.")
    return targets


def first_layer(start_layer: int, config: TowerConfig) -> int:
    """`start_layer` counted from 0; negative ones count from the last layer."""
    if not -config.layers <= start_layer < config.layers:
        tower_name = "text" if isinstance(config, TextConfig) else "vision"
        raise ClipbiasError(
            f"start_layer {start_layer} is outside the {tower_name} tower's {config.layers} layers; choose 0 for all "
            "layers or -1 for the last one."
        )
    return start_layer % config.layers


def target_text(tokens: TextTokens, targets: jax.Array, templates: int) -> TextTokens:
    """The texts of classes `targets [P]`, all templates of a class together: `[P · n, N]`."""
    classes = tokens.ids.shape[0] // templates
    rows = (targets[:, None] + classes * jnp.arange(templates)).reshape(-1)
    texts: TextTokens = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tokens)
    return texts


def target_adaptation(classifier: Classifier, learnables: Learnables, targets: jax.Array) -> Adaptation:
    """The `Adaptation` for the classes `targets [P]` alone: class-specific contexts and residuals are picked."""
    adaptation = classifier.method.adapt(learnables)
    context = adaptation.text_context
    picked: dict[str, Any] = {}
    if context is not None and context.ndim == 3:
        context = jnp.asarray(context)
        if context.shape[0] == classifier.templates:  # of templates, in the order of `target_text`
            picked["text_context"] = jnp.tile(context, (targets.shape[0], 1, 1))
        else:
            by_class = context.reshape(classifier.templates, -1, *context.shape[1:])[:, targets]
            picked["text_context"] = by_class.swapaxes(0, 1).reshape(-1, *context.shape[1:])
    for name in ("text_class_prompts", "text_residual"):
        if getattr(adaptation, name) is not None:
            picked[name] = jnp.asarray(getattr(adaptation, name))[targets]
    return dataclasses.replace(adaptation, **picked)


def own_pair_logits(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    texts: jax.Array,
    class_features: jax.Array,
    targets: jax.Array,
) -> jax.Array:
    """The logits of a method with a head of its own for every pair of an image and a target: `[B, K]`.

    Of image features `[B, d]` and the pairs' text features `[B · K · n, d]`, which stand among those of all classes
    `[n · C, d]`, which are held fixed together with the learnables; `targets` are `[B, K]`.
    """
    fixed = classifier.split_by_template(class_features)

    def logit(image: jax.Array, texts: jax.Array, target: jax.Array) -> jax.Array:
        all_texts = fixed.at[:, target].set(texts).reshape(-1, texts.shape[-1])
        return classifier.head(params, learnables, image[None], all_texts)[0, target]

    over_targets = jax.vmap(logit, (None, 0, 0))
    return jax.vmap(over_targets)(images, texts.reshape(*targets.shape, classifier.templates, -1), targets)


def pair_logits(
    scale: jax.Array, images: jax.Array, texts: jax.Array, residual: jax.Array | None, templates: int
) -> jax.Array:
    """`y = s · cos(f, g)` of every pair: `[B, K]`.

    Of image features `[B, d]`, the pairs' text features `[B · K · n, d]` in `n` templates, and a residual `[B · K, d]`.
    `scale` is `s`, `exp(logit_scale)` or the method's own.
    """
    if templates > 1:
        texts = unit_length(texts).reshape(-1, templates, texts.shape[-1]).mean(1)
    texts = unit_length(texts if residual is None else texts + residual)
    texts = texts.reshape(images.shape[0], -1, texts.shape[-1])
    pairs = jnp.einsum("Bd,BKd->BK", unit_length(images), texts, precision="highest")
    return scale * pairs


@with_precision
def compute_maps(
    classifier: Classifier,
    options: MapOptions,
    params: Params,
    learnables: Learnables,
    tokens: TextTokens,
    class_features: jax.Array | None,
    images: jax.Array,
    targets: jax.Array,
    *,
    dtype: str = "float32",
) -> dict[str, Relevancy]:
    """The maps that `options` name of normalised images `[B, R, R, 3]` and target classes `[B, K]`.

    Of `tokens`, those of all the task's texts, only the targets' are run. `class_features [n · C, d]` are of all
    classes, for a method with a head of its own; else `None`.
    """
    config = classifier.config
    templates = classifier.templates
    batch, per_image = targets.shape
    adaptation = target_adaptation(classifier, learnables, targets.reshape(-1))
    text = target_text(tokens, targets.reshape(-1), templates)
    vision_pass = run_tower(
        _Tower(embed_image(params, config, images, adaptation, dtype=dtype), config.vision, options.recompute),
        project=lambda rows: project_image(params, config, rows, adaptation),
        head=lambda tokens, tap: pooling_row(tokens, tap, params, config, adaptation),
    )
    if (adapt_to := classifier.method.adapt_to) is not None:
        # The contexts that images give their targets' texts, `[B · K · n, T, Dt]`: the images are held fixed.
        contexts = jax.vmap(lambda image: adapt_to(learnables, image).text_context)(vision_pass.features)
        assert contexts is not None
        if contexts.ndim == 3:
            contexts = jnp.repeat(contexts[:, None], templates, axis=1)
        contexts = jnp.repeat(contexts, per_image, axis=0).reshape(-1, *contexts.shape[-2:])
        adaptation = dataclasses.replace(adaptation, text_context=contexts)
    text_pass = run_tower(
        _Tower(embed_text(params, config, text, adaptation, dtype=dtype), config.text, options.recompute),
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
    before_end = jnp.arange(text.ids.shape[1]) < jnp.asarray(text.end)[:, None]
    shape = (batch, per_image) if templates == 1 else (batch, per_image, templates)
    return {
        name: Relevancy(
            vision=jnp.moveaxis(vision[name], 0, 1)[..., config.vision.first_patch :],
            text=jnp.where(before_end, words[name][0], 0).reshape(*shape, -1),
            scores=logits,
        )
        for name in options.maps
    }


def relevancy(
    task: Task,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array | Sequence[int],
    *,
    start_layer: int = 0,
    chunk: int | None = None,
    recompute: bool = False,
    text: Text | None = None,
) -> Relevancy:
    """How much each patch, prompt and text token contributes to the logit of a class.

    No attention is stacked over layers. What grows with depth is what is kept between the forward and the backward
    pass: the blocks' intermediate tokens, nine times `[L, B, N, D]`, or once with `recompute`. For comparison,
    attention `[B, H, N, N]` is `N / 64` times as large as `[B, N, D]`, and differentiating all layers at once keeps
    several of them per layer.

    Args:
      task, params, learnables: a method bound to classes, the frozen weights (`task.clip.params`), and what it learned.
      images: `[B, R, R, 3]`, normalised.
      targets: the class to explain in each image, int `[B]`, or `K` classes per image `[B, K]` that share one forward
        pass of the image.
      start_layer: the first layer that counts; 0 all of them, -1 the last alone.
      chunk: so many images at a time, which bounds the memory of any batch; `None` all at once.
      recompute: keeps nothing of a block but its tokens `[B, N, D]` and computes the rest again, about a third of the
        memory for an eighth more time; the maps are the same.
      text: what `task.text_features` returned, to compute it once for many calls; a method without a head of its own
        has no use for it.

    Raises:
      ClipbiasError: targets do not fit the images or the classes, there is no such layer, or `chunk` is no whole number
        from 1 on.
    """
    options = MapOptions(("relevancy",), start_layer, chunk, recompute)
    return explanations(task, params, learnables, images, targets, options, text=text)["relevancy"]


def explanations(
    task: Task,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array | Sequence[int],
    options: MapOptions = MapOptions(),
    *,
    text: Text | None = None,
) -> dict[str, Relevancy]:
    """Several maps of the same images and targets by name, from one pass; arguments are as in `relevancy`.

    By default all of "relevancy", "attention", "rollout", "legrad", "grad_eclip".
    """
    if unknown := sorted(set(options.maps) - set(REDUCTIONS)):
        raise ClipbiasError(f"unknown map {unknown[0]!r}; choose from {', '.join(REDUCTIONS)}.")
    if reason := why_no_maps(task):
        raise ClipbiasError(f"{type(task.method).__name__} has no maps. {reason}")
    task.check_arguments(params, learnables)
    check_images(images, task.clip.config.vision.image_size)
    targets = check_targets(task, images, targets)
    if options.chunk is not None:
        check_int("chunk", options.chunk, lowest=1)
    pairs = targets[:, None] if targets.ndim == 1 else targets
    tokens = jax.tree.map(jnp.asarray, task.tokens)
    class_texts: Text | None = None
    if task.method.logits is not None:
        class_texts = task.text if text is None else text
    maps = _explanations(task.classifier, options, params, learnables, images, pairs, tokens, class_texts)
    return jax.tree.map(lambda x: x[:, 0], maps) if targets.ndim == 1 else maps


@functools.partial(jax.jit, static_argnums=(0, 1))
def _explanations(
    classifier: Classifier,
    options: MapOptions,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    targets: jax.Array,
    tokens: TextTokens,
    class_texts: Text | None,
) -> dict[str, Relevancy]:
    class_features: jax.Array | None = None
    if class_texts is not None:
        class_features = classifier.encode_text(params, classifier.method.adapt(learnables), class_texts)

    run = functools.partial(
        compute_maps, classifier, options, params, learnables, tokens, class_features, dtype=classifier.dtype
    )
    batch = images.shape[0]
    chunk = options.chunk
    if chunk is None or chunk >= batch:
        return run(images, targets)

    def split(x: jax.Array) -> jax.Array:
        """`[n, chunk, …]`; the last chunk is filled up, since another size would be another program."""
        widths = np.zeros((x.ndim, 2), int)
        widths[0, 1] = -batch % chunk
        return jnp.pad(x, widths, "edge").reshape(-1, chunk, *x.shape[1:])

    maps = jax.lax.map(lambda chunk: run(*chunk), (split(images), split(targets)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], maps)
