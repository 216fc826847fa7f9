"""Relevancy maps of a class, as reductions of attention and its gradient (Eq. 13 to 16; Chefer, Gur, Wolf 2021).

The target is a class's logit `y`: `exp(logit_scale) · cos(f, g)`, unless the method has its own head. Each tower has a
map of its own. Relevancy is

    Ā_l = mean_h relu(∂y/∂A_l ⊙ A_l),    R ← R + Ā_l R,    first layer to last, R = I at the start,

read at the row of `[cls]` or EOS. That row is `e (I + Ā_L) … (I + Ā_1)`. It starts at the last layer, as gradients do,
so one backward scan computes both. The method's own head is differentiated by the features of the image and of the
target's texts; the other classes' texts and all else in it stay fixed.

- `relevancy`: as above.
- `attention`: the last layer's attention of the pooled row, mean over heads.
- `rollout` (Abnar, Zuidema 2020): the pooled row of `Â_L … Â_1`, `Â = (mean_h A + I)` with rows that sum to 1.
- `legrad` (Bousselham et al. 2024), from the gradient of the final score alone: `relu(∂y/∂A)`, mean over layers, heads
  and queries. Their full method sums such a map over scores read at every layer.
- `grad_eclip` (Zhao et al. 2024, Gradient-based Visual Explanation for Transformer-based CLIP): in the last layer,
  `relu(λ_j Σ_c w_c v_jc)` with `w = ∂y/∂o` of the heads' outputs `o` of the pooled row, `v` the values, and `λ` the
  cosines of the row's query and each key over all heads, scaled to [0, 1] over the tokens that the map covers.
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

# Residuals of a block: its tokens `[B, N, D]` before prompts are inserted, and its values by the names `layers.KEPT`.
Saved = dict[str, jax.Array]
TOKENS = "tokens"


@jax.custom_jvp
def _as_saved(computed: jax.Array, saved: jax.Array) -> jax.Array:
    """Returns `saved` with the gradient of `computed`; the compiler then drops the value of `computed`."""
    return saved


@_as_saved.defjvp
def _change_as_computed(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The value comes from the residual, the derivative from the computation: both are the same number up to rounding.
    return primals[1], tangents[0]


@dataclasses.dataclass(frozen=True)
class _Tower:
    """A tower whose blocks are differentiated one at a time."""

    inputs: TowerInput  # up to its first block
    config: TowerConfig
    recompute: bool  # see `MapOptions`

    @property
    def whole_blocks(self) -> int:
        """Number of blocks that run at all rows: all for a pooling head, else all but the last."""
        return self.config.layers - (self.inputs.pooled is not None)

    def layer(self, index: int | jax.Array) -> block.LayerInput:
        """Returns one layer's weights."""
        # Scans go over layer numbers: over `weights[:-1]` they would copy nearly all weights.
        return jax.tree.map(lambda leaf: leaf[index], self.inputs.layers)

    def observe(
        self, tokens: jax.Array, index: int | jax.Array, keep: Tap, tap: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Runs one block on `tokens [B, N, D]`; returns its output and its attention probabilities `[B, H, N, N]`."""
        tower.refuse_inserted(self.inputs)
        seen = Record()

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # Heads before tokens: matrix products of both passes then read their operands without a transpose.
            q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
            scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
            if (mask := self.inputs.mask(q.shape[2])) is not None:
                scores = jnp.where(mask, scores, -jnp.inf)
            probabilities = jax.nn.softmax(scores, axis=-1)
            # A tap of zeros changes no value. Its gradient is `G = ∂y/∂A`, of one head and layer at a time.
            seen["probabilities"] = probabilities if tap is None else probabilities + tap
            return jnp.einsum("BHNM,BHMK->BHNK", seen["probabilities"].astype(v.dtype), v).swapaxes(1, 2)

        hooks = dataclasses.replace(self.inputs.hooks(attend), tap=keep)
        return run_block(tokens, self.layer(index), self.config, hooks), seen["probabilities"]

    def block(self, tokens: jax.Array, index: int | jax.Array) -> tuple[jax.Array, Saved]:
        """Runs one block on `tokens [B, N, D]`; returns its output and its residuals."""
        seen = Record()
        output, _ = self.observe(tokens, index, seen)
        return output, {TOKENS: tokens} | {name: seen[name] for name in layers.KEPT}

    def forward(self) -> tuple[Saved | jax.Array, jax.Array]:
        """Runs the whole blocks.

        Returns the residuals of every block, stacked (with `recompute` its tokens alone), and the tokens `[B, N, D]`
        that reach the last block or the pooling head.
        """

        # Only residuals are stacked: attention `[B, H, N, N]` is `N / 64` times as large as `[B, N, D]`.
        def step(tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Saved | jax.Array]:
            output, saved = self.block(tokens, index)
            return output, tokens if self.recompute else saved

        tokens, saved = jax.lax.scan(step, self.inputs.tokens, jnp.arange(self.whole_blocks))
        return saved, tokens

    def backward(
        self, saved: Saved, index: jax.Array
    ) -> tuple[Callable[[jax.Array], tuple[jax.Array, jax.Array]], jax.Array]:
        """Differentiates one block at its residuals.

        Returns a function from the gradient of the block's output to those of its tokens and of its attention, and the
        attention probabilities `[B, H, N, N]`.
        """

        def put_back(computed: jax.Array, name: str) -> jax.Array:
            # Each part of the block starts from its residual, so `q kᵀ` is the only matrix product that runs again.
            return _as_saved(computed, saved[name]) if name in saved else computed

        batch, length = saved[TOKENS].shape[:2]
        tap = jnp.zeros((batch, self.config.heads, length, length), jnp.float32)
        _, pull, probabilities = jax.vjp(
            lambda tokens, tap: self.observe(tokens, index, put_back, tap), saved[TOKENS], tap, has_aux=True
        )
        return pull, probabilities

    def last_rows(self, tokens: jax.Array, tap: jax.Array) -> tuple[jax.Array, "LastRow"]:
        """Runs the last block at the pooled row alone; `tokens [B, N, D]` are its input.

        Returns its output `[B, D]` and the row of its attention, to which `tap [B, H, N]` is added.
        """
        places = jnp.arange(tokens.shape[1])
        number = jnp.asarray(self.inputs.pooled)[:, None]
        visible = self.inputs.pooled_visible(tokens.shape[1])
        row: LastRow | None = None

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal row
            mask = None if visible is None else visible[:, None, None, :]
            attention = layers.attention_probabilities(q[:, None], k, mask)[:, :, 0] + tap
            # The row itself is no part of a map, so it may not stretch the range to which Grad-ECLIP scales cosines.
            others = places != number if visible is None else visible & (places != number)
            row = LastRow(attention, _cosine(q, k), number[:, 0], others)
            return jnp.einsum("BHM,BMHK->BHK", attention.astype(v.dtype), v)

        rows = run_block(tokens, self.layer(self.config.layers - 1), self.config, self.inputs.pooled_hooks(attend))
        assert row is not None
        return rows, row


@struct.dataclass
class LastRow:
    """Pooled row of the last layer."""

    attention: jax.Array  # probabilities `[B, H, N]`
    cosine: jax.Array  # between its query and each key, all heads together, `[B, N]` float32
    number: jax.Array | None  # position of its token `[B]`; `None` for a pooling head's query
    others: jax.Array  # the other tokens that it sees, bool `[B, N]`


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Reduction of attention and its gradient, layer by layer from the last, to a map. Hashable."""

    # From the pooled row and the gradient `[B, H, N]` of its probabilities to a state `[B, …]`.
    first: Callable[[LastRow, jax.Array], jax.Array]
    # From the state, and the next lower layer's `A` and `G`, `[B, H, N, N]` each, to the next state. Default: the last
    # layer alone.
    step: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = lambda state, attention, gradient: state
    # From the state, the number of layers, and the number of tokens with an influence `[B]`, to a map `[B, N]`.
    finish: Callable[[jax.Array, int, jax.Array], jax.Array] = lambda state, layers, tokens: state


def _unit_row(row: LastRow) -> jax.Array | float:
    """Returns `e [B, N]`, or 0 for a pooling head's query, which is no token."""
    return 0.0 if row.number is None else jax.nn.one_hot(row.number, row.attention.shape[-1])


def _relevancy_step(row: jax.Array, attention: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns `r (I + Ā)`, `[B, N]`."""
    # A row times a matrix: `Ā` of `[N, N]` per image is never formed, and the mean over heads is one division.
    return row + jnp.einsum("BN,BHNM->BM", row, jax.nn.relu(gradient * attention)) / attention.shape[1]


def _rollout_first(row: LastRow, gradient: jax.Array) -> jax.Array:
    passed = row.attention.mean(1)
    # Attention rows sum to 1, so those of `mean_h A + I` sum to 2.
    return passed if row.number is None else (_unit_row(row) + passed) / 2


def _grad_eclip(row: LastRow, gradient: jax.Array) -> jax.Array:
    """Returns `relu(λ_j Σ_h ∂y/∂A_hj)` over the other tokens that the row sees."""
    # In each head `o = Σ_j A_j v_j`, so that `Σ_c w_c v_jc` is the sum over heads of `∂y/∂A_j`. The authors sum some of
    # the last layers for texts, and their code runs a layer as a single head; here it keeps its heads.
    # Keys that are all alike have no range to scale to: λ = 1 then, and the inner `where` avoids 0 / 0.
    low = jnp.where(row.others, row.cosine, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(row.others, row.cosine, -jnp.inf).max(-1, keepdims=True)
    weight = jnp.where(high > low, (row.cosine - low) / jnp.where(high > low, high - low, 1), 1)
    return jnp.where(row.others, jax.nn.relu(weight * gradient.sum(1)), 0)


REDUCTIONS = {
    "relevancy": Reduction(
        first=lambda row, gradient: _unit_row(row) + jax.nn.relu(gradient * row.attention).mean(1), step=_relevancy_step
    ),
    "attention": Reduction(lambda row, gradient: row.attention.mean(1)),
    "rollout": Reduction(
        first=_rollout_first,
        step=lambda row, attention, gradient: (
            (row + jnp.einsum("BN,BHNM->BM", row, attention) / attention.shape[1]) / 2
        ),
    ),
    "legrad": Reduction(
        first=lambda row, gradient: jax.nn.relu(gradient).mean(1),
        step=lambda total, attention, gradient: total + jax.nn.relu(gradient).mean(1).sum(1),
        finish=lambda total, layers, tokens: total / (layers * tokens[:, None]),
    ),
    "grad_eclip": Reduction(_grad_eclip),
}
# Maps that depend on the target class.
OF_TARGET = ("relevancy", "legrad", "grad_eclip")

States = dict[str, jax.Array]  # by the names of reductions


@struct.dataclass
class Relevancy:
    """Maps over the tokens of images and of their prompt texts; several targets per image are an axis behind `B`."""

    vision: jax.Array  # `[B, M + V]`: patches row by row, then prompts
    text: jax.Array  # `[B, N]`: SOS, context, class name, '.'; 0 from EOS on. `[B, n, N]` for `n` templates
    scores: jax.Array  # `[B]`: the targets' scaled logits


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """Settings of maps; see `relevancy`."""

    maps: tuple[str, ...] = tuple(REDUCTIONS)  # names
    start_layer: int = 0  # first layer that counts, in both towers; negative counts from the end
    chunk: int | None = None  # images at a time; default: all
    recompute: bool = False  # compute the residuals of blocks twice instead of keeping them


@dataclasses.dataclass(frozen=True)
class TowerPass:
    tower: _Tower
    saved: Saved | jax.Array  # residuals of its blocks
    features: jax.Array  # `[B, d]`
    # From the features' gradient to those of the tokens that reach the last block and of the row's attention.
    pull: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    row: LastRow


def pooling_row(
    tokens: jax.Array, tap: jax.Array, params: Params, config: ClipConfig, adaptation: Adaptation
) -> tuple[jax.Array, LastRow]:
    """Runs the pooling head on the last block's tokens; returns features `[B, d]` and its query as the pooled row."""
    # The head reads input tokens alone. Rows are padded to all tokens, so that prompts behind them get 0 here and may
    # gain relevancy in the layers below.
    count = config.vision.tokens
    length = tokens.shape[1]
    feature, attention, query, keys = pool_image(params, config, tokens, adaptation, tap[..., :count])
    padding = [(0, 0), (0, length - count)]
    # The query is no token, so it excludes none of the input tokens.
    others = jnp.broadcast_to(jnp.arange(length) < count, (tokens.shape[0], length))
    row = LastRow(jnp.pad(attention, [(0, 0), *padding]), jnp.pad(_cosine(query, keys), padding), None, others)
    return feature.astype(jnp.float32), row


def _cosine(q: jax.Array, k: jax.Array) -> jax.Array:
    """Computes cosines `[B, N]` of a query `[B, H, K]` and keys `[B, N, H, K]`, each as one vector over all heads."""
    query, keys = (unit_length(x.reshape(*x.shape[:-2], -1).astype(jnp.float32)) for x in (q, k))
    return jnp.einsum("BD,BND->BN", query, keys)


def run_tower(
    observed: _Tower,
    project: Callable[[jax.Array], jax.Array],
    head: Callable[[jax.Array, jax.Array], tuple[jax.Array, LastRow]] | None = None,
) -> TowerPass:
    """Runs a tower forward, its last block at the pooled row alone, which `project` reads.

    A pooling `head` takes all tokens behind the last block, and the tap of its attention.
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
    """Runs the reductions from the last layer down to `start_layer`; returns maps `[K, B, N]` by name.

    `gradients` for each of `K` targets: of the tokens that reach the last block `[K, B, N, D]`, and of the pooled row's
    attention `[K, B, H, N]`.
    """
    observed = tower_pass.tower
    inputs = observed.inputs
    layers = observed.config.layers
    if not -layers <= options.start_layer < layers:
        tower_name = "text" if isinstance(observed.config, TextConfig) else "vision"
        raise ClipbiasError(
            f"start_layer {options.start_layer} is outside the {tower_name} tower's {layers} layers; choose 0 for all "
            "layers or -1 for the last one."
        )
    start_layer = options.start_layer % layers
    reductions = {name: REDUCTIONS[name] for name in options.maps}
    token_gradients, row_gradients = gradients
    states = {
        # The last layer's attention is the same for all targets of an image; only its gradient has the axis of targets.
        name: jax.vmap(lambda g, r=reduction: r.first(tower_pass.row, g))(row_gradients)
        for name, reduction in reductions.items()
    }

    # From the last layer to the first, in the order of gradients: reductions start with the row that is read, so no two
    # matrices of tokens by tokens are multiplied, and each layer's `A` and `G` are dropped behind it.
    def step(carry: tuple[jax.Array, States], index: jax.Array) -> tuple[tuple[jax.Array, States], None]:
        if isinstance(tower_pass.saved, dict):
            saved = jax.tree.map(lambda leaf: leaf[index], tower_pass.saved)
        else:  # with `recompute`
            saved = observed.block(tower_pass.saved[index], index)[1]
        # Linearised once per layer, outside the loop over targets: they share the forward pass and differ in gradients.
        pull, probabilities = observed.backward(saved, index)

        def step_target(gradient: jax.Array, states: States) -> tuple[jax.Array, States]:
            gradient, attention_gradient = pull(gradient)
            return gradient, {
                name: reduction.step(states[name], probabilities, attention_gradient)
                for name, reduction in reductions.items()
            }

        return jax.vmap(step_target)(*carry), None

    top = observed.whole_blocks
    # Layers below `start_layer` are never differentiated: relevancy that starts there does not depend on them.
    if start_layer < top:
        (_, states), _ = jax.lax.scan(step, (token_gradients, states), jnp.arange(start_layer, top), reverse=True)
    batch, length = inputs.tokens.shape[:2]
    # Queries without an influence have no gradient: a mean over queries (LeGrad) may not count them.
    influential = jnp.full(batch, length) if inputs.visible is None else inputs.visible.sum(-1)
    if inputs.causal:
        influential = jnp.asarray(inputs.pooled) + 1
    return {
        name: jax.vmap(lambda state, r=reduction: r.finish(state, top + 1 - start_layer, influential))(states[name])
        for name, reduction in reductions.items()
    }


def check_targets(task: Task, images: jax.Array, targets: jax.Array | Sequence[int]) -> jax.Array:
    """Returns targets as an int array `[B]` or `[B, K]`. Traced targets have no values, so their range is unchecked."""
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


def target_text(tokens: TextTokens, targets: jax.Array, templates: int) -> TextTokens:
    """Returns the texts of classes `targets [P]`, all templates of a class together: `[P · n, N]`."""
    # A task's texts go template by template, a pair's class by class: gathering here spares running other classes.
    classes = tokens.ids.shape[0] // templates
    rows = (targets[:, None] + classes * jnp.arange(templates)).reshape(-1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tokens)


def target_adaptation(classifier: Classifier, learnables: Learnables, targets: jax.Array) -> Adaptation:
    """Returns the adaptation with the contexts and residuals of classes `targets [P]` alone."""
    adaptation = classifier.method.adapt(learnables)
    context = adaptation.text_context
    picked: dict[str, Any] = {}
    if context is not None and context.ndim == 3:
        context = jnp.asarray(context)
        if context.shape[0] == classifier.templates:  # a context per template, in the order of `target_text`
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
    """Computes logits `[B, K]` of images `[B, d]` and targets `[B, K]` by the method's own head.

    `texts [B · K · n, d]` are features of the pairs' texts, `class_features [n · C, d]` of all classes' texts.
    """
    fixed = classifier.split_by_template(class_features)

    def logit(image: jax.Array, texts: jax.Array, target: jax.Array) -> jax.Array:
        # The head needs all classes. The pair's own texts take the place of the fixed ones, so that the gradient
        # reaches them alone: the map is then about the target's words, not about its rivals'.
        all_texts = fixed.at[:, target].set(texts).reshape(-1, texts.shape[-1])
        return classifier.head(params, learnables, image[None], all_texts)[0, target]

    over_targets = jax.vmap(logit, (None, 0, 0))
    return jax.vmap(over_targets)(images, texts.reshape(*targets.shape, classifier.templates, -1), targets)


def pair_logits(
    scale: jax.Array, images: jax.Array, texts: jax.Array, residual: jax.Array | None, templates: int
) -> jax.Array:
    """Computes `y = s · cos(f, g)` of every pair, `[B, K]`; `scale` is `s`: `exp(logit_scale)`, or the method's.

    `images [B, d]` and `texts [B · K · n, d]` are features, `residual [B · K, d]` is added to class features.
    """
    # The classifier's order: unit length, mean over templates, residual, unit length. Another order is another logit.
    if templates > 1:
        texts = unit_length(texts).reshape(-1, templates, texts.shape[-1]).mean(1)
    texts = unit_length(texts if residual is None else texts + residual)
    texts = texts.reshape(images.shape[0], -1, texts.shape[-1])
    return scale * jnp.einsum("Bd,BKd->BK", unit_length(images), texts, precision="highest")


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
    """Computes the maps of `options` for normalised images `[B, R, R, 3]` and target classes `[B, K]`.

    `tokens` are all the task's texts; only the targets' run. `class_features [n · C, d]` serve a method with its own
    head.
    """
    config = classifier.config
    templates = classifier.templates
    batch, per_image = targets.shape
    # Only the targets' texts run: `B · K` texts, however many classes there are.
    adaptation = target_adaptation(classifier, learnables, targets.reshape(-1))
    text = target_text(tokens, targets.reshape(-1), templates)
    vision_pass = run_tower(
        _Tower(embed_image(params, config, images, adaptation, dtype=dtype), config.vision, options.recompute),
        project=lambda rows: project_image(params, config, rows, adaptation),
        head=lambda tokens, tap: pooling_row(tokens, tap, params, config, adaptation),
    )
    if (adapt_to := classifier.method.adapt_to) is not None:
        # Contexts of the targets' texts by image, `[B · K · n, T, Dt]`. They stand outside `score`, so no gradient goes
        # through a context back to its image: the text's map keeps the image fixed.
        contexts = jax.vmap(lambda image: adapt_to(learnables, image).text_context)(vision_pass.features)
        # Only the context depends on the image here; `why_no_maps` refuses methods whose texts depend on it in other
        # ways.
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
    # A pair has a text of its own but shares its image: the image needs one gradient per target, the texts one in all,
    # since no logit depends on another pair's text.
    each = jnp.broadcast_to(jnp.eye(per_image)[:, None], (per_image, batch, per_image))
    image_gradients = jax.vmap(lambda y: vision_pass.pull(pull(y)[0]))(each)
    text_gradients = jax.tree.map(lambda x: x[None], text_pass.pull(pull(jnp.ones_like(logits))[1]))
    vision = reduce_backward(vision_pass, image_gradients, options)
    words = reduce_backward(text_pass, text_gradients, options)
    # EOS itself is the row that is read, so its `e` would dwarf all words; behind it tokens have no influence.
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
    """Computes the relevancy of each patch, prompt and text token for the logit of a class (Chefer et al. 2021).

    Memory grows with depth by the blocks' residuals alone: nine times `[L, B, N, D]`, or once with `recompute`.

    Args:
      task, params, learnables: a method bound to classes, the frozen weights (`task.clip.params`), and its learnables.
      images: `[B, R, R, 3]`, normalised.
      targets: the class to explain in each image, int `[B]`, or `K` classes per image `[B, K]`, which share one forward
        pass of the image.
      start_layer: the first layer that counts: 0 for all, -1 for the last alone.
      chunk: images at a time, which bounds the memory. Default: all.
      recompute: about a third of the memory for an eighth more time, and the same maps.
      text: result of `task.text_features`, to compute it once for many calls. Only the method's own head uses it.

    Raises:
      ClipbiasError: targets do not fit the images or the classes, a tower has no such layer, or `chunk` is no whole
        number from 1 on.
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
    """Computes several maps, by name, in one pass; arguments as in `relevancy`. Default: all of `REDUCTIONS`."""
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
    # Scaled cosines need the targets' texts alone. A head of its own sees all classes at once.
    class_texts = None if task.method.logits is None else task.text if text is None else text
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
        # The last chunk is filled up with its last row, since another size would be another program.
        widths = np.zeros((x.ndim, 2), int)
        widths[0, 1] = -batch % chunk
        return jnp.pad(x, widths, "edge").reshape(-1, chunk, *x.shape[1:])

    # One chunk after another inside one program: a Python loop would dispatch, and hold, them all.
    maps = jax.lax.map(lambda chunk: run(*chunk), (split(images), split(targets)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:batch], maps)
