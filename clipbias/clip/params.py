"""The parameter tree of a model: its shapes and CLIP's initialisation.

vision: patch_embedding [p·p·3, Dv], class_embedding [Dv], position_embedding [1 + M, Dv], pre_norm, layers, post_norm,
        projection [Dv, d]
text:   token_embedding [vocabulary, Dt], position_embedding [context_length, Dt], layers, final_norm,
        projection [Dt, d]
logit_scale: scalar (a logarithm)

SigLIP lacks class_embedding, pre_norm and vision projection, and has patch_bias [Dv], pool (`vision.pool_image`),
projection_bias [d] and a scalar logit_bias. Perception Encoder adds pool to CLIP's leaves. BERT has type_embedding
[2, Dt] and embedding_norm instead of final_norm; BiomedCLIP has projection_hidden [Dt, h] before projection [h, d].
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.config import ClipConfig, TowerConfig
from clipbias.data.images import unset

Params = dict[str, Any]


def _norm(*shape: int) -> Params:
    return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}


def _layers(rng: jax.Array, config: TowerConfig) -> Params:
    depth = config.layers
    width = config.width
    hidden = config.mlp_width
    keys = jax.random.split(rng, 4)
    # Outputs that enter the residual stream are smaller, since 2 · depth of them add up (Radford et al. 2021).
    residual = width**-0.5 * (2 * depth) ** -0.5

    def linear(key: jax.Array, inputs: int, outputs: int, deviation: float) -> Params:
        return {
            "kernel": deviation * jax.random.normal(key, (depth, inputs, outputs)),
            "bias": jnp.zeros((depth, outputs)),
        }

    return {
        "norm1": _norm(depth, width),
        "qkv": linear(keys[0], width, 3 * width, width**-0.5),
        "out": linear(keys[1], width, width, residual),
        "norm2": _norm(depth, width),
        "fc1": linear(keys[2], width, hidden, (2 * width) ** -0.5),
        "fc2": linear(keys[3], hidden, width, residual),
    }


def init_vision(rng: jax.Array, config: ClipConfig) -> Params:
    """Initialises a vision tower (Radford et al. 2021)."""
    geometry = config.vision
    keys = jax.random.split(rng, 5)
    width = geometry.width
    # Scaled by the number of inputs, so that tokens start with about unit variance.
    inputs = geometry.patch_size**2 * 3
    weights: Params = {"patch_embedding": inputs**-0.5 * jax.random.normal(keys[0], (inputs, width))}
    if geometry.patch_bias:
        weights["patch_bias"] = jnp.zeros(width)
    if geometry.class_token:
        weights["class_embedding"] = width**-0.5 * jax.random.normal(keys[1], (width,))
    weights["position_embedding"] = width**-0.5 * jax.random.normal(keys[2], (geometry.tokens, width))
    if geometry.pre_norm:
        weights["pre_norm"] = _norm(width)
    weights |= {"layers": _layers(keys[3], geometry), "post_norm": _norm(width)}
    if geometry.pooling == "attention":
        # The pooling head is a block without an axis of layers and without the first LayerNorm.
        pool = jax.tree.map(lambda leaf: leaf[0], _layers(keys[4], dataclasses.replace(geometry, layers=1)))
        del pool["norm1"]
        weights["pool"] = {**pool, "probe": jax.random.normal(keys[1], (width,))}
    if geometry.projection:
        weights["projection"] = width**-0.5 * jax.random.normal(keys[4], (width, config.projection_width))
    return weights


def init_text(rng: jax.Array, config: ClipConfig) -> Params:
    """Initialises a text tower (Radford et al. 2021)."""
    geometry = config.text
    keys = jax.random.split(rng, 4)
    width = geometry.width
    # 0.02 and 0.01 are CLIP's own deviations.
    weights: Params = {
        "token_embedding": 0.02 * jax.random.normal(keys[0], (geometry.vocabulary_size, width)),
        "position_embedding": 0.01 * jax.random.normal(keys[1], (geometry.context_length, width)),
        "layers": _layers(keys[2], geometry),
    }
    if geometry.norm_first:
        weights["final_norm"] = _norm(width)
    else:
        weights |= {"type_embedding": jnp.zeros((2, width)), "embedding_norm": _norm(width)}
    inputs = geometry.projection_hidden or width
    if geometry.projection_hidden:
        weights["projection_hidden"] = width**-0.5 * jax.random.normal(keys[3], (width, inputs))
    weights["projection"] = width**-0.5 * jax.random.normal(keys[3], (inputs, config.projection_width))
    if geometry.projection_bias:
        weights["projection_bias"] = jnp.zeros(config.projection_width)
    return weights


def init_logit_scale(_: jax.Array) -> jax.Array:
    """CLIP's first logit scale, `ln(1 / 0.07)`."""
    return jnp.asarray(np.log(1 / 0.07), jnp.float32)


def init_logit_bias(_: jax.Array) -> jax.Array:
    """SigLIP's first bias of the logits (Zhai et al. 2023)."""
    return jnp.float32(-10)


def init_params(config: ClipConfig, rng: jax.Array) -> Params:
    """Returns a randomly initialised parameter tree in float32."""
    vision, text = jax.random.split(rng)
    return {
        "vision": init_vision(vision, config),
        "text": init_text(text, config),
        "logit_scale": init_logit_scale(rng),
        **({"logit_bias": init_logit_bias(rng)} if config.logit_bias else {}),
    }


@functools.lru_cache(maxsize=16)  # tracing takes a tenth of a second
def _abstract_params(config: ClipConfig) -> Params:
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def abstract_params(config: ClipConfig) -> Params:
    """Returns the tree of `init_params` as `jax.ShapeDtypeStruct`s, without computing it."""
    return jax.tree.map(lambda leaf: leaf, _abstract_params(config))  # a copy, so that callers cannot change the cache


def empty_params(config: ClipConfig) -> Params:
    """Returns the tree of `init_params` as NumPy zeros, to be written into."""
    # Aligned, so that XLA's CPU client takes the arrays over without a copy: a CPU holds the weights once.
    tree = jax.tree.map(lambda leaf: unset(leaf.shape, np.float32), abstract_params(config))
    for leaf in jax.tree.leaves(tree):
        leaf.fill(0)
    return tree
