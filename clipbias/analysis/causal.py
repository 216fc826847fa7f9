"""The causal test of what a method does: a frozen and a tuned run side by side, and what lies between them.

R is the reference, the frozen model on the same input, and P the tuned model. *Slots* are the positions that a method
fills with learned tokens (images: prompts appended; texts: the context, where R has the words that training started
from); all other tokens are *inputs*. Of each run a layer gives, for input tokens as queries, per head:

    A    relative attention: the probabilities among input tokens, renormalised to 1
    m    the attention that goes to slots, by which what inputs give is scaled
    s    what is added beyond that: by slots `W_o cat_h(Σ_{k slot} a_ik v_k)`, and behind the block what the tuned block
         gives beyond the frozen one on P's tokens, with P's attention and slots (biases, weights)

Every *stream* runs the frozen blocks on input tokens of its own, with a run's A and m and with something for s:

    x_i += W_o cat_h((1 − m) Σ_j A_ij v_j(x)) + b_o + slots_i;  x_i += MLP(x_i) + blocks_i

*Corners* take attention (A) and tokens (m and s, which belong to one softmax) from either run: RR is the reference and
PP the tuned model, to rounding; PR is attention alone, RP tokens alone. Within a layer a prefix cannot change A
(Petrov et al. 2024, arXiv 2310.19698), so what attention does is done through later layers.

*Levels* have P's attention and, for s, more or less of what P adds on its own way: nothing; its mean over training
images by kind of token, or by position; what it adds for another image; what it adds for this one (PP). What is added
is the same for every image if and only if another image's does as well as an image's own.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.analysis.attention import renormalise
from clipbias.analysis.model import of_texts, sum_over_texts
from clipbias.analysis.statistics import Moments, Totals
from clipbias.clip import Adaptation, LayerView, TextTokens, layers, tower
from clipbias.clip.block import BlockHooks, LayerInput, Tap, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image

# Texts that run at once, with their attention.
_TEXTS_AT_ONCE = 32
_TEXT_KINDS = 2


class Run(enum.Enum):
    """One of the two runs."""

    REFERENCE = "reference"
    TUNED = "tuned"


class Corner(enum.Enum):
    """Attention of one run and tokens (m and s) of one run."""

    RR = (Run.REFERENCE, Run.REFERENCE)
    PR = (Run.TUNED, Run.REFERENCE)
    RP = (Run.REFERENCE, Run.TUNED)
    PP = (Run.TUNED, Run.TUNED)


class Level(enum.Enum):
    """What stands for what the tuned run adds."""

    NOTHING = "nothing"
    KIND = "mean by kind"
    POSITION = "mean by position"
    OTHER = "another image's"
    OWN = "own"

    def __lt__(self, other: "Level") -> bool:  # JAX sorts the keys of dictionaries
        return self.value < other.value


@dataclasses.dataclass(frozen=True)
class Stream:
    """Frozen blocks on tokens of their own."""

    attention: Run  # the run whose A they have
    mass: Run  # the run whose m they have, and whose weights behind the last block read the feature
    level: Level  # what stands for s; `NOTHING` is the reference's, which is 0 for images
    draw: int = 0  # which of the other images, for `OTHER`

    @classmethod
    def corner(cls, corner: Corner) -> "Stream":
        """The stream of a corner."""
        attention, tokens = corner.value
        return cls(attention, tokens, Level.OWN if tokens is Run.TUNED else Level.NOTHING)

    @classmethod
    def at(cls, level: Level, draw: int = 0) -> "Stream":
        """The stream of a level, all else of the tuned run."""
        return cls(Run.TUNED, Run.TUNED, level, draw)


@struct.dataclass
class Added:
    """What a tuned run adds to tokens beyond the frozen model, or a mean of it.

    The axes between are tokens `N` for a mean by position, and kinds `K` for one by kind.
    """

    start: Any  # before the first block, where a method changes pixels or weights before it, `[..., D]`
    slots: Any  # to the output of attention, `[L, ..., D]`
    blocks: Any  # behind a block, `[L, ..., D]`; `None` where a method changes no block

    @classmethod
    def mean(cls, totals: Totals) -> "Added":
        """Of the sums of `added_to_images` or `added_to_texts`, float32."""
        means = {name: np.asarray(moments.mean, np.float32) for name, moments in totals.items()}
        return cls(means["start"], means["slots"], means.get("blocks"))

    def by_kind(self, kinds: np.ndarray) -> "Added":
        """A mean by position `[..., N, D]` as one by kind `[..., K, D]`, with the kinds `[N]` of the tokens."""
        members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
        return jax.tree.map(lambda mean: np.stack([mean[..., of, :].mean(-2) for of in members], axis=-2), self)


class Parts(NamedTuple):
    """`A [B, H, N, N]`, `m [B, N, H]` and what slots add, `[B, N, D]`, of one run in a layer."""

    attention: jax.Array
    mass: jax.Array
    slots: jax.Array


@dataclasses.dataclass(frozen=True)
class RunPair:
    """Both runs of one tower up to the first block."""

    reference: tower.TowerInput
    tuned: tower.TowerInput
    slots: jax.Array  # bool `[N']` or `[B, N']` over the tuned run's tokens
    # Int `[N]` or `[B, N]` over the first `inputs` tokens: 0 for the one that is read out, 1 for all others, -1 for
    # slots. All are 0 where a pooling head reads all tokens.
    kinds: jax.Array
    inputs: int  # the reference's number of tokens, which come first; slots beyond it are the tuned run's alone
    config: TowerConfig

    @property
    def start(self) -> jax.Array:
        """What the tuned run's input tokens have beyond the reference's before the first block, `[B, N, D]`."""
        return self.tuned.tokens[:, : self.inputs] - self.reference.tokens

    def parts(self, view: LayerView) -> Parts:
        """A layer of one run."""
        count = self.inputs
        on_slots = jnp.where(self.slots[..., None, None, : view.tokens.shape[1]], view.probabilities, 0)
        attention = renormalise((view.probabilities - on_slots)[..., :count, :count])
        mass = jnp.moveaxis(on_slots.sum(-1), 1, 2)[:, :count]
        return Parts(attention, mass, view.project(view.heads_output(on_slots)[:, :count]))

    def observe(self, tokens: jax.Array, frozen: LayerInput, tuned: LayerInput) -> tuple[jax.Array, Parts, Any]:
        """A block of the tuned run: all its tokens behind it, its parts, and what it adds behind the frozen block."""
        output, view = tower.observe_block(tokens, tuned, self.tuned, self.config)
        parts = self.parts(view)
        if all(change is None for change in (tuned.bias, tuned.changes, tuned.adapters)):
            return output, parts, None
        hooks = _given([parts.attention], [1], [parts.mass], [parts.slots])
        plain = run_block(tokens[None, :, : self.inputs], frozen, self.config, hooks)[0]
        return output, parts, output[:, : self.inputs] - plain

    def spread(self, constant: jax.Array, level: Level) -> jax.Array:
        """What each token gets of a mean `[N, D]` by position or `[K, D]` by kind, 0 for slots."""
        if level is Level.POSITION:
            return constant
        return jnp.where((self.kinds >= 0)[..., None], jnp.asarray(constant)[jnp.maximum(self.kinds, 0)], 0)


def image_pair(params: Params, config: ClipConfig, images: jax.Array, tuned: Adaptation, dtype: str) -> RunPair:
    """Both runs of images `[B, R, R, 3]`; the reference has nothing added."""
    runs = [embed_image(params, config, images, adaptation, dtype=dtype) for adaptation in (Adaptation(), tuned)]
    inputs = config.vision.tokens
    slots = jnp.arange(runs[1].tokens.shape[1]) >= inputs
    return RunPair(runs[0], runs[1], slots, jnp.asarray(image_kinds(config)), inputs, config.vision)


def image_kinds(config: ClipConfig) -> np.ndarray:
    """The kind of each image token `[N]`: 0 `[cls]`, 1 patches; one for all where a head pools them."""
    kinds = np.where(np.arange(config.vision.tokens) < config.vision.first_patch, 0, 1)
    return np.minimum(kinds, config.vision.token_types - 1)


def text_pair(
    params: Params, config: ClipConfig, tokens: TextTokens, tuned: Adaptation, reference: Adaptation, dtype: str
) -> RunPair:
    """Both runs of texts `[C, N]`; the reference has the context that training started from."""
    runs = [embed_text(params, config, tokens, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    slots = (jnp.asarray(tokens.context_rows) >= 0) & (tuned.text_context is not None)
    is_eos = jnp.arange(tokens.ids.shape[1]) == jnp.asarray(tokens.eos)[:, None]
    kinds = jnp.where(slots, -1, jnp.where(is_eos, 0, 1))
    return RunPair(runs[0], runs[1], slots, kinds, tokens.ids.shape[1], config.text)


@with_precision
def mix_images(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    tuned: Adaptation,
    streams: Sequence[Stream],
    means: Mapping[Level, Added] | None = None,
    donors: jax.Array | None = None,
    *,
    dtype: str = "float32",
) -> jax.Array:
    """Image features of both runs and of streams, advanced side by side through one scan over layers.

    Of normalised `images [B, R, R, 3]`; the prompts of `tuned` are the slots. There are `K` streams, at least one, in
    any order. `means` are what is added on average, where a stream has such a level, and `donors [d, B, R, R, 3]` other
    images, for `Level.OTHER`. Returns `[2 + K, B, d]`, not normalised: of the reference, of the tuned run, of the
    streams.
    """
    pair = image_pair(params, config, images, tuned, dtype)
    others = None
    if donors is not None:
        others = image_pair(params, config, donors.reshape(-1, *images.shape[1:]), tuned, dtype)

    def read(rows: jax.Array, run: Run) -> jax.Array:
        return project_image(params, config, rows, tuned if run is Run.TUNED else Adaptation())

    return _mix(pair, streams, read, means or {}, others)


@with_precision
def mix_texts(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    tuned: Adaptation,
    reference: Adaptation,
    streams: Sequence[Stream],
    means: Mapping[Level, Added] | None = None,
    *,
    dtype: str = "float32",
) -> jax.Array:
    """`mix_images` for texts `[C, N]`: `reference` has the context that training started from, nothing replaced."""
    pair = text_pair(params, config, tokens, tuned, reference, dtype)

    def read(rows: jax.Array, run: Run) -> jax.Array:
        return project_text(params, config, rows, tuned if run is Run.TUNED else reference)

    return _mix(pair, streams, read, means or {}, None)


class _Tokens(NamedTuple):
    """Tokens of both runs and of other images `[d · B, N', D]`, and of the streams `[K, B, N, D]`."""

    reference: jax.Array
    tuned: jax.Array
    others: jax.Array | None
    streams: jax.Array


def _mix(
    pair: RunPair,
    streams: Sequence[Stream],
    read: Callable[[jax.Array, Run], jax.Array],
    means: Mapping[Level, Added],
    others: RunPair | None,
) -> jax.Array:
    batch = len(pair.reference.tokens)
    # Streams with the same attention lie side by side, so that each A is applied to their values at once.
    order = sorted(range(len(streams)), key=lambda place: streams[place].attention is Run.TUNED)
    sorted_streams = [streams[place] for place in order]
    counts = [sum(stream.attention is run for stream in streams) for run in Run]

    def by_draw(values: jax.Array) -> dict[tuple[Level, int], jax.Array]:
        parts = values.reshape(-1, batch, *values.shape[1:])
        return {(Level.OTHER, draw): part for draw, part in enumerate(parts)}

    start = {(Level.NOTHING, 0): jnp.zeros_like(pair.start), (Level.OWN, 0): pair.start}
    start |= {(level, 0): pair.spread(mean.start, level) for level, mean in means.items()}
    if others is not None:
        start |= by_draw(others.start)

    def step(carry: _Tokens, scanned: Any) -> tuple[_Tokens, None]:
        frozen, changed, by_level = scanned
        reference, view = tower.observe_block(carry.reference, frozen, pair.reference, pair.config)
        of_reference = pair.parts(view)
        tuned, of_tuned, beyond = pair.observe(carry.tuned, frozen, changed)
        slots = {(Level.NOTHING, 0): of_reference.slots, (Level.OWN, 0): of_tuned.slots}
        blocks = {} if beyond is None else {(Level.OWN, 0): beyond}
        for level, (mean_slots, mean_blocks) in by_level.items():
            slots[level, 0] = pair.spread(mean_slots, level)
            if mean_blocks is not None:
                blocks[level, 0] = pair.spread(mean_blocks, level)
        of_others = carry.others
        if others is not None and of_others is not None:
            of_others, parts, beyond = others.observe(of_others, frozen, changed)
            slots |= by_draw(parts.slots)
            blocks |= {} if beyond is None else by_draw(beyond)
        parts_of = {Run.REFERENCE: of_reference, Run.TUNED: of_tuned}
        hooks = _given(
            [parts_of[run].attention for run, count in zip(Run, counts, strict=True) if count],
            [count for count in counts if count],
            [parts_of[stream.mass].mass for stream in sorted_streams],
            [slots[stream.level, stream.draw] for stream in sorted_streams],
            [blocks.get((stream.level, stream.draw)) for stream in sorted_streams],
        )
        return _Tokens(reference, tuned, of_others, run_block(carry.streams, frozen, pair.config, hooks)), None

    tokens = _Tokens(
        reference=pair.reference.tokens,
        tuned=pair.tuned.tokens,
        others=None if others is None else others.tuned.tokens,
        streams=jnp.stack([pair.reference.tokens + start[stream.level, stream.draw] for stream in sorted_streams]),
    )
    by_level = {level: (mean.slots, mean.blocks) for level, mean in means.items()}
    tokens, _ = jax.lax.scan(step, tokens, (pair.reference.layers, pair.tuned.layers, by_level))
    pooled = pair.reference.pooled
    reference = read(tower.take_rows(tokens.reference, pooled), Run.REFERENCE)
    features = [
        read(tower.take_rows(tokens.streams[order.index(place)], pooled), stream.mass)
        for place, stream in enumerate(streams)
    ]
    return jnp.stack([reference, read(tower.take_rows(tokens.tuned, pooled), Run.TUNED), *features])


def _given(
    attentions: Sequence[jax.Array],
    counts: Sequence[int],
    masses: Sequence[jax.Array],
    slots: Sequence[jax.Array],
    beyond: Sequence[jax.Array | None] = (),
) -> BlockHooks:
    """Hooks of a frozen block of `K` streams `[K, B, N, D]` whose attention is given; values are of their own tokens.

    Each of `attentions`, `A [B, H, N, N]`, is for so many of the streams in a row as `counts` says. `masses [B, N, H]`,
    what `slots [B, N, D]` give behind attention, and what comes behind the block (`beyond`) are of each stream.
    """

    def attention(normed: jax.Array, weights: layers.Weights, config: TowerConfig, tap: Tap) -> jax.Array:
        values = layers.split_heads(layers.dense(normed, layers.outputs(weights["qkv"], 2, 3)), config.heads)
        seen = []
        first = 0
        for probabilities, count in zip(attentions, counts, strict=True):
            part = values[first : first + count]
            seen.append(jnp.einsum("BHNM,KBMHC->KBNHC", probabilities.astype(values.dtype), part))
            first += count
        scale = jnp.stack([1 - mass for mass in masses]).astype(values.dtype)
        heads = jnp.concatenate(seen) * scale[..., None]
        added = jnp.stack([jnp.broadcast_to(part, normed.shape[1:]) for part in slots])
        return layers.dense(heads.reshape(normed.shape), weights["out"]) + added.astype(normed.dtype)

    def after(output: jax.Array, inputs: jax.Array) -> jax.Array:
        added = [jnp.broadcast_to(0.0 if part is None else part, output.shape[1:]) for part in beyond]
        return output + jnp.stack(added).astype(output.dtype)

    if any(part is not None for part in beyond):
        return BlockHooks(attention, after=after)
    return BlockHooks(attention)


@jax.jit(static_argnums=0)
def added_to_images(
    config: ClipConfig, params: Params, images: jax.Array, mask: jax.Array, tuned: Adaptation
) -> Totals:
    """What a method adds to each token of normalised images `[B, R, R, 3]` where `mask [B]` is true; in float32 always.

    Returns moments over images by position: "start" (`mean [N, D]`), "slots" (`[L, N, D]`), and "blocks" where the
    method, which has one set of prompts at most, changes blocks.
    """
    with jax.default_matmul_precision("highest"):
        pair = image_pair(params, config, images, tuned, "float32")
        return _sum_added(pair, lambda values: Moments.of(values, mask))


def added_to_texts(
    config: ClipConfig, params: Params, tokens: TextTokens, tuned: Adaptation, reference: Adaptation
) -> Totals:
    """`added_to_images` of texts `[C, N]` up to their ends, by kind: `mean [K, D]` and `[L, K, D]`."""

    def sums(some: TextTokens, texts: np.ndarray, mask: np.ndarray) -> Totals:
        runs = [of_texts(adaptation, texts, len(tokens.ids)) for adaptation in (tuned, reference)]
        return _some_texts(config, params, some, *runs, mask)

    return sum_over_texts(tokens, _TEXTS_AT_ONCE, sums)


@jax.jit(static_argnums=0)
def _some_texts(
    config: ClipConfig, params: Params, tokens: TextTokens, tuned: Adaptation, reference: Adaptation, mask: jax.Array
) -> Totals:
    with jax.default_matmul_precision("highest"):
        pair = text_pair(params, config, tokens, tuned, reference, "float32")
        counted = tokens.counted & mask[:, None]

        def sums(values: jax.Array) -> Moments:
            rows = values.reshape(-1, values.shape[-1])
            moments = [Moments.of(rows, (counted & (pair.kinds == kind)).reshape(-1)) for kind in range(_TEXT_KINDS)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)

        return _sum_added(pair, sums)


def _sum_added(pair: RunPair, sums: Callable[[jax.Array], Moments]) -> Totals:
    def step(tokens: jax.Array, scanned: tuple[LayerInput, LayerInput]) -> tuple[jax.Array, Totals]:
        tokens, parts, beyond = pair.observe(tokens, *scanned)
        added = {"slots": parts.slots, "blocks": beyond}
        return tokens, {name: sums(values) for name, values in added.items() if values is not None}

    totals = jax.lax.scan(step, pair.tuned.tokens, (pair.reference.layers, pair.tuned.layers))[1]
    return totals | {"start": sums(pair.start)}
