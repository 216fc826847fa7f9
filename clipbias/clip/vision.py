"""The vision tower: `[cls]` (not in SigLIP), patches and prompts in, one feature per image out.

SigLIP (Zhai et al. 2023) and Perception Encoder have a pooling head: a learned query attends to `[cls]` and patches.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from clipbias.clip import block, layers, tower
from clipbias.clip.adaptation import NOTHING, Adaptation, check_bias, check_inserted, check_prompts, outside_layers
from clipbias.clip.block import bias_rows
from clipbias.clip.config import ClipConfig
from clipbias.clip.layers import multiply
from clipbias.clip.params import Params
from clipbias.clip.precision import with_precision
from clipbias.errors import ClipbiasError


class Pooled(NamedTuple):
    """Output of a pooling head: feature `[B, D]`, attention `[B, H, M]`, its query `[B, H, K]`, keys `[B, M, H, K]`."""

    feature: jax.Array
    probabilities: jax.Array
    query: jax.Array
    keys: jax.Array


def embed_image(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation | None = None,
    *,
    dtype: str = "float32",
) -> tower.TowerInput:
    """Embeds normalised images `[B, R, R, 3]` as tokens `[cls], M patches, V prompts`; returns the tower's input."""
    adaptation = adaptation or NOTHING
    geometry = config.vision
    weights = outside_layers(params, adaptation, "vision", dtype)
    prompts = check_prompts(adaptation.vision_prompts, geometry, "vision_prompts")
    bias = check_bias(adaptation.vision_bias, geometry, "vision_bias", geometry.tokens, geometry.token_types)
    inserted = check_inserted(adaptation, "vision", config)
    expected = (geometry.image_size, geometry.image_size, 3)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise ClipbiasError(f"images have shape {images.shape}; this model takes [B, {expected[0]}, {expected[1]}, 3].")
    if adaptation.pixels is not None:
        if adaptation.pixels.shape != expected:
            raise ClipbiasError(f"pixels have shape {adaptation.pixels.shape}; expected {expected}.")
        images = images + adaptation.pixels
    # Patches row by row, [B, M, p·p·3]; a margin at the right and bottom that fills no patch is cut off (SigLIP).
    # As a product and not a convolution, so that it takes the same precision as all other products (`multiply`).
    side = geometry.patch_size
    # Tokens are float32 in every compute type: sums over all blocks would lose small changes otherwise.
    covered = images[:, : geometry.grid * side, : geometry.grid * side].astype(jnp.float32)
    patches = covered.reshape(images.shape[0], geometry.grid, side, geometry.grid, side, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(images.shape[0], geometry.patches, side * side * 3)
    tokens = multiply(patches, weights["patch_embedding"])
    if geometry.patch_bias:
        tokens = tokens + weights["patch_bias"].astype(jnp.float32)
    if geometry.class_token:
        cls = jnp.broadcast_to(weights["class_embedding"].astype(jnp.float32), (images.shape[0], 1, geometry.width))
        tokens = jnp.concatenate([cls, tokens], axis=1)
    tokens = tokens + weights["position_embedding"].astype(jnp.float32)
    prompt_rows = None
    if prompts is not None:
        # Behind the position embeddings, since prompts have no place in the image, and before the pre-LayerNorm.
        # At the end, so that `[cls]` and patches have the same indices with and without prompts.
        count = prompts.shape[1]
        first = jnp.broadcast_to(prompts[0].astype(jnp.float32), (images.shape[0], count, geometry.width))
        tokens = jnp.concatenate([tokens, first], axis=1)
        # NumPy's, so that `put_prompts` knows the places while tracing and slices instead of gathering.
        prompt_rows = np.concatenate([np.full(geometry.tokens, -1), np.arange(count)])
    positions = np.arange(tokens.shape[1])
    if geometry.pre_norm:
        tokens = layers.layer_norm(tokens, weights["pre_norm"], geometry.layer_norm_epsilon)
    later = None if prompts is None else prompts[1:]
    return tower.TowerInput(
        tokens=tokens,
        layers=block.layer_inputs(params, config, adaptation, "vision", prompts=later, bias=bias, dtype=dtype),
        prompt_rows=prompt_rows,
        bias_rows=bias_rows(bias, positions == 0, positions),
        pooled=jnp.zeros(images.shape[0], jnp.int32) if geometry.pooling == "cls" else None,
        causal=False,
        inserted=inserted,
        insert_at=tokens.shape[1],
        insert_from=0 if inserted is None else config.common_blocks - inserted.shape[0],
    )


def project_image(
    params: Params, config: ClipConfig, rows: jax.Array, adaptation: Adaptation | None = None, *, normed: bool = False
) -> jax.Array:
    """Computes `post-LayerNorm(x[:, 0]) @ projection`: `[B, D]` to `[B, d]`, float32, not of unit length.

    With `normed`, rows have passed that LayerNorm already. A pooling head takes all tokens `[B, N, D]` and attends to
    `[cls]` and patches among them; prompts act through the tower alone.
    """
    # The head pools after post-LayerNorm; other towers normalise the pooled row only.
    if config.vision.pooling == "attention":
        return pool_image(params, config, rows, adaptation).feature
    weights = outside_layers(params, adaptation, "vision")
    if not normed:
        rows = layers.layer_norm(rows, weights["post_norm"], config.vision.layer_norm_epsilon)
    return layers.project(rows, weights["projection"])


def pool_image(
    params: Params,
    config: ClipConfig,
    tokens: jax.Array,
    adaptation: Adaptation | None = None,
    tap: jax.Array | float = 0.0,
) -> Pooled:
    """Computes `h + MLP(LN(h))`, `h = MHA(probe, x, x)`, of the last block's tokens `[B, N, D]` after post-LayerNorm.

    The head has the weights of a block (`layers.py`) without the first LayerNorm and axis `L`, and `probe [D]`. A `tap`
    is added to the probabilities `[B, H, M]`; the gradient with respect to it is ∂y/∂A.
    """
    geometry = config.vision
    outside = outside_layers(params, adaptation, "vision")
    patches = layers.layer_norm(tokens[:, : geometry.tokens], outside["post_norm"], geometry.layer_norm_epsilon)
    # The probe is the only query, so its product is of one row, and keys and values of all patches.
    weights = outside["pool"]
    batch = patches.shape[0]  # `len` fails for the symbolic batch size of an exported program
    query = layers.dense(weights["probe"].astype(patches.dtype)[None], layers.outputs(weights["qkv"], 0, 1))
    keys_values = layers.dense(patches, layers.outputs(weights["qkv"], 1, 3))
    k, v = (layers.split_heads(x, geometry.pool_heads) for x in jnp.split(keys_values, 2, axis=-1))
    q = jnp.broadcast_to(layers.split_heads(query, geometry.pool_heads), (batch, 1, *k.shape[2:]))
    probabilities = layers.attention_probabilities(q, k, None)[:, :, 0] + tap
    heads = jnp.einsum("BHM,BMHK->BHK", probabilities.astype(v.dtype), v)
    h = layers.dense(heads.reshape(batch, -1), weights["out"])
    feature = h + layers.mlp(h, weights, geometry)
    if geometry.projection:
        feature = layers.project(feature, outside["projection"])
    return Pooled(feature, probabilities, q[:, 0], k)


@with_precision
def head_attention(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation | None = None,
    *,
    dtype: DTypeLike = "float32",
) -> jax.Array:
    """Returns the pooling head's attention to the patches, averaged over heads: `[B, M]`."""
    tokens = tower.run_fused(embed_image(params, config, images, adaptation, dtype=str(dtype)), config.vision)
    # Without `[cls]`, which has no place in the picture.
    return pool_image(params, config, tokens, adaptation).probabilities[..., config.vision.first_patch :].mean(1)


@with_precision
def encode_image(
    params: Params,
    config: ClipConfig,
    images: jax.Array,
    adaptation: Adaptation | None = None,
    *,
    taps: jax.Array | None = None,
    observe: tower.Observe | None = None,
    patches: bool = False,
    remat: layers.RematPolicy | None = None,
    dtype: DTypeLike = "float32",
) -> tuple[jax.Array, tower.Observed]:
    """Encodes images with a frozen vision tower and an adaptation.

    Args:
      params: the whole parameter tree (`vision`, `text`, `logit_scale`).
      images: `[B, R, R, 3]`, normalised (`Preprocessing.normalize`).
      adaptation: a method's additions.
      taps: `[L, B, H, N, N]`, added to the attention probabilities; `N = 1 + M + V`, without `[cls]` one less. The
        gradient with respect to zeros is ∂y/∂A of every layer.
      observe: reduces each layer's `LayerView` to a small pytree.
      patches: whether to return features of patches, too: `[B, 1 + M, d]`, `[cls]` first. Not with `taps` or `observe`.
      remat: a `jax.checkpoint_policies` policy for the backward pass, without `taps` and `observe`.
      dtype: compute type, a name of `precision.DTYPES` or its NumPy type; tokens, LayerNorm and softmax are always
        float32. Resolve "auto" before tracing with `precision.resolve`.

    Returns:
      Features `[B, d]` in float32, not normalised (`[B, m, d]` for `m` sets of prompts; `[B, 2, d]` with
      `vision_readout`, whose feature is the second); and the results of `observe`, stacked over layers (else `None`).

    Raises:
      ClipbiasError: an array's shape does not fit the geometry.
    """
    looks_inside = taps is not None or observe is not None
    if adaptation is not None and adaptation.vision_prompts is not None and adaptation.vision_prompts.ndim == 4:
        if patches or looks_inside:
            raise ClipbiasError(
                f"vision_prompts hold {adaptation.vision_prompts.shape[0]} sets; give one to observe it or its patches."
            )

        def encode_with(prompts: jax.Array) -> jax.Array:
            adaptation_of_set = dataclasses.replace(adaptation, vision_prompts=prompts)
            return encode_image(params, config, images, adaptation_of_set, remat=remat, dtype=dtype)[0]

        # `vmap` shares the frozen weights among the sets.
        return jax.vmap(encode_with, out_axes=1)(adaptation.vision_prompts), None
    inputs = embed_image(params, config, images, adaptation, dtype=str(dtype))
    if adaptation is not None and adaptation.vision_readout is not None:
        if patches or inputs.inserted is None:
            raise ClipbiasError("vision_readout needs vision_tokens, and has no features of patches; leave these out.")
        rows = tower.run_fused(inputs, config.vision, every_row=True, remat=remat)
        # MMRL's second feature, `mean(post-LayerNorm(x)) @ vision_readout`, reads the inserted tokens, so that the last
        # block is computed at all rows.
        whole = project_image(params, config, tower.take_rows(rows, inputs.pooled), adaptation)
        weights = outside_layers(params, adaptation, "vision")
        inserted = rows[:, config.vision.tokens :]
        normed = layers.layer_norm(inserted, weights["post_norm"], config.vision.layer_norm_epsilon).mean(1)
        return jnp.stack([whole, layers.project(normed, adaptation.vision_readout)], axis=1), None
    if patches and inputs.pooled is None:
        raise ClipbiasError("patches have no features in a tower with a pooling head; ask for features of images.")
    observed = None
    # Observers need the attention's probabilities as arrays; features alone never store them.
    if looks_inside:
        rows, observed = tower.run_explicit(inputs, config.vision, taps=taps, observe=observe)
    else:
        rows = tower.run_fused(inputs, config.vision, every_row=patches, remat=remat)
        if patches:
            rows = rows[:, : config.vision.tokens]  # without prompts
    return project_image(params, config, rows, adaptation), observed
