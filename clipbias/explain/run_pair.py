"""The reference run and the tuned run of a tower, layer by layer: what each gives its input tokens (`factorial`)."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from clipbias.clip import Adaptation, LayerView, TextTokens, layers, tower
from clipbias.clip.block import BlockHooks, Keep, LayerInput, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.text import embed_text
from clipbias.clip.vision import embed_image
from clipbias.explain.attention import renormalise
from clipbias.explain.intervention import image_rows, text_rows


class Parts(NamedTuple):
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
class RunPair:
    """Both runs of one tower up to the first block.

    Attributes:
      slots: bool `[N]` or `[B, N]` over the tuned run's tokens.
      kinds: int `[N]` or `[B, N]` over the first `inputs` tokens: 0 for the one that is read out, 1 for all others, -1
        for slots. All are 0 where a pooling head reads all tokens.
      inputs: the reference's number of tokens, which come first; slots beyond it are the tuned run's alone.
    """

    reference: tower.TowerInput
    tuned: tower.TowerInput
    slots: jax.Array
    kinds: jax.Array
    inputs: int
    config: TowerConfig

    def part(self, view: LayerView) -> Parts:
        """Of one run's layer."""
        count = self.inputs
        length = view.tokens.shape[1]
        on_slots = jnp.where(self.slots[..., None, None, :length], view.probabilities, 0)
        relative = renormalise((view.probabilities - on_slots)[..., :count, :count])
        mass = jnp.moveaxis(on_slots.sum(-1), 1, 2)[:, :count]
        return Parts(relative, mass, view.project(view.heads_output(on_slots)[:, :count]))

    def bias_rows(self, run: str) -> jax.Array | None:
        """Which row of that run's bias each input token gets."""
        rows = (self.reference if run == "R" else self.tuned).bias_rows
        return None if rows is None else rows[..., : self.inputs]

    @property
    def start(self) -> jax.Array:
        """What the tuned run's input tokens have beyond the reference's before the first block, `[B, N, D]`."""
        return self.tuned.tokens[:, : self.inputs] - self.reference.tokens

    @property
    def changes_blocks(self) -> bool:
        """Whether the tuned run's blocks have more than tokens of their own."""
        changed = self.tuned.layers
        return any(part is not None for part in (changed.bias, changed.changes, changed.adapters))

    def beyond(self, frozen: LayerInput, view: LayerView, parts: Parts, output: jax.Array) -> jax.Array | None:
        """What a tuned block gives input tokens beyond the frozen one on the same tokens, `[B, N, D]`, or `None`.

        The frozen block has the tuned run's attention, scale and slots, so this is what weights, biases and networks
        beside it change otherwise.

        Args:
          frozen: the reference's layer.
          view: of the tuned block.
          parts: of the tuned run here.
          output: of the tuned block, of all its tokens.
        """
        if not self.changes_blocks:
            return None
        hooks = given_attention([parts.attention], [1], [parts.mass], [parts.slots], self.bias_rows("R"))
        tokens = view.tokens[:, : self.inputs]
        return output[:, : self.inputs] - run_block(tokens[None], frozen, self.config, hooks)[0]


def image_pair(
    params: Params, config: ClipConfig, images: jax.Array, tuned: Adaptation, reference: Adaptation, dtype: str
) -> RunPair:
    """Of images `[B, R, R, 3]`."""
    runs = [embed_image(params, config, images, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    inputs = config.vision.tokens
    slots = jnp.arange(runs[1].tokens.shape[1]) >= inputs
    return RunPair(runs[0], runs[1], slots, jnp.asarray(image_rows(config, inputs)), inputs, config.vision)


def text_pair(
    params: Params, config: ClipConfig, tokens: TextTokens, tuned: Adaptation, reference: Adaptation, dtype: str
) -> RunPair:
    """Of texts `[C, N]`."""
    runs = [embed_text(params, config, tokens, adaptation, dtype=dtype) for adaptation in (reference, tuned)]
    kinds = text_rows(tokens, slots=tuned.text_context is not None)
    return RunPair(runs[0], runs[1], text_slots(tokens, tuned), kinds, tokens.ids.shape[1], config.text)


def text_slots(tokens: TextTokens, tuned: Adaptation) -> jax.Array:
    """Positions of a text that hold learned tokens, bool `[C, N]`."""
    rows = jnp.asarray(tokens.context_rows)
    return (rows >= 0) & (tuned.text_context is not None)


def given_attention(
    attentions: Sequence[jax.Array],
    counts: Sequence[int],
    masses: Sequence[jax.Array],
    slots: Sequence[jax.Array],
    bias_rows: jax.Array | None,
    beyond: Sequence[jax.Array | None] = (),
) -> BlockHooks:
    """Of a block of tokens `[K, B, N, D]` whose attention is given; all else is computed on their own tokens.

    Args:
      attentions: `A [B, H, N, N]`.
      counts: for how many of the `K`, in a row, each of them is.
      masses: `m [B, N, H]` of each.
      slots: `s` of each, `[B, N, D]`.
      bias_rows: which row of the layer's bias each token gets.
      beyond: what each gets after the block, `[B, N, D]`, or `None`.
    """

    def attention(normed: jax.Array, weights: layers.Weights, config: TowerConfig, keep: Keep) -> jax.Array:
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
        return BlockHooks(attention, bias_rows=bias_rows, after=after)
    return BlockHooks(attention, bias_rows=bias_rows)
