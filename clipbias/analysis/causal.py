"""The causal test: activation patching between the frozen and the tuned model.

R is the reference run, of the frozen model, and P the run of the tuned model on the same input. *Slots* are the
positions that a method fills with learned tokens (images: appended prompts; texts: the context, where R has the words
that training started from). All other tokens are *inputs*. In each layer, a run has for input queries, per head:

    A    relative attention: the probabilities among input tokens, renormalised to 1
    m    attention to slots, which leaves 1 − m to the inputs
    s    added output, at the two sums of a block. Behind attention: from slots `W_o cat_h(Σ_{k slot} a_ik v_k)`, and
         the tuned attention's output less the frozen attention's, both with P's A and m on P's tokens. Behind the MLP:
         the tuned MLP's output less the frozen MLP's, both on P's tokens behind attention

A *patched run* runs the frozen blocks on its own input tokens, with A, m and s set from outside:

    x_i += W_o cat_h((1 − m) Σ_j A_ij v_j(x)) + b_o + attention_i;  x_i += MLP(x_i) + mlp_i

*Path patching* takes attention (A) and tokens (m and s, which belong to one softmax) from either run. RR is R and PP is
P, up to rounding. PR is attention alone, RP is tokens alone. Within a layer a prefix cannot change A (Petrov et al.
2024, arXiv 2310.19698), so attention acts through later layers.

*Ablations* keep P's attention. *Nothing* is attention alone: it takes m and s from R. *Mean ablation* replaces s by its
mean by position over a group of images, *resample ablation* by that of another image. What no later part reads costs
nothing under any ablation: they say what is the same for every image in its effect.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from clipbias.analysis.attention import renormalise
from clipbias.analysis.model import of_texts, sum_over_texts
from clipbias.analysis.statistics import Moments, Totals
from clipbias.clip import Adaptation, LayerView, TextTokens, layers, tower
from clipbias.clip.block import BlockHooks, LayerInput, Tap, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.layers import ATTENDED
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image

# Bounds the memory: the attention of so many texts is held at once.
_TEXTS_AT_ONCE = 32
_TEXT_KINDS = 2


class ActivationSource(enum.Enum):
    REFERENCE = "reference"
    TUNED = "tuned"


class PathPatch(enum.Enum):
    """Path patching: the run that gives attention (A), and the run that gives tokens (m and s)."""

    RR = (ActivationSource.REFERENCE, ActivationSource.REFERENCE)
    # The first letter is the source of attention, the second that of tokens.
    PR = (ActivationSource.TUNED, ActivationSource.REFERENCE)
    RP = (ActivationSource.REFERENCE, ActivationSource.TUNED)
    PP = (ActivationSource.TUNED, ActivationSource.TUNED)


class Ablation(enum.Enum):
    """Replacement of what the tuned run adds (s)."""

    NOTHING = "nothing"
    MEAN = "mean of a group"
    RESAMPLE = "another image's"
    OWN = "own"  # no ablation


@dataclasses.dataclass(frozen=True)
class PatchedRun:
    """Frozen blocks whose A, m and s are set from outside."""

    attention: ActivationSource  # of A
    mass: ActivationSource  # of m
    added: Ablation  # s; `NOTHING` is the reference's, which is 0 for images
    readout: ActivationSource  # of the weights behind the last block, which read the feature
    number: int = 0  # of the grouping, for `MEAN`; of the other image, for `RESAMPLE`

    @classmethod
    def path(cls, patch: PathPatch) -> "PatchedRun":
        """Returns the run with attention and tokens of the sources of `patch`."""
        attention, tokens = patch.value
        return cls(attention, tokens, Ablation.OWN if tokens is ActivationSource.TUNED else Ablation.NOTHING, tokens)

    @classmethod
    def ablated(cls, added: Ablation, number: int = 0) -> "PatchedRun":
        """Returns the tuned run, except for what it adds to tokens."""
        tuned = ActivationSource.TUNED
        # P's `1 − m` with nothing in the slots' place would scale attention down, a damage that no model has.
        mass = ActivationSource.REFERENCE if added is Ablation.NOTHING else tuned
        # Weights behind the last block add to no token, so that every ablation keeps them.
        return cls(tuned, mass, added, tuned, number)


@struct.dataclass
class Added:
    """Mean of what a tuned run adds: to images by group and position `[G, N, D]`, to texts by kind `[K, D]`."""

    start: Any  # before the first block, where a method changes pixels or embedding weights
    attention: Any  # to the output of attention, with a leading axis of layers
    mlp: Any  # to the output of the MLP, likewise; `None` where a method has prompts alone

    @classmethod
    def mean(cls, totals: Totals) -> "Added":
        """Returns the means, float32, of the moments of `added_to_images` or `added_to_texts`."""
        means = {name: np.asarray(moments.mean, np.float32) for name, moments in totals.items()}
        return cls(means["start"], means["attention"], means.get("mlp"))


@struct.dataclass
class GroupMeans:
    """Means over groups of images, and the groups of a batch."""

    added: Added
    groups: Any  # for each image its group in each grouping, int `[B, K]`, below `G`


class Parts(NamedTuple):
    """A layer of one run: `A [B, H, N, N]`, `m [B, N, H]`, and s at the output of attention, `[B, N, D]`."""

    attention: jax.Array
    mass: jax.Array
    added: jax.Array


@dataclasses.dataclass(frozen=True)
class RunPair:
    """Reference and tuned run of one tower, embedded up to the first block."""

    reference: tower.TowerInput
    tuned: tower.TowerInput
    slots: jax.Array  # bool `[N']` or `[B, N']` over the tuned run's tokens
    inputs: int  # tokens of the reference, which come first; only the tuned run has slots behind them
    config: TowerConfig
    kinds: jax.Array | None = None  # of text tokens, int `[B, N]`: 0 for the read-out token, 1 for others, -1 for slots

    @property
    def start(self) -> jax.Array:
        """Tuned less reference input tokens before the first block, `[B, N, D]`."""
        return self.tuned.tokens[:, : self.inputs] - self.reference.tokens

    def parts(self, view: LayerView) -> Parts:
        """Splits one layer of a run into A, m and what slots add."""
        count = self.inputs
        # Slots and inputs share one softmax. The difference is exactly 0 on slots, so A, m and s divide the run's
        # output without a rest, and PP is P up to rounding.
        on_slots = jnp.where(self.slots[..., None, None, : view.tokens.shape[1]], view.probabilities, 0)
        attention = renormalise((view.probabilities - on_slots)[..., :count, :count])
        mass = jnp.moveaxis(on_slots.sum(-1), 1, 2)[:, :count]
        return Parts(attention, mass, view.project(view.heads_output(on_slots)[:, :count]))

    def observe(self, tokens: jax.Array, frozen: LayerInput, tuned: LayerInput) -> tuple[jax.Array, Parts, Any]:
        """Runs a tuned block; returns all its output tokens, its parts, and s at the MLP's output, if any."""
        output, view = tower.observe_block(tokens, tuned, self.tuned, self.config)
        parts = self.parts(view)
        # Prompts alone act through attention, and slots hold all of it: a second block would give zeros.
        if all(change is None for change in (tuned.bias, tuned.changes, tuned.adapters)):
            return output, parts, None
        assert view.attended is not None
        attended = view.attended[:, : self.inputs]
        at_attention = None

        def tap(value: jax.Array, name: str) -> jax.Array:
            # The frozen attention ends here: its MLP gets P's tokens, so that each sum has its own difference. Read
            # behind the whole block, the frozen MLP's answer to a constant would count as added, and depend on images.
            nonlocal at_attention
            if name != ATTENDED:
                return value
            at_attention = value
            return attended[None]

        # The frozen attention gets P's A and m, so that its difference holds nothing that these hold already:
        # otherwise PP would count it twice.
        hooks = _given([parts.attention], [1], [parts.mass], [jnp.zeros_like(parts.added)], tap=tap)
        plain = run_block(tokens[None, :, : self.inputs], frozen, self.config, hooks)[0]
        assert at_attention is not None
        return output, parts._replace(added=attended - at_attention[0]), output[:, : self.inputs] - plain


def image_pair(params: Params, config: ClipConfig, images: jax.Array, tuned: Adaptation, dtype: str) -> RunPair:
    """Embeds images `[B, R, R, 3]` for both runs; the reference has no adaptation."""
    # Prompts are appended behind all input tokens, so both runs have the inputs at the same positions.
    runs = [embed_image(params, config, images, adaptation, dtype=dtype) for adaptation in (Adaptation(), tuned)]
    inputs = config.vision.tokens
    slots = jnp.arange(runs[1].tokens.shape[1]) >= inputs
    return RunPair(runs[0], runs[1], slots, inputs, config.vision)


def text_pair(
    params: Params, config: ClipConfig, tokens: TextTokens, tuned: Adaptation, reference: Adaptation, dtype: str
) -> RunPair:
    """Embeds texts `[C, N]` for both runs; the reference has the context that training started from."""
    runs = [embed_text(params, config, tokens, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    # Without a learned context the rows hold the same words in both runs: these are inputs, not slots.
    slots = (jnp.asarray(tokens.context_rows) >= 0) & (tuned.text_context is not None)
    # Slots are no kind: means are of inputs alone, since slots of R and of P differ by construction.
    is_eos = jnp.arange(tokens.ids.shape[1]) == jnp.asarray(tokens.eos)[:, None]
    kinds = jnp.where(slots, -1, jnp.where(is_eos, 0, 1))
    return RunPair(runs[0], runs[1], slots, tokens.ids.shape[1], config.text, kinds)


@with_precision
def mix_images(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    tuned: Adaptation,
    patched: Sequence[PatchedRun],
    means: GroupMeans | None = None,
    donors: jax.Array | None = None,
    *,
    dtype: str = "float32",
) -> jax.Array:
    """Computes image features of both runs and of `K` patched runs, side by side in one scan over layers.

    `images [B, R, R, 3]` are normalised; the prompts of `tuned` are the slots. Mean ablation needs `means`, resample
    ablation needs other images, `donors [d, B, R, R, 3]`. Returns features `[2 + K, B, d]`, not normalised:
    reference, tuned run, patched runs.
    """
    pair = image_pair(params, config, images, tuned, dtype)
    others = None
    if donors is not None:
        # Other images need the tuned run's slots and blocks only, but share the machinery of a pair up to the first
        # block.
        others = image_pair(params, config, donors.reshape(-1, *images.shape[1:]), tuned, dtype)

    def read(rows: jax.Array, source: ActivationSource) -> jax.Array:
        return project_image(params, config, rows, tuned if source is ActivationSource.TUNED else Adaptation())

    def of_groups(added: jax.Array) -> dict[int, jax.Array]:
        assert means is not None
        return {number: jnp.asarray(added)[groups] for number, groups in enumerate(jnp.moveaxis(means.groups, 1, 0))}

    return _mix(pair, patched, read, None if means is None else means.added, of_groups, others)


@with_precision
def mix_texts(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    tuned: Adaptation,
    reference: Adaptation,
    patched: Sequence[PatchedRun],
    means: Added | None = None,
    *,
    dtype: str = "float32",
) -> jax.Array:
    """Computes `mix_images` for texts `[C, N]`, a single group; `reference` has the context before training."""
    pair = text_pair(params, config, tokens, tuned, reference, dtype)

    def read(rows: jax.Array, source: ActivationSource) -> jax.Array:
        return project_text(params, config, rows, tuned if source is ActivationSource.TUNED else reference)

    def of_kinds(added: jax.Array) -> dict[int, jax.Array]:
        assert pair.kinds is not None
        # The gather may not read at -1: slots read kind 0 and are set to 0 by the mask.
        return {0: jnp.where((pair.kinds >= 0)[..., None], jnp.asarray(added)[jnp.maximum(pair.kinds, 0)], 0)}

    return _mix(pair, patched, read, means, of_kinds, None)


class _Tokens(NamedTuple):
    """Tokens of both runs, of other images `[d · B, N', D]`, and of the patched runs `[K, B, N, D]`."""

    reference: jax.Array
    tuned: jax.Array
    others: jax.Array | None
    patched: jax.Array


def _mix(
    pair: RunPair,
    patched: Sequence[PatchedRun],
    read: Callable[[jax.Array, ActivationSource], jax.Array],
    means: Added | None,
    spread: Callable[[jax.Array], dict[int, jax.Array]],  # from a mean to each token's, by the grouping's number
    others: RunPair | None,
) -> jax.Array:
    batch = len(pair.reference.tokens)
    # Runs with the same attention lie side by side, so that one product applies A to the values of all of them.
    order = sorted(range(len(patched)), key=lambda place: patched[place].attention is ActivationSource.TUNED)
    in_order = [patched[place] for place in order]
    counts = [sum(run.attention is source for run in patched) for source in ActivationSource]

    def by_draw(values: jax.Array) -> dict[tuple[Ablation, int], jax.Array]:
        parts = values.reshape(-1, batch, *values.shape[1:])
        return {(Ablation.RESAMPLE, draw): part for draw, part in enumerate(parts)}

    def by_group(mean: jax.Array | None) -> dict[tuple[Ablation, int], jax.Array]:
        return {} if mean is None else {(Ablation.MEAN, number): each for number, each in spread(mean).items()}

    # What is added in each of the three places (`Added`) is looked up by ablation and number.
    start = {(Ablation.NOTHING, 0): jnp.zeros_like(pair.start), (Ablation.OWN, 0): pair.start}
    start |= by_group(None if means is None else means.start)
    if others is not None:
        start |= by_draw(others.start)

    def step(carry: _Tokens, scanned: Any) -> tuple[_Tokens, None]:
        # Both runs and the other images advance in the same scan as the runs that take from them: no layer's attention
        # outlives its layer, so memory does not grow with depth.
        frozen, changed, mean_attention, mean_mlp = scanned
        reference, view = tower.observe_block(carry.reference, frozen, pair.reference, pair.config)
        # R is observed at its own tokens: its A and m are those of the frozen model, whatever the patched runs do.
        of_reference = pair.parts(view)
        # P runs whole, with its own slots in the sequence, so that what it adds is measured on its way and on no other.
        tuned, of_tuned, beyond = pair.observe(carry.tuned, frozen, changed)
        attention = {(Ablation.NOTHING, 0): of_reference.added, (Ablation.OWN, 0): of_tuned.added}
        attention |= by_group(mean_attention)
        mlp = by_group(mean_mlp) | ({} if beyond is None else {(Ablation.OWN, 0): beyond})
        of_others = carry.others
        if others is not None and of_others is not None:
            of_others, parts, beyond = others.observe(of_others, frozen, changed)
            attention |= by_draw(parts.added)
            mlp |= {} if beyond is None else by_draw(beyond)
        parts_of = {ActivationSource.REFERENCE: of_reference, ActivationSource.TUNED: of_tuned}
        hooks = _given(
            # An attention that no patched run takes needs no product.
            [parts_of[source].attention for source, count in zip(ActivationSource, counts, strict=True) if count],
            [count for count in counts if count],
            [parts_of[run.mass].mass for run in in_order],
            [attention[run.added, run.number] for run in in_order],
            [mlp.get((run.added, run.number)) for run in in_order],
        )
        return _Tokens(reference, tuned, of_others, run_block(carry.patched, frozen, pair.config, hooks)), None

    tokens = _Tokens(
        reference=pair.reference.tokens,
        tuned=pair.tuned.tokens,
        others=None if others is None else others.tuned.tokens,
        patched=jnp.stack([pair.reference.tokens + start[run.added, run.number] for run in in_order]),
    )
    of_layers = (None, None) if means is None else (means.attention, means.mlp)
    tokens, _ = jax.lax.scan(step, tokens, (pair.reference.layers, pair.tuned.layers, *of_layers))
    # Prompts lie behind the inputs, so the read-out row is at the same position in all runs.
    pooled = pair.reference.pooled
    reference = read(tower.take_rows(tokens.reference, pooled), ActivationSource.REFERENCE)
    features = [
        read(tower.take_rows(tokens.patched[order.index(place)], pooled), run.readout)
        for place, run in enumerate(patched)
    ]
    return jnp.stack([reference, read(tower.take_rows(tokens.tuned, pooled), ActivationSource.TUNED), *features])


def _given(
    attentions: Sequence[jax.Array],
    counts: Sequence[int],
    masses: Sequence[jax.Array],
    at_attention: Sequence[jax.Array],
    at_mlp: Sequence[jax.Array | None] = (),
    *,
    tap: Tap = checkpoint_name,
) -> BlockHooks:
    """Hooks of a frozen block on patched runs `[K, B, N, D]` with given A (each for the next `counts`), m and s."""

    def attention(normed: jax.Array, weights: layers.Weights, config: TowerConfig, tap: Tap) -> jax.Array:
        values = layers.split_heads(layers.dense(normed, layers.outputs(weights["qkv"], 2, 3)), config.heads)
        seen = []
        first = 0
        for probabilities, count in zip(attentions, counts, strict=True):
            part = values[first : first + count]
            # Values are of the patched run's own tokens: attention is patched, the information that it moves is not.
            seen.append(jnp.einsum("BHNM,KBMHC->KBNHC", probabilities.astype(values.dtype), part))
            first += count
        # Slots take their share of the softmax even where they add nothing: `1 − m` is what is left to the inputs.
        scale = jnp.stack([1 - mass for mass in masses]).astype(values.dtype)
        heads = jnp.concatenate(seen) * scale[..., None]
        added = jnp.stack([jnp.broadcast_to(part, normed.shape[1:]) for part in at_attention])
        return layers.dense(heads.reshape(normed.shape), weights["out"]) + added.astype(normed.dtype)

    def after(output: jax.Array, inputs: jax.Array) -> jax.Array:
        # A run without an addition gets zeros, since all runs share one stacked array.
        added = [jnp.broadcast_to(0.0 if part is None else part, output.shape[1:]) for part in at_mlp]
        return output + jnp.stack(added).astype(output.dtype)

    # No hook where there is nothing to add: the compiled block then has no addition of zeros.
    if all(part is None for part in at_mlp):
        return BlockHooks(attention, tap=tap)
    return BlockHooks(attention, tap=tap, after=after)


@jax.jit(static_argnums=0)
def added_to_images(
    config: ClipConfig, params: Params, images: jax.Array, members: jax.Array, tuned: Adaptation
) -> Totals:
    """Computes the means of what the tuned run adds to normalised images `[B, R, R, 3]`, over groups of them.

    Always in float32. `members [B, G]` says which groups an image is in. Returns "start" (`mean [G, N, D]`),
    "attention" (`[L, G, N, D]`), and "mlp" where the method changes blocks. `tuned` has at most one set of prompts.
    """
    with jax.default_matmul_precision("highest"):
        pair = image_pair(params, config, images, tuned, "float32")
        # A mean of differences between nearly equal outputs: always float32 and full precision, whatever the model
        # computes in.
        return _sum_added(pair, lambda values: Moments.of_groups(values, members))


def added_to_texts(
    config: ClipConfig, params: Params, tokens: TextTokens, tuned: Adaptation, reference: Adaptation
) -> Totals:
    """Computes `added_to_images` for texts `[C, N]` up to their ends, by kind: `mean [K, D]` and `[L, K, D]`."""

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
        # By kind at once, not by position first: class names differ in length, so a position has no token of its own.
        counted = tokens.counted & mask[:, None]

        def sums(values: jax.Array) -> Moments:
            rows = values.reshape(-1, values.shape[-1])
            moments = [Moments.of(rows, (counted & (pair.kinds == kind)).reshape(-1)) for kind in range(_TEXT_KINDS)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)

        return _sum_added(pair, sums)


def _sum_added(pair: RunPair, sums: Callable[[jax.Array], Moments]) -> Totals:
    def step(tokens: jax.Array, scanned: tuple[LayerInput, LayerInput]) -> tuple[jax.Array, Totals]:
        # Only P's tokens are carried: R is needed at the embedding alone, since `observe` runs frozen blocks on P's
        # tokens.
        tokens, parts, beyond = pair.observe(tokens, *scanned)
        added = {"attention": parts.added, "mlp": beyond}
        return tokens, {name: sums(values) for name, values in added.items() if values is not None}

    totals = jax.lax.scan(step, pair.tuned.tokens, (pair.reference.layers, pair.tuned.layers))[1]
    return totals | {"start": sums(pair.start)}
