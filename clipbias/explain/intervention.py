"""A tower's run with something added to its input tokens after every block, or subtracted from them.

A method's equivalent bias stands in its place where it is added to the frozen model, and is missing where it is
subtracted from the tuned one. *Input tokens* are all but slots, which hold learned tokens and get nothing. What is
added to a token is a row of a table, another vector where the frozen model makes the token an outlier, and an affine
map of the block's input token: any of them may be zero, so that one program serves all forms.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from clipbias.clip import Adaptation, TextTokens, tower
from clipbias.clip.block import run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.scan import LayerInput
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image, read_tokens

# A token is an outlier where its norm is so many times the median of its image's (or text's) tokens in the same layer.
OUTLIER = 5.0


@struct.dataclass
class Intervention:
    """What is added after every block; `F` of them may be stacked on a leading axis.

    Attributes:
      table: `[L, P, D]`: the rows that tokens get.
      outlier: `[L, D]`: what outliers get in place of their row,
      apart: where this is true, bool.
      down, up: `[L, D, r]` and `[L, r, D]`: the map of the block's input token `x` that is added, `x @ down @ up`.
    """

    table: jax.Array | np.ndarray
    outlier: jax.Array | np.ndarray
    apart: jax.Array | np.ndarray
    down: jax.Array | np.ndarray
    up: jax.Array | np.ndarray

    @classmethod
    def constant(
        cls,
        table: np.ndarray,
        outlier: np.ndarray | None = None,
        rank: int = 0,
        maps: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> "Intervention":
        """A table, and what there is besides; maps are filled up with zeros to `rank`."""
        depth, _, width = table.shape
        if maps is None:
            maps = (np.zeros((depth, width, 0)), np.zeros((depth, 0, width)))
        down, up = maps
        missing = rank - down.shape[-1]
        return cls(
            table=np.asarray(table, np.float32),
            outlier=np.zeros((depth, width), np.float32) if outlier is None else np.asarray(outlier, np.float32),
            apart=np.asarray(outlier is not None),
            down=np.pad(down, ((0, 0), (0, 0), (0, missing))).astype(np.float32),
            up=np.pad(up, ((0, 0), (0, missing), (0, 0))).astype(np.float32),
        )


def run_with(
    run: tower.TowerInput,
    config: TowerConfig,
    intervention: Intervention,
    rows: jax.Array | np.ndarray,
    outliers: jax.Array | None = None,
    sign: float = 1.0,
) -> tuple[jax.Array, jax.Array | np.ndarray | None]:
    """Runs a tower with `sign` times what is to be added to each input token after every block.

    Args:
      run: the tower up to its first block.
      config: its geometry.
      intervention: not stacked.
      rows: int `[N]` or `[B, N]`: which row of the table each token gets, -1 for slots.
      outliers: bool `[L, B, N]`, of `outlier_tokens`; `None` for none. Tokens inserted later are in neither.
      sign: 1 adds, -1 subtracts.

    Returns:
      Tokens after the last block `[B, N', D]`, and which of them is read out `[B]`, `None` for a pooling head.
    """

    depth = intervention.table.shape[0]
    intervention = jax.tree.map(jnp.asarray, intervention)
    by_layer = dataclasses.replace(intervention, apart=jnp.broadcast_to(intervention.apart, depth))

    def step(
        stage: tower.TowerInput,
        places: np.ndarray,
        carry: tuple[jax.Array],
        scanned: tuple[LayerInput, tuple[Intervention, jax.Array | None]],
    ) -> tuple[tuple[jax.Array], None]:
        layer, (here, is_outlier) = scanned
        length = carry[0].shape[1]
        own_rows = _at(places, jnp.asarray(rows), length, fill=-1)
        is_outlier = None if is_outlier is None else _at(places, is_outlier, length, fill=False)

        def add(output: jax.Array, inputs: jax.Array) -> jax.Array:
            change = here.table[jnp.maximum(own_rows, 0)]
            if is_outlier is not None:
                change = jnp.where(is_outlier[..., None] & here.apart, here.outlier, change)
            change = change + (inputs @ here.down) @ here.up
            return output + sign * jnp.where((own_rows >= 0)[..., None], change, 0).astype(output.dtype)

        hooks = dataclasses.replace(stage.hooks(stage.attend_fused), after=add)
        return (run_block(carry[0], layer, config, hooks),), None

    stage, (tokens,), _ = tower.scan_blocks(run, step, (run.tokens,), (by_layer, outliers))
    return tokens, stage.pooled


def _at(places: np.ndarray, values: jax.Array, length: int, *, fill: int | bool) -> jax.Array:
    """Values `[..., N]` at `places [N]` among `length` tokens, and `fill` at all others."""
    if len(places) == length:
        return values
    return jnp.full((*values.shape[:-1], length), fill).at[..., places].set(values)


def outlier_tokens(run: tower.TowerInput, config: TowerConfig, counted: jax.Array) -> jax.Array:
    """Which tokens the reference run makes outliers, layer by layer, by their norm after the block: bool `[L, B, N]`.

    Args:
      run: the reference run up to its first block.
      config: the tower's geometry.
      counted: bool `[B, N]`: the tokens whose median norm is the measure, and which may be outliers.
    """

    def step(tokens: jax.Array, layer: LayerInput) -> tuple[jax.Array, jax.Array]:
        tokens = run_block(tokens, layer, config, run.hooks(run.attend_fused))
        norms = jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1)
        median = jnp.nanmedian(jnp.where(counted, norms, jnp.nan), axis=-1, keepdims=True)
        return tokens, counted & (norms > OUTLIER * median)

    return jax.lax.scan(step, run.tokens, run.layers)[1]


@with_precision
def image_features_with(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation,
    intervention: Intervention,
    *,
    sign: float = 1.0,
    patches: bool = False,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_image` with something added after every block: `[F, B, ...]` for `F` stacked forms.

    Args:
      params: the frozen weights.
      config: geometry.
      images: `[B, R, R, 3]`, normalised.
      adaptation: with one set of prompts at most. Nothing is added to its prompts.
      intervention: stacked; its tables hold a row for `[cls]` and each patch, in their order.
      sign: 1 adds, -1 subtracts.
      patches: whether patches get features, too.
      dtype: compute type by name.
    """
    count = config.vision.tokens
    run = embed_image(params, config, images, adaptation, dtype=dtype)
    length = run.tokens.shape[1]
    outliers = image_outliers(params, config, images, dtype=dtype)
    outliers = jnp.pad(outliers, ((0, 0), (0, 0), (0, length - count)))
    rows = np.where(np.arange(length) < count, np.arange(length), -1)

    def features(form: Intervention) -> jax.Array:
        tokens, pooled = run_with(run, config.vision, form, rows, outliers, sign)
        if adaptation.vision_readout is not None:
            whole = project_image(params, config, tower.take_rows(tokens, pooled), adaptation)
            return jnp.stack([whole, read_tokens(params, config, tokens, adaptation)], axis=1)
        output_rows = tokens[:, :count] if patches else tower.take_rows(tokens, pooled)
        return project_image(params, config, output_rows, adaptation)

    return jax.lax.map(features, intervention)


@with_precision
def text_features_with(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    adaptation: Adaptation,
    intervention: Intervention,
    rows: jax.Array | np.ndarray,
    reference: Adaptation,
    *,
    sign: float = 1.0,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_text` with something added after every block: `[F, C, d]` for `F` stacked forms.

    Args:
      params: the frozen weights.
      config: geometry.
      tokens: `[C, N]`.
      adaptation: of these texts.
      intervention: stacked.
      rows: `[C, N]`, of `text_rows`.
      reference: what the reference run has, in which outliers are found.
      sign: 1 adds, -1 subtracts.
      dtype: compute type by name.
    """
    run = embed_text(params, config, tokens, adaptation, dtype=dtype)
    outliers = text_outliers(params, config, tokens, reference, dtype=dtype)

    def features(form: Intervention) -> jax.Array:
        output, pooled = run_with(run, config.text, form, rows, outliers, sign)
        return project_text(params, config, tower.take_rows(output, pooled), adaptation)

    return jax.lax.map(features, intervention)


def image_outliers(params: Params, config: ClipConfig, images: jax.Array, *, dtype: str = "float32") -> jax.Array:
    """Outliers among the frozen model's patches, bool `[L, B, N]`; `[cls]`, which is a kind of its own, is none."""
    frozen = embed_image(params, config, images, dtype=dtype)
    outliers = outlier_tokens(frozen, config.vision, jnp.ones(frozen.tokens.shape[:2], bool))
    return outliers.at[:, :, : config.vision.first_patch].set(False)


def text_outliers(
    params: Params, config: ClipConfig, tokens: TextTokens, reference: Adaptation, *, dtype: str = "float32"
) -> jax.Array:
    """Outliers among the texts' tokens, the one that is read out left out, bool `[L, C, N]`."""
    frozen = embed_text(params, config, tokens, reference, dtype=dtype)
    is_read = jnp.arange(tokens.ids.shape[1]) == jnp.asarray(tokens.eos)[:, None]
    return outlier_tokens(frozen, config.text, tokens.counted) & ~is_read


def text_rows(tokens: TextTokens, *, by_position: bool, slots: bool) -> np.ndarray:
    """Which row each token of texts `[C, N]` gets: its position, or 0 for EOS and 1 for all others.

    Args:
      tokens: of the texts.
      by_position: whether there is a row for each position.
      slots: whether the context's places are slots, which get nothing (-1).
    """
    context_rows = np.asarray(tokens.context_rows)
    positions = np.broadcast_to(np.arange(context_rows.shape[1]), context_rows.shape)
    rows = positions if by_position else np.where(positions == np.asarray(tokens.eos)[:, None], 0, 1)
    return np.where(slots & (context_rows >= 0), -1, rows)
