"""What an adaptation method may add to the frozen model: the one argument through which all of them act."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct


@struct.dataclass
class Adaptation:
    """A pytree of additions to a frozen CLIP. Absent (`None`) parts cost nothing.

    Attributes:
      text_context: `[T, Dt]`, or `[S, T, Dt]` where each of `S` contexts is that of as many texts in a row: one per
        class, or one per template. Replaces the token embeddings of the context positions, before position embeddings
        are added.
      text_prompts: `[depth - 1, T, Dt]`. Row `i - 1` replaces the context tokens at the input of block `i`, nothing
        added; from block `depth` on nothing is replaced.
      text_class_prompts: `[C, T, Dt]`, prompts of each class (TCP, Yao et al. 2024), which replace the context tokens
        at the input of block `text_class_block`, nothing added, and of no other. Not beside `text_prompts`.
      text_tokens: `[n, T, Dt]`, tokens of the last `n` blocks (MMRL, Guo & Gu 2025). Those of row 0 are inserted behind
        SOS at the input of the first of these blocks, no position added, and replaced by the others' at theirs. Not
        beside other prompts of deeper layers, nor a bias that differs between tokens. In towers of unequal depth the
        last `n` blocks are those of the shallower tower, and of the deeper one the blocks with the same numbers from
        the start; the deeper tower's later blocks run with the tokens as they come.
      vision_tokens: `[n, V, Dv]`, likewise among the images' tokens, whose order does not matter.
      vision_readout: `[Dv, d]`: the mean of those tokens' outputs, after the post-LayerNorm, times this is a second
        feature of the image.
      vision_prompts: `[depth, V, Dv]`. Row 0 is appended after the position embeddings and before the pre-LayerNorm;
        row `i` replaces the prompt tokens at the input of block `i`. `[m, depth, V, Dv]` are `m` sets, each for a pass
        of its own over the images.
      text_bias: added to the tokens after each block, the last one included. `[Lt, Dt]`: one vector, to every token.
        `[Lt, 2, Dt]`, by kind: row 0 to the token that is read out (EOS), row 1 to all others. `[Lt, N, Dt]`, by token:
        one row for each of the context length's positions.
      vision_bias: `[Lv, Dv]`, `[Lv, 2, Dv]` or `[Lv, 1 + M, Dv]`, likewise. By kind row 0 is that of `[cls]`, and
        prompts are others; by token prompts get nothing. Without `[cls]` there is a single kind, `[Lv, 1, Dv]`.
      text_adapters: a network beside each of the last `n` blocks (MMA, Yang et al. 2024), as counted for `text_tokens`:
        dense layers `down`, `middle` (which may be left out) and `up`, `{"kernel": [n, inputs, outputs], "bias": [n,
        outputs]}` each, from `Dt` inputs to `Dt` outputs, with ReLUs between them. Of the block's input after its first
        LayerNorm, token by token, it makes what is added to the block's output.
      vision_adapters: likewise, with `Dv`.
      text_residual: `[C, d]`, added to the class features before they are normalised (TaskRes, Yu et al. 2023).
      text_weights: changes of the text tower's frozen weights, a part of the tree `params["text"]` with the same shapes
        (`weight_changes.py`): LoRA, BitFit, LayerNorm tuning. A bias of `layers/fc2` is what `text_bias` is.
      vision_weights: likewise of `params["vision"]`.
      pixels: `[R, R, 3]`, added to the normalised images (visual prompting, Bahng et al. 2022).
      text_class_block: counted from 0, at least 1; a shallower tower's last. It is no leaf of the tree.
    """

    text_context: jax.Array | None = None
    text_prompts: jax.Array | None = None
    text_class_prompts: jax.Array | None = None
    text_tokens: jax.Array | None = None
    vision_tokens: jax.Array | None = None
    vision_readout: jax.Array | None = None
    vision_prompts: jax.Array | None = None
    text_bias: jax.Array | None = None
    vision_bias: jax.Array | None = None
    text_adapters: Mapping[str, Any] | None = None
    vision_adapters: Mapping[str, Any] | None = None
    text_residual: jax.Array | None = None
    text_weights: Mapping[str, Any] | None = None
    vision_weights: Mapping[str, Any] | None = None
    pixels: jax.Array | None = None
    text_class_block: int = struct.field(pytree_node=False, default=0)

    @property
    def changes_text(self) -> bool:
        """Whether the text tower's tokens depend on this adaptation (a residual acts after the tower)."""
        parts = (self.text_context, self.text_prompts, self.text_class_prompts, self.text_tokens)
        others = (self.text_bias, self.text_weights, self.text_adapters)
        return any(part is not None for part in (*parts, *others))

    @property
    def changes_vision(self) -> bool:
        """Whether the vision tower's tokens depend on this adaptation."""
        parts = (self.vision_prompts, self.vision_tokens, self.vision_bias, self.vision_weights, self.vision_adapters)
        return any(part is not None for part in (*parts, self.pixels))

    @property
    def inserts_tokens(self) -> bool:
        """Whether a tower's later blocks have more tokens than its first ones."""
        return self.text_tokens is not None or self.vision_tokens is not None

    @property
    def only_changes_weights(self) -> bool:
        """Whether it can be folded into the weights of a plain CLIP: biases are changes of the MLPs' own.

        A bias that differs between tokens is not, since the weights are the same for all of them.
        """
        fields = [field.name for field in dataclasses.fields(self) if field.metadata.get("pytree_node", True)]
        held = {name for name in fields if getattr(self, name) is not None}
        folds = {"text_bias", "vision_bias", "text_weights", "vision_weights"}
        return bool(held) and held <= folds and not self.bias_differs_between_tokens

    @property
    def bias_differs_between_tokens(self) -> bool:
        """Whether a bias is by kind or by token."""
        shapes = (bias.shape for bias in (self.text_bias, self.vision_bias) if bias is not None)
        return any(len(shape) > 2 and shape[1] > 1 for shape in shapes)


NOTHING = Adaptation()
