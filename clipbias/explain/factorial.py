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

Between R's values and P's lie *levels*: what the tuned run adds on average, or for another image (`levels`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from clipbias.clip import Adaptation, TextTokens, block, tower
from clipbias.clip.block import run_block
from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import project_text
from clipbias.clip.vision import project_image
from clipbias.errors import ClipbiasError
from clipbias.explain.added import Added, by_kind
from clipbias.explain.results import EFFECTS
from clipbias.explain.run_pair import RunPair, given_attention, image_pair, text_pair

_RUNS = "RP"


def effects_in_play(slots: bool) -> tuple[str, ...]:
    """The effects that a method can have, with slots or without."""
    return EFFECTS if slots else ("attention", "values")


def corners(effects: Sequence[str]) -> tuple[str, ...]:
    """Names of all mixtures, a letter for each effect; the first is the reference, the last the tuned model."""
    return tuple("".join(letters) for letters in itertools.product(_RUNS, repeat=len(effects)))


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One mixture: which run its attention and its scale come from, and what its values are."""

    attention: str
    scale: str
    values: str

    @property
    def blocks(self) -> str:
        """Whose blocks compute it: levels between nothing and the tuned run's values are added to frozen blocks."""
        return "P" if self.values == "P" else "R"

    @classmethod
    def named(cls, name: str, known: Iterable[str] = _RUNS) -> "_Stream":
        letters = name if len(name) > 2 else f"{name[:1]}R{name[1:]}"
        if len(letters) != 3 or set(letters[:2]) - set(_RUNS) or letters[2] not in known:
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


@with_precision
def mix_images(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    tuned: Adaptation,
    reference: Adaptation,
    streams: Sequence[str],
    constants: Mapping[str, Added] | None = None,
    donors: jax.Array | None = None,
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
      streams: names of corners; as their last letter also the name of a constant, or the number of a donor.
      constants: what stands for the tuned run's values, by kind of token, by letters.
      donors: `[d, B, R, R, 3]`: images whose values stand for those of the `B` images.
      dtype: compute type by name.

    Raises:
      ClipbiasError: there is no such mixture.
    """
    pair = image_pair(params, config, images, tuned, reference, dtype)
    of_donors = None
    if donors is not None:
        of_donors = image_pair(params, config, donors.reshape(-1, *images.shape[1:]), tuned, reference, dtype)

    def read(rows: jax.Array, adaptation: Adaptation) -> jax.Array:
        return project_image(params, config, rows, adaptation)

    return _mix(pair, streams, tuned, reference, read, constants or {}, of_donors)


@with_precision
def mix_texts(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    tuned: Adaptation,
    reference: Adaptation,
    streams: Sequence[str],
    constants: Mapping[str, Added] | None = None,
    *,
    dtype: str = "float32",
) -> Mixed:
    """`mix_images` for texts `[C, N]`: `reference` has the context that training started from, nothing replaced."""
    pair = text_pair(params, config, tokens, tuned, reference, dtype)

    def read(rows: jax.Array, adaptation: Adaptation) -> jax.Array:
        return project_text(params, config, rows, adaptation)

    return _mix(pair, streams, tuned, reference, read, constants or {})


def _mix(
    pair: RunPair,
    names: Sequence[str],
    tuned: Adaptation,
    reference: Adaptation,
    read: Callable[[jax.Array, Adaptation], jax.Array],
    constants: Mapping[str, Added],
    donors: RunPair | None = None,
) -> Mixed:
    donor_letters = () if donors is None else map(str, range(len(donors.tuned.tokens) // len(pair.tuned.tokens)))
    known = {*_RUNS, *constants, *donor_letters}
    streams = [_Stream.named(name, known) for name in names]
    # Streams with the same blocks lie side by side, those with the reference's attention first.
    groups = {
        run: sorted((s for s in streams if s.blocks == run), key=lambda s: s.attention != "R")
        for run in _RUNS
        if any(s.blocks == run for s in streams)
    }
    starts = {"R": pair.reference.tokens, "P": pair.tuned.tokens[:, : pair.inputs]}
    levels = {letter: by_kind(added.start, pair.kinds) for letter, added in constants.items()}
    levels |= _by_donor(None if donors is None else donors.start, pair)
    starts |= {letter: starts["R"] + level for letter, level in levels.items()}
    mixtures = {run: jnp.stack([starts[stream.values] for stream in group]) for run, group in groups.items()}

    def step(carry: _Tokens, inputs: tuple[block.LayerInput, block.LayerInput, _Layers]) -> tuple[_Tokens, None]:
        reference, seen = tower.observe_block(carry.reference, inputs[0], pair.reference, pair.config)
        tuned, seen_tuned = tower.observe_block(carry.tuned, inputs[1], pair.tuned, pair.config)
        parts = {"R": pair.part(seen), "P": pair.part(seen_tuned)}
        slots = {run: part.slots for run, part in parts.items()}
        beyond: dict[str, jax.Array] = {}
        for letter, (of_slots, of_blocks) in inputs[2].items():
            slots[letter] = by_kind(of_slots, pair.kinds)
            if of_blocks is not None:
                beyond[letter] = by_kind(of_blocks, pair.kinds)
        of_donors = carry.donors
        if donors is not None and of_donors is not None:
            of_donors, seen_donors = tower.observe_block(of_donors, inputs[1], donors.tuned, pair.config)
            part = donors.part(seen_donors)
            slots |= _by_donor(part.slots, pair)
            beyond |= _by_donor(donors.beyond(inputs[0], seen_donors, part, of_donors), pair)
        layer = {"R": inputs[0], "P": inputs[1]}
        mixtures = {}
        for run, x in carry.mixtures.items():
            group = groups[run]
            first = sum(stream.attention == "R" for stream in group)
            counts = {"R": first, "P": len(group) - first}
            hooks = given_attention(
                [parts[letter].attention for letter, count in counts.items() if count],
                [count for count in counts.values() if count],
                [parts[stream.scale].mass for stream in group],
                [slots[stream.values] for stream in group],
                pair.bias_rows(run),
                [beyond.get(stream.values) for stream in group],
            )
            mixtures[run] = run_block(x, layer[run], pair.config, hooks)
        return _Tokens(reference, tuned, of_donors, mixtures), None

    by_layer = {letter: (added.slots, added.blocks) for letter, added in constants.items()}
    carry = _Tokens(pair.reference.tokens, pair.tuned.tokens, None if donors is None else donors.tuned.tokens, mixtures)
    tokens, _ = jax.lax.scan(step, carry, (pair.reference.layers, pair.tuned.layers, by_layer))
    pooled = pair.reference.pooled
    features = {
        stream: read(tower.take_rows(x[place], pooled), reference if stream.values == "R" else tuned)
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


_Layers = Mapping[str, tuple[jax.Array, jax.Array | None]]


class _Tokens(NamedTuple):
    """Tokens of both runs, of donors, and of the mixtures `[K, B, N, D]`, by the run that their blocks are of."""

    reference: jax.Array
    tuned: jax.Array
    donors: jax.Array | None
    mixtures: dict[str, jax.Array]


def _by_donor(values: jax.Array | None, pair: RunPair) -> dict[str, jax.Array]:
    """`[d · B, N, D]` of `d` donors for each of `B` images, by the donors' letters."""
    if values is None:
        return {}
    batch = pair.reference.tokens.shape[0]
    return {str(number): part for number, part in enumerate(values.reshape(-1, batch, *values.shape[1:]))}
