"""A tower's run with a constant added to its input tokens after every block, or subtracted from them.

A method's equivalent bias stands in its place where it is added to the frozen model, and is missing where it is
subtracted from the tuned one. *Input tokens* are all but slots, which hold learned tokens and get nothing.

*Constants* have a row for each kind of token, `[L, K, D]`: of the pooled token, then of all others, or one row where a
pooling head reads all tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Adaptation, TextTokens, tower
from clipbias.clip.block import LayerInput, run_block
from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.clip.text import embed_text, project_text
from clipbias.clip.vision import embed_image, project_image, read_tokens


def run_with(
    run: tower.TowerInput,
    config: TowerConfig,
    constants: jax.Array,
    rows: jax.Array | np.ndarray,
    sign: float = 1.0,
) -> tuple[jax.Array, jax.Array | np.ndarray | None]:
    """Runs a tower with `sign` times a constant added to each input token after every block.

    Args:
      run: the tower up to its first block.
      config: its geometry.
      constants: `[L, K, D]`.
      rows: int `[N]` or `[B, N]`: which row each token gets, -1 for slots. Tokens inserted later are slots, too.
      sign: 1 adds, -1 subtracts.

    Returns:
      Tokens after the last block `[B, N', D]`, and which of them is read out `[B]`, `None` for a pooling head.
    """

    def step(
        stage: tower.TowerInput,
        places: np.ndarray,
        carry: tuple[jax.Array],
        scanned: tuple[LayerInput, jax.Array],
    ) -> tuple[tuple[jax.Array], None]:
        layer, here = scanned
        stage_rows = _at(places, jnp.asarray(rows), carry[0].shape[1])

        def add(output: jax.Array, inputs: jax.Array) -> jax.Array:
            change = here[jnp.maximum(stage_rows, 0)]
            return output + sign * jnp.where((stage_rows >= 0)[..., None], change, 0).astype(output.dtype)

        hooks = dataclasses.replace(stage.hooks(stage.attend_fused), after=add)
        return (run_block(carry[0], layer, config, hooks),), None

    stage, (tokens,), _ = tower.scan_blocks(run, step, (run.tokens,), constants)
    return tokens, stage.pooled


def _at(places: np.ndarray, rows: jax.Array, length: int) -> jax.Array:
    """Rows `[..., N]` at `places [N]` among `length` tokens, and -1 at all others."""
    if len(places) == length:
        return rows
    return jnp.full((*rows.shape[:-1], length), -1).at[..., places].set(rows)


@with_precision
def image_features_with(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation,
    constants: jax.Array,
    *,
    sign: float = 1.0,
    patches: bool = False,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_image` with something added after every block: `[F, B, ...]`.

    Args:
      params: the frozen weights.
      config: geometry.
      images: `[B, R, R, 3]`, normalised.
      adaptation: with one set of prompts at most. Nothing is added to its prompts.
      constants: `F` of them, `[F, L, K, D]`.
      sign: 1 adds, -1 subtracts.
      patches: whether patches get features, too.
      dtype: compute type by name.
    """
    count = config.vision.tokens
    run = embed_image(params, config, images, adaptation, dtype=dtype)
    rows = image_rows(config, run.tokens.shape[1])

    def features(added: jax.Array) -> jax.Array:
        tokens, pooled = run_with(run, config.vision, added, rows, sign)
        if adaptation.vision_readout is not None:
            whole = project_image(params, config, tower.take_rows(tokens, pooled), adaptation)
            return jnp.stack([whole, read_tokens(params, config, tokens, adaptation)], axis=1)
        output_rows = tokens[:, :count] if patches else tower.take_rows(tokens, pooled)
        return project_image(params, config, output_rows, adaptation)

    return jax.lax.map(features, constants)


@with_precision
def text_features_with(
    params: Params,
    config: ClipConfig,
    tokens: TextTokens,
    adaptation: Adaptation,
    constants: jax.Array,
    rows: jax.Array,
    *,
    sign: float = 1.0,
    dtype: str = "float32",
) -> jax.Array:
    """`encode_text` with something added after every block: `[F, C, d]`.

    Args:
      params: the frozen weights.
      config: geometry.
      tokens: `[C, N]`.
      adaptation: of these texts.
      constants: `F` of them, `[F, L, K, D]`.
      rows: `[C, N]`, of `text_rows`.
      sign: 1 adds, -1 subtracts.
      dtype: compute type by name.
    """
    run = embed_text(params, config, tokens, adaptation, dtype=dtype)

    def features(added: jax.Array) -> jax.Array:
        output, pooled = run_with(run, config.text, added, rows, sign)
        return project_text(params, config, tower.take_rows(output, pooled), adaptation)

    return jax.lax.map(features, constants)


def image_rows(config: ClipConfig, length: int) -> np.ndarray:
    """Which constant each of `length` image tokens gets: 0 `[cls]`, 1 patches; one for all where a head pools them."""
    positions = np.arange(length)
    rows = np.where(positions < config.vision.first_patch, 0, 1)
    rows = np.minimum(rows, config.vision.kinds - 1)
    return np.where(positions < config.vision.tokens, rows, -1)


def text_rows(tokens: TextTokens, *, slots: bool) -> jax.Array:
    """Which constant each token of texts `[C, N]` gets: 0 EOS, 1 all others.

    Args:
      tokens: of the texts.
      slots: whether the context's places are slots, which get nothing (-1).
    """
    context_rows = jnp.asarray(tokens.context_rows)
    rows = jnp.where(jnp.arange(context_rows.shape[1]) == jnp.asarray(tokens.eos)[:, None], 0, 1)
    return jnp.where(slots & (context_rows >= 0), -1, rows)
