"""`Adaptation`: all that a method may add to the frozen model, as one argument; checks of its shapes, and folding."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip.config import ClipConfig, TextConfig, TowerConfig
from clipbias.clip.layers import Weights, changed, check_changes, fold_changes
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.errors import ClipbiasError


@struct.dataclass
class Adaptation:
    """A pytree of additions to a frozen CLIP. Absent (`None`) parts cost nothing.

    Attributes:
      text_context: `[T, Dt]`, or `[S, T, Dt]` for `S` equal spans of the texts (a class or a template each). Replaces
        the token embeddings of the context positions, before position embeddings are added.
      text_prompts: `[depth - 1, T, Dt]`. Row `i - 1` replaces the context tokens at the input of block `i`; blocks from
        `depth` on replace nothing.
      text_class_prompts: `[C, T, Dt]` replace each class's context tokens at the input of block `text_class_block`
        (TCP, Yao et al. 2024). Not with `text_prompts`.
      text_tokens: `[n, T, Dt]`, tokens of the last `n` blocks (MMRL, Guo & Gu 2025). Row 0 is inserted behind SOS at
        the first of these blocks, without a position; the other rows replace it at theirs. Not with prompts of deeper
        layers or a bias that differs between tokens. If the towers differ in depth, the blocks are the last `n` of the
        shallower tower and those of the same numbers in the deeper one, whose later blocks keep the tokens.
      vision_tokens: `[n, V, Dv]`, likewise; inserted behind all other tokens.
      vision_readout: `[Dv, d]`: a second feature of an image is the mean output of `vision_tokens`, after the
        post-LayerNorm, times this.
      vision_prompts: `[depth, V, Dv]`. Row 0 is appended after the position embeddings and before the pre-LayerNorm;
        row `i` replaces the prompt tokens at the input of block `i`. `[m, depth, V, Dv]`: `m` sets, one forward pass
        for each.
      text_bias: added to the tokens after every block. `[Lt, Dt]`: to every token. `[Lt, 2, Dt]`, by token type: row 0
        to the pooled token (EOS), row 1 to all others. `[Lt, N, Dt]`, by token: a row for each position of the context
        length.
      vision_bias: `[Lv, Dv]`, `[Lv, 2, Dv]` or `[Lv, 1 + M, Dv]`, likewise. By type, row 0 belongs to `[cls]` and row 1
        to patches and prompts; by token, prompts get no bias. Without `[cls]` there is one type, `[Lv, 1, Dv]`.
      text_adapters: a network beside each of the last `n` blocks (MMA, Yang et al. 2024), counted as for `text_tokens`:
        dense layers `down`, `middle` (optional) and `up` with ReLUs between them, `{"kernel": [n, inputs, outputs],
        "bias": [n, outputs]}` each, from `Dt` to `Dt`. Its input is the block's input after the first LayerNorm; its
        output is added to the block's output.
      vision_adapters: likewise, with `Dv`.
      text_residual: `[C, d]`, added to the class features before they are normalised (TaskRes, Yu et al. 2023).
      text_weights: changes of frozen weights, a part of the tree `params["text"]` (`layers.changed`): LoRA, BitFit,
        LayerNorm tuning. A change of the bias of `layers/fc2` equals `text_bias`.
      vision_weights: likewise for `params["vision"]`.
      pixels: `[R, R, 3]`, added to the normalised images (visual prompting, Bahng et al. 2022).
      text_class_block: number of a block, from 1 on; a shallower tower takes its last block. No leaf of the tree.
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
    def parts(self) -> set[str]:
        """Names of the parts that are not `None`."""
        # `text_class_block` is a static field and always set, so it is no part.
        fields = [field.name for field in dataclasses.fields(self) if field.metadata.get("pytree_node", True)]
        return {name for name in fields if getattr(self, name) is not None}

    @property
    def changes_text(self) -> bool:
        """Whether the text tower's tokens depend on this adaptation."""
        # Not `text_residual`, which acts behind the tower.
        return any(name.startswith("text_") for name in self.parts - {"text_residual"})

    @property
    def changes_vision(self) -> bool:
        """Whether the vision tower's tokens depend on this adaptation."""
        return any(name.startswith(("vision_", "pixels")) for name in self.parts)

    @property
    def inserts_tokens(self) -> bool:
        """Whether a tower's later blocks have more tokens than its first ones."""
        return self.text_tokens is not None or self.vision_tokens is not None

    @property
    def only_changes_weights(self) -> bool:
        """Whether the adaptation folds into the weights of a plain CLIP."""
        # A bias that all tokens share is the bias of the MLP's second layer.
        foldable = {"text_bias", "vision_bias", "text_weights", "vision_weights"}
        return set() < self.parts <= foldable and not self.bias_differs_between_tokens

    @property
    def bias_differs_between_tokens(self) -> bool:
        """Whether a bias is by token type or by token."""
        shapes = (bias.shape for bias in (self.text_bias, self.vision_bias) if bias is not None)
        return any(len(shape) > 2 and shape[1] > 1 for shape in shapes)


NOTHING = Adaptation()


def check_prompts(prompts: jax.Array | None, geometry: TowerConfig, name: str, *, extra: int = 0) -> jax.Array | None:
    """Raises `ClipbiasError` for prompts that do not fit the tower; returns `None` for an empty array."""
    # Ablations set the number of prompts to 0; a scan over empty arrays would fail later.
    if prompts is None or 0 in prompts.shape:
        return None
    if prompts.ndim != 3 or prompts.shape[-1] != geometry.width or prompts.shape[0] + extra > geometry.layers:
        raise ClipbiasError(
            f"{name} has shape {prompts.shape}; expected [up to {geometry.layers - extra}, tokens, {geometry.width}]."
        )
    return prompts


def check_bias(
    bias: jax.Array | None, geometry: TowerConfig, name: str, tokens: int, token_types: int = 2
) -> jax.Array | None:
    """Raises `ClipbiasError` for a bias that does not fit the tower; of a single type it becomes a row per layer."""
    if bias is None:
        return None
    vector = (geometry.layers, geometry.width)
    by_type = (geometry.layers, token_types, geometry.width)
    by_token = (geometry.layers, tokens, geometry.width)
    if bias.shape not in (vector, by_type, by_token):
        raise ClipbiasError(
            f"{name} has shape {bias.shape}; expected {vector}, {by_type} by token type or {by_token} by token."
        )
    # A single type is one vector for all tokens, which costs no choice in the block.
    return bias[:, 0] if bias.shape == by_type and token_types == 1 else bias


def check_inserted(adaptation: Adaptation, name: str, config: ClipConfig) -> jax.Array | None:
    """Returns a tower's inserted tokens `[n, T, D]`. Raises `ClipbiasError` if they fit neither it nor other parts."""
    width = getattr(config, name).width
    most = config.common_blocks
    tokens = getattr(adaptation, f"{name}_tokens")
    bias = getattr(adaptation, f"{name}_bias")
    if tokens is None:
        return None
    # Blocks are counted in the shallower tower, so that both towers insert at the same numbers (MMRL, MMA).
    if tokens.ndim != 3 or not 1 <= tokens.shape[0] <= most or tokens.shape[-1] != width:
        raise ClipbiasError(f"{name}_tokens have shape {tokens.shape}; expected [n, T, {width}], n from 1 to {most}.")
    # A block replaces either prompts or inserted tokens (`LayerInput.prompts`), and a bias by token counts positions
    # that inserted tokens would shift.
    others = (f"{name}_prompts", "text_class_prompts") if name == "text" else (f"{name}_prompts",)
    if any(getattr(adaptation, part) is not None for part in others) or (bias is not None and bias.ndim > 2):
        raise ClipbiasError(f"{name}_tokens exclude prompts of later blocks and a bias that differs between tokens.")
    return tokens.astype(jnp.float32)


def check_adapters(adapters: Weights | None, config: ClipConfig, name: str) -> Weights | None:
    """Returns the networks beside a tower's blocks. Raises `ClipbiasError` if they do not fit."""
    if adapters is None:
        return None
    width = getattr(config, name).width
    most = config.common_blocks
    count = np.shape(adapters["down"]["kernel"])[0]
    inputs = width
    # Each layer's inputs are the outputs of the layer before; the last one must return to the tower's width.
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
    """Returns the number of the block whose input `text_class_prompts` replace."""
    return min(adaptation.text_class_block, geometry.layers - 1)


def check_text_parts(adaptation: Adaptation, config: ClipConfig, texts: int, tokens: int) -> None:
    """Raises `ClipbiasError` for text parts of an adaptation that do not fit the tower or the number of texts."""
    geometry = config.text
    context = adaptation.text_context
    check_prompts(adaptation.text_prompts, geometry, "text_prompts", extra=1)
    check_bias(adaptation.text_bias, geometry, "text_bias", geometry.context_length)
    # Checked before tracing: a gather of position embeddings beyond the last would repeat it silently.
    if tokens > geometry.context_length:
        raise ClipbiasError(f"the texts have {tokens} tokens; this model reads at most {geometry.context_length}.")
    prompts = adaptation.text_class_prompts
    block = class_block(adaptation, geometry)
    if prompts is not None:
        if prompts.ndim != 3 or prompts.shape[0] != texts or prompts.shape[-1] != geometry.width:
            raise ClipbiasError(
                f"text_class_prompts have shape {prompts.shape}; expected [{texts}, T, {geometry.width}]."
            )
        # At block 0 the context replaces embeddings, and a block has room for one set of prompts
        # (`LayerInput.prompts`).
        if block < 1 or adaptation.text_prompts is not None:
            raise ClipbiasError(f"text_class_prompts act at block {block}; give one from 1 on, and no text_prompts.")
    if context is None:
        return
    if context.shape[-1] != geometry.width or context.ndim not in (2, 3):
        raise ClipbiasError(
            f"text_context has shape {context.shape}; expected [T, {geometry.width}] or [C, T, {geometry.width}]."
        )
    # Texts are grouped by context with an integer division (`put_context`), which a remainder would shift.
    if context.ndim == 3 and texts % context.shape[0]:
        raise ClipbiasError(f"text_context holds {context.shape[0]} contexts; {texts} texts cannot share them evenly.")


def outside_layers(params: Params, adaptation: Adaptation | None, tower: str, dtype: str | None = None) -> Weights:
    """Returns a tower's weights, changed outside its blocks. Raises `ClipbiasError` for changes that do not fit."""
    changes = getattr(adaptation or NOTHING, f"{tower}_weights")
    check_changes(changes, params[tower], f"{tower}_weights")
    weights = params[tower] if dtype is None else cast_weights(params[tower], dtype)
    # The scan adds those of the blocks layer by layer: a sum of all stacked kernels would double the memory.
    return changed(weights, {name: change for name, change in (changes or {}).items() if name != "layers"})


def fold(params: Params, adaptation: Adaptation) -> Params:
    """Returns the weights of a plain CLIP with the features of `params` and an adaptation.

    The adaptation has biases `[Lt, Dt]` and `[Lv, Dv]` and changes of weights alone; else it raises `ClipbiasError`.
    """
    # Before the general message: these biases look like changes of weights.
    if adaptation.bias_differs_between_tokens:
        raise ClipbiasError("a bias by token type or token does not fold into weights; a vector per layer [L, D] does.")
    if not adaptation.only_changes_weights:
        raise ClipbiasError("only biases and other changes of weights fold; this adaptation has other parts, or none.")
    folded = dict(params)
    for tower in ("vision", "text"):
        # Weights first: both may change the bias of fc2, and the second adds to the first.
        if (change := getattr(adaptation, f"{tower}_weights")) is not None:
            check_changes(change, params[tower], f"{tower}_weights")
            folded[tower] = fold_changes(folded[tower], change)
        if (bias := getattr(adaptation, f"{tower}_bias")) is not None:
            # `x + MLP(x) + b` is a block whose MLP has the output bias of fc2 plus `b`. A BERT's block ends with a
            # LayerNorm, and `b` adds to its bias.
            rows = np.asarray(bias).reshape(len(bias), -1)
            last = "norm2" if "embedding_norm" in params[tower] else "fc2"
            folded[tower] = fold_changes(folded[tower], {"layers": {last: {"bias": rows}}})
    return folded
