"""Parts of a transformer block as plain functions over a dictionary of weights; `block.run_block` composes them.

Letters: `B` sequences, `N` tokens, `D` width, `H` heads, `K = D / H`. A layer's weights are

    norm1, norm2: {scale [D], bias [D]}
    qkv: {kernel [D, 3D], bias [3D]}, out: {kernel [D, D], bias [D]}
    fc1: {kernel [D, mlp_width], bias}, fc2: {kernel [mlp_width, D], bias [D]}

and a tower stacks them on a leading axis `L`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from clipbias.clip.config import TowerConfig, VisionConfig
from clipbias.clip.precision import DATA, target
from clipbias.errors import ClipbiasError

# Products in half precision, with the accuracy that training needs.

HALF = jnp.bfloat16


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `x @ kernel`; a kernel in half precision takes `in_two_parts`."""
    return in_two_parts(x, kernel) if kernel.dtype == HALF else x @ kernel.astype(x.dtype)


@jax.custom_jvp
def in_two_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `x @ kernel` in float32, of float32 `x [..., inputs]` and a kernel in half precision."""
    # Rounding a frozen kernel once changes the frozen and the tuned model alike. Rounding tokens does not: with 7 bits
    # behind the point, their errors would jump as training moves them, and hide changes of a thousandth. So tokens are
    # multiplied in two parts, the rounded number and the remainder, together about 16 bits.
    # `reduce_precision`, since compilers may drop a conversion to bfloat16 and back.
    high = jax.lax.reduce_precision(x, 8, 7)
    return _in_one(high, kernel) + _in_one(x - high, kernel)


def _in_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(HALF), kernel, preferred_element_type=jnp.float32)


@functools.partial(in_two_parts.defjvp, symbolic_zeros=True)
def _change(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero]
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    of_x, of_kernel = tangents
    parts = []
    if not isinstance(of_x, SymbolicZero):
        # A gradient gives only the direction of a step, so one part is enough. The backward pass takes the transpose of
        # this line, which rounds the gradient on its way in and on its way out.
        parts.append(jnp.matmul(of_x.astype(HALF), kernel).astype(jnp.float32))
    # Frozen kernels have a symbolic zero here: without this branch their gradient would cost one more product.
    if not isinstance(of_kernel, SymbolicZero):
        parts.append(_in_one(x, of_kernel))
    return in_two_parts(x, kernel), functools.reduce(jnp.add, parts)


def activate(x: jax.Array, name: str) -> jax.Array:
    """Computes QuickGELU `x · sigmoid(1.702 x)`, the exact GELU, or its approximation by a hyperbolic tangent."""
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else jax.nn.gelu(x, approximate=name == "gelu_tanh")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def activate_keeping_half(x: jax.Array, name: str, kept_as: str) -> jax.Array:
    """Computes `activate`; its derivative is taken at `x` in half precision, saved under the name `kept_as`."""
    return activate(x, name)


@activate_keeping_half.defjvp
def _slope(
    name: str, kept_as: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    # The hidden units are the largest array that a backward pass keeps of a block: half precision halves it.
    half = checkpoint_name(x.astype(HALF), kept_as).astype(x.dtype)
    return activate(x, name), jax.jvp(lambda y: activate(y, name), (half,), tangents)[1]


Weights = Mapping[str, Any]
RematPolicy = Callable[..., Any]  # of `jax.checkpoint_policies`

# Names of a block's intermediates (`block.run_block`).
INPUT = "input"
QKV = "queries, keys and values"
ATTENDED = "attended tokens"
HIDDEN = "hidden units"
# Intermediates that the backward pass stores: outputs of the products with weights. LayerNorms and activations are
# cheap to compute again, and attention costs no more than storing and loading all its pairs. Weights are frozen, so
# inputs of most products are not needed.
KEPT = (QKV, ATTENDED, HIDDEN)
keep_products = jax.checkpoint_policies.save_only_these_names(*KEPT)
# Half of that memory, for a tenth more time.
keep_half = jax.checkpoint_policies.save_only_these_names(*KEPT[:2])
# The blocks' inputs alone, for a third more time.
keep_tokens = jax.checkpoint_policies.nothing_saveable


def no_gradient(*_: Any, **_parameters: Any) -> bool:
    """Remat policy for forward-only programs: `scan_all_but_last` keeps all blocks in the loop, to compile faster."""
    return False


def layer_norm(x: jax.Array, weights: Weights, epsilon: float) -> jax.Array:
    """Computes LayerNorm over the last axis, in float32 for every compute type."""
    # XLA's CPU compiler splits sums over threads by their first axis, so a first axis of 1 would leave one thread.
    x32 = x.astype(jnp.float32).reshape(x.shape[1:] if x.ndim > 2 and x.shape[0] == 1 else x.shape)
    mean = x32.mean(-1, keepdims=True)
    # Centred before squaring: `mean(x²) - mean(x)²` cancels where the mean is large against the deviation.
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    normalised = ((x32 - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return (normalised * weights["scale"] + weights["bias"]).astype(x.dtype)


def product(x: jax.Array, weights: Weights) -> jax.Array:
    """Computes `multiply(x, kernel)`, plus `x @ down @ up` where a method changes the kernel by low rank.

    `down [P, inputs, r]` and `up [P, r, outputs / P]` change `P` parts of the outputs (queries, keys and values);
    `[B, P, ...]` is a copy for each of the `B` sequences of `x [B, N, inputs]`. With a `key`, `kept` drops inputs.
    """
    y = multiply(x, weights["kernel"])
    if "down" in weights:
        # Never as a sum of kernels: `down @ up` would cost as much memory as the kernel, and bfloat16 would round it.
        down, up = (weights[name].astype(x.dtype) for name in ("down", "up"))
        seen = x[..., None, :, :]
        if "key" in weights:
            # Inverted dropout (Srivastava et al. 2014): the expectation stays, so that evaluation changes nothing.
            seen = jnp.where(kept(weights, x.shape), seen / (1 - weights["rate"]).astype(x.dtype), 0)
        parts = seen @ down @ up  # [..., P, N, outputs / P]
        y = y + jnp.moveaxis(parts, -3, -2).reshape(y.shape)
    return y


def kept(weights: Weights, shape: Sequence[int]) -> jax.Array:
    """Draws dropout's mask for inputs of a shape `[..., N, inputs]`: bool `[..., P, N, inputs]`, one per part."""
    # 16 random bits for each input, two inputs in a word: half the time, and the rate is exact to a 65,536th.
    *rows, tokens, inputs = shape
    words = jax.random.bits(weights["key"], (*rows, weights["down"].shape[-3], tokens, -(-inputs // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*words.shape[:-1], -1)[..., :inputs]
    return halves >= jnp.round(weights["rate"] * 2**16).astype(jnp.uint16)


def project(rows: jax.Array, projection: jax.Array) -> jax.Array:
    """Computes features `rows @ projection`, `[..., D]` to `[..., d]`, in float32."""
    # Exact in every compute type: the product is small, and its rounding would go into the cosine undamped.
    with jax.default_matmul_precision("highest"):
        return (rows @ projection.astype(rows.dtype)).astype(jnp.float32)


def dense(x: jax.Array, weights: Weights) -> jax.Array:
    """Computes `x @ kernel + bias`, see `product`."""
    y = product(x, weights)
    return y + weights["bias"].astype(y.dtype)


def network(x: jax.Array, weights: Weights) -> jax.Array:
    """Computes dense layers `down`, `middle` (optional) and `up` over the last axis of `x`, with ReLUs between them."""
    x = dense(x, weights["down"])
    if "middle" in weights:
        x = dense(jax.nn.relu(x), weights["middle"])
    return dense(jax.nn.relu(x), weights["up"])


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Splits `[..., D]` into `[..., H, K]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attention_probabilities(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Computes `softmax(q kᵀ / √K)` in float32: `q [B, N, H, K]` and `k [B, N', H, K]` to `[B, H, N, N']`.

    The mask broadcasts to the result and is True where a query sees a key; `None` hides no key.
    """
    # The scale goes onto the queries, `N · K` numbers, and not onto the `N²` scores.
    scores = jnp.einsum("BNHK,BMHK->BHNM", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def exponentials(*scores: jax.Array) -> list[jax.Array]:
    """Computes `exp(s - max)` in float32 of arrays of scores `[..., N, M]` that share one softmax; not normalised."""
    # Callers divide the sum over values by the sum of these numbers, instead of the numbers themselves: this spares the
    # backward pass a reduction over all scores (Dao et al. 2022, section 3.1).
    # Softmax is invariant to a shift, so the gradient of the maximum is zero in the sum and need not be computed.
    scores = tuple(part.astype(jnp.float32) for part in scores)
    highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, (part.max(-1, keepdims=True) for part in scores)))
    return [jnp.exp(part - highest) for part in scores]


def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool, visible: jax.Array | None = None
) -> jax.Array:
    """Computes attention `[B, N, H, K]` without returning probabilities; keys not in `visible [B, N]` are masked."""
    # Heads before tokens: the six products of both passes then read their operands in memory order.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("BHNK,BHMK->BHNM", q * q.shape[-1] ** -0.5, k)
    if causal:
        scores = jnp.where(jnp.tri(q.shape[2], k.shape[2], dtype=bool), scores, -jnp.inf)
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    (weights,) = exponentials(scores)
    total = weights.sum(-1, keepdims=True)
    values = jnp.einsum("BHNM,BHMK->BHNK", weights.astype(v.dtype), v)
    return (values / total).astype(values.dtype).swapaxes(1, 2)


def read_out_exactly(
    q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> jax.Array:
    """Computes `cudnn_attention` in half precision, but the first row, which is the pooled one, in float32."""
    # The pooled row averages over errors of the other rows, but an error of its attention would enter the feature.
    # Named after rounding, so that the backward pass stores half the memory.
    row = checkpoint_name(q[:, :1], QKV)
    q, k, v = (checkpoint_name(x.astype(HALF), QKV) for x in (q, k, v))
    others = cudnn_attention(q, k, v, implementation=implementation)[:, 1:]
    with jax.default_matmul_precision("highest"):
        probabilities = attention_probabilities(row, k.astype(jnp.float32), None)
        row = jnp.einsum("BHNM,BMHK->BNHK", probabilities, v.astype(jnp.float32))
    return jnp.concatenate([row, others.astype(jnp.float32)], axis=1)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: Literal["cudnn", "xla"]) -> jax.Array:
    """Computes `fused_attention` with cuDNN's kernel; each device of the mesh runs it on its share of the images."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        count = q.shape[1]
        if not count % 2:
            return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        # The kernel's gradient takes even numbers of tokens only. An odd number, such as 1 + 196, gets one more token,
        # which no other token sees and whose result is dropped.
        q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (q, k, v))
        # Computed from `q`, so that `vmap` over runs gives the lengths a batch axis, too: the kernel demands it.
        lengths = count + 0 * jnp.isfinite(q[:, 0, 0, 0])
        padded = jax.nn.dot_product_attention(
            q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
        )
        return padded[:, :count]

    # The kernel's batching rule joins `vmap`'s axis and the images to one axis. The partitioner cannot see how that is
    # split, and would gather all queries, keys and values in every layer; `shard_map` states the split.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or DATA not in mesh.auto_axes or q.shape[0] % mesh.shape[DATA]:
        return attend(q, k, v)
    split = PartitionSpec(DATA)
    return jax.shard_map(attend, in_specs=split, out_specs=split, check_vma=False)(q, k, v)


def cudnn_takes(dtype: jnp.dtype, head_width: int) -> bool:
    """Whether cuDNN has a kernel: half precision, heads of at most 128 channels, an NVIDIA GPU from Ampere on."""
    known = dtype in (jnp.bfloat16, jnp.float16) and head_width <= 128 and head_width % 8 == 0
    return known and target().capability >= 8


def mlp_hidden(x: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """Computes `fc1(LN2(x))`: `[..., mlp_width]`."""
    return dense(layer_norm(x, weights["norm2"], config.layer_norm_epsilon), weights["fc1"])


def mlp_output(hidden: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """Computes `fc2(activate(hidden))`: `[..., D]`."""
    if weights["fc2"]["kernel"].dtype == HALF:
        return dense(activate_keeping_half(hidden, config.activation, HIDDEN), weights["fc2"])
    return dense(activate(hidden, config.activation), weights["fc2"])


def mlp(x: jax.Array, weights: Weights, config: TowerConfig) -> jax.Array:
    """Computes the block's second half without its residual: `fc2(activate(fc1(LN2(x))))`."""
    return mlp_output(mlp_hidden(x, weights, config), weights, config)


def outputs(qkv: Weights, first: int, end: int) -> Weights:
    """Returns the weights of queries (0), keys (1) and values (2), from part `first` to before `end`."""
    width = qkv["kernel"].shape[-1] // 3
    part = {name: qkv[name][..., first * width : end * width] for name in ("kernel", "bias")}
    part |= {name: qkv[name][..., first:end, :, :] for name in ("down", "up") if name in qkv}
    if "key" in qkv:
        # With one key for both products, queries and keys would lose the same inputs.
        part |= {"key": jax.random.fold_in(qkv["key"], first), "rate": qkv["rate"]}
    return part


# Rotary positions of Perception Encoder (Bolya et al. 2025).

ROTARY_BASE = 10_000.0  # of the wave lengths


def rotate(heads: jax.Array, config: VisionConfig) -> jax.Array:
    """Rotates queries or keys `[..., N, H, K]` by the positions of their tokens: each pair `a + ib` by `exp(iφ)`."""
    # A head's first half turns by columns, its second half by rows, both counted from 1.
    count = config.width // config.heads // 4
    frequencies = ROTARY_BASE ** (-np.arange(count) / count)
    positions = np.arange(config.patches)
    columns, rows = 1 + positions % config.grid, 1 + positions // config.grid
    of_patches = np.concatenate([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)
    # `[cls]`, and prompts behind the patches, have no position and get the angle 0.
    behind = heads.shape[-3] - config.tokens
    angles = np.pad(of_patches, [(config.first_patch, behind), (0, 0)])[:, None]
    # In float64 while tracing, rounded once.
    cosine, sine = (jnp.asarray(part, jnp.float32) for part in (np.cos(angles), np.sin(angles)))
    pairs = heads.astype(jnp.float32).reshape(*heads.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return turned.reshape(heads.shape).astype(heads.dtype)


# Changes of frozen weights: LoRA, BitFit, LayerNorm tuning.

Changes = Mapping[str, Any]  # a part of a tower's weight tree
LOW_RANK = ("down", "up")
DROPOUT = ("key", "rate")
BESIDE = (*LOW_RANK, *DROPOUT)  # leaves that lie beside a kernel and are not added to it


def changed(weights: Any, changes: Any) -> Any:
    """Adds `changes` to the leaves that they name, and puts pairs of low rank beside their kernels.

    Changes are a part of a tower's weight tree (`params["vision"]` or `params["text"]`, layers stacked):

        {"layers": {"fc2": {"bias": [L, D]}, "qkv": {"down": [L, 3, D, r], "up": [L, 3, r, D]}}, "projection": [D, d]}

    A leaf of the same name and shape is added to the frozen leaf. A pair of low rank (Hu et al. 2022),
    `down [L, P, inputs, r]` and `up [L, P, r, outputs / P]`, changes the `P` parts of a kernel's outputs by
    `down_p @ up_p`: 3 parts of `qkv`, else 1. For dropout on the pair's input, a training step adds `key [L]` and
    `rate [L]` (`product`). `fold_changes` multiplies pairs out, into the weights of a plain CLIP.
    """
    # A leaf: the sum has the wider type, so that float32 changes of bfloat16 kernels are not rounded.
    if not isinstance(changes, Mapping):
        return weights + changes
    merged = {name: changed(weights[name], change) for name, change in changes.items() if name not in BESIDE}
    return {**weights, **merged, **{name: changes[name] for name in BESIDE if name in changes}}


def drops(changes: Changes | None) -> bool:
    """Whether changes have dropout."""
    return any(path[-1] in DROPOUT for path in flatten_dict(changes or {}))


def check_changes(changes: Changes | None, weights: Changes, name: str) -> None:
    """Raises `ClipbiasError` for changes that name no weight of the tower, or differ from it in shape."""
    shapes = {path: np.shape(leaf) for path, leaf in flatten_dict(weights).items()}
    leaves = flatten_dict(changes or {})
    # Before tracing: broadcasting would accept many wrong shapes, and train something else.
    for path, leaf in leaves.items():
        where = "/".join(path)
        shape = np.shape(leaf)
        if path[-1] in BESIDE:
            _check_low_rank(leaves, path[:-1], shapes.get((*path[:-1], "kernel")), name)
        elif path not in shapes:
            raise ClipbiasError(f"{name} changes {where!r}, which is no weight of this tower.")
        elif shape != shapes[path]:
            raise ClipbiasError(f"{name} changes {where!r} by shape {shape}; the weight's is {shapes[path]}.")


def _check_low_rank(
    leaves: Mapping[tuple[str, ...], jax.Array], leaf_path: tuple[str, ...], kernel: tuple[int, ...] | None, name: str
) -> None:
    where = "/".join(leaf_path)
    down, up = (np.shape(leaves.get((*leaf_path, part), 0.0)) for part in LOW_RANK)  # a missing leaf has no axes
    if kernel is None or len(kernel) != 3:
        raise ClipbiasError(f"{name} changes {where!r} by low rank, which is no stack of kernels of this tower.")
    # `qkv` has three parts, so that queries, keys and values change apart (LoRA changes only some of them).
    layers, inputs, outputs = kernel
    parts = 3 if leaf_path[-1] == "qkv" else 1
    rank = down[-1] if down else 0
    expected = (layers, parts, inputs, rank), (layers, parts, rank, outputs // parts)
    if rank == 0 or (down, up) != expected:
        raise ClipbiasError(
            f"{name} changes {where!r} by down {down} and up {up}; expected [{layers}, {parts}, {inputs}, rank] and "
            f"[{layers}, {parts}, rank, {outputs // parts}]."
        )
    for name_of, leaf in ((part, leaves.get((*leaf_path, part))) for part in DROPOUT):
        if leaf is not None and np.shape(leaf) != (layers,):
            raise ClipbiasError(f"{name} has {where}/{name_of} of shape {np.shape(leaf)}; expected ({layers},).")


def fold_changes(weights: Changes, changes: Changes) -> Changes:
    """Adds changes to a tower's weights, low rank multiplied out; changed leaves become float32 NumPy arrays."""
    flat = flatten_dict(weights)
    leaves = flatten_dict(changes)
    added = {path: np.asarray(leaf, np.float32) for path, leaf in leaves.items() if path[-1] not in BESIDE}
    for path in {path[:-1] for path in leaves if path[-1] in LOW_RANK}:
        down, up = (np.asarray(leaves[(*path, part)], np.float32) for part in LOW_RANK)
        # Parts lie side by side among the outputs, as in `product`.
        parts = np.moveaxis(down @ up, 1, 2)  # [L, inputs, P, outputs / P]
        kernel = (*path, "kernel")
        added[kernel] = added.get(kernel, 0) + parts.reshape(*parts.shape[:2], -1)
    # In float32, whatever the weights' type: the caller narrows the result if it is exact.
    folded = {path: np.asarray(flat[path], np.float32) + change for path, change in added.items()}
    return unflatten_dict({**flat, **folded})


def of_layers(changes: Changes | None) -> Changes | None:
    """Returns the changes of a tower's stacked blocks, or `None`."""
    layers = (changes or {}).get("layers")
    return layers if jax.tree.leaves(layers) else None
