"""The causal test of what a method does: two runs side by side, and every mixture of their effects.

R is the reference, the frozen model on the same input, and P the tuned model. *Slots* are the positions that a method
fills with learned tokens (images: prompts appended; texts: the context, where R has the words that training started
from); all other tokens are *inputs*. Of each run a layer gives three things, for input tokens as queries, per head:

    A    relative attention: the probabilities among input tokens, renormalised to 1
    m    the attention that goes to slots, by which what inputs give is scaled
    s    what slots add, `W_o cat_h(Σ_{k slot} a_ik v_k)`, without the output's bias

so that a run's attention gives `W_o cat_h((1 − m) Σ_j A_ij v_j) + b_o + s_i`. A *corner* takes each of attention (A),
scale (m) and values (s) from R or from P and computes the blocks on input tokens of its own:

    PRR  attention only: hypothesis (a), tested through all later layers
    RPR  scale only, Fig. 1's "½×"
    RRP  values under frozen attention: hypothesis (b), if they are the same for every image

RRR is the reference and PPP the tuned model, to rounding. Values hold whatever else the tuned run has: where a method
changes blocks, biases or pixels, corners whose values are P's compute with those. Without slots scale is left out.

Whether what is added may be a constant is another question, and has a test of its own (`intervention_classifier`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import Adaptation, LayerView, TextTokens, layers, scan, tower
from clipbias.clip.block import BlockHooks, Keep, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image
from clipbias.errors import ClipbiasError
from clipbias.explain.attention import renormalise
from clipbias.explain.results import EFFECTS

_RUNS = "RP"


def effects_in_play(slots: bool) -> tuple[str, ...]:
    """The effects that a method can have, with slots or without."""
    return EFFECTS if slots else ("attention", "values")


def corners(effects: Sequence[str]) -> tuple[str, ...]:
    """Names of all mixtures, a letter for each effect; the first is the reference, the last the tuned model."""
    return tuple("".join(letters) for letters in itertools.product(_RUNS, repeat=len(effects)))


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One mixture: which run its attention, its scale and its values come from."""

    attention: str
    scale: str
    values: str

    @classmethod
    def named(cls, name: str) -> "_Stream":
        letters = name if len(name) > 2 else f"{name[:1]}R{name[1:]}"
        if len(letters) != 3 or set(letters) - set(_RUNS):
            raise ClipbiasError(f"unknown mixture {name!r}; give letters R and P for {', '.join(EFFECTS)}.")
        return cls(*letters)


@struct.dataclass
class Mixed:
    """Features as a tower makes them, not normalised.

    Attributes:
      reference, tuned: of the two runs, `[B, d]`.
      streams: of the mixtures, `[K, B, d]`.
    """

    reference: jax.Array
    tuned: jax.Array
    streams: jax.Array


class _Parts(NamedTuple):
    """What a layer of one run gives `N` input tokens.

    Attributes:
      attention: `A [B, H, N, N]`.
      mass: `m [B, N, H]`.
      slots: `s [B, N, D]`.
    """

    attention: jax.Array
    mass: jax.Array
    slots: jax.Array


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Both runs of one tower up to the first block.

    Attributes:
      slots: bool `[N]` or `[B, N]` over the tuned run's tokens.
      inputs: the reference's number of tokens, which come first; slots beyond it are the tuned run's alone.
    """

    reference: tower.TowerInput
    tuned: tower.TowerInput
    slots: jax.Array
    inputs: int
    config: TowerConfig

    def part(self, view: LayerView) -> _Parts:
        """Of one run's layer."""
        count = self.inputs
        length = view.tokens.shape[1]
        on_slots = jnp.where(self.slots[..., None, None, :length], view.probabilities, 0)
        relative = renormalise((view.probabilities - on_slots)[..., :count, :count])
        mass = jnp.moveaxis(on_slots.sum(-1), 1, 2)[:, :count]
        return _Parts(relative, mass, view.project(view.heads_output(on_slots)[:, :count]))

    def bias_rows(self, run: str) -> jax.Array | None:
        """Which row of that run's bias each input token gets."""
        rows = (self.reference if run == "R" else self.tuned).bias_rows
        return None if rows is None else rows[..., : self.inputs]


def _image_pair(
    params: Params, config: ClipConfig, images: jax.Array, tuned: Adaptation, reference: Adaptation, dtype: str
) -> _Pair:
    runs = [embed_image(params, config, images, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    inputs = config.vision.tokens
    return _Pair(runs[0], runs[1], jnp.arange(runs[1].tokens.shape[1]) >= inputs, inputs, config.vision)


def _text_pair(
    params: Params, config: ClipConfig, tokens: TextTokens, tuned: Adaptation, reference: Adaptation, dtype: str
) -> _Pair:
    runs = [embed_text(params, config, tokens, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    return _Pair(runs[0], runs[1], text_slots(tokens, tuned), tokens.ids.shape[1], config.text)


def text_slots(tokens: TextTokens, tuned: Adaptation) -> jax.Array:
    """Positions of a text that hold learned tokens, bool `[C, N]`."""
    rows = jnp.asarray(tokens.context_rows)
    return (rows >= 0) & (tuned.text_context is not None)


@with_precision
def mix_images(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    tuned: Adaptation,
    reference: Adaptation,
    streams: Sequence[str],
    *,
    dtype: str = "float32",
) -> Mixed:
    """Image features of both runs and of every mixture, advanced side by side through one scan over layers.

    Args:
      params: the frozen weights.
      config: geometry.
      images: `[B, R, R, 3]`, normalised.
      tuned: what the method adds; its prompts are the slots.
      reference: what the reference run has, `Adaptation()` for images.
      streams: names of corners.
      dtype: compute type by name.

    Raises:
      ClipbiasError: there is no such mixture.
    """
    pair = _image_pair(params, config, images, tuned, reference, dtype)

    def read(rows: jax.Array, adaptation: Adaptation) -> jax.Array:
        return project_image(params, config, rows, adaptation)

    return _mix(pair, streams, tuned, reference, read)


@with_precision
def mix_texts(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    tuned: Adaptation,
    reference: Adaptation,
    streams: Sequence[str],
    *,
    dtype: str = "float32",
) -> Mixed:
    """`mix_images` for texts `[C, N]`: `reference` has the context that training started from, nothing replaced."""
    pair = _text_pair(params, config, tokens, tuned, reference, dtype)

    def read(rows: jax.Array, adaptation: Adaptation) -> jax.Array:
        return project_text(params, config, rows, adaptation)

    return _mix(pair, streams, tuned, reference, read)


def _mix(
    pair: _Pair,
    names: Sequence[str],
    tuned: Adaptation,
    reference: Adaptation,
    read: Callable[[jax.Array, Adaptation], jax.Array],
) -> Mixed:
    streams = [_Stream.named(name) for name in names]
    # Streams whose values are of the same run lie side by side, those with the reference's attention first.
    groups = {
        run: sorted((s for s in streams if s.values == run), key=lambda s: s.attention != "R")
        for run in _RUNS
        if any(s.values == run for s in streams)
    }
    starts = {"R": pair.reference.tokens, "P": pair.tuned.tokens[:, : pair.inputs]}
    mixtures = {run: jnp.stack([starts[run] for _ in group]) for run, group in groups.items()}

    def step(carry: _Tokens, inputs: tuple[scan.LayerInput, scan.LayerInput]) -> tuple[_Tokens, None]:
        reference, seen = tower.observe_block(carry.reference, inputs[0], pair.reference, pair.config)
        tuned, seen_tuned = tower.observe_block(carry.tuned, inputs[1], pair.tuned, pair.config)
        parts = {"R": pair.part(seen), "P": pair.part(seen_tuned)}
        layer = {"R": inputs[0], "P": inputs[1]}
        mixtures = {
            run: run_block(x, layer[run], pair.config, _hooks(groups[run], parts, pair.bias_rows(run)))
            for run, x in carry.mixtures.items()
        }
        return _Tokens(reference, tuned, mixtures), None

    carry = _Tokens(pair.reference.tokens, pair.tuned.tokens, mixtures)
    tokens, _ = jax.lax.scan(step, carry, (pair.reference.layers, pair.tuned.layers))
    pooled = pair.reference.pooled
    adaptations = {"R": reference, "P": tuned}
    features = {
        stream: read(tower.take_rows(x[place], pooled), adaptations[run])
        for run, x in tokens.mixtures.items()
        for place, stream in enumerate(groups[run])
    }
    of_streams = jnp.zeros((0, len(pair.reference.tokens), 0))
    if streams:
        of_streams = jnp.stack([features[stream] for stream in streams])
    return Mixed(
        reference=read(tower.take_rows(tokens.reference, pooled), reference),
        tuned=read(tower.take_rows(tokens.tuned, pooled), tuned),
        streams=of_streams,
    )


class _Tokens(NamedTuple):
    """Tokens of both runs and of the mixtures `[K, B, N, D]`, by the run that their values are of."""

    reference: jax.Array
    tuned: jax.Array
    mixtures: dict[str, jax.Array]


def _hooks(group: Sequence[_Stream], parts: Mapping[str, _Parts], bias_rows: jax.Array | None) -> BlockHooks:
    """Of a block of the streams `[K, B, N, D]` of a group: attention as they name it, all else on their own tokens."""
    first = sum(stream.attention == "R" for stream in group)

    def attention(normed: jax.Array, weights: layers.Weights, config: TowerConfig, keep: Keep) -> jax.Array:
        values = layers.split_heads(layers.dense(normed, layers.outputs(weights["qkv"], 2, 3)), config.heads)
        seen = [
            jnp.einsum("BHNM,KBMHC->KBNHC", parts[run].attention.astype(values.dtype), part)
            for run, part in (("R", values[:first]), ("P", values[first:]))
            if part.shape[0]
        ]
        scale = jnp.stack([1 - parts[stream.scale].mass for stream in group]).astype(values.dtype)
        heads = jnp.concatenate(seen) * scale[..., None]
        slots = jnp.stack([jnp.broadcast_to(parts[stream.values].slots, normed.shape[1:]) for stream in group])
        return layers.dense(heads.reshape(normed.shape), weights["out"]) + slots.astype(normed.dtype)

    return BlockHooks(attention, bias_rows=bias_rows)
