"""What an adaptation method may add to the frozen model: the one argument through which all of them act.

Parts that do not fit a tower are refused here, each in one sentence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip.config import ClipConfig, TextConfig, TowerConfig
from clipbias.clip.layers import Weights
from clipbias.errors import ClipbiasError


@struct.dataclass
class Adaptation:
    """A pytree of additions to a frozen CLIP. Absent (`None`) parts cost nothing.

    Attributes:
      text_context: `[T, Dt]`, or `[S, T, Dt]`, each of `S` contexts for as many texts in a row (a class's, or a
        template's). Replaces the token embeddings of the context positions, before position embeddings are added.
      text_prompts: `[depth - 1, T, Dt]`. Row `i - 1` replaces the context tokens at the input of block `i`, nothing
        added; from block `depth` on nothing is replaced.
      text_class_prompts: `[C, T, Dt]`, which replace each class's context tokens at the input of block
        `text_class_block` alone, nothing added (TCP, Yao et al. 2024). Not beside `text_prompts`.
      text_tokens: `[n, T, Dt]`, tokens of the last `n` blocks (MMRL, Guo & Gu 2025). Row 0 is inserted behind SOS at
        the input of the first of these blocks, no position added; the other rows replace it at theirs. Not beside
        prompts of deeper layers, nor a bias that differs between tokens. In towers of unequal depth the last `n` blocks
        are the shallower tower's, and the deeper one's of the same numbers, whose later blocks run with these tokens.
      vision_tokens: `[n, V, Dv]`, likewise among the images' tokens, whose order does not matter.
      vision_readout: `[Dv, d]`: the mean of those tokens' outputs, after the post-LayerNorm, times this is a second
        feature of the image.
      vision_prompts: `[depth, V, Dv]`. Row 0 is appended after the position embeddings and before the pre-LayerNorm;
        row `i` replaces the prompt tokens at the input of block `i`. `[m, depth, V, Dv]`: `m` sets, a pass over the
        images for each.
      text_bias: added to the tokens after each block, the last one included. `[Lt, Dt]`: to every token. `[Lt, 2, Dt]`,
        by kind: row 0 to the token that is read out (EOS), row 1 to all others. `[Lt, N, Dt]`, by token: one row for
        each of the context length's positions.
      vision_bias: `[Lv, Dv]`, `[Lv, 2, Dv]` or `[Lv, 1 + M, Dv]`, likewise. By kind row 0 is that of `[cls]`, and
        prompts are others; by token prompts get nothing. Without `[cls]` there is a single kind, `[Lv, 1, Dv]`.
      text_adapters: a network beside each of the last `n` blocks (MMA, Yang et al. 2024), counted as for `text_tokens`:
        dense layers `down`, `middle` (optional) and `up` with ReLUs between them, `{"kernel": [n, inputs, outputs],
        "bias": [n, outputs]}` each, from `Dt` to `Dt`. It takes the block's input after its first LayerNorm, token by
        token, and is added to the block's output.
      vision_adapters: likewise, with `Dv`.
      text_residual: `[C, d]`, added to the class features before they are normalised (TaskRes, Yu et al. 2023).
      text_weights: changes of frozen weights, a part of the tree `params["text"]` with the same shapes
        (`layers.changed`): LoRA, BitFit, LayerNorm tuning. A bias of `layers/fc2` is what `text_bias` is.
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
        """Whether it folds into the weights of a plain CLIP. A bias does, as the MLPs' own, if all tokens share it."""
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


def check_prompts(prompts: jax.Array | None, geometry: TowerConfig, name: str, *, extra: int = 0) -> jax.Array | None:
    """Refuses prompts that do not fit the tower; an empty set of prompts counts as none."""
    if prompts is None or 0 in prompts.shape:
        return None
    if prompts.ndim != 3 or prompts.shape[-1] != geometry.width or prompts.shape[0] + extra > geometry.layers:
        raise ClipbiasError(
            f"{name} has shape {prompts.shape}; expected [depth, tokens, {geometry.width}] with depth at most "
            f"{geometry.layers - extra}."
        )
    return prompts


def check_bias(
    bias: jax.Array | None, geometry: TowerConfig, name: str, tokens: int, *, kinds: int = 2
) -> jax.Array | None:
    """Refuses a bias that has no row per layer, per kind or per token; of a single kind it becomes a row per layer."""
    if bias is None:
        return None
    vector = (geometry.layers, geometry.width)
    by_kind = (geometry.layers, kinds, geometry.width)
    by_token = (geometry.layers, tokens, geometry.width)
    if bias.shape not in (vector, by_kind, by_token):
        raise ClipbiasError(
            f"{name} has shape {bias.shape}; expected {vector}, {by_kind} by kind or {by_token} by token."
        )
    return bias[:, 0] if bias.shape == by_kind and kinds == 1 else bias


def check_inserted(adaptation: Adaptation, name: str, config: ClipConfig) -> jax.Array | None:
    """Tokens of a tower's blocks, `[n, T, D]`. Refuses those that do not fit, or not beside the other parts."""
    width = getattr(config, name).width
    most = config.common_blocks
    tokens = getattr(adaptation, f"{name}_tokens")
    bias = getattr(adaptation, f"{name}_bias")
    if tokens is None:
        return None
    if tokens.ndim != 3 or not 1 <= tokens.shape[0] <= most or tokens.shape[-1] != width:
        raise ClipbiasError(
            f"{name}_tokens have shape {tokens.shape}; expected [n, tokens, {width}] with n from 1 to {most}."
        )
    others = (f"{name}_prompts", "text_class_prompts") if name == "text" else (f"{name}_prompts",)
    if any(getattr(adaptation, part) is not None for part in others) or (bias is not None and bias.ndim > 2):
        raise ClipbiasError(
            f"{name}_tokens stand beside prompts of later blocks or a bias that differs between tokens; give one alone."
        )
    return tokens.astype(jnp.float32)


def check_adapters(adapters: Weights | None, config: ClipConfig, name: str) -> Weights | None:
    """Refuses networks that do not fit beside a tower's blocks."""
    if adapters is None:
        return None
    width = getattr(config, name).width
    most = config.common_blocks
    count = np.shape(adapters["down"]["kernel"])[0]
    inputs = width
    for part in [part for part in ("down", "middle", "up") if part != "middle" or part in adapters]:
        kernel = np.shape(adapters[part]["kernel"])
        bias = np.shape(adapters[part]["bias"])
        outputs = width if part == "up" else kernel[-1]
        if kernel != (count, inputs, outputs) or bias != (count, outputs) or count > most:
            raise ClipbiasError(
                f"{name}_adapters have {part!r} of shapes {kernel} and {bias}; expected {(count, inputs, outputs)} and "
                f"{(count, outputs)}, of at most {most} blocks."
            )
        inputs = outputs
    return adapters


def class_block(adaptation: Adaptation, geometry: TextConfig) -> int:
    """The block at whose input `text_class_prompts` are put in."""
    return min(adaptation.text_class_block, geometry.layers - 1)


def check_text_parts(adaptation: Adaptation, config: ClipConfig, texts: int, tokens: int) -> None:
    """Refuses text parts of an adaptation that do not fit the tower or the number of texts."""
    geometry = config.text
    context = adaptation.text_context
    check_prompts(adaptation.text_prompts, geometry, "text_prompts", extra=1)
    check_bias(adaptation.text_bias, geometry, "text_bias", geometry.context_length)
    check_adapters(adaptation.text_adapters, config, "text")
    if tokens > geometry.context_length:
        raise ClipbiasError(f"the texts have {tokens} tokens; this model reads at most {geometry.context_length}.")
    prompts = adaptation.text_class_prompts
    block = class_block(adaptation, geometry)
    if prompts is not None:
        if prompts.ndim != 3 or prompts.shape[0] != texts or prompts.shape[-1] != geometry.width:
            raise ClipbiasError(
                f"text_class_prompts have shape {prompts.shape}; expected [{texts}, T, {geometry.width}], of each text."
            )
        if block < 1 or adaptation.text_prompts is not None:
            raise ClipbiasError(
                f"text_class_prompts are put in at block {block}; it must be 1 at least, in a tower of two blocks or "
                "more, without text_prompts beside them."
            )
    if context is None:
        return
    if context.shape[-1] != geometry.width or context.ndim not in (2, 3):
        raise ClipbiasError(
            f"text_context has shape {context.shape}; expected [T, {geometry.width}] or [C, T, {geometry.width}]."
        )
    if context.ndim == 3 and texts % context.shape[0]:
        raise ClipbiasError(f"text_context holds {context.shape[0]} contexts; {texts} texts cannot share them evenly.")
